"""One GPU of 24 GB: a frozen ViT-L, a frozen Llama 3.1 8B in bfloat16, a projector and an adapter.

    python -m jepa_jax.train --config=configs/qa/lora_24gb.py --workdir=runs/lora \\
        --config.language.path=Llama-3.1-8B-Instruct \\
        --config.data.mixture[0].path=train.jsonl --config.heldout=held.jsonl

The language model takes 15 GiB, adapter and projector small files that load alone:
`convert runs/lora adapter --only projector,adapter`. With `smoke` a minute.
"""

from jepa_jax.config import MixtureConfig, QuestionsConfig, cache_root, parse_arg
from jepa_jax.recipes import smoke


def get_config(arg: str = '') -> QuestionsConfig:
    _, small = parse_arg(arg, 'tune')
    c = QuestionsConfig(name='lora-24gb')
    c.encoder.size, c.encoder_from = 'vitl', 'vitl'
    c.clips.frames, c.clips.fps, c.clips.crop = 16, 1.0, 256
    c.features = str(cache_root() / 'features')
    c.language.path = 'Llama-3.1-8B-Instruct'  # a folder
    c.language.size, c.language.trains = 'llama31-8b', 'adapter'
    c.language.rank, c.language.alpha = 16, 32.0
    c.projector.pool = 2
    c.data.mixture = [MixtureConfig('train.jsonl')]
    c.data.length, c.data.workers = 1024, 4
    c.optim.batch, c.optim.accumulate = 32, 0
    c.optim.steps = 4000
    c.optim.warmup = 120
    c.optim.start_lr, c.optim.lr, c.optim.final_lr = 0.0, 1e-4, 0.0
    c.optim.weight_decay = c.optim.final_weight_decay = 0.0
    c.optim.clip, c.optim.clip_whole = 1.0, True
    c.optim.ipe_scale = 1.0
    c.checkpoints.every = 500
    return smoke(c) if small else c
