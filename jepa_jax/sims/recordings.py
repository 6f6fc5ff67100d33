"""Recordings of the simulated arm at play: a folder of NAME.mp4 and NAME.npz, the layout `npz` of
jepa_jax/data/robot/.

An episode is one of three kinds. `explore`: the tool drifts about, the gripper opens and closes at
random. `reach`: it goes to one place after another, half of them at the cube. `pick`: it picks the
cube up, carries it and puts it down. Every episode has noise of its own strength on its actions,
so that the model also sees what misses. A model that is to plan from any state needs the first two,
one that is to grasp needs the third. (reference: world_models §5.1)

An episode is a function of (settings, number) alone: the same command started again resumes
where it was interrupted, and the files are the same for any number of processes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import math
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jepa_jax.config import CollectionConfig
from jepa_jax.data import synthetic
from jepa_jax.errors import SimError, allowed
from jepa_jax.sims.panda import RATE, WORKSPACE, Panda
from jepa_jax.sims.scene import CUBE_AREA
from jepa_jax.sims.tasks import START, TASKS, grasp_poses, place_poses, script
from jepa_jax.sims.variation import SCENES
from jepa_jax.workdir import write_json

VERSION = 4  # part of every seed: change it with anything that changes a recording
BLOCK = 4  # episodes that a process makes at a time
FILE = 'collection.json'


def check(settings: CollectionConfig) -> None:
    """Refuses what cannot be recorded.

    Raises:
      SimError: names the setting, its value and what is allowed.
    """
    for name, least in (
        ('episodes', 1), ('frames', 2), ('image_size', 16), ('seed', 0), ('noise', 0),
    ):  # fmt: skip
        if not least <= getattr(settings, name) < math.inf:
            raise SimError(f'{name} {getattr(settings, name)}: must be at least {least}')
    if not 0 < settings.max_step < math.inf:
        raise SimError(f'max_step {settings.max_step:g}: must be finite and more than 0 metres')
    if settings.image_size > 512:  # as Panda has it
        raise SimError(f'image_size {settings.image_size}: must be at most 512 pixels')
    if settings.image_size % 2:
        raise SimError(f'image_size {settings.image_size}: must be even, as H.264 wants it')
    if settings.scenes not in SCENES:
        raise SimError(f"scenes '{settings.scenes}': {allowed(settings.scenes, SCENES)}")
    if settings.vary and settings.scenes not in ('standard', 'moderate'):
        raise SimError(f"vary with scenes '{settings.scenes}': it means 'moderate'; leave it out")
    shares = _shares(settings)
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise SimError(f'shares of {", ".join(KINDS)} are {shares}: they must add up to 1')


def collect(folder: str | os.PathLike, settings: CollectionConfig, workers: int = 0) -> int:
    """Records the episodes that the folder lacks; shows a progress bar; returns how many it made.

    workers: processes; 0: this one. They are spawned, so a script that calls this with workers
      needs `if __name__ == '__main__'`.

    Raises:
      SimError: settings that cannot work, or the folder holds a collection with others (more
        episodes are fine), or this machine cannot draw.
    """
    check(settings)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, settings)
    missing = [i for i in range(settings.episodes) if not (folder / f'{_name(i)}.npz').exists()]
    blocks = [missing[i : i + BLOCK] for i in range(0, len(missing), BLOCK)]
    work = functools.partial(_record_block, folder, settings)
    with tqdm(
        total=settings.episodes,
        initial=settings.episodes - len(missing),
        desc='episodes',
        unit='ep',
        disable=None,
    ) as bar:
        if not workers:
            for block in blocks:
                bar.update(work(block))
            return len(missing)
        context = multiprocessing.get_context('spawn')  # OpenGL and JAX do not survive a fork
        with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
            futures = [pool.submit(work, block) for block in blocks]
            try:
                for future in concurrent.futures.as_completed(futures):
                    bar.update(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return len(missing)


def record(settings: CollectionConfig, index: int, panda: Panda) -> dict[str, np.ndarray]:
    """Episode `index`, in a scene that has its variation: `frames` uint8 [T, H, W, 3], `states`
    [T, 7] as measured, `commands` [T - 1, 7] as asked for, `cube` [T, 3] its centre."""
    rng = _rng(settings, index, 'play')
    kind = rng.choice(list(KINDS), p=np.array(_shares(settings)) / sum(_shares(settings)))
    panda.place(
        rng.uniform(*START), cube=rng.uniform(*CUBE_AREA), turn=float(rng.uniform(-0.3, 0.3))
    )
    limit = settings.max_step
    actions = KINDS[kind](panda, rng, limit)
    strength = rng.uniform(0, settings.noise)
    rows: dict[str, list] = {'frames': [], 'states': [], 'cube': [], 'commands': []}
    for t in range(settings.frames):
        if t:
            action = next(actions)
            action[:3] = np.clip(action[:3] + rng.normal(0, strength, 3), -limit, limit)
            panda.act(action)
            rows['commands'].append(action)
        rows['frames'].append(panda.draw())
        rows['states'].append(panda.state())
        rows['cube'].append(panda.cube())
    return {key: np.stack(value) for key, value in rows.items()}


def _explore(panda: Panda, rng: np.random.Generator, limit: float) -> Iterator[np.ndarray]:
    """Velocity that forgets itself over about three actions (Ornstein-Uhlenbeck), pulled back to
    the middle near the border."""
    speed, middle = np.zeros(3), WORKSPACE.mean(0)
    while True:
        speed = 0.7 * speed + rng.normal(0, limit / 2, 3)
        state = panda.state()
        pull = 0.08 * (middle - state[:3])
        yield _action(speed + pull, _toggle(rng, state[6], 0.5))


def _reach(panda: Panda, rng: np.random.Generator, limit: float) -> Iterator[np.ndarray]:
    while True:
        near = rng.random() < 0.5
        goal = panda.cube() + [0, 0, rng.uniform(0, 0.15)] if near else rng.uniform(*WORKSPACE)
        for _ in range(rng.integers(4, 9)):
            state = panda.state()
            closing = _toggle(rng, state[6], 0.3)
            yield _action(script(state, np.array([*goal, np.pi, 0, 0, 0]), limit)[:3], closing)


def _pick(panda: Panda, rng: np.random.Generator, limit: float) -> Iterator[np.ndarray]:
    counts = [count for _, count in TASKS['pick_and_place']]
    while True:
        poses = grasp_poses(panda) + place_poses(panda, rng.uniform(*CUBE_AREA))
        for pose, most in zip(poses, counts):
            for _ in range(most):
                state = panda.state()
                action = script(state, pose, limit)
                if np.abs(action[:3]).max() < 0.01 and abs(action[6]) < 0.05:
                    break
                yield _action(action[:3], _toggle(rng, state[6], 0.15) or action[6])


KINDS = {'explore': _explore, 'reach': _reach, 'pick': _pick}


def _action(moved: np.ndarray, closing: float) -> np.ndarray:
    return np.array([*moved, 0, 0, 0, closing])


def _toggle(rng: np.random.Generator, closed: float, chance: float) -> float:
    """Change of closedness: to somewhere else by chance, mostly none."""
    return float(rng.random() - closed) if rng.random() < chance else 0.0


def _rng(settings: CollectionConfig, index: int, use: str) -> np.random.Generator:
    return np.random.default_rng([VERSION, settings.seed, index, len(use)])


def _shares(settings: CollectionConfig) -> tuple[float, ...]:
    return tuple(getattr(settings, kind) for kind in KINDS)


def _name(index: int) -> str:
    return f'episode_{index:06d}'


def _claim(folder: Path, settings: CollectionConfig) -> None:
    """Writes the settings into the folder, or checks those that are there."""
    path = folder / FILE
    own = {'version': VERSION, **dataclasses.asdict(settings)}
    if path.exists():
        stored = {'scenes': CollectionConfig.scenes} | json.loads(path.read_text())
        apart = [k for k in own if k != 'episodes' and stored.get(k) != own[k]]
        if apart:
            words = ', '.join(f'{k} {stored.get(k)} there, {own[k]} here' for k in apart)
            raise SimError(f'{folder} holds another collection: {words}; name another folder')
        if stored['episodes'] > own['episodes']:
            raise SimError(
                f'{folder} holds {stored["episodes"]} episodes, {own["episodes"]} are asked for: '
                'readers take all that lie there; name another folder'
            )
        if stored == own:
            return
    elif other := next(folder.rglob('*.npz'), None):
        raise SimError(
            f'{folder} holds recordings that are no collection ({other.relative_to(folder)}): '
            'readers take all that lie there; name another folder'
        )
    write_json(path, own)


def _record_block(folder: Path, settings: CollectionConfig, block: list[int]) -> int:
    panda = None
    draw = SCENES['moderate' if settings.vary else settings.scenes]
    try:
        for index in block:
            drawn, _ = draw(_rng(settings, index, 'scene'))
            if panda is None or panda.variation != drawn:
                if panda is not None:
                    panda.close()
                panda = Panda(settings.image_size, drawn)
            episode = record(settings, index, panda)
            frames = episode.pop('frames')
            stem = folder / _name(index)
            video, arrays = stem.with_suffix('.mp4'), stem.with_suffix('.npz')
            partial = folder / f'.partial-{video.name}'
            synthetic.write(partial, frames, fps=RATE, lossless=True)
            os.replace(partial, video)
            partial = folder / f'.{arrays.name}.partial'
            with open(partial, 'wb') as file:
                np.savez(file, **episode)
            os.replace(partial, arrays)  # last: where it is, the episode is whole
    finally:
        if panda is not None:
            panda.close()
    return len(block)
