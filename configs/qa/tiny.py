"""A small honest experiment: questions about self-made videos, with the encoder of the main job and
with a random one, at 40, 80 and all training clips (reference: video_qa §4).

    python -m jepa_jax.train --config=configs/qa/tiny.py --config.encoder_from=runs/tiny

runs/tiny is a finished run of configs/tiny.py; without it the study trains that first. One seed;
`:three` three, to be left alone. Reported: pairs of views forwards and backwards, answered right
both, with intervals, beside blind, shuffled frames, one frame; side and digit; docs/video_qa.md.
`smoke` is a few steps of everything.
"""

from jepa_jax.cli import load
from jepa_jax.config import parse_words
from jepa_jax.config.questions_study import QuestionsStudyConfig
from jepa_jax.lookup import shipped


def get_config(arg: str = '') -> QuestionsStudyConfig:
    phase, words = parse_words(arg, ('one', 'three'), ('smoke',))
    c = QuestionsStudyConfig(name='questions-tiny', seeds=3 if phase == 'three' else 1)
    small = 'smoke' in words
    c.words_steps, c.words_lr = 1500, 6e-3  # until it reads what is told almost without error
    # 4,000 steps of captions, 8,100 of questions, of 800 clips; 200 and 900 were too few for these
    c.align_times, c.ask_times = 40, 81
    c.pretrain = load(f'{shipped("configs") / "tiny.py"}{":smoke" if small else ""}')
    a = c.answer
    a.compute_dtype = 'float32'
    a.clips.frames, a.clips.crop = c.pretrain.data.frames, c.pretrain.data.crop
    a.language.size, a.language.trains = 'tiny', 'all'
    a.projector.hidden, a.projector.joined, a.projector.standardised = 128, True, True
    a.data.visual = (a.clips.crop // c.pretrain.encoder.patch) ** 2
    a.data.length, a.data.packed = 96, False  # the longest of the videos is 77, of the told 80
    a.mesh.remat = 'none'
    a.optim.batch, a.optim.steps, a.optim.warmup = 48, 900, 20
    a.optim.start_lr, a.optim.lr, a.optim.final_lr = 0.0, 3e-3, 0.0
    a.optim.weight_decay = a.optim.final_weight_decay = 0.01
    a.optim.clip, a.optim.clip_whole, a.optim.ipe_scale = 1.0, True, 1.0
    a.heldout_rows = 32
    a.checkpoints.every, a.checkpoints.keep = 300, 1
    a.logging.every, a.logging.health_every = 50, 300
    if small:
        c.align_times = c.ask_times = 0
        c.clips, c.questions, c.test_clips, c.bootstrap = '4,8', 60, 4, 50
        c.words_steps = c.align_steps = a.optim.steps = 4
        a.optim.warmup, a.optim.batch = 1, 8
    return c
