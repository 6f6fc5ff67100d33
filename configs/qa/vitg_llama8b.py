"""The paper's model, its controlled way: ViT-g at 384 pixels frozen, Llama 3.1 8B trained
(reference: video_qa §1.2).

    python -m jepa_jax.train --config=configs/qa/vitg_llama8b.py --workdir=runs/qa \\
        --config.checkpoints.init_from=runs/align \\
        --config.language.path=Llama-3.1-8B-Instruct --config.data.mixture[0].path=train.jsonl

32 frames are 2,304 tokens, means over 2 x 2. Features are computed once. A TPU slice of 64 chips or
64 GPUs of 80 GB; configs/qa/tune.py is the paper's own last stages. With `smoke` a minute.
"""

from jepa_jax.config import MixtureConfig, QuestionsConfig, cache_root, parse_arg
from jepa_jax.recipes import smoke


def get_config(arg: str = '') -> QuestionsConfig:
    _, small = parse_arg(arg, 'tune')
    c = QuestionsConfig(name='vitg-llama8b')
    c.encoder.size, c.encoder_from = 'vitg', 'vitg-384'
    c.clips.frames, c.clips.fps, c.clips.crop = 32, 1.0, 384
    c.features = str(cache_root() / 'features')
    c.language.path = 'Llama-3.1-8B-Instruct'  # a folder
    c.language.size, c.language.trains = 'llama31-8b', 'all'
    c.projector.pool = 2
    c.data.mixture = [MixtureConfig('train.jsonl')]
    c.data.length, c.data.workers = 4096, 12
    c.optim.batch, c.optim.accumulate, c.mesh.fsdp = 256, 0, 0
    c.optim.steps = 20_000
    c.optim.warmup = 600
    c.optim.start_lr, c.optim.lr, c.optim.final_lr = 0.0, 1e-5, 0.0
    c.optim.weight_decay = c.optim.final_weight_decay = 0.0
    c.optim.clip, c.optim.clip_whole = 1.0, True
    c.optim.ipe_scale = 1.0
    c.checkpoints.every = 500
    return smoke(c) if small else c
