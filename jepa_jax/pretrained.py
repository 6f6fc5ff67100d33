"""Models with weights by name or path, and their way back to disk.

model = jepa_jax.load('vitl')
model.save_pretrained('mine')
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import model
from jepa_jax.checkpoint import hash_arrays
from jepa_jax.errors import ConvertError, ZooError, allowed, nearest
from jepa_jax.inputs import Trained
from jepa_jax.model import Encoder, Loaded, ProbeHead
from jepa_jax.models import NEWER, SIZE_ALIASES, VERSIONS
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.tokens import MEAN, STD
from jepa_jax.models.vit import ViTConfig
from jepa_jax.nets import ONCE
from jepa_jax.weights import download, names, parts, zoo
from jepa_jax.weights.contents import ENCODERS, TITLES, StoredNet, Weights
from jepa_jax.weights.shapes import size_of
from jepa_jax.weights.tables import Leaf
from jepa_jax.weights.write import refuse_existing, write

DTYPES = ('float32', 'bfloat16')
WHICH = {'target': 'target (moving average)', 'online': 'online'}
# of the settings of a ProbeHead what a checkpoint tells beside its config
RELEASED_READS = ('reads', 'frames', 'step', 'segments')
READS = (*RELEASED_READS, 'fps', 'crop', 'tokens', 'several')
CARD = 'README.md'
ANSWERING = ('projector', 'decoder', 'adapter')  # parts that answer questions


class Model(model.Model):
    """A model that knows where its weights come from, and can be written to disk."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, **options: Any) -> Model:
        """A model with weights: as `jepa_jax.load`, whose options it takes."""
        return load(name_or_path, **options)

    def ask(self, video: Any, question: str, **options: Any) -> Any:
        """What a model that was trained on questions says to one about a video: as
        `jepa_jax.answers.Answerer.ask`, whose options it takes.

        Raises:
          ConvertError: it was not, or something of it is missing.
        """
        return self.answerer().ask(video, question, **options)

    def answerer(self) -> Any:
        """The `jepa_jax.answers.Answerer` of a model that was trained on questions; raises as
        `ask`."""
        if self._answerer is None:
            from jepa_jax.answers import Answerer

            if self.weights is None:
                raise ConvertError(f'{self.name} was not trained on questions')
            dtype = np.dtype(self.config.dtype).name
            self._answerer = Answerer.of(self.weights, dtype=dtype)
        return self._answerer

    weights: Weights | None = None  # of one that was trained on questions: all that is stored
    _answerer: Any = None
    robot: dict[str, Any] | None = None  # see jepa_jax.weights.robot

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes one of our checkpoints, which `load` reads again bit for bit, and a model card.

        Raises:
          ConvertError: there is something at `folder` already.
          CheckpointError: the disk has not enough room.
        """
        save(self, folder)


def load(
    name_or_path: str | os.PathLike,
    *,
    encoder: str = 'target',
    probe: str | os.PathLike | None = None,
    dtype: str = 'float32',
    seed: int = 0,
    crop: int | None = None,
    frames: int | None = None,
    heads: int | None = None,
    allow_missing: Iterable[str] = (),
    ignore: Iterable[str] = (),
    allow_nonfinite: bool = False,
) -> Model:
    """A model with weights; `model.about` says in lines what it is and what was chosen.

    Args:
      name_or_path: a released model (a probe: with the encoder that it reads), by our name or that
        of torch.hub; `random:NAME` for seeded random weights of a key of models.SIZES; a path of
        anything that `convert` reads; or `hf:OWNER/MODEL` for a model of the Hugging Face hub, with
        the extra [hf]. The names facebook/vjepa2-... of the release need no `hf:`. Behind a
        released name or the path of a file, @sha256:HEX refuses any other file.
      encoder: 'target', the moving average, which all published evaluations use, or 'online'. A
        source with one encoder serves either choice.
      probe: name or path of a probe to read the features with.
      dtype: of matmul inputs: float32 or bfloat16.
      seed: of random weights.
      crop, frames, heads, allow_missing, ignore, allow_nonfinite: as of `convert.read`, for a path.

    Raises:
      ZooError: no such name or path, a file that cannot be had, or one that is not what it was.
      ConvertError, CheckpointError: weights that do not fit.
    """
    text, pin = zoo.pinned(name_or_path)
    if encoder not in ENCODERS:
        raise ZooError(f"encoder '{encoder}': allowed are target, online")
    if dtype not in DTYPES:
        raise ZooError(f"dtype '{dtype}': {allowed(dtype, DTYPES)}")
    options = dict(crop=crop, frames=frames, heads=heads, allow_missing=allow_missing)
    options |= dict(ignore=ignore, allow_nonfinite=allow_nonfinite)
    if text.startswith(names.RANDOM):
        if probe is not None and zoo.pinned(probe)[0] in zoo.RELEASED:
            raise ZooError(f"probe '{probe}' on {text}: random features mean nothing to it")
        zoo.refuse_options(text, options | {'sha256': pin})
        return _random(text, dtype, seed, probe)
    row = zoo.RELEASED.get(text)
    if row and row.probe_of:
        if probe is not None:
            raise ZooError(f"'{text}' is a probe already: give '{row.probe_of}' and one probe")
        zoo.refuse_options(text, options)
        return load(row.probe_of, encoder=encoder, probe=text + pin, dtype=dtype)
    return _model(text, zoo.find(text + pin, **options), encoder, probe, dtype)


def _model(text: str, weights: Weights, encoder: str, probe, dtype: str) -> Model:
    which = weights.pick(encoder)
    config = weights.encoder
    version = parts.called(weights.version) + ', ' if weights.version else ''
    about = [
        f'{text}: {version}{weights.size} ({config.depth} blocks, width {config.width}, '
        f'{config.heads} heads), crop {config.image_size}, from {weights.source} '
        f'({weights.format})',
        f'encoder: {WHICH[which]}'
        + (', the only one there' if weights.alone else f'; the other choice is {_other(which)}'),
        *([f'saved from {weights.origin}'] if weights.origin else []),
        *weights.notes,
        f'computes in {dtype}',
    ]
    head = None
    if probe is not None:
        head = _probe(os.fspath(probe), text, config, dtype, lambda: weights.params(which))
    elif weights.probe is not None:
        head = _head(weights, dtype)
    if head:
        about.append(_words_of(head))

    def loaded(name: str) -> Loaded | None:
        if name not in weights.nets:
            return None
        return Loaded(_typed(weights.nets[name].config, dtype), _placed(weights, name))

    made = Model(
        loaded(which),
        predictor=loaded('predictor'),
        ac_predictor=loaded('ac_predictor'),
        probe=head,
        about=about,
        name=text,
        which=which,
        trained=Trained(config.frames, config.image_size, weights.fps),
    )
    made.robot = weights.robot
    if 'projector' in weights.nets:
        made.weights = weights
    return made


def attach_probe(model: Model, probe: str | os.PathLike) -> None:
    """Lets a model read its features with another probe, by name or path.

    Raises:
      ZooError, ConvertError, CheckpointError: as `load`.
    """
    dtype = np.dtype(model.config.dtype).name
    head = _probe(os.fspath(probe), model.name, model.config, dtype, lambda: model.encoder.params)
    model.probe = head
    model.about = (*model.about, _words_of(head))
    for name in ('_classifier', '_pooler'):  # made for the probe before
        model.__dict__.pop(name, None)


def _words_of(head: ProbeHead) -> str:
    classes = ', '.join(f'{n} classes of {c}' for c, n in head.classes.items())
    return f'probe: {classes}; reads {_reads(head.reads)}, {head.segments} x {head.frames} frames'


def _reads(reads: str | tuple[int, ...]) -> str:
    words = {'last': 'the last block', 'future': 'the last block and predictions of 1 s later'}
    return words.get(reads) or 'blocks ' + ' '.join(map(str, reads))


def _other(which: str) -> str:
    return f'--encoder {ENCODERS[1 - ENCODERS.index(which)]}'


def _probe(
    text: str, model: str, config: ViTConfig, dtype: str, encoder: Callable[[], dict]
) -> ProbeHead:
    """A probe's weights, and what it reads: known for a released one. encoder: its parameters."""
    text, pin = zoo.pinned(text)
    weights = zoo.find(text + pin)
    if weights.probe is None:
        raise ZooError(f"probe '{text}' holds {', '.join(weights.nets)}, but no probe")
    if weights.probe[0].mean:
        raise ZooError(f"probe '{text}' was trained with an encoder of its own: load that alone")
    width = weights.probe[0].width
    if width != config.width:
        raise ZooError(
            f"probe '{text}' reads features of width {width}, {model} has {config.width}"
        )
    trained_on = weights.reads.get('weights')
    if trained_on and trained_on != hash_arrays(encoder()):
        raise ZooError(f"probe '{text}' was trained on features of another encoder than {model}")
    if not trained_on and model.startswith(names.RANDOM):
        raise ZooError(f"probe '{text}' on {model}: random features mean nothing to a probe")
    row = zoo.RELEASED.get(text)
    reads = {key: getattr(row, key) for key in RELEASED_READS} if row else {}
    return _head(weights, dtype, **reads)


def _head(weights: Weights, dtype: str, **reads: Any) -> ProbeHead:
    """The probe of weights; reads: if known, else as the source says, else the last block."""
    pooler, classes = weights.probe
    stored = {k: tuple(v) if isinstance(v, list) else v for k, v in weights.reads.items()}
    usual: dict[str, Any] = {'reads': 'future' if 'verb' in classes else 'last'}
    if pooler.mean and weights.encoder:  # fine-tuned together
        usual['frames'] = weights.encoder.frames
    params = _placed(weights, 'probe')
    settings = {k: v for k, v in (usual | stored | reads).items() if k != 'weights'}
    return ProbeHead(_typed(pooler, dtype), classes, params, labels=weights.labels, **settings)


def _typed(config: Any, dtype: str) -> Any:
    return dataclasses.replace(config, dtype=jnp.dtype(dtype))


def _placed(weights: Weights, name: str) -> dict:
    """A net on the device, array by array: never all of it twice, and on a CPU nothing is copied,
    which jnp.asarray would do."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)), weights.nets[name].tree)


# Random weights


def random_configs(size: str, dtype: str = 'float32') -> tuple[ViTConfig, PredictorConfig]:
    """Encoder and predictor of a named size, as in pretraining; SIZE-21: of V-JEPA 2.1.

    Raises:
      ZooError: no such size.
    """
    name, version = size, VERSIONS['2.0']
    if size.endswith(NEWER):
        name, version = size.removesuffix(NEWER), VERSIONS['2.1']
    name, sizes = SIZE_ALIASES.get(name, name), version.sizes
    if name not in sizes:
        raise ZooError(
            f"size '{size}'{nearest(size, sizes)}; sizes are {', '.join(sizes)}, and with {NEWER} "
            'behind it any of these in V-JEPA 2.1'
        )
    shape, dtype = sizes[name], jnp.dtype(dtype)
    encoder = ViTConfig(
        shape.width, shape.depth, shape.heads, shape.mlp_ratio, dtype=dtype,
        **version.encoder(shape.depth),
    )  # fmt: skip
    predictor = PredictorConfig(shape.width, dtype=dtype)
    if version.levels:
        predictor = dataclasses.replace(
            predictor, depth=24, mask_tokens=8, levels=version.levels, predict_context=True,
            **version.predictor(),
        )  # fmt: skip
    return encoder, predictor


def released_configs(row: names.Released) -> tuple[ViTConfig, PredictorConfig]:
    """Encoder and predictor of a released file."""
    encoder, predictor = random_configs(row.size + (NEWER if row.version == '2.1' else ''))
    if row.version == parts.MAE:
        more = dict(position='sincos', axes='xy', tubelet=1, frames=1, class_token=True)
        more |= dict(patch=row.patch, image_size=row.crop, last_norm=not row.tuned)
        return dataclasses.replace(encoder, **more), predictor
    if row.version not in ('1', parts.IMAGES):
        return encoder, predictor
    more: dict[str, Any] = {'tubelet': 1, 'frames': 1, 'axes': 'xy'}
    if row.version == '1':
        more = {'frames': row.frames, 'shorter': 'resized'}
    encoder = dataclasses.replace(
        encoder, position='sincos', patch=row.patch, image_size=row.crop, **more
    )
    return encoder, dataclasses.replace(
        predictor,
        position='sincos',
        axes=encoder.axes,
        depth=row.predictor_depth,
        heads=encoder.heads,
        mask_tokens=2 if row.version == '1' else 1,
        grid=encoder.home,
    )


def _random(text: str, dtype: str, seed: int, probe: str | os.PathLike | None) -> Model:
    configs = dict(
        zip(('encoder', 'predictor'), random_configs(text.removeprefix(names.RANDOM), dtype))
    )
    keys = jax.random.split(jax.random.key(seed))
    nets = {
        part: Loaded(config, jax.jit(parts.net(part, config).init, compiler_options=ONCE)(key))
        for (part, config), key in zip(configs.items(), keys)
    }
    encoder = configs['encoder']
    about = [
        f'{text}: RANDOM weights (seed {seed}), nothing is trained, features mean nothing; '
        f'{encoder.depth} blocks, width {encoder.width}, {encoder.heads} heads',
        f'computes in {dtype}',
    ]
    head = None
    if probe is not None:
        head = _probe(os.fspath(probe), text, encoder, dtype, lambda: nets['encoder'].params)
        about.append(_words_of(head))
    return Model(**nets, probe=head, about=about, name=text, which='random')


# Saving


def save(model: Model, folder: str | os.PathLike) -> None:
    """As Model.save_pretrained."""
    folder = pathlib.Path(folder).expanduser()
    refuse_existing(folder)
    which = model.which if model.which in ENCODERS else 'online'
    nets = {which: _stored('encoder', model.encoder)}
    for name, net in (('predictor', model.predictor), ('ac_predictor', model.ac_predictor)):
        if net:
            # with both predictors in one model, each needs a place of its own
            place = 'params/ac_predictor' if name == 'ac_predictor' and model.predictor else ''
            nets[name] = dataclasses.replace(_stored(name, net), place=place)
    labels, reads = {}, {}
    if head := model.probe:
        tree = _leaves(head.params)
        nets['probe'] = StoredNet('probe', (head.config, head.classes), tree)
        labels, reads = head.labels, {key: getattr(head, key) for key in READS}
    source = folder
    if stored := getattr(model, 'weights', None):
        nets |= {name: net for name, net in stored.nets.items() if net.part in ANSWERING}
        reads, source = {**stored.reads, **reads}, stored.source
    weights = Weights(
        source, 'jax', nets, labels=labels, reads=reads, origin=next(iter(model.about), ''),
        fps=model.trained.fps if model.trained else Weights.fps,
        robot=getattr(model, 'robot', None) or {},
    )  # fmt: skip
    write(weights, folder, to='jax')
    (folder / CARD).write_text(card(model, folder.name))


def _stored(part: str, net: Loaded | Encoder) -> StoredNet:
    return StoredNet(part, net.config, _leaves(net.params))


def _leaves(params: dict) -> dict:
    """Arrays as leaves that are brought to the host when they are needed."""
    return jax.tree.map(lambda a: Leaf(a.shape, np.dtype(a.dtype), lambda: np.asarray(a)), params)


# of a run one does not know what it began with, nor what its owner thinks
UNKNOWN = 'not known here: see the source; of a run that began with other weights, theirs, too'


def card(model: Model, folder: str) -> str:
    """The model card of a folder, Markdown."""
    c, size = model.config, size_of(model.config)
    short = int(c.image_size * 256 / 224)
    name = model.name
    source = f'`{name}`' if name else f'made in Python, of size {size}'
    licence = names.licence(name) or UNKNOWN
    if name in zoo.RELEASED:
        row = zoo.RELEASED[name]
        source += f', released as {download.address(row.file, row.folder)}'
    elif name in zoo.PUBLISHED or name.startswith(zoo.HUB):
        source += f', https://huggingface.co/{name.removeprefix(zoo.HUB)}'
    elif name.startswith(names.RANDOM):
        licence += ': random numbers'
    numbers = (', '.join(f'{x:g}' for x in values) for values in (MEAN, STD))
    mean, std = (f'({text})' for text in numbers)
    which = TITLES.get(model.which, f'{model.which or "one"} encoder')
    lines = [
        f'# {folder}',
        '',
        'Weights for jepa_jax, V-JEPA 2 in JAX.',
        '',
        '| | |',
        '|---|---|',
        f'| source | {source} |',
        f'| licence of the weights | {licence} |',
        f'| what it is | `{model!r}` |'.replace('\n', ''),
        f'| encoder | {which} |',
        f'| trained on | crops of {c.image_size} pixels, clips of {c.frames} frames |',
        f'| preprocessing | short side to {short} pixels (OpenCV bilinear, no antialias), middle '
        f'{c.image_size} x {c.image_size}, uint8 |',
        f'| normalisation | in the model: x / 255, mean {mean}, std {std} |',
        '',
        '```python',
        'import jepa_jax',
        '',
        f"model = jepa_jax.load('{folder}')",
        "features = model.embed('clip.mp4')",
        '```',
        '',
        'What was chosen when these weights were loaded:',
        '',
        *(f'- {line}' for line in model.about),
    ]
    return '\n'.join(lines) + '\n'
