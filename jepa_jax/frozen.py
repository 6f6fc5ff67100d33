"""Nets that a run uses and never trains: where their weights come from."""

from __future__ import annotations

import dataclasses
import logging
import pathlib

import jax
import numpy as np

from jepa_jax import distributed, sharding
from jepa_jax.checkpoint import hash_arrays, leaves, read_manifest, read_on_host
from jepa_jax.config import ActionConditionedConfig, MaskedVideoConfig
from jepa_jax.data.features import FeatureStore
from jepa_jax.data.robot import Contract, check_units, open_recordings
from jepa_jax.errors import ConfigError
from jepa_jax.models.ac_predictor import encode_frames
from jepa_jax.nets import ONCE, Net
from jepa_jax.objectives import Prepared
from jepa_jax.objectives.action_conditioned import ActionConditioned
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.origin import Origin
from jepa_jax.recipes import read_stored
from jepa_jax.weights.parts import TEACHER

FRAMES = 32  # encoded together on a device
RANDOM = 'random'  # in place of a name: an encoder that is not trained, for tests of the pipes

log = logging.getLogger(__name__)


def encoder_of_recordings(
    config: ActionConditionedConfig, objective: ActionConditioned, origin: Origin
) -> Prepared:
    """The frozen encoder, and the features of all recordings if the config names a folder to keep
    them in.

    Raises:
      ConfigError: the run that this one starts from was on another robot or another encoder, or
        the encoder is another one than the config describes.
      BadFile: all recordings that were looked at are in other units than the config says.
      ZooError, ConvertError, CheckpointError: the encoder cannot be had.
    """
    if origin.folder:
        _same_robot(config, origin.folder)
    check_units(open_recordings(config.robot), config.robot)
    params = _encoder(config, objective, origin)
    weights = {'encoder': params}
    if not config.features:
        return Prepared(frozen=weights)
    store = FeatureStore(config, objective.encoder_config, hash_arrays(weights))
    _fill(store, config, objective.kept['encoder'], params)
    return Prepared(kept=weights, data=store)


def _same_robot(config: ActionConditionedConfig, folder: pathlib.Path) -> None:
    extra = read_manifest(folder)['extra']
    if 'config' not in extra:
        return
    before = read_stored(extra, folder)
    if before.objective == config.objective:
        Contract.of(config.robot).check(dataclasses.asdict(Contract.of(before.robot)))


def _encoder(config: ActionConditionedConfig, objective: ActionConditioned, origin: Origin) -> dict:
    """Its parameters on the host: those that the run began with, else those that the config
    names."""
    held = origin.folder and any(n.startswith('frozen/encoder/') for n in leaves(origin.folder))
    if held and origin.same_run:
        return read_on_host(origin.folder, 'frozen/encoder')
    net = (objective.frozen or objective.kept)['encoder']
    params = _random(net, config.seed) if config.encoder_from == RANDOM else _load(config, net)
    if held:
        before = read_on_host(origin.folder, 'frozen/encoder')
        if hash_arrays({'encoder': before}) != hash_arrays({'encoder': params}):
            raise ConfigError(
                f'encoder_from = {config.encoder_from!r}: another encoder than that of '
                f'{origin.folder}, from which this run starts; its predictor knows no other'
            )
    return params


def _load(config: ActionConditionedConfig, net: Net) -> dict:
    from jepa_jax.weights import parts, zoo

    weights = zoo.find(config.encoder_from)
    if weights.encoder is None:
        raise ConfigError(f'encoder_from = {config.encoder_from!r}: holds no encoder')
    if other := parts.differences(weights.encoder, net.config):
        raise ConfigError(
            f'encoder_from = {config.encoder_from!r}: another encoder than config.encoder '
            f'describes: {"; ".join(other)}'
        )
    return weights.params('target')


def teacher(config: MaskedVideoConfig, objective: MaskedVideo, origin: Origin) -> Prepared:
    """The teacher that a run is distilled from, if it has one.

    Raises:
      ConfigError: it is another encoder than the config describes, or was trained on clips of
        another version, crop or rate than this run's.
      ZooError, ConvertError, CheckpointError: it cannot be had.
    """
    if not objective.frozen:
        return Prepared()
    if origin.same_run:
        return Prepared(frozen={TEACHER: read_on_host(origin.folder, f'frozen/{TEACHER}')})
    net = objective.frozen[TEACHER]
    params = _random(net, config.seed) if config.teacher == RANDOM else _teacher(config, net)
    log.info('teacher: %s, sha256 %s', config.teacher, hash_arrays({TEACHER: params}))
    return Prepared(frozen={TEACHER: params})


def _teacher(config: MaskedVideoConfig, net: Net) -> dict:
    from jepa_jax.weights import parts, zoo

    name, weights = f'teacher = {config.teacher!r}', zoo.find(config.teacher)
    if weights.encoder is None:
        raise ConfigError(f'{name}: holds no encoder')
    version = parts.version_of('encoder', weights.encoder)
    if version != config.version:
        raise ConfigError(
            f"{name}: is of V-JEPA {version}, objective '{config.objective}' trains encoders of "
            f'{config.version}'
        )
    if other := parts.differences(weights.encoder, net.config):
        raise ConfigError(
            f'{name}: another encoder than config.teacher_encoder describes: {"; ".join(other)}; '
            'set --config.teacher_encoder.size, or its width, depth, heads, patch'
        )
    views = {'crop': (weights.encoder.image_size, config.data.crop)}
    if weights.fps and config.data.fps:
        views['fps'] = weights.fps, config.data.fps
    other = [
        f'{key} {theirs:g}, data.{key} = {ours:g} here'
        for key, (theirs, ours) in views.items()
        if theirs != ours
    ]
    if other and not config.teacher_other_view:
        raise ConfigError(
            f'{name}: was trained at {"; ".join(other)}; --config.teacher_other_view=true takes it '
            'all the same'
        )
    return weights.params('target')


def _random(net: Net, seed: int) -> dict:
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return jax.device_get(jax.jit(net.init, compiler_options=ONCE)(key))


def _fill(store: FeatureStore, config: ActionConditionedConfig, net: Net, params: dict) -> None:
    """Computes the features that are not there yet, on all devices of each process."""
    local = sharding.make_mesh(1, jax.local_devices())
    tubelet = net.config.tubelet

    @jax.jit
    def encode(params: dict, frames: jax.Array) -> jax.Array:
        return encode_frames(net, params, frames[:, None], tubelet)[:, 0]

    with jax.set_mesh(local):
        whole = jax.device_put(params, jax.NamedSharding(local, jax.P()))

        def features(frames: np.ndarray) -> np.ndarray:
            split = jax.device_put(frames, jax.NamedSharding(local, sharding.BATCH))
            return np.asarray(encode(whole, split))

        store.fill(
            open_recordings(config.robot),
            features,
            batch=FRAMES * local.size,
            process=jax.process_index(),
            processes=jax.process_count(),
        )
    distributed.any_process(False)  # each reads what the others computed, so waits for them
