"""Stages 2 and 3 of the paper's scaled recipe: projector, encoder and language model are trained
(reference: video_qa §1.2).

    python -m jepa_jax.train --config=configs/qa/tune.py:images --workdir=runs/images \\
        --config.checkpoints.init_from=runs/align \\
        --config.language.path=Llama-3.1-8B-Instruct --config.data.mixture[0].path=images.jsonl
    python -m jepa_jax.train --config=configs/qa/tune.py:videos --workdir=runs/videos \\
        --config.checkpoints.init_from=runs/images ...

`:images` is stage 2 (captions and questions about images; 16 frames of a video), `:videos` stage 3
(captions and questions about videos of 32 frames, 9,216 tokens each). The paper's text has batch
1,024 in stage 3, its table 2,048: the table's is taken. Images are cut into tiles, one a tubelet: 8
of 576 tokens in stage 2, where the paper has 16. With `smoke` a minute with drawn weights.
Hardware of the original: 512 GPUs.
"""

from jepa_jax.config import MixtureConfig, QuestionsConfig, parse_arg
from jepa_jax.recipes import smoke


def get_config(arg: str = '') -> QuestionsConfig:
    phase, small = parse_arg(arg, 'images', 'videos')
    last = phase == 'videos'
    c = QuestionsConfig(name=f'qa-{phase}', seed=777, train_encoder=True)
    c.encoder.size, c.encoder_from = 'vitg', 'vitg-384'
    c.clips.frames, c.clips.fps, c.clips.crop = 32 if last else 16, 1.0, 384
    c.clips.images = 'repeated' if small else 'tiles'
    c.language.path = 'Llama-3.1-8B-Instruct'  # a folder
    c.language.size, c.language.trains = 'llama31-8b', 'all'
    c.data.mixture = [MixtureConfig('train.jsonl')]
    c.data.length = 12_800 if last else 6_400
    c.data.placeholder = 'first'
    c.data.workers = 12
    c.optim.batch, c.optim.accumulate, c.mesh.fsdp = 2048, 0, 0
    # stage 3 is laid out over 28,000 steps and stopped at 22,000
    c.optim.steps = 22_000 if last else 35_000
    c.optim.ipe_scale = 28 / 22 if last else 1.0
    c.optim.warmup = 168 if last else 200
    c.optim.start_lr, c.optim.lr = 0.0, 1e-5 if last else 4e-5
    c.optim.final_lr = c.optim.lr / 100
    c.optim.weight_decay = c.optim.final_weight_decay = 0.05
    c.optim.clip, c.optim.clip_whole = 1.0, True
    c.checkpoints.every = 500
    return smoke(c) if small else c
