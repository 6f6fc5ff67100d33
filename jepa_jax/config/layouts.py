"""Which layouts of videos and of a robot's recordings there are; and whether what a run is to read
is there, as far as that can be told at once."""

from __future__ import annotations

import functools
import operator
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from jepa_jax.bucket import Bucket, is_url
from jepa_jax.config import store
from jepa_jax.config.action_conditioned import both_grippers
from jepa_jax.config.check import types_and_ranges
from jepa_jax.config.conversations import SELF_MADE, MixtureConfig
from jepa_jax.config.parts import (
    WITHOUT_PATH,
    CheckpointsConfig,
    DataListConfig,
    LabelledListConfig,
    RobotConfig,
)
from jepa_jax.config.questions import QuestionsConfig
from jepa_jax.config.runs import EvalConfig, RunConfig
from jepa_jax.errors import ConfigError, allowed, nearest

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
# those of which a path may end with the name of a split: FOLDER:SPLIT
SPLIT = ('tfds', 'rlds')
# RobotConfig.kind -> RobotConfig -> jepa_jax.data.robot.Recordings
READERS: dict[str, str] = {
    'droid': 'jepa_jax.data.robot.droid:Droid',
    'lerobot': 'jepa_jax.data.robot.lerobot:LeRobot',
    'npz': 'jepa_jax.data.robot.npz_recordings:Npz',
    'rlds': 'jepa_jax.data.robot.rlds:Rlds',
    'synthetic': 'jepa_jax.data.robot.self_made:SelfMade',
}


def kinds(config: RunConfig | RobotConfig, field: str = '') -> Iterator[str]:
    """Complaints about layouts that there are not; field: where `config` stands."""
    for name, part in store.parts(config, field):
        yield from _unknown(part, name)


@functools.singledispatch
def _unknown(part: Any, name: str) -> Iterator[str]:
    """Of one part of a config, by its class."""
    return iter(())


@_unknown.register
def _(part: DataListConfig, name: str) -> Iterator[str]:
    if part.kind not in SOURCES:
        yield f"{name}.kind = '{part.kind}': {allowed(part.kind, SOURCES)}"


@_unknown.register
def _(part: RobotConfig, name: str) -> Iterator[str]:
    if part.kind not in READERS:
        yield f"{name}.kind = '{part.kind}': {allowed(part.kind, READERS)}"


def in_place(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that replace those of other recordings: what 1 means replaces a range of the
    gripper, and a range what 1 means."""
    if 'gripper' in fields:
        return {'gripper_range': (0.0, 0.0), **fields}
    return {'gripper': 'closed', **fields} if 'gripper_range' in fields else fields


def of_flags(data: RobotConfig) -> RobotConfig:
    """The recordings that flags of a command name, checked as a run's are.

    Raises:
      ConfigError: no such kind, no path or nothing there, a value out of its range.
    """
    try:
        types_and_ranges(data)
    except ConfigError as error:
        raise ConfigError(f'robot.{error}') from error
    complaints = [*kinds(data, 'robot'), *both_grippers(data)]
    if data.path:
        complaints += absent('robot.path', _folder(data))
    elif data.kind != 'synthetic':
        complaints.append(f"robot.path is empty: kind '{data.kind}' needs --path PATH")
    if complaints:
        raise ConfigError(complaints[0])
    return data


def missing(config: RunConfig, workdir: str | os.PathLike) -> Iterator[str]:
    """Complaints about paths of a run that lead nowhere; a finished run reads nothing any more, one
    that has begun starts nowhere else."""
    folder = pathlib.Path(workdir)
    if (folder / 'report.json').exists():
        return
    begun = any(folder.glob('checkpoints/[0-9]*'))
    for name, part in store.parts(config):
        if not (begun and part is config.checkpoints):
            yield from _nowhere(part, name)


@functools.singledispatch
def _nowhere(part: Any, name: str) -> Iterator[str]:
    """Of one part of a config, by its class."""
    return iter(())


@_nowhere.register
def _(part: DataListConfig, name: str) -> Iterator[str]:
    if part.kind not in WITHOUT_PATH:
        if not (part.kind in FETCHED and is_url(part.path)):
            yield from _elsewhere(f'{name}.path', part.path, SOURCES.get(part.kind))
        yield from absent(f'{name}.path', _folder(part))


@_nowhere.register
def _(part: MixtureConfig, name: str) -> Iterator[str]:
    for field, path in (('path', part.path), ('folder', part.folder)):
        if path != SELF_MADE:
            yield from _unless_empty(f'{name}.{field}', path)


@_nowhere.register
def _(part: QuestionsConfig, name: str) -> Iterator[str]:
    if part.heldout != SELF_MADE:
        yield from _unless_empty('heldout', part.heldout)
    yield from _unless_empty('heldout_folder', part.heldout_folder)


@_nowhere.register
def _(part: RobotConfig, name: str) -> Iterator[str]:
    if part.path:
        yield from _elsewhere(f'{name}.path', part.path, READERS.get(part.kind))
        yield from absent(f'{name}.path', _folder(part))


@_nowhere.register
def _(part: LabelledListConfig, name: str) -> Iterator[str]:
    yield from _unless_empty(f'{name}.train', part.train)
    yield from _unless_empty(f'{name}.test', part.test)


@_nowhere.register
def _(part: CheckpointsConfig, name: str) -> Iterator[str]:
    for field, path in (('resume_from', part.resume_from), ('init_from', part.init_from)):
        if is_url(path):
            yield from _no_address(f'{name}.{field}', path)
        else:
            yield from _unless_empty(f'{name}.{field}', path)


def _no_address(field: str, url: str) -> Iterator[str]:
    try:
        Bucket(url)
    except ConfigError as error:
        yield f'{field} = {error}'


def missing_sets(config: EvalConfig, workdir: str | os.PathLike) -> Iterator[str]:
    """Complaints about paths of an evaluation that lead nowhere; a finished one reads nothing."""
    if not (pathlib.Path(workdir) / 'report.json').exists():
        for field in config.places:
            yield from _unless_empty(field, operator.attrgetter(field)(config))


def _elsewhere(field: str, path: str, reader: object) -> Iterator[str]:
    """A complaint about a bucket that is to be read by one of our own readers, which read files."""
    if '://' in path and str(reader).startswith('jepa_jax.'):
        yield f"{field} = '{path}': must be a file or folder of a file system; mount the bucket"


def _folder(part: DataListConfig | RobotConfig) -> str:
    """The path that must lead somewhere: without the split that may follow it."""
    split = part.kind in SPLIT and '://' not in part.path
    return part.path.partition(':')[0] if split else part.path


def _unless_empty(field: str, path: str) -> Iterator[str]:
    if path:
        yield from absent(field, path)


def absent(field: str, path: str) -> Iterator[str]:
    """A complaint if nothing is at a path; those of other file systems are not looked at."""
    place = pathlib.Path(path).expanduser()
    if '://' in path or place.exists():
        return
    beside = os.listdir(place.parent) if place.parent.is_dir() else ()
    near = nearest(place.name, beside)
    yield f"{field}: '{path}' cannot be read: No such file or directory{near}"
