"""The real step of a config, of any recipe: what the tools that price and time it share."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jepa_jax import memory, optim, recipes, sharding
from jepa_jax.chips import CHIPS, SIDES, TPUS
from jepa_jax.config import RunConfig, store
from jepa_jax.errors import ConfigError
from jepa_jax.lookup import load
from jepa_jax.nets import Net
from jepa_jax.objectives import Objective, Program
from jepa_jax.state import init_state
from jepa_jax.step import make_step


def topology_of(text: str) -> tuple[int, str]:
    """`v5p:4x4x4` -> its number of chips, and what JAX calls them.

    Raises:
      ConfigError: no such slice.
    """
    kind, _, sides = text.partition(':')
    numbers = [int(side) if side.isdecimal() else 0 for side in sides.split('x')]
    dimensions = SIDES.get(kind, 0)
    if dimensions == 2 and numbers[2:] == [1]:
        numbers.pop()  # v5e:2x2x1, as some write it
    # a host has 2x2 chips; some of v5e and v6e have one
    hosts = not any(side % 2 for side in numbers[:2]) or numbers == [1, 1]
    if not dimensions or len(numbers) != dimensions or min(numbers) < 1 or not hosts:
        shapes = (f'{name}:{"x".join("ABC"[:count])}' for name, count in SIDES.items())
        raise ConfigError(
            f'--topology {text}: allowed are {", ".join(shapes)}; A and B are even, since a host '
            'has 2x2 chips, or of v5e and v6e 1x1, a single one'
        )
    return math.prod(numbers), TPUS[kind]


def slice_devices(topology: str) -> list:
    """The devices of a TPU slice that need not be attached; `v5p:4x4x4`. Call it before JAX is
    used: it starts no TPU then.

    Raises:
      ConfigError: no such slice, or no libtpu to ask.
    """
    topology_of(topology)
    # libtpu looks for the machine it is on, and wants to be alone on it; neither matters here, but
    # of a type that it does not know it complains on the terminal
    os.environ |= {
        'TPU_SKIP_MDS_QUERY': '1',
        'TPU_ACCELERATOR_TYPE': 'v5p-8',
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
        'TPU_STDERR_LOG_LEVEL': '3',
    }
    try:
        import libtpu  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError("--topology needs libtpu: pip install 'jepa_jax[tpu]'") from error
    from jax.experimental import topologies

    jax.config.update('jax_platforms', 'cpu')
    try:
        single = {'chips_per_host_bounds': [1, 1, 1]} if topology.endswith(':1x1') else {}
        slice_ = topologies.get_topology_desc(platform='tpu', topology_name=topology, **single)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'--topology {topology}: no slice that libtpu knows ({reason})'
        ) from error
    return list(slice_.devices)


def memory_of(kind: str) -> float:
    """Bytes of a device, as its maker says or as this process has them; 0: not known."""
    chip = CHIPS.get(kind)
    return chip.memory if chip and chip.memory else memory.device_memory()


def settle(config: RunConfig, devices: int, capacity: float) -> RunConfig:
    """A config that can be priced on so many devices of `capacity` bytes: what a recipe leaves to
    its user and is not read here is filled in, what it leaves to the program (0) is chosen.

    Raises:
      ConfigError: it cannot run, or its batch does not split over the devices.
    """
    _fill_in(config)
    saved = config.checkpoints
    if saved.restart_schedule and not saved.init_from:
        saved.resume_from = saved.resume_from or '(not read)'
    recipes.validate(config)
    config = memory.choose(config, devices, capacity)
    memory.rows_at_a_time(config.optim.batch, devices, config.optim.accumulate)
    return config


def _fill_in(part: Any) -> None:
    """Paths of lists and recordings."""
    for key in store.field_types(type(part)):
        value = getattr(part, key)
        if key == 'path' and value == '':
            part.path = '(not read)'
        for inner in value if isinstance(value, list) else [value]:
            if dataclasses.is_dataclass(inner):
                _fill_in(inner)


def programs(config: RunConfig, devices: int) -> list[Program]:
    """Of a config's recipe, as it is settled."""
    return load(recipes.of(config).programs)(config, devices)


@dataclasses.dataclass(frozen=True)
class Step:
    """A config's step on a mesh, and its arguments without values. Use it under
    jax.set_mesh(mesh)."""

    objective: Objective
    mesh: jax.sharding.Mesh
    init: Callable[[jax.Array], Any]  # key -> state
    function: Any  # jitted: (state, frozen, batch) -> (state, metrics), the state donated
    state: Any
    frozen: dict[str, Any]

    @classmethod
    def of(cls, config: RunConfig, devices: list) -> Step:
        objective = load(recipes.of(config).build)(config)
        optimizer = optim.build(config.optim, objective)
        mesh = sharding.make_mesh(config.mesh.fsdp, devices)

        def init(key):
            return init_state(objective, optimizer.tx, key)

        with jax.set_mesh(mesh):
            shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
        step = jax.jit(make_step(objective, optimizer, config.optim.accumulate), donate_argnums=0)
        frozen = {name: _laid(net, mesh) for name, net in objective.frozen.items()}
        return cls(objective, mesh, init, step, sharding.concrete(shapes, mesh), frozen)

    def arguments(self, program: Program) -> tuple[Any, dict, Any]:
        """State, frozen nets and batch, without values."""
        laid = jax.NamedSharding(self.mesh, sharding.BATCH)
        batch = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=laid), program.shapes
        )
        return self.state, self.frozen, batch

    def start(self, seed: int) -> tuple[Any, dict]:
        """A fresh state, and frozen nets with random weights."""
        key = jax.random.key(seed)
        frozen = {
            name: jax.jit(lambda key, net=net: sharding.place(net.init(key), net.specs))(key)
            for name, net in self.objective.frozen.items()
        }
        return jax.jit(self.init)(key), frozen

    def compile(
        self, program: Program, say: Callable[[str], None] = lambda line: None
    ) -> tuple[Any, dict[str, Any]]:
        """The compiled step, and its costs: seconds of wall and of all cores, bytes a device.

        say: gets a line when a phase begins; the last one takes minutes for large models.
        """
        walls, cores, stage = [time.perf_counter()], [time.process_time()], self.function
        arguments = self.arguments(program)
        phases = {
            'tracing': lambda s: s.trace(*arguments),
            'lowering': lambda s: s.lower(),
            'compiling': lambda s: s.compile(),
        }
        for phase, make in phases.items():
            say(f'{walls[-1] - walls[0]:5.0f} s  {phase}')
            stage = make(stage)
            walls.append(time.perf_counter())
            cores.append(time.process_time())
        names = ('trace', 'lower', 'compile')
        costs: dict[str, Any] = {
            'seconds': dict(zip(names, (b - a for a, b in zip(walls, walls[1:])))),
            'core_seconds': dict(zip(names, (b - a for a, b in zip(cores, cores[1:])))),
        }
        if plan := stage.memory_analysis():  # what the allocator was told to need
            costs['memory_bytes'] = {
                'arguments': plan.argument_size_in_bytes,
                'outputs in place of arguments': plan.alias_size_in_bytes,
                'other outputs': plan.output_size_in_bytes - plan.alias_size_in_bytes,
                'temporary': plan.temp_size_in_bytes,
            }
        return stage, costs


def _laid(net: Net, mesh: jax.sharding.Mesh) -> Any:
    """A net's parameters on the mesh, without values."""

    def one(a, spec: jax.P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=jax.NamedSharding(mesh, spec))

    return jax.tree.map(one, net.abstract, net.specs)


def state_bytes(config: RunConfig) -> tuple[int, int]:
    """Bytes of a checkpoint's arrays, and of the nets that are stored once, beside checkpoints."""
    objective = load(recipes.of(config).build)(config)
    tx = optim.build(config.optim, objective).tx
    state = jax.eval_shape(lambda: init_state(objective, tx, jax.random.key(0)))
    once = [net.abstract for net in (objective.frozen | objective.kept).values()]
    return tuple(
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (state, once)
    )


def size(nets: dict[str, Net]) -> int:
    """Parameters of nets together."""
    return sum(leaf.size for net in nets.values() for leaf in jax.tree.leaves(net.abstract))


def matmul_peak(dtype, rounds: int = 5) -> float:
    """FLOP/s of square matrix products on one device: the best of a few rounds. An accelerator gets
    several at once, so that it waits for none."""
    side, at_once = (1536, 1) if jax.default_backend() == 'cpu' else (8192, 16)
    # float32 as the models take it: not rounded to a coarser type on the way
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision)).lower(a, a).compile()
    product(a, a).block_until_ready()
    times = []
    for _ in range(rounds):
        mark = time.perf_counter()
        jax.block_until_ready([product(a, a) for _ in range(at_once)])
        times.append(time.perf_counter() - mark)
    return 2 * side**3 * at_once / min(times)
