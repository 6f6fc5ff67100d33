"""The closed loop in simulation: a Panda-like arm plays, V-JEPA learns to see it and what actions
do, and cross-entropy planning reaches goal images with it.

    pip install 'jepa_jax[sim]'
    python -m jepa_jax.train --config=configs/sim_panda.py:ci

Collects recordings, pretrains an encoder on them, keeps its features, post-trains the
action-conditioned predictor and plans with it, all in one workdir; the same command goes on where
it was. report.json then has `tasks`, a row a task beside what an untrained predictor, chance, doing
nothing and a script that knows everything reach; episodes_*.png shows episodes. All of it is
in-domain simulation: it says nothing about a real robot.

`:ci`, the only size so far, is reaching with small nets on 64 pixels, to see that the parts fit.
What success it has is not established yet.
"""

from jepa_jax.config import ConfigError, MaskBlocks, SimConfig


def get_config(arg: str = 'ci') -> SimConfig:
    if arg != 'ci':
        raise ConfigError(f"argument '{arg}': allowed is ci")
    c = SimConfig(name='sim-panda')
    c.collection.episodes, c.collection.frames = 240, 16
    c.collection.image_size = 64
    c.collection.explore, c.collection.reach, c.collection.pick = 0.5, 0.5, 0.0

    p = c.pretrain
    p.compute_dtype = 'float32'
    p.encoder.size = 'tiny'
    p.encoder.width, p.encoder.depth, p.encoder.heads, p.encoder.patch = 96, 2, 4, 16
    p.predictor.width, p.predictor.depth, p.predictor.heads = 48, 1, 2
    # the larger of the released masks, blocks of one shape: one program to compile
    p.masks = [MaskBlocks(num_blocks=2, spatial_scale=(0.7, 0.7), aspect_ratio=(1.0, 1.0))]
    p.mesh.remat = 'none'
    p.data.frames, p.data.fps = 8, 4
    p.data.augment.scale, p.data.augment.ratio = (1.0, 1.0), (1.0, 1.0)
    p.data.augment.flip = False  # a mirrored arm moves the other way
    p.optim.batch, p.optim.steps, p.optim.warmup = 32, 150, 30
    p.optim.start_lr, p.optim.lr, p.optim.final_lr = 2e-4, 1e-3, 1e-5
    p.optim.stretch = 1.0
    p.optim.momentum = p.optim.final_momentum = 0.99
    p.checkpoints.every = 150
    p.logging.health_every = 50

    a = c.posttrain
    a.mesh.remat = 'none'
    a.ac.width, a.ac.depth, a.ac.heads = 96, 2, 4
    a.ac.residual = True
    a.ac.action_scale = (25.0, 25.0, 25.0, 1.0, 1.0, 1.0, 2.0)
    a.robot.frames = 3
    a.optim.batch, a.optim.steps, a.optim.warmup = 64, 600, 50
    a.optim.start_lr, a.optim.lr, a.optim.final_lr = 1e-4, 1e-3, 1e-5
    a.optim.stretch = 1.0
    a.checkpoints.every = 300
    a.logging.health_every = 100

    e = c.evaluation
    e.tasks, e.episodes = 'reach', 20
    e.samples, e.iterations, e.elites, e.horizon = 64, 4, 8, 1
    return c
