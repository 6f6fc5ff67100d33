"""Stage 1 of the paper's scaled recipe: captions of images teach a projector alone (reference:
video_qa §1.2).

    python -m jepa_jax.train --config=configs/qa/align.py --workdir=runs/align \\
        --config.language.path=Llama-3.1-8B-Instruct --config.data.mixture[0].path=captions.jsonl

An image is shown for as many frames as a tubelet has. `:smoke` is a minute with drawn weights.
Hardware of the original: up to 512 GPUs.
"""

from jepa_jax.config import MixtureConfig, QuestionsConfig, parse_arg
from jepa_jax.recipes import smoke


def get_config(arg: str = '') -> QuestionsConfig:
    _, small = parse_arg(arg, 'align')
    c = QuestionsConfig(name='qa-align', seed=777)
    c.encoder.size, c.encoder_from = 'vitg', 'vitg-384'
    c.clips.frames, c.clips.crop = 2, 384
    c.language.path = 'Llama-3.1-8B-Instruct'  # a folder
    c.language.size = 'llama31-8b'
    c.data.mixture = [MixtureConfig('train.jsonl')]
    c.data.length, c.data.visual, c.data.workers = 1920, 1728, 12
    c.data.placeholder = 'first'
    c.optim.batch, c.optim.accumulate, c.mesh.fsdp = 128, 0, 0
    c.optim.steps = 16_000
    c.optim.warmup = 96
    c.optim.start_lr, c.optim.lr, c.optim.final_lr = 0.0, 1e-4, 1e-6
    c.optim.weight_decay = c.optim.final_weight_decay = 0.05
    c.optim.clip, c.optim.clip_whole = 1.0, True
    c.optim.ipe_scale = 1.0
    c.checkpoints.every = 1000
    return smoke(c) if small else c
