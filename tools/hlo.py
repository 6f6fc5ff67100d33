"""What a compiled program does, counted from its text: products, collectives, bytes, arrays.

XLA's own `cost_analysis` counts the body of a loop once and knows nothing of kernels. Here every
instruction counts as often as it runs: loops by their known trip counts, of a branch the larger
side. Shapes in the text are those of one device.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {'pred': 8, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16, 'bf16': 16, 'f16': 16}
BITS |= {'s32': 32, 'u32': 32, 'f32': 32, 's64': 64, 'u64': 64, 'f64': 64, 'c64': 64, 'token': 0}
# products of [N, C] x [C, S] in each kernel: scores and values; scores, dp, dq; scores, dp, dv, dk
SPLASH = {'splash_mha_fwd': 2, 'splash_mha_dq': 3, 'splash_mha_dkv': 4}
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
# what moves no bytes, or is counted where its parts are
FREE = {
    'parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'while', 'conditional',
    'call', 'iota', 'after-all', 'partition-id', 'replica-id', 'opt-barrier', 'broadcast',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Array:
    """A shape in the text: one device's part of an array."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool  # in the chip's own memory, not in HBM

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return self.size * BITS.get(self.dtype, 8) // 8

    def __str__(self) -> str:
        return f'{self.dtype}[{",".join(map(str, self.dims))}]'


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    arrays: tuple[Array, ...]  # of its result; several of a tuple
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    def called(self, *keys: str) -> list[str]:
        """Computations named by attributes."""
        names = []
        for key in keys:
            if match := re.search(rf'\b{key}=(?:{{([^}}]*)}}|(%?[\w.\-]+))', self.attributes):
                names += re.findall(r'[\w.\-]+', match[1] or match[2])
        return names

    @property
    def constant(self) -> int | None:
        """The value of a whole constant."""
        whole = self.opcode == 'constant' and re.fullmatch(r'\d+', self.operands[0])
        return int(self.operands[0]) if whole else None

    @property
    def source(self) -> str:
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else self.name


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction and how often it runs."""

    kind: str
    arrays: tuple[Array, ...]  # gathered results, or what is reduced
    group: int  # devices that take part together
    times: int
    source: str

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @property
    def received(self) -> float:
        """Least bytes that must reach each device, all runs together."""
        share = (self.group - 1) / self.group
        once = {'all-reduce': 2 * share, 'collective-permute': 1.0}.get(self.kind, share)
        return once * self.bytes * self.times


class Program:
    """A compiled program.

    Args:
      text: `compiled.as_text()`.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.unknown_loops: list[str] = []  # without a known trip count, counted once
        self.uncounted_kernels: set[str] = set()
        self.entry = ''
        current: dict[str, Instruction] = {}
        for line in re.sub(r'/\*.*?\*/', '', text).splitlines():
            if head := re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$', line):
                current = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif instruction := _parse(line):
                current[instruction.name] = instruction

    @functools.cached_property
    def runs(self) -> list[tuple[str, Instruction, int, bool]]:
        """(computation, instruction, how often it runs, whether inside a fusion)."""
        return list(self._walk(self.entry, 1, False))

    def _walk(self, name: str, times: int, fused: bool) -> Iterator:
        for each in self.computations.get(name, {}).values():
            yield name, each, times, fused
            if each.opcode == 'while':
                count = times * self._trips(each)
                for body in each.called('body'):
                    yield from self._walk(body, count, fused)
            elif each.opcode == 'conditional':
                branches = each.called(
                    'branch_computations', 'true_computation', 'false_computation'
                )
                sides = [list(self._walk(branch, times, fused)) for branch in branches]
                yield from max(sides, key=len)
            else:
                inside = fused or each.opcode == 'fusion'
                for called in each.called('calls', 'called_computations'):
                    yield from self._walk(called, times, inside)
                if each.opcode == 'call':
                    for called in each.called('to_apply'):
                        yield from self._walk(called, times, fused)

    def _trips(self, loop: Instruction) -> int:
        """How often a loop's body runs: as XLA noted it, or by a condition `counter < constant`,
        with a counter from 0, as jax.lax.scan and map write it."""
        if noted := re.search(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)', loop.attributes):
            return int(noted[1])
        inside = self.computations[loop.called('condition')[0]]
        root = next(each for each in inside.values() if each.root)
        if root.opcode == 'fusion':  # the comparison, with its constant handed in
            compared = self.computations[root.called('calls')[0]].values()
            less = any('direction=LT' in each.attributes for each in compared)
        else:
            less = 'direction=LT' in root.attributes
        constants = [inside[name].constant for name in root.operands if name in inside]
        limits = [limit for limit in constants if limit is not None]
        if not less or len(limits) != 1:
            self.unknown_loops.append(loop.source)
            return 1
        return limits[0]

    def _operands(self, computation: str, each: Instruction) -> list[Instruction]:
        there = self.computations[computation]
        return [there[name] for name in each.operands if name in there]

    def flops(self) -> int:
        """FLOPs of every product, 2 m n k each; kernels by what they compute."""
        return sum(self._flops(where, each) * times for where, each, times, _ in self.runs)

    def _flops(self, where: str, each: Instruction) -> int:
        if each.opcode == 'dot':
            left = self._operands(where, each)[0].arrays[0]
            axes = _numbers(each.attributes, 'lhs_contracting_dims')
            return 2 * each.arrays[0].size * math.prod(left.dims[axis] for axis in axes)
        if each.opcode == 'convolution':
            left, right = (o.arrays[0] for o in self._operands(where, each)[:2])
            return _convolution(each, left.dims, right.dims)
        if each.opcode == 'custom-call' and '"tpu_custom_call"' in each.attributes:
            kernel = next((k for k in SPLASH if each.name.startswith(k)), None)
            if kernel is None:
                self.uncounted_kernels.add(each.name)
                return 0
            q, k, v = [o.arrays[0] for o in self._operands(where, each) if _heads(o)][:3]
            return SPLASH[kernel] * 2 * q.size * k.dims[-2]
        if library := re.search(r'custom_call_target="(__(?:cublas|cudnn)[^"]*)"', each.attributes):
            self.uncounted_kernels.add(library[1])  # of a GPU
        return 0

    def kernels(self) -> dict[str, int]:
        """Runs of each kernel."""
        runs: dict[str, int] = {}
        for _, each, times, _ in self.runs:
            if each.opcode == 'custom-call' and '"tpu_custom_call"' in each.attributes:
                name = each.name.rstrip('.0123456789')
                runs[name] = runs.get(name, 0) + times
        return runs

    def collectives(self) -> list[Collective]:
        """Each once: what runs asynchronously is written down for its start, for what it overlaps
        and for its end, under one channel."""
        collectives: list[Collective] = []
        seen: set[tuple[str, ...]] = set()
        for where, each, times, _ in self.runs:
            kind = each.opcode.removesuffix('-start')
            if kind not in COLLECTIVES:
                continue
            inputs = tuple(a for o in self._operands(where, each) for a in o.arrays)
            arrays = inputs
            if kind == 'all-gather':  # an asynchronous one lists operands, then results
                arrays = each.arrays[-len(inputs) :]
            # a TPU's reduce-scatter: an all-reduce and a slice in one fusion
            if kind == 'all-reduce' and 'all-reduce-scatter' in where:
                kind = 'reduce-scatter'
            channel = re.search(r'channel_id=(\d+)', each.attributes)
            if channel and kind != 'reduce-scatter':  # those run at once, and share a channel
                key = (kind, channel[1], ' '.join(map(str, arrays)))
                if key in seen:
                    continue
                seen.add(key)
            collectives.append(
                Collective(kind, arrays, _group(each.attributes), times, each.source)
            )
        return collectives

    def bytes_moved(self) -> int:
        """Least bytes between HBM and the chip: operands and results of every instruction outside
        fusions; of an array of which a slice is taken or replaced, the slice."""
        return sum(
            self._traffic(where, each) * times
            for where, each, times, fused in self.runs
            if not fused and each.opcode not in FREE and not each.opcode.endswith('-done')
        )

    def _traffic(self, where: str, each: Instruction) -> int:
        operands = self._operands(where, each)
        written = sum(a.bytes for a in each.arrays if not a.on_chip)
        if each.opcode in ('dynamic-slice', 'slice', 'gather', 'slice-start'):
            return 2 * each.arrays[0].bytes
        if each.opcode == 'dynamic-update-slice':
            return 2 * operands[1].bytes
        if each.opcode.endswith('-start'):
            return sum(_in_hbm(o) for o in operands)
        if each.opcode == 'fusion' and (inner := self.computations.get(each.called('calls')[0])):
            reads = sum(min(_in_hbm(o), _used(inner, number)) for number, o in enumerate(operands))
            root = next(i for i in inner.values() if i.root)
            if root.opcode == 'dynamic-update-slice':
                written = min(written, inner[root.operands[1]].bytes)
            return reads + written
        return sum(_in_hbm(o) for o in operands) + written

    def arrays(self) -> list[tuple[Array, str]]:
        """Every array that is stored, largest first, once a shape, and what makes it."""
        makers: dict[str, tuple[Array, str]] = {}
        for _, each, _, fused in self.runs:
            if not fused:
                for array in each.arrays:
                    makers.setdefault(str(array), (array, each.source))
        return sorted(makers.values(), key=lambda pair: -pair[0].bytes)


def _parse(line: str) -> Instruction | None:
    match = re.match(r'\s+(ROOT )?%?([\w.\-]+) = ', line)
    if not match:
        return None
    rest = line[match.end() :]
    shape, rest = _split(rest) if rest.startswith('(') else rest.split(' ', 1)
    opcode = re.match(r'\s*([\w\-]+)\(', rest)
    if not opcode:
        return None
    operands, attributes = _split(rest[opcode.end() - 1 :])
    if opcode[1] in ('parameter', 'constant'):
        names = [operands.strip('()')]  # its number, its value
    else:
        names = re.findall(r'%([\w.\-]+)', operands)
    return Instruction(
        match[2], opcode[1], _arrays(shape), tuple(names), attributes, bool(match[1])
    )


def _split(text: str) -> tuple[str, str]:
    """Behind the parenthesis that closes the first."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == '(') - (letter == ')')
        if not depth:
            return text[: position + 1], text[position + 1 :]
    return text, ''


def _arrays(text: str) -> tuple[Array, ...]:
    arrays = re.findall(r'(\w+)\[([\d,]*)\](\{[^}]*\})?', text)
    return tuple(
        Array(dtype, tuple(map(int, dims.split(','))) if dims else (), 'S(1)' in layout)
        for dtype, dims, layout in arrays
    )


def _numbers(text: str, key: str) -> list[int]:
    match = re.search(rf'\b{key}=\{{([\d,]*)\}}', text)
    return [int(n) for n in match[1].split(',') if n] if match else []


def _heads(operand: Instruction) -> bool:
    array = operand.arrays[0]
    return len(array.dims) in (3, 4) and array.dtype in ('f32', 'bf16')


def _in_hbm(each: Instruction) -> int:
    return sum(a.bytes for a in each.arrays if not a.on_chip)


def _used(inner: dict[str, Instruction], number: int) -> float:
    """Bytes that a fusion reads of its operand: of slices, what they take."""
    parameter = next(
        i for i in inner.values() if i.opcode == 'parameter' and i.operands == (str(number),)
    )
    total = 0
    for user in inner.values():
        if parameter.name not in user.operands:
            continue
        if user.opcode in ('dynamic-slice', 'slice', 'gather'):
            total += user.bytes
        elif user.opcode == 'dynamic-update-slice' and user.operands[0] == parameter.name:
            continue  # replaced in place
        else:
            return math.inf
    return total


def _group(attributes: str) -> int:
    """Devices in a replica group."""
    if match := re.search(r'replica_groups=\[(\d+),(\d+)\]', attributes):
        return int(match[2])
    if match := re.search(r'replica_groups=mesh\[(.*?)\].*?\{([^}]*)\}', attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r'replica_groups=\{\{([\d,]+)\}', attributes):
        return len(match[1].split(','))
    return 2  # a permutation


def _convolution(each: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """2 x output x kernel, without positions that fall on padding or between dilated inputs: the
    TPU's compiler writes batched products in that form."""
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', each.attributes)
    window = re.search(r'window=\{([^}]*)\}', each.attributes)
    fields = dict(part.split('=') for part in window[1].split()) if window else {}
    spatial = [axis for axis in labels[3] if axis.isdigit()]
    out = each.arrays[0].dims

    def numbers(key: str, default: int) -> list[int]:
        return [int(n) for n in fields[key].split('x')] if key in fields else [default] * 9

    pads = [int(p.split('_')[0]) for p in fields['pad'].split('x')] if 'pad' in fields else [0] * 9
    stride, reach = numbers('stride', 1), numbers('rhs_dilate', 1)
    spread = numbers('lhs_dilate', 1)
    pairs = 1
    for i, axis in enumerate(spatial):
        size, kernel = left[labels[1].index(axis)], right[labels[2].index(axis)]
        outputs = out[labels[3].index(axis)]
        last = (size - 1) * spread[i]
        count = 0
        for tap in range(kernel):
            offset = tap * reach[i] - pads[i]
            for o in range(outputs):
                at = o * stride[i] + offset
                count += 0 <= at <= last and at % spread[i] == 0
        pairs *= count
    batch = out[labels[3].index('b')]
    features = out[labels[3].index('f')]
    depth = right[labels[2].index('i')]
    return 2 * batch * features * depth * pairs
