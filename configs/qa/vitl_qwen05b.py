"""One GPU of 24 GB: a frozen ViT-L, a projector and a language model of half a billion parameters.

    python -m jepa_jax.train --config=configs/qa/vitl_qwen05b.py --workdir=runs/qa \\
        --config.language.path=Qwen2.5-0.5B-Instruct \\
        --config.data.mixture[0].path=train.jsonl --config.heldout=held.jsonl

Features of the frozen encoder are computed once. `:align` trains the projector alone on captions;
without it projector and language model are trained, best from such a run,
--config.checkpoints.init_from=DIR. `:smoke` is a minute with drawn weights and self-made videos.
"""

from jepa_jax.config import MixtureConfig, QuestionsConfig, cache_root, parse_arg
from jepa_jax.recipes import smoke


def get_config(arg: str = '') -> QuestionsConfig:
    phase, small = parse_arg(arg, 'tune', 'align')
    c = QuestionsConfig(name=f'vitl-qwen05b-{phase}')
    c.encoder.size, c.encoder_from = 'vitl', 'vitl'
    c.clips.frames, c.clips.fps, c.clips.crop = 16, 1.0, 256
    c.features = str(cache_root() / 'features')
    c.language.path = 'Qwen2.5-0.5B-Instruct'  # a folder
    c.language.size = 'qwen25-0.5b'
    c.language.trains = 'nothing' if phase == 'align' else 'all'
    c.projector.pool = 2  # 8 x 8 x 8 = 512 tokens a video
    c.data.mixture = [MixtureConfig('train.jsonl')]
    c.data.length, c.data.workers = 1024, 4
    c.optim.batch, c.optim.accumulate = 64, 0
    c.optim.steps = 4000
    c.optim.warmup = 120  # 3 %, as LLaVA
    c.optim.start_lr = 0.0
    c.optim.lr = 1e-3 if phase == 'align' else 1e-5
    c.optim.final_lr = 0.0
    c.optim.weight_decay = c.optim.final_weight_decay = 0.0
    c.optim.clip, c.optim.clip_whole = 1.0, True
    c.optim.ipe_scale = 1.0
    c.checkpoints.every = 500
    return smoke(c) if small else c
