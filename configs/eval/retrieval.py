"""Which of your own clips lie next to each other: R@1, R@5, R@10 and mean average precision.

    python -m jepa_jax.evaluate --config=configs/eval/retrieval.py --model vitl \
        --config.data.train=clips/

Lists are those of configs/eval/own.py; nothing is trained, and clips of the query's own source do
not count. Baselines are an untrained encoder and pixels.
"""

from jepa_jax.config import RetrievalConfig, parse_words


def get_config(arg: str = '') -> RetrievalConfig:
    _, small = parse_words(arg, ('all',), ('smoke',))
    c = RetrievalConfig(name='retrieval')
    if small:
        c.bootstrap = 100
    return c
