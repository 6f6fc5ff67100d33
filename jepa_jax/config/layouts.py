"""Which layouts of videos and of a robot's recordings there are; and whether what a run is to read
is there, as far as that can be told at once."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from jepa_jax.bucket import COPY, is_url
from jepa_jax.config.conversations import SELF_MADE
from jepa_jax.config.parts import WITHOUT_PATH, RobotConfig
from jepa_jax.config.runs import EvalConfig, RunConfig
from jepa_jax.errors import allowed, nearest

# kind of a list -> (path, DataConfig) -> jepa_jax.data.sources.Source, as `module:name`
SOURCES: dict[str, str | Callable[[str, Any], Any]] = {
    'videos': 'jepa_jax.data.sources:videos',  # text list, .npy of paths, manifest .jsonl, folder
    'images': 'jepa_jax.data.sources:images',  # the same, of images
    'tfds': 'jepa_jax.data.sources:Tfds',  # FOLDER[:SPLIT[:FEATURE]] prepared as ArrayRecord
    'shards': 'jepa_jax.data.sources:Shards',  # folder that `jepa shards` wrote
    # the self-made sets, made where they are missing
    **{kind: f'jepa_jax.data.sources:{kind}' for kind in WITHOUT_PATH},
}
# those of which a path may be in a bucket: it is copied
FETCHED = ('videos', 'images', 'shards')
# RobotConfig.kind -> RobotConfig -> jepa_jax.data.robot.Recordings
READERS: dict[str, str] = {
    'droid': 'jepa_jax.data.robot.droid:Droid',
    'lerobot': 'jepa_jax.data.robot.lerobot:LeRobot',
    'npz': 'jepa_jax.data.robot.npz_recordings:Npz',
    'rlds': 'jepa_jax.data.robot.rlds:Rlds',
    'synthetic': 'jepa_jax.data.robot.self_made:SelfMade',
}


def kinds(config: RunConfig | RobotConfig) -> Iterator[str]:
    """Complaints about layouts that there are not."""
    for i, item in enumerate(getattr(getattr(config, 'data', None), 'lists', ())):
        if item.kind not in SOURCES:
            yield f"data.lists[{i}].kind = '{item.kind}': {allowed(item.kind, SOURCES)}"
    robot = config if isinstance(config, RobotConfig) else getattr(config, 'robot', None)
    if isinstance(robot, RobotConfig) and robot.kind not in READERS:
        yield f"robot.kind = '{robot.kind}': {allowed(robot.kind, READERS)}"


def missing(config: RunConfig, workdir: str | os.PathLike) -> Iterator[str]:
    """Complaints about paths of a run that lead nowhere; a finished run reads nothing any more, one
    that has begun starts nowhere else."""
    folder = pathlib.Path(workdir)
    if (folder / 'report.json').exists():
        return
    for i, item in enumerate(getattr(config.data, 'lists', ())):
        if item.kind not in WITHOUT_PATH:
            path = item.path.partition(':')[0] if item.kind == 'tfds' else item.path
            if not (item.kind in FETCHED and is_url(item.path)):
                yield from _elsewhere(f'data.lists[{i}].path', item.path, SOURCES.get(item.kind))
            yield from absent(f'data.lists[{i}].path', path)
    for i, item in enumerate(getattr(config.data, 'mixture', ())):
        for name in ('path', 'folder'):
            if (path := getattr(item, name)) and path != SELF_MADE:
                yield from absent(f'data.mixture[{i}].{name}', path)
    if (path := getattr(config, 'heldout', '')) and path != SELF_MADE:
        yield from absent('heldout', path)
    robot = getattr(config, 'robot', None)
    if isinstance(robot, RobotConfig) and robot.path:
        yield from _elsewhere('robot.path', robot.path, READERS.get(robot.kind))
        yield from absent('robot.path', robot.path)
    evals = enumerate(getattr(config, 'evals', ()))
    labelled = {'labels': config, **{f'evals[{i}].labels': each for i, each in evals}}
    for field, holder in labelled.items():
        for name in ('train', 'test'):
            if path := getattr(getattr(holder, 'labels', None), name, ''):
                yield from absent(f'{field}.{name}', path)
    if not any(folder.glob('checkpoints/[0-9]*')):
        for name in ('resume_from', 'init_from'):
            if path := getattr(config.checkpoints, name):
                if is_url(path):
                    yield f"checkpoints.{name} = '{path}': must be a path of a file system; {COPY}"
                yield from absent(f'checkpoints.{name}', path)


def missing_sets(config: EvalConfig, workdir: str | os.PathLike) -> Iterator[str]:
    """Complaints about paths of an evaluation that lead nowhere; a finished one reads nothing."""
    if not (pathlib.Path(workdir) / 'report.json').exists():
        for name in ('train', 'test', 'path', 'videos'):
            if path := getattr(getattr(config, 'data', None), name, ''):
                yield from absent(f'data.{name}', path)


def _elsewhere(field: str, path: str, reader: object) -> Iterator[str]:
    """A complaint about a bucket that is to be read by one of our own readers, which read files."""
    if '://' in path and str(reader).startswith('jepa_jax.'):
        yield f"{field} = '{path}': must be a file or folder of a file system; mount the bucket"


def absent(field: str, path: str) -> Iterator[str]:
    """A complaint if nothing is at a path; those of other file systems are not looked at."""
    place = pathlib.Path(path).expanduser()
    if '://' in path or place.exists():
        return
    beside = os.listdir(place.parent) if place.parent.is_dir() else ()
    near = nearest(place.name, beside)
    yield f"{field}: '{path}' cannot be read: No such file or directory{near}"
