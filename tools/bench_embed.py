"""Time and memory of features, beside transformers on the same weights and frames.

    python -m tools.bench_embed [--size vitl] [--frames 16] [--crop 256] [--rounds 3]
    python -m tools.bench_embed --platform gpu --dtype bfloat16 --clips 8

The part `features` of tools.bench_vs_torch with flags for its sizes. Random weights of the size are
written once as a Hugging Face folder, which both sides load. On a GPU clips go to the device as
bytes and features stay there. Memory is, for loading and running together, the peak of resident
memory (VmHWM), and the peak of anonymous memory, which is no page of any file (RssAnon, looked at
20 times a second): PyTorch uses its weights where they lie in the mapped file, so they are resident
there and not anonymous; ours are rearranged, so they are both. Needs torch and transformers (extra
[test]); Linux only.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

from jepa_jax import cli
from jepa_jax.workdir import room_for

from . import versus
from .bench_vs_torch import common
from .versus import Task
from .versus_tasks import device_of, drawn, platform_is, synchronised


def _write(folder: pathlib.Path, **o: Any) -> dict[str, Any]:
    """The Hugging Face folder, and the clips."""
    import dataclasses
    import math

    import jax
    import numpy as np

    from jepa_jax import flops
    from jepa_jax.pretrained import random_configs
    from jepa_jax.weights.contents import StoredNet, Weights
    from jepa_jax.weights.parts import net
    from jepa_jax.weights.tables import Leaf
    from jepa_jax.weights.write import write

    crop, frames, clips = o['crop'], o['frames'], o['clips']
    config, _ = random_configs(o['size'])
    config = dataclasses.replace(config, image_size=crop, frames=frames)
    params = drawn(net('encoder', config))
    tree = jax.tree.map(lambda a: Leaf(a.shape, a.dtype, lambda: a), params)
    target = StoredNet('encoder', config, tree)
    write(Weights(folder, 'jax', {'target': target}), folder / 'hf', to='hf')
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (clips, frames, crop, crop, 3), np.uint8)
    np.save(folder / 'clips.npy', noise)
    tokens = math.prod(config.grid(frames, crop, crop))
    return {
        'words': f'{o["size"]}, {clips} clips of {frames} frames, {crop} pixels, {o["dtype"]}',
        'flops': clips * flops.encoder(config, tokens, frames),
    }


def _ours(folder: pathlib.Path, **o: Any):
    import jax
    import numpy as np

    import jepa_jax

    platform_is(o['platform'])
    clips = np.load(folder / 'clips.npy')
    model = jepa_jax.load(folder / 'hf', dtype=o['dtype'])
    jax.block_until_ready(model.encoder.params)
    return lambda: {'features': jax.block_until_ready(model.encode(clips))}


def _theirs(folder: pathlib.Path, compiled: bool = False, **o: Any):
    import numpy as np
    import torch
    import transformers

    from jepa_jax.models.tokens import MEAN, STD

    device = device_of(o['platform'], o['threads'])
    dtype = getattr(torch, o['dtype'])
    clips = torch.from_numpy(np.load(folder / 'clips.npy'))
    model = transformers.VJEPA2Model.from_pretrained(
        folder / 'hf', attn_implementation='sdpa', dtype=dtype
    ).eval()
    model = model.to(device)
    if compiled:
        model = torch.compile(model)
    mean, std = (torch.tensor(each, device=device) for each in (MEAN, STD))

    def run():
        with torch.inference_mode():
            pixels = (clips.to(device).float() / 255 - mean) / std
            video = pixels.movedim(-1, 2).contiguous().to(dtype)
            features = model(video, skip_predictor=True).last_hidden_state
        return {'features': features}

    return synchronised(run, o['platform'])


FEATURES = Task(
    _write,
    _ours,
    {
        'transformers': _theirs,
        'transformers, compiled': lambda folder, **o: _theirs(folder, compiled=True, **o),
    },
    {'float32': {'features': 1e-4}, 'bfloat16': {'features': 0.1}},
    {'size': 'vitl', 'clips': 1, 'frames': 16, 'crop': 256, 'dtype': 'float32'},
)


def bench(
    rounds: int, threads: int, platform: str, sides: list[str] | None, json_file: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Runs both sides and prints what they took.

    Raises:
      BenchError: our side failed, or features disagree.
    """
    if json_file:
        room_for('--json', json_file)
    result = versus.measure(
        f'{__spec__.name}:FEATURES', options, peers=sides, rounds=rounds, threads=threads,
        platform=platform,
    )  # fmt: skip
    if json_file:
        pathlib.Path(json_file).write_text(json.dumps(result, indent=2) + '\n')
    versus.judge(result)


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--size', default='vitl', help='a named size (%(default)s)')
    add('--clips', type=cli.count, default=1, metavar='N', help='at a time (%(default)s)')
    add('--frames', type=cli.count, default=16, metavar='N', help='of the clip (%(default)s)')
    add('--crop', type=cli.count, default=256, metavar='PIXELS', help='of the clip')
    add('--sides', nargs='+', metavar='SIDE', help="theirs: 'transformers, compiled' (all)")
    common(parser, rounds=3)


def main() -> int:
    return cli.run(bench, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
