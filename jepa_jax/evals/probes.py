"""Attentive probes on features that are kept: a grid of settings as one program.

    grid = [Setting(lr, decay) for decay in (0.01, 0.4) for lr in (1e-3, 3e-4)]
    trained = train(probe, cross_entropy, read, targets, grid, steps=400, batch=64)
    for logits in predict(probe, trained.params, read, len(test)): ...

Heads differ in learning rate, weight decay and nothing else: the same features, in the same order,
from the same weights, so that one read of the features serves all of them. They are spread over
processes and their devices, each head whole on one: the same arithmetic wherever it lies.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from jepa_jax import distributed
from jepa_jax.checkpoint import hash_arrays
from jepa_jax.models.pooler import AttentiveClassifier, PoolerConfig
from jepa_jax.nets import Net
from jepa_jax.weights.contents import StoredNet, Weights
from jepa_jax.weights.tables import Leaf
from jepa_jax.weights.write import write

CHUNK = 2**28  # bytes of features that go to the device together
FEW = 3  # steps that are timed for an estimate
Read = Callable[[np.ndarray], np.ndarray]  # rows [k] -> features [k, N, D]
# head -> logits [B, C], head -> targets [B, ...] -> the mean loss
Loss = Callable[[dict[str, jax.Array], dict[str, jax.Array]], jax.Array]


@dataclasses.dataclass(frozen=True)
class Probe:
    """What shapes a probe: one query and one linear head an entry of `classes`."""

    pooler: PoolerConfig
    classes: tuple[tuple[str, int], ...]  # head -> number of outputs

    @property
    def net(self) -> Net:
        classes = dict(self.classes)
        return Net(lambda rngs: AttentiveClassifier(self.pooler, classes, rngs=rngs))


@dataclasses.dataclass(frozen=True)
class Setting:
    """Of one head: peak learning rate and weight decay."""

    lr: float
    weight_decay: float


@dataclasses.dataclass(frozen=True)
class Trained:
    """Heads after training, in every process."""

    params: dict  # [G, ...] each, numpy
    losses: np.ndarray  # [G, steps]

    @property
    def finite(self) -> np.ndarray:
        """[G] bool: heads whose loss stayed finite."""
        return np.isfinite(self.losses).all(1)


def cross_entropy(logits: dict[str, jax.Array], targets: dict[str, jax.Array]) -> jax.Array:
    """Of class numbers [B], summed over heads."""
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(logits[head], y).mean()
        for head, y in targets.items()
    ]
    return sum(losses)


def binary_cross_entropy(logits: dict[str, jax.Array], targets: dict[str, jax.Array]) -> jax.Array:
    """Of labels [B, C] of 0 and 1, each by itself, summed over heads."""
    return sum(optax.sigmoid_binary_cross_entropy(logits[h], y).mean() for h, y in targets.items())


def squared_error(logits: dict[str, jax.Array], targets: dict[str, jax.Array]) -> jax.Array:
    """Of numbers [B, C], summed over heads."""
    return sum(jnp.square(logits[head] - y).mean() for head, y in targets.items())


def orders(count: int, steps: int, batch: int, seed: int) -> np.ndarray:
    """Rows of each step [steps, batch]: every epoch all of `count`, in an order of its own."""
    rng, needed = np.random.default_rng(seed), steps * batch
    epochs = [rng.permutation(count) for _ in range(-(-needed // count))]
    return np.concatenate(epochs)[:needed].reshape(steps, batch)


def train(
    probe: Probe,
    loss: Loss,
    read: Read,
    targets: dict[str, np.ndarray],
    settings: Sequence[Setting],
    *,
    steps: int,
    batch: int,
    warmup: int = 0,
    seed: int = 0,
    rows: np.ndarray | None = None,
    title: str = 'probes',
) -> Trained:
    """Trains a head a setting with AdamW, which decays all parameters, and a cosine to zero after
    the warm-up. (reference: vjepa2 §9.3)

    Args:
      probe: shape of each head.
      loss: of a batch.
      read: rows -> features; called in a thread ahead of their use.
      targets: head -> of every row, [n, ...].
      settings: of the heads.
      steps, batch, warmup: in steps, clips, steps.
      seed: of weights and order.
      rows: which of the features to learn from; None: all.
    """
    count = len(next(iter(targets.values())))
    rows = np.arange(count) if rows is None else rows
    plan = rows[orders(len(rows), steps, batch, seed)]
    width = np.shape(read(plan[0, :1]))
    size = max(1, min(steps, CHUNK // (4 * batch * int(np.prod(width[1:])))))
    own, mesh = _share(len(settings))
    every = jax.NamedSharding(mesh, jax.P())
    init, advance = _programs(probe, loss, steps, warmup)

    def chunk(start: int):
        part = plan[start : start + size]
        features = np.asarray(read(part.ravel()), np.float32).reshape(*part.shape, *width[1:])
        return features, {head: y[part] for head, y in targets.items()}

    losses = []
    with (
        jax.set_mesh(mesh),
        ThreadPoolExecutor(1) as pool,
        tqdm(total=steps, desc=title, disable=None) as bar,
    ):
        params, state, lr, decay = _begun(init, [settings[i] for i in own], mesh, seed)
        waiting = pool.submit(chunk, 0)
        for start in range(0, steps, size):
            features, labels = waiting.result()
            if start + size < steps:
                waiting = pool.submit(chunk, start + size)
            numbers = np.arange(start, start + len(features))
            rows_of_all = jax.device_put((numbers, features, labels), every)
            params, state, lost = advance(params, state, *rows_of_all, lr, decay)
            losses.append(np.asarray(lost))
            bar.update(len(features))
    place = _places(len(settings), len(own))
    params, losses = jax.tree.map(
        lambda a: a[place], distributed.whole((jax.device_get(params), np.concatenate(losses).T))
    )
    return Trained(params, losses)


def seconds_a_step(
    probe: Probe,
    loss: Loss,
    shape: tuple[int, int],
    targets: dict[str, np.ndarray],
    settings: Sequence[Setting],
    *,
    steps: int,
    batch: int,
    warmup: int = 0,
) -> float:
    """Seconds that a step of `train` takes, by FEW of them on zeros; not what compiling takes.

    shape: [N, D] of a clip's features. targets: head -> of some row, [n, ...].
    """
    own, mesh = _share(len(settings))
    every = jax.NamedSharding(mesh, jax.P())
    init, advance = _programs(probe, loss, steps, warmup)
    features = np.zeros((FEW, batch, *shape), np.float32)
    labels = {
        head: np.broadcast_to(y[0], (FEW, batch, *y.shape[1:])) for head, y in targets.items()
    }
    with jax.set_mesh(mesh):
        params, state, lr, decay = _begun(init, [settings[i] for i in own], mesh, 0)
        for _ in range(2):  # the first compiles
            begin = time.perf_counter()
            rows = jax.device_put((np.arange(FEW), features, labels), every)
            jax.block_until_ready(advance(params, state, *rows, lr, decay))
    return (time.perf_counter() - begin) / FEW


def _begun(init, settings: Sequence[Setting], mesh: jax.sharding.Mesh, seed: int):
    """Parameters and state of Adam before the first step, rates, decays: a row a setting."""
    heads = jax.NamedSharding(mesh, jax.P('heads'))
    lr, decay = (
        jax.device_put(np.asarray([getattr(s, k) for s in settings], np.float32), heads)
        for k in ('lr', 'weight_decay')
    )
    params = jax.device_put(init(jax.random.key(seed), lr), heads)
    return params, jax.vmap(optax.scale_by_adam().init)(params), lr, decay


def _share(count: int) -> tuple[np.ndarray, jax.sharding.Mesh]:
    """Which of so many heads this process trains, and the devices that share them evenly; repeats
    fill up."""
    each = -(-count // jax.process_count())
    devices = jax.local_devices()
    rounds = -(-each // len(devices))
    devices = devices[: -(-each // rounds)]
    own = jax.process_index() * each + np.arange(rounds * len(devices))
    auto = (jax.sharding.AxisType.Auto,)
    return own.clip(max=count - 1), jax.sharding.Mesh(np.array(devices), ('heads',), auto)


def _places(count: int, each: int) -> np.ndarray:
    """Where heads lie among those of all processes, one process after the other."""
    share = -(-count // jax.process_count())
    heads = np.arange(count)
    return heads // share * each + heads % share


@functools.lru_cache(maxsize=8)
def _programs(probe: Probe, loss: Loss, steps: int, warmup: int):
    """Initial parameters, and some steps from given ones."""
    net, adam = probe.net, optax.scale_by_adam()

    @jax.jit
    def init(key, lr):
        return jax.vmap(lambda _: net.init(key))(lr)  # all from the same

    def step(params, state, number, features, labels, lr, decay):
        value, grads = jax.value_and_grad(lambda p: loss(net(p, features), labels))(params)
        updates, state = adam.update(grads, state, params)
        rise = (number + 1) / max(1, warmup)
        fall = (number - warmup) / max(1, steps - warmup)
        rate = lr * jnp.where(number < warmup, rise, 0.5 * (1 + jnp.cos(jnp.pi * fall)))
        params = jax.tree.map(lambda p, u: p - rate * (u + decay * p), params, updates)
        return params, state, value

    @jax.jit
    def advance(params, state, numbers, features, labels, lr, decay):
        def body(carry, row):
            params, state, value = jax.vmap(step, (0, 0, None, None, None, 0, 0))(
                *carry, *row, lr, decay
            )
            return (params, state), value

        (params, state), losses = jax.lax.scan(body, (params, state), (numbers, features, labels))
        return params, state, losses

    return init, advance


@functools.lru_cache(maxsize=8)
def _predictor(probe: Probe):
    return jax.jit(jax.vmap(probe.net, (0, None)))


def predict(
    probe: Probe, params: dict, read: Read, rows: np.ndarray, *, batch: int = 64
) -> Iterator[dict[str, np.ndarray]]:
    """Logits of rows, batch by batch: head -> [G, b, C]. One program: repeats fill up the last."""
    params = jax.device_put(params)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        full = np.concatenate([part, np.repeat(part[-1:], batch - len(part))])
        logits = _predictor(probe)(params, jnp.asarray(read(full), jnp.float32))
        yield {head: np.asarray(values)[:, : len(part)] for head, values in logits.items()}


def outputs(probe: Probe, params: dict, read: Read, rows: np.ndarray, **options: Any):
    """As `predict`, all rows together: head -> [G, n, C]."""
    parts = list(predict(probe, params, read, rows, **options))
    return {head: np.concatenate([part[head] for part in parts], axis=1) for head in parts[0]}


def one(params: dict, number: int) -> dict:
    """The parameters of one head."""
    return jax.tree.map(lambda a: a[number], params)


def save(
    folder: Path,
    probe: Probe,
    params: dict,
    model,
    labels: dict[str, tuple[str, ...]],
    reads: dict[str, Any],
    origin: str,
) -> None:
    """Writes a head as one of our checkpoints, for `embed --classify --probe FOLDER`. Of several
    processes all call it.

    Args:
      folder: one that an interrupted start left is replaced.
      params: of one head.
      model: whose features it was trained on: read with others it is refused.
      labels: head -> names of its classes.
      reads: fields of `model.ProbeHead`, how clips are made and which features are read.
      origin: where it comes from, in words.
    """
    tree = jax.tree.map(
        lambda a: Leaf(a.shape, np.dtype(a.dtype), lambda a=a: np.asarray(a)), params
    )
    stored = StoredNet('probe', (probe.pooler, dict(probe.classes)), tree)
    reads = {**reads, 'weights': hash_arrays(model.encoder.params)}
    folder = folder.resolve()
    if folder.exists() and not jax.process_index():
        shutil.rmtree(folder)
    distributed.any_process(False)  # it is gone for all
    weights = Weights(
        folder, 'jax', {'probe': stored}, labels=labels, reads=reads, origin=origin
    )  # fmt: skip
    write(weights, folder, to='jax')
