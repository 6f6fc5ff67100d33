"""What features tell of the self-made videos, whose labels are known."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from pathlib import Path

import jax
import numpy as np

from jepa_jax.config import SELF_MADE, DataConfig, SelfMadeConfig
from jepa_jax.data import synthetic
from jepa_jax.errors import ConfigError
from jepa_jax.evals import Figure, Results, entries, pictures, video
from jepa_jax.weights.parts import net

log = logging.getLogger(__name__)


def labelled(data: DataConfig) -> tuple[video.LabelledClips, video.LabelledClips]:
    """Training and test clips of the first self-made list, with their labels; it is made where no
    run has made it.

    Raises:
      ConfigError: there is no such list, or its folder holds something else.
    """
    entry = next((entry for entry in data.lists if entry.kind in SELF_MADE), None)
    if entry is None:
        raise ConfigError(f'data.lists: none is self-made (kind {" or ".join(SELF_MADE)})')
    try:
        synthetic.ensure(entry.kind, entry.path)
    except ValueError as error:
        raise ConfigError(f'data.lists: {error}') from error
    listed = entries.made(entry)
    clips = video.read_clips(listed.paths, data)
    train, test = (
        video.LabelledClips(clips[side], {k: v.words[side] for k, v in listed.labels.items()})
        for side in (~listed.test, listed.test)
    )
    return train, test


def run(model, config: SelfMadeConfig, workdir: Path) -> Results:
    """Probes on the model's features beside untrained encoders of its shape, pixels, and clips
    whose frames were shuffled."""
    train, test = labelled(config.data)
    fresh = net('encoder', model.config)
    encode = jax.jit(fresh)
    keys = jax.random.split(jax.random.key(config.seed + 1), config.probe.seeds)
    measured = video.measure(
        model.encode,
        [functools.partial(encode, fresh.init(key)) for key in keys],
        train,
        test,
        config.probe,
        say=log.info,
    )
    clip = test.clips[:1]
    grid = model.config.grid(*clip.shape[1:4])
    pictures.plot_features(
        clip[0],
        np.asarray(model.encode(clip))[0].reshape(*grid, -1),
        workdir / 'features.png',
        title='features of one test clip',
    )
    count = len(test.clips)

    def figure(row: dict[str, float]) -> Figure:
        return Figure(row['mean'], row['low'], row['high'], count)

    digest = hashlib.sha256(test.clips.tobytes())
    digest.update(json.dumps({k: v.tolist() for k, v in test.labels.items()}).encode())
    return Results(
        results={label: figure(rows['target']) for label, rows in measured.items()},
        baselines={
            f'{label}, {name}': figure(row)
            for label, rows in measured.items()
            for name, row in rows.items()
            if name != 'target'
        },
        data={'expected': count, 'read': count, 'hash': digest.hexdigest()[:32]},
        sentences=tuple(video.verdict(label, rows) for label, rows in measured.items()),
    )
