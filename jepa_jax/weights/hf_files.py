"""Folders of `transformers`: config.json and safetensors. (reference: vjepa2 §10.4)"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from jepa_jax import files, scratch
from jepa_jax.errors import ConvertError
from jepa_jax.models.pooler import PoolerConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig, position_table
from jepa_jax.weights import hf_ijepa, parts, shapes, tables
from jepa_jax.weights.tables import Leaf

CONFIG, SINGLE, INDEX = 'config.json', 'model.safetensors', 'model.safetensors.index.json'
MODEL, CLASSIFIER = 'VJEPA2Model', 'VJEPA2ForVideoClassification'
SHARD = 2**30  # bytes of a file, or one array if that is larger
STARTS = {
    'encoder.': 'online',  # as the official ones; folders that we write say it themselves
    'predictor.': 'predictor',
    'pooler.': 'probe',
    'classifier.': 'probe',
}
OURS = 'jepa_jax_encoder'  # in config.json of folders that we write: online | target
# what our nets fix and `transformers` leaves open
FIXED = {
    'in_chans': 3,
    'layer_norm_eps': 1e-6,
    'qkv_bias': True,
    'hidden_act': 'gelu',
}
# image_processor of VJEPA2VideoProcessor; its resize has an antialias that the original's has not
PROCESSOR = {
    'video_processor_type': 'VJEPA2VideoProcessor',
    'do_resize': True,
    'do_center_crop': True,
    'do_rescale': True,
    'do_normalize': True,
    'resample': 2,
    'rescale_factor': 1 / 255,
    'image_mean': [0.485, 0.456, 0.406],
    'image_std': [0.229, 0.224, 0.225],
}


def _library(path: pathlib.Path):
    try:
        import safetensors.numpy
    except ModuleNotFoundError:
        raise ConvertError(
            f"{path}: a Hugging Face folder needs safetensors: pip install 'jepa_jax[hf]'"
        ) from None
    return safetensors


# Reading


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """config.json with the defaults of `transformers` for what it lacks.

    Raises:
      ConvertError: not a model of V-JEPA 2 or I-JEPA, or one with an option that ours has not.
    """
    path = folder / CONFIG
    stored = files.read_json(path)
    kind = stored.get('model_type')
    if kind == hf_ijepa.KIND:
        return hf_ijepa.read_config(path, stored)
    if kind != 'vjepa2':
        allowed = f"must be 'vjepa2', '{hf_ijepa.KIND}', 'vit_mae' or 'videomae'"
        raise ConvertError(
            f"{path}: model_type '{files.one_line(ValueError(kind), 50)}', {allowed}"
        )
    config = {**DEFAULTS, **stored}
    for key, value in FIXED.items():
        if config[key] != value:
            raise ConvertError(f'{path}: {key} = {config[key]!r}, must be {value!r}')
    if isinstance(config['patch_size'], list) and len(set(map(str, config['patch_size']))) == 1:
        config['patch_size'] = config['patch_size'][0]
    for key, usual in DEFAULTS.items():
        value = config[key]
        whole = type(value) is int and 0 < value <= parts.LARGEST
        real = type(value) in (int, float) and 0 < value <= parts.LARGEST
        if key not in FIXED and not (whole if type(usual) is int else real):
            raise ConvertError(
                f'{path}: {key} = {str(value)[:50]!r}: must be a number up to {parts.LARGEST:,}'
            )
    labels = config.get('id2label') or {}
    if not isinstance(labels, dict) or not all(
        key.isdecimal() and len(key) < 8 and isinstance(label, str) for key, label in labels.items()
    ):  # fmt: skip
        raise ConvertError(f'{path}: id2label must be names by number')
    return config


def other_crop(folder: pathlib.Path, crop: int) -> str:
    """What the processor's settings say of the crop, if it is something else than config.json."""
    for name in PROCESSORS:
        if (folder / name).exists():
            said = files.read_json(folder / name).get('crop_size')
            sides = said.values() if isinstance(said, dict) else [said]
            if said is not None and any(side != crop for side in sides):
                return f'crop {crop} of {CONFIG}, not {str(said)[:50]} of {name}'
    return ''


PROCESSORS = ('video_preprocessor_config.json', 'preprocessor_config.json')
DEFAULTS = {
    **FIXED,
    'patch_size': 16,
    'crop_size': 256,
    'frames_per_clip': 64,
    'tubelet_size': 2,
    'hidden_size': 1024,
    'num_attention_heads': 16,
    'num_hidden_layers': 24,
    'mlp_ratio': 4.0,
    'num_pooler_layers': 3,
    'pred_hidden_size': 384,
    'pred_num_attention_heads': 12,
    'pred_num_hidden_layers': 12,
    'pred_num_mask_tokens': 10,
    'pred_mlp_ratio': 4.0,
}


# The readers of jepa_jax.weights.parts.PARTS: values of `read_config`, the arrays' shapes by name,
# and the config of the encoder -> config.


def encoder(values: dict[str, Any], forms: shapes.Shapes, beside: ViTConfig | None) -> ViTConfig:
    if values['model_type'] == hf_ijepa.KIND:
        return hf_ijepa.encoder(values, forms)
    return ViTConfig(
        values['hidden_size'],
        values['num_hidden_layers'],
        values['num_attention_heads'],
        values['mlp_ratio'],
        values['patch_size'],
        values['tubelet_size'],
        image_size=values['crop_size'],
        frames=values['frames_per_clip'],
    )


def predictor(values: dict[str, Any], forms: shapes.Shapes, beside: ViTConfig) -> PredictorConfig:
    return PredictorConfig(
        beside.width,
        values['pred_hidden_size'],
        values['pred_num_hidden_layers'],
        values['pred_num_attention_heads'],
        values['pred_mlp_ratio'],
        values['pred_num_mask_tokens'],
        grid=beside.grid(beside.frames, beside.image_size, beside.image_size),
    )


def probe(
    values: dict[str, Any], forms: shapes.Shapes, beside: ViTConfig
) -> tuple[PoolerConfig, dict[str, int]]:
    classes = forms.get('classifier.weight', (0,))[0]
    pooler = PoolerConfig(beside.width, beside.heads, values['num_pooler_layers'] + 1)
    return pooler, {'linear': classes}


def take_apart(folder: pathlib.Path, values: dict[str, Any]) -> dict[str, dict[str, Leaf]]:
    """Net -> arrays by the names of the model in `transformers`, read when needed; values: of
    `read_config`.

    Raises:
      ConvertError: no safetensors in the folder, a damaged file, or a name of no net.
    """
    nets: dict[str, dict[str, Leaf]] = {}
    for path, name, leaf in stored(folder):
        if values['model_type'] == hf_ijepa.KIND:
            short = hf_ijepa.short(name)
            net = hf_ijepa.net_of(path, short)
        else:
            short = name.removeprefix('vjepa2.')
            net = next((n for start, n in STARTS.items() if short.startswith(start)), None)
        if newer := shapes.newer([short, short.removeprefix('encoder.')]):
            raise ConvertError(
                f'{path} holds V-JEPA 2.1 ({newer}), which is read from .pt files only'
            )
        if net is None:
            raise ConvertError(f'{path}: {name} is not known')
        if short in nets.setdefault(net, {}):
            raise ConvertError(f'{path}: {short} is there twice')
        nets[net][short] = leaf
    if 'online' in nets and values.get(OURS) == 'target':
        nets['target'] = nets.pop('online')
    return nets


def stored(
    folder: pathlib.Path, as_stored: bool = False
) -> Iterator[tuple[pathlib.Path, str, Leaf]]:
    """The file, the name and the array of all that a folder's files hold, read when needed.

    as_stored: of the type that it has there; else float32.

    Raises:
      ConvertError: no safetensors in the folder, a damaged file, or one that its index contradicts.
    """
    _library(folder)
    for path, listed in _listed(folder).items():
        if not path.exists():
            raise ConvertError(f'{path} is missing: its weights must be safetensors')
        files.size(path)
        with _opened(path) as opened:
            names = list(opened.keys())
            if listed and (odd := sorted(listed.symmetric_difference(names))):
                raise ConvertError(f'{path}: {odd[0]} is in one of this file and {INDEX}, not both')
            for name in names:
                yield path, name, _leaf(opened.get_slice(name), path, name, as_stored)


def _listed(folder: pathlib.Path) -> dict[pathlib.Path, set[str]]:
    """The files of a folder, and the names of arrays that its index expects in each.

    Links may lead into the cache of the Hugging Face hub that the folder itself is in.
    """
    if not (folder / INDEX).exists():
        return {folder / SINGLE: set()}
    places = files.read_json(folder / INDEX).get('weight_map')
    if not isinstance(places, dict) or not places:
        raise ConvertError(f'{folder / INDEX} is not an index: no weight_map')
    real = pathlib.Path(os.path.realpath(folder))
    hub = real.parent.name == 'snapshots' and real.parents[1].name.startswith('models--')
    blobs = real.parents[1] / 'blobs' if hub else ''
    known: dict[object, pathlib.Path] = {}
    rows: dict[pathlib.Path, set[str]] = {}
    for name, file in places.items():
        if not isinstance(file, str) or file not in known:
            known[str(file)] = files.inside(folder, file, also=blobs)
        rows.setdefault(known[file], set()).add(name)
    return rows


def _opened(path: pathlib.Path):
    library = _library(path)
    with files.reading(path):  # SafetensorError, OSError, and what Rust panics with
        return library.safe_open(path, framework='np')


TYPES = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}


def _leaf(form: Any, path: pathlib.Path, name: str, as_stored: bool) -> Leaf:
    if form.get_dtype() not in TYPES:
        raise ConvertError(
            f'{path}: {name} is of type {form.get_dtype()}, must be F32, F16 or BF16'
        )
    kept = TYPES[form.get_dtype()] if as_stored else 'float32'
    dtype = np.dtype(getattr(ml_dtypes, kept, kept))

    def read() -> np.ndarray:
        # opened anew: what was read of a mapped file stays in memory until the file is closed
        with files.raising(ConvertError), _opened(path) as opened:
            return np.asarray(opened.get_tensor(name), dtype)

    return Leaf(tuple(form.get_shape()), dtype, read)


# Writing


def write_config(
    folder: pathlib.Path,
    dst: pathlib.Path,
    encoder: ViTConfig,
    which: str,
    predictor: PredictorConfig | None,
    probe: tuple[PoolerConfig, dict[str, int]] | None,
    labels: Iterable[str],
    frames: int,
) -> None:
    """config.json and video_preprocessor_config.json; which: the encoder is online or target;
    frames: of the clips that encoder or probe are for.

    Raises:
      ConvertError: `transformers` has no option for something in the configs.
    """

    def refuse(what: str) -> ConvertError:
        return ConvertError(f'{dst}: {what}, which a VJEPA2Model cannot have: use torch or jax')

    if of_images(encoder):
        return hf_ijepa.write_config(folder, CONFIG, {OURS: which}, encoder)
    for part in filter(None, (encoder, predictor)):
        if (part.position, part.rope, part.mlp) != ('rope', ViTConfig.rope, 'gelu'):
            raise refuse(f"position '{part.position}', rope '{part.rope}', mlp '{part.mlp}'")
    if encoder.tubelet == 1:
        raise refuse('an image model')
    config = {
        'architectures': [CLASSIFIER if probe else MODEL],
        'model_type': 'vjepa2',
        'dtype': 'float32',
        OURS: which,
        **FIXED,
        'patch_size': encoder.patch,
        'crop_size': encoder.image_size,
        'image_size': encoder.image_size,
        'frames_per_clip': frames,
        'tubelet_size': encoder.tubelet,
        'hidden_size': encoder.width,
        'num_attention_heads': encoder.heads,
        'num_hidden_layers': encoder.depth,
        'mlp_ratio': encoder.mlp_ratio,
    }
    if predictor:
        config |= {
            'pred_hidden_size': predictor.width,
            'pred_num_attention_heads': predictor.heads,
            'pred_num_hidden_layers': predictor.depth,
            'pred_num_mask_tokens': predictor.mask_tokens,
            'pred_zero_init_mask_tokens': predictor.zero_init_mask_tokens,
            'pred_mlp_ratio': predictor.mlp_ratio,
        }
    if probe:
        pooler, classes = probe
        if pooler.heads != encoder.heads:
            raise refuse(f'a probe of {pooler.heads} heads on an encoder of {encoder.heads}')
        if pooler.mean:
            raise refuse('a probe of the mean')
        config |= {'num_pooler_layers': pooler.depth - 1, **named(classes['linear'], labels)}
    crop = encoder.image_size
    processor = {
        **PROCESSOR,
        'crop_size': {'height': crop, 'width': crop},
        'size': {'shortest_edge': int(crop * 256 / 224)},
    }
    for name, value in ((CONFIG, config), ('video_preprocessor_config.json', processor)):
        (folder / name).write_text(json.dumps(value, indent=2) + '\n')


def labels(values: dict[str, Any], count: int, notes: list[str]) -> dict[str, tuple[str, ...]]:
    """Names of the probe's classes, where config.json has one for each."""
    names = values.get('id2label')
    if not names:
        return {}
    if not isinstance(names, dict) or {*names} != {*map(str, range(count))}:
        notes.append(f'id2label does not name {count} classes, 0 to {count - 1}: it is left out')
        return {}
    return {'linear': tuple(str(names[str(i)]) for i in range(count))}


def named(count: int, labels: Iterable[str]) -> dict[str, dict]:
    """Names of so many classes, as config.json has them; labels: if they are known."""
    names = list(labels) or [f'LABEL_{i}' for i in range(count)]
    return {
        'id2label': {str(i): name for i, name in enumerate(names)},
        'label2id': {name: i for i, name in enumerate(names)},
    }


def of_images(config: ViTConfig) -> bool:
    """Whether an encoder is I-JEPA's."""
    return parts.version_of('encoder', config) == parts.IMAGES


def encoder_table(config: ViTConfig) -> dict[str, np.ndarray]:
    """The table of positions of an `IJepaModel`, where it is computed here."""
    if not of_images(config) or config.stored_table:
        return {}
    return {'embeddings.position_embeddings': position_table(config, config.home)[None]}


class Shards:
    """Writes arrays into safetensors files, each once it is full; names are known beforehand."""

    def __init__(self, folder: pathlib.Path, nbytes: dict[str, int]):
        self._library, self._folder = _library(folder), folder
        full: list[list[str]] = [[]]
        for name, size in nbytes.items():
            if full[-1] and sum(nbytes[n] for n in full[-1]) + size > SHARD:
                full.append([])
            full[-1].append(name)
        files = [f'model-{i + 1:05}-of-{len(full):05}.safetensors' for i in range(len(full))]
        self._files = dict(zip(files, full)) if len(full) > 1 else {SINGLE: full[0]}
        self._waiting: dict[str, np.ndarray] = {}
        self._total = sum(nbytes.values())

    def put(self, name: str, array: np.ndarray) -> None:
        self._waiting[name] = tables.contiguous(array)
        for file, names in self._files.items():
            if name in names and all(n in self._waiting for n in names):
                arrays = {n: self._waiting.pop(n) for n in names}
                path = self._folder / file
                self._library.numpy.save_file(arrays, path, metadata={'format': 'pt'})
                path.chmod(0o644)  # the library makes it private

    def close(self) -> None:
        """The index, if there are several files."""
        assert not self._waiting, list(self._waiting)
        if len(self._files) > 1:
            places = {name: file for file, names in self._files.items() for name in names}
            index = {'metadata': {'total_size': self._total}, 'weight_map': places}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + '\n')


@contextlib.contextmanager
def folder_at(dst: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill that becomes `dst`, whole or not at all."""
    import shutil
    import tempfile

    _library(dst)
    dst.parent.mkdir(parents=True, exist_ok=True)
    scratch.sweep(dst.parent)
    folder = pathlib.Path(tempfile.mkdtemp(dir=dst.parent, prefix=scratch.prefix(dst)))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(dst)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
