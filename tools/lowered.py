"""What a training step for a GPU holds, read from the program that XLA is handed: without a GPU.

    python -m tools.lowered --config=configs/vitg.py [--json FILE]

Its products by the type of what goes in and comes out, with where the model asks for those in
float32; its calls of cuDNN's attention, forward and backward; how many arrays of the state are
donated; and what is as large as attention scores. XLA may still change layouts and fuse: what it
makes of the program needs a GPU (bash tools/on_gpu.sh).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

from jepa_jax import cli
from jepa_jax.config import RunConfig
from jepa_jax.workdir import room_for

CUDNN = 91000  # a version whose attention takes all that the models ask for


@contextlib.contextmanager
def for_gpu() -> Iterator[None]:
    """Traced within are programs for a GPU with cuDNN, whatever is here."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    from jepa_jax import nets
    from jepa_jax.models import attention, rope

    with contextlib.ExitStack() as stack:
        for module in (nets, attention, rope):
            stack.enter_context(mock.patch.object(module, 'platform', lambda: 'gpu'))
        for name, value in (
            ('check_cudnn_version', lambda: CUDNN), ('check_compute_capability', lambda _: True),
            ('is_cuda_compute_capability_equal', lambda _: False),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(cudnn, name, value))
        yield


def lower(config: RunConfig) -> tuple[str, Any, frozenset[int]]:
    """The largest program of a config for one GPU as text, its state without values, and the token
    counts of its sequences."""
    import jax

    from .steps import Step, programs, settle

    config = settle(config, 1, 0)
    program = max(programs(config, 1), key=lambda program: program.total)
    step = Step.of(config, jax.devices()[:1])
    with jax.set_mesh(step.mesh), for_gpu():
        lowered = step.function.trace(*step.arguments(program)).lower(lowering_platforms=('cuda',))
    return lowered.as_text(debug_info=True), step.state, program.tokens


def read(text: str, state: Any, tokens: frozenset[int]) -> dict[str, Any]:
    """What a lowered step holds, JSON-ready."""
    import jax

    from .compiled import holds_scores

    places = dict(re.findall(r'^(#loc\d+) = loc\((.*)\)$', text, re.M))

    def place(reference: str) -> str:
        """The names that the program's parts have, around an operation."""
        name = re.match(r'"([^"]*)"', places.get(reference, ''))
        return name[1] if name else reference

    products: collections.Counter = collections.Counter()
    exact: collections.Counter = collections.Counter()
    for line in text.splitlines():
        match = re.search(
            r'stablehlo\.dot_general .*: \(tensor<([^>]*)>, tensor<([^>]*)>\) -> tensor<([^>]*)>'
            r' loc\((#loc\d+)\)',
            line,
        )
        if match:
            *types, where = match.groups()
            kinds = tuple(shape.rpartition('x')[2] for shape in types)
            products[' x '.join(kinds[:2]) + ' -> ' + kinds[2]] += 1
            if 'f32' in kinds[:2]:
                exact[place(where)] += 1
    head = text[text.index('func.func public @main(') :].split('\n', 1)[0]
    donated = len(re.findall(r'tf\.aliasing_output|jax\.buffer_donor', head))
    calls = collections.Counter(re.findall(r'@(__cudnn\$fmha\w*)', text))
    arrays = set(re.findall(r'tensor<((?:\d+x)+)(?:f32|bf16)>', text))
    sizes = {tuple(map(int, dims[:-1].split('x'))) for dims in arrays}
    return {
        'products': dict(products),
        'float32_products': dict(exact),
        'attention_calls': dict(calls),
        'state_arrays': len(jax.tree.leaves(state)),
        'donated_arrays': donated,
        'scores': sorted(dims for dims in sizes if holds_scores(dims, tokens)),
    }


def run(config: RunConfig, workdir: str, config_file: str, json_file: str | None) -> None:
    """The tool."""
    del workdir, config_file
    if json_file:
        room_for('--json', json_file)
    result = read(*lower(config))
    for name, value in result.items():
        print(f'{name.replace("_", " ")}: {value}')
    if json_file:
        pathlib.Path(json_file).write_text(json.dumps(result, indent=2) + '\n')


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--json', metavar='FILE', dest='json_file', help='write it (no file)')


def main() -> int:
    return cli.run(run, doc=__doc__, options=_options)


if __name__ == '__main__':
    sys.exit(main())
