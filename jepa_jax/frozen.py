"""Nets that a run uses and never trains: where their weights come from."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import numpy as np

from jepa_jax import distributed, sharding
from jepa_jax.checkpoint import hash_arrays, leaves, read_manifest, read_on_host
from jepa_jax.config import ActionConditionedConfig
from jepa_jax.data.features import FeatureStore
from jepa_jax.data.robot import Contract, check_units, open_recordings
from jepa_jax.errors import ConfigError
from jepa_jax.models.ac_predictor import encode_frames
from jepa_jax.nets import ONCE, Net
from jepa_jax.objectives import Prepared
from jepa_jax.objectives.action_conditioned import ActionConditioned
from jepa_jax.origin import Origin
from jepa_jax.recipes import read_stored

FRAMES = 32  # encoded together on a device


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
    if config.encoder_from == 'random':
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        params = jax.device_get(jax.jit(net.init, compiler_options=ONCE)(key))
    else:
        params = _load(config, net)
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
