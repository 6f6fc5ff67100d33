"""Weights into any format, an array at a time.

write(weights, 'vitl', to='jax')
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jepa_jax import checkpoint
from jepa_jax.errors import ConvertError
from jepa_jax.lookup import load
from jepa_jax.weights import (
    hf_files,
    hf_pixels,
    language,
    own,
    parts,
    shapes,
    tables,
    torch_files,
    torch_write,
)
from jepa_jax.weights.contents import PREDICTORS, StoredNet, Training, Weights, title
from jepa_jax.weights.tables import flatten

FORMATS = ('jax', 'torch', 'hf')
SHOWS = ('clips', 'system')  # of `Weights.reads`: how a model that answers was asked, no probe's


def write(
    weights: Weights,
    dst: str | os.PathLike,
    to: str,
    *,
    encoder: str = 'target',
    steps_per_epoch: int | None = None,
    progress: Callable[[int], Any] = lambda size: None,
) -> list[str]:
    """Writes weights, an array at a time.

    Args:
      dst: a file for 'torch', a folder for the others; must not exist.
      to: torch | hf | jax.
      encoder: target | online: which one a Hugging Face folder gets, for it holds one; language:
        it gets the language model, its adapter merged. A source without an encoder needs no word.
      steps_per_epoch: of a training checkpoint for the original, which counts epochs.
      progress: called with numbers of bytes; their sum is `nbytes(weights, to, encoder)`.

    Returns:
      Lines that say what was dropped or assumed.

    Raises:
      ConvertError: dst exists, or the format cannot hold the weights.
      CheckpointError: the disk has not enough room.
    """
    dst = pathlib.Path(dst).expanduser().absolute()
    if to not in FORMATS:
        raise ConvertError(f"to '{to}': allowed are {', '.join(FORMATS)}")
    shapes.check_number(dst, 'steps_per_epoch', steps_per_epoch)
    refuse_existing(dst)
    if to == 'jax':
        own.write(weights, dst, progress, language.tokenizer_of(weights.source))
        return []
    if to == 'torch' and weights.encoder and hf_pixels.is_of_these(weights.encoder):
        return _write_flat(weights, dst, progress)
    if to == 'torch':
        return _write_torch(weights, dst, steps_per_epoch, progress)
    if _is_language(weights, encoder):
        return language.write(weights, dst, progress)
    return _write_hf(weights, dst, encoder, progress)


def _is_language(weights: Weights, encoder: str) -> bool:
    """Whether a Hugging Face folder gets the language model."""
    return encoder == 'language' or (weights.encoder is None and bool(language.name_of(weights)))


def refuse_existing(dst: str | os.PathLike) -> None:
    """Raises ConvertError if something is at `dst` already."""
    if pathlib.Path(dst).expanduser().exists():
        raise ConvertError(f'{dst} exists: choose a new name or move it away')


def nbytes(weights: Weights, to: str, encoder: str = 'target') -> int:
    """Bytes of the arrays that `write` would write."""
    if to == 'hf' and _is_language(weights, encoder):
        return sum(leaf.nbytes for leaf in flatten(language.export(weights).tree).values())
    if to == 'hf':
        trees = [net.tree for net in _hf_nets(weights, encoder).values()]
    else:
        trees = list(weights.trees.values())
        if t := weights.training:
            trees += [*t.mu.values(), *t.nu.values()]
    leaves = [leaf for tree in trees for leaf in flatten(tree).values()]
    # foreign files get 32 bits whatever a frozen net was stored with
    return sum(leaf.nbytes if to == 'jax' else 4 * int(np.prod(leaf.shape)) for leaf in leaves)


def only(weights: Weights, names: Sequence[str]) -> Weights:
    """Some of the nets alone, without training state: a projector and an adapter are small.

    Raises:
      ConvertError: no such net.
    """
    if missing := [name for name in names if name not in weights.nets]:
        raise ConvertError(f'{weights.source}: no {missing[0]}; it holds {", ".join(weights.nets)}')
    nets = {name: weights.nets[name] for name in names}
    return dataclasses.replace(weights, nets=nets, training=None)


def add_probe(weights: Weights, probe: Weights) -> Weights:
    """Weights with the probe of another file.

    Raises:
      ConvertError: there is no probe, or it is for features of another width.
    """
    if 'probe' not in probe.nets:
        raise ConvertError(f'{probe.source} holds {", ".join(probe.nets)}, but no probe')
    if probe.probe[0].mean:
        raise ConvertError(f'{probe.source}: its probe was trained with an encoder of its own')
    if weights.encoder is None or weights.encoder.width != probe.probe[0].width:
        raise ConvertError(
            f'{probe.source}: a probe of features of width {probe.probe[0].width}, '
            f'{weights.source} has {weights.encoder.width if weights.encoder else "no encoder"}'
        )
    return dataclasses.replace(
        weights,
        nets={**weights.nets, 'probe': probe.nets['probe']},
        labels=probe.labels,  # of a probe that was there before names would be those of others
        reads={k: v for k, v in weights.reads.items() if k in SHOWS} | dict(probe.reads),
        notes=tuple(dict.fromkeys((*weights.notes, *probe.notes))),
    )


def links_of(net: StoredNet, format: str) -> list[tables.Link]:
    """A net's leaves and the arrays of a file of that format that they become.

    Raises:
      ConvertError: such files cannot hold the net.
    """
    rules, sizes = tables.table(net.part, net.config, format)
    return tables.bind(rules, parts.shared_net(net.part, net.config).abstract, sizes)


def _of_another(weights: Weights) -> bool:
    """Whether a predictor is there whose features are not the encoder's: a teacher's, or pixels."""
    predictor = weights.of_part('predictor')
    return predictor is not None and bool(predictor.out_width)


def _write_torch(weights: Weights, dst: pathlib.Path, steps_per_epoch, progress) -> list[str]:
    nets = weights.nets
    entries = {net: entry for entry, net in tables.TORCH_NETS.items()}
    # of another model's features; the name is known of V-JEPA 2.1 alone
    if _of_another(weights) and weights.version == '2.1':
        entries['target'] = tables.DISTILLED
    entries |= {'ac_predictor': entries['predictor'], 'probe': tables.TORCH_PROBES}
    links = {name: links_of(net, 'torch') for name, net in nets.items()}
    if unknown := [name for name in nets if name not in entries]:
        raise ConvertError(f'{unknown[0]}: the original has one net of each kind, not this one too')
    notes = [n for name, net in nets.items() for n in torch_files.beyond(name, net)]
    if weights.training and 'target' not in nets and 'predictor' in nets:
        raise ConvertError(
            f'{weights.source}: a training checkpoint without a target encoder, which the '
            "original's have: --weights-only, or --to jax"
        )
    computed = {name: _computed(net, 'torch') for name, net in nets.items()}
    more = sum(table.nbytes for arrays in computed.values() for table in arrays.values())
    with torch_write.writing(dst, nbytes(weights, 'torch') + more) as writer:

        def tensors(name: str, tree: Mapping, idle: Any = ()) -> Iterator[tuple[str, Any]]:
            for key, array in tables.to_file(links[name], tree):
                progress(array.nbytes)
                if key not in idle:
                    yield key, writer.put(array)

        images = parts.IMAGES in (parts.version_of(n.part, n.config) for n in nets.values())
        prefix = 'module.' if 'ac_predictor' in nets or images else 'module.backbone.'
        content: dict[str, Any] = {}
        order: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, net in nets.items():
            arrays = dict(tensors(name, net.tree))
            arrays |= {key: writer.put(table) for key, table in computed[name].items()}
            keys = tables.file_order(links[name])
            for key in computed[name]:  # its place among those that the table names
                before = [rule.name for rule in tables.table(net.part, net.config, 'torch')[0]]
                keys.insert(sum(n in keys for n in before[: before.index(key)]), key)
            order[name] = {key: tuple(arrays[key].shape) for key in keys}
            if name == 'probe':
                state = {f'module.{key}': arrays[key] for key in keys}
                alone = net.config[0].spare_projection  # V-JEPA 1's files hold one, not a list
                content[tables.FIRST_PROBE if alone else entries[name]] = (
                    state if alone else [state]
                )
            else:
                content[entries[name]] = {f'{prefix}{key}': arrays[key] for key in keys}
        if weights.alone:
            one = content[entries[weights.pick()]]
            content |= {entries['online']: one, entries['target']: one}
            notes.append(
                f'one encoder in the source: the file names it {entries["online"]} and '
                f'{entries["target"]}'
            )
        ours = own.extra(weights)
        if t := weights.training:
            # the order of the optimizer's parameters; a frozen encoder is among them, without state
            first = ('online' if 'online' in order else weights.pick(),) if weights.encoder else ()
            order = {name: order[name] for name in (*first, *PREDICTORS) if name in order}
            mu, nu = {}, {}
            for name in t.mu:
                idle = _idle(links[name], t.nu[name])
                for tree, tensors_of in ((t.mu[name], mu), (t.nu[name], nu)):
                    tensors_of |= {(name, k): a for k, a in tensors(name, tree, idle)}
            content['opt'] = torch_write.optimizer(writer, order, mu, nu, t.count, t.hyper)
            content |= _plain(t, steps_per_epoch, notes)
            ours['step'] = t.step
        content[torch_files.OURS] = json.dumps(ours)
        writer.finish(content)
    return notes


def _computed(net: StoredNet, format: str) -> dict[str, np.ndarray]:
    how = parts.PARTS[net.part].files[format].computed
    return load(how)(net.config) if how else {}


def _write_flat(weights: Weights, dst: pathlib.Path, progress) -> list[str]:
    """As MAE and VideoMAE: one state dict of encoder and decoder, or of encoder and classifier."""
    names = [name for name in (weights.pick(), *_beside(weights)) if name in weights.nets]
    notes = [f'dropped: {title(name)}' for name in weights.nets if name not in names]
    notes += ['dropped: the optimizer'] if weights.training else []
    nets = {name: weights.nets[name] for name in names}
    kept = dataclasses.replace(weights, nets=nets, training=None)
    links = {name: links_of(net, 'torch') for name, net in nets.items()}
    computed = {name: _computed(net, 'torch') for name, net in nets.items()}
    more = sum(table.nbytes for arrays in computed.values() for table in arrays.values())
    with torch_write.writing(dst, nbytes(kept, 'torch') + more) as writer:
        content: dict[str, Any] = {}
        for name, net in nets.items():
            for key, array in tables.to_file(links[name], net.tree):
                progress(array.nbytes)
                content[key] = writer.put(array)
            content |= {key: writer.put(table) for key, table in computed[name].items()}
        writer.finish({'model': content, torch_files.OURS: json.dumps(own.extra(kept))})
    return notes


def _beside(weights: Weights) -> tuple[str, ...]:
    """What a file of MAE or VideoMAE holds beside its encoder."""
    tuned = weights.probe and weights.probe[0].mean and not weights.encoder.last_norm
    return ('probe',) if tuned else ('pixel_decoder',)


def _idle(links: list[tables.Link], nu: Mapping) -> set[str]:
    """Arrays that no gradient ever reached: PyTorch has no state for them, ours is zero."""
    leaves = flatten(nu)
    return {
        name
        for link in links
        if link.keys[0][0].startswith(tables.MAYBE_IDLE) and not np.asarray(leaves[link.path]).any()
        for names in link.keys
        for name in names
    }


def _plain(t: Training, steps_per_epoch: int | None, notes: list[str]) -> dict[str, Any]:
    """The entries of a training checkpoint beside nets and optimizer. (reference: vjepa2 §5.5)"""
    if t.original:
        return dict(t.original)
    epoch = steps_per_epoch or 300  # steps
    if steps_per_epoch is None:
        notes.append('steps_per_epoch 300 (as the released configs; --steps-per-epoch to change)')
    if t.step % epoch:
        notes.append(
            f'step {t.step} is not a whole number of epochs of {epoch}: the original resumes from '
            f'step {t.step // epoch * epoch} of its schedules'
        )
    batch = t.config['optim']['batch'] if t.config else None
    return {
        'scaler': torch_write.fresh_scaler(),
        'epoch': t.step // epoch,
        'loss': None,
        'batch_size': batch,
        'world_size': 1,
        'lr': t.hyper['lr'],
    }


def _hf_nets(weights: Weights, encoder: str) -> dict[str, StoredNet]:
    """What a Hugging Face folder can hold of the weights."""
    names = (weights.pick(encoder), 'predictor', 'probe')
    if weights.encoder and hf_files.of_images(weights.encoder):
        names = names[:1]
    if weights.encoder and hf_pixels.is_of_these(weights.encoder):
        names = names[0], *_beside(weights)
    nets = {name: weights.nets[name] for name in names if name in weights.nets}
    if _of_another(weights):
        nets.pop('predictor', None)
    return nets


def _write_hf(weights: Weights, dst: pathlib.Path, encoder: str, progress) -> list[str]:
    chosen, nets = weights.pick(encoder), _hf_nets(weights, encoder)
    links = {name: links_of(net, 'hf') for name, net in nets.items()}
    which = 'only one in the source' if weights.alone else f'{chosen} one'
    notes = [f'the encoder is the {which}']
    for name, net in weights.nets.items():
        if not parts.PARTS[net.part].files:
            links_of(net, 'hf')  # refuses it: nothing but ours holds it
        if name not in nets:
            notes.append(f'dropped: {title(name)}')
    if weights.training:
        notes.append('dropped: the optimizer')
    pixels = hf_pixels.is_of_these(weights.encoder)
    images = hf_files.of_images(weights.encoder)
    if 'predictor' not in nets and not images and not pixels:
        notes.append('no predictor: transformers starts one at random, and says so')
    dst.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.check_room(dst.parent, nbytes(weights, 'hf', encoder))
    probe = None if images or pixels else weights.probe  # an attentive one
    if probe and list(probe[1]) != ['linear']:
        raise ConvertError(f'{dst}: a probe with heads {", ".join(probe[1])}, must be one: linear')
    frames = weights.encoder.frames
    if probe:  # of the clips that it reads, where the source says so
        frames = weights.reads.get('frames', frames)
        if (levels := weights.reads.get('reads', 'last')) != 'last':
            notes.append(f'the probe reads {levels}, theirs always the last block')
    prefixes = {name: 'vjepa2.' if probe and name != 'probe' else '' for name in nets}
    if pixels:
        prefixes = hf_pixels.prefixes(weights.encoder, nets)
    sizes = {}
    for name in nets:
        stacked = {n for link in links[name] if link.index is not None for n in link.form()[0]}
        forms = tables.expected(links[name])
        for key in sorted(forms, key=lambda k: k in stacked):  # as tables.to_file yields them
            sizes[prefixes[name] + key] = 4 * int(np.prod(forms[key]))
    computed = {name: _computed(net, 'hf') for name, net in nets.items()}
    sizes |= {
        prefixes[name] + key: table.nbytes
        for name, tables_of in computed.items()
        for key, table in tables_of.items()
    }
    with hf_files.folder_at(dst) as folder:
        configs = {name: net.config for name, net in nets.items()}
        labels = weights.labels.get('linear', ())
        if pixels:
            head = nets['probe'].config if 'probe' in nets else None
            decoder = configs.get('pixel_decoder')
            hf_pixels.write_config(folder, dst, weights.encoder, decoder, head, labels)
        else:
            predictor = configs.get('predictor')
            hf_files.write_config(
                folder, dst, weights.encoder, chosen, predictor, probe, labels, frames
            )
        shards = hf_files.Shards(folder, sizes)
        for name, net in nets.items():
            for key, table in computed[name].items():
                shards.put(prefixes[name] + key, table)
            for key, array in tables.to_file(links[name], net.tree):
                shards.put(prefixes[name] + key, array)
                progress(array.nbytes)
        shards.close()
    return notes
