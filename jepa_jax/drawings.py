"""What MAE and VideoMAE draw of clips, as a picture of a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jepa_jax import looks
from jepa_jax.config import MaskedPixelsConfig
from jepa_jax.data import Group
from jepa_jax.health import local_rows
from jepa_jax.masks import Mask
from jepa_jax.masks.samplers import pixel_sampler
from jepa_jax.models.vit import ViTConfig
from jepa_jax.nets import ONCE
from jepa_jax.objectives import HIDDEN, SEEN, Sample
from jepa_jax.objectives.masked_pixels import MaskedPixels
from jepa_jax.sharding import put_batch
from jepa_jax.state import TrainState

log = logging.getLogger(__name__)

FILE = 'reconstructions.png'
OWN = {'patches': ' patch', 'cubes': ' colour of a token'}  # targets that are normalised


def of_run(
    config: MaskedPixelsConfig,
    objective: MaskedPixels,
    state: TrainState,
    frozen: dict,
    data: Any,
    folder: Path,
) -> tuple[dict[str, Any], list[str]]:
    """Draws FILE into a run's folder, of the clips that its features are of, and says in a sentence
    what it shows. For all processes, under the run's mesh."""
    del frozen, data
    if not config.logging.pictures:
        return {}, []
    vit, crop = objective.config, config.data.crop
    shape = vit.frames, crop, crop, 3
    clips = looks.clips_of(folder, shape) if not jax.process_index() else None
    mesh = jax.sharding.get_mesh()
    rows = np.arange(-(-looks.COUNT // jax.local_device_count()) * jax.local_device_count())
    # others than the first process draw nothing: theirs are black
    known = np.zeros((1, *shape), np.uint8) if clips is None else clips
    sampler = pixel_sampler(config, vit.frames)
    masks = [sampler.sample(0, i)[0] for i in rows % len(known)]
    mask = Mask(*(np.stack(ids) for ids in zip(*masks)))
    group = put_batch(Group(known[rows % len(known)], (mask,)), mesh)
    draw = jax.jit(
        lambda params, group: objective.pictured(params, group, group.masks[0]),
        compiler_options=ONCE,
    )
    values = local_rows(draw(state.params, group))
    if clips is None:
        return {}, []
    parts = {}
    for i, clip in enumerate(clips):
        parts |= {f'{i}, {name}': row for name, row in told(vit, clip, masks[i], values[i]).items()}
    try:
        Image.fromarray(looks.stacked(parts)).save(folder / FILE)
    except OSError as error:  # the run is whole without it
        log.warning('%s cannot be written: %s', folder / FILE, error.strerror or error)
        return {}, []
    own = OWN.get(config.target)
    words = f'; each{own} has the mean and deviation of the original' if own else ''
    return {}, [f'{FILE}: a clip, what is in sight of it, and what is drawn of the rest{words}']


def told(
    vit: ViTConfig, clip: np.ndarray, pair: tuple[np.ndarray, np.ndarray], drawn: np.ndarray
) -> dict[str, np.ndarray]:
    """Rows of a picture by what they are, of a clip uint8 [T, H, W, 3], its ids of context and
    target, and the target's pixels [M, P]."""
    context, target = pair
    t, h, w = grid = vit.grid(*clip.shape[:3])
    p, f = vit.patch, vit.tubelet
    folded = t, f, h, p, w, p, 3
    clip = clip[: t * f, : h * p, : w * p]
    values = clip.reshape(folded).transpose(0, 2, 4, 1, 3, 5, 6).reshape(t * h * w, -1).copy()
    values[target] = np.clip(255 * drawn, 0, 255).round()
    whole = values.reshape(t, h, w, f, p, p, 3).transpose(0, 3, 1, 4, 2, 5, 6).reshape(clip.shape)
    states = np.empty(t * h * w, np.int8)
    states[context], states[target] = SEEN, HIDDEN
    rows = looks.draw(looks.thinned(Sample(clip, {'in sight': states.reshape(grid)})))
    beside = looks.thinned(Sample(whole, {'': states.reshape(grid)}))  # as many times
    return rows | {'drawn': looks.draw(beside)['frames']}
