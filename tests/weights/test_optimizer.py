"""A run begun in PyTorch is resumed here, and the other way round, with the same updates."""

import dataclasses

import jax
import numpy as np
import optax
import originals
import torch

from jepa_jax import convert, optim
from jepa_jax.config import OptimConfig
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.weights import tables
from jepa_jax.weights.tables import Leaf, flatten, nest
from jepa_jax.weights.write import links_of

STEP = 1e-6  # parameters are of order 1, updates of order 1e-3
TINY = dict(crop=64, frames=8, heads=4, predictor_heads=2)
# one rate for all steps, so that it does not matter where the schedule is
RATES = OptimConfig(warmup=0, start_lr=1e-3, lr=1e-3, final_lr=1e-3, steps=100)
UNUSED = 'mask_tokens.2'
NETS = {'encoder': 'online', 'predictor': 'predictor'}  # of a run, and of its weights


class Original:
    """The original's optimizer over parameters of its names (reference: vjepa2 §5.4)."""

    def __init__(self, states: dict[str, dict[str, torch.Tensor]]):
        self.params = {
            part: {n: torch.nn.Parameter(t.clone()) for n, t in state.items()}
            for part, state in states.items()
        }
        groups = []
        for decayed in (True, False):
            for part in ('encoder', 'predictor'):
                chosen = [
                    p
                    for n, p in self.params[part].items()
                    if ('bias' not in n and p.ndim != 1) == decayed
                ]
                more = {} if decayed else {'WD_exclude': True, 'weight_decay': 0}
                groups.append({'params': chosen, **more})
        self.adam = torch.optim.AdamW(groups)

    def step(self, seed: int) -> None:
        for group in self.adam.param_groups:
            group['lr'] = RATES.lr
            if not group.get('WD_exclude'):
                group['weight_decay'] = RATES.weight_decay
        for part, state in self.params.items():
            for name, p in state.items():
                p.grad = None if UNUSED in name else gradient(part, name, p.shape, seed)
        self.adam.step()

    def content(self, updates: int) -> dict:
        states = {part: {n: p.data for n, p in s.items()} for part, s in self.params.items()}
        return {
            **states,
            'target_encoder': states['encoder'],
            'opt': self.adam.state_dict(),
            'scaler': None,
            'epoch': updates // 3,
            'loss': np.float64(0.5),
            'batch_size': 24,
            'world_size': 128,
            'lr': RATES.lr,
        }


def gradient(part: str, name: str, shape, seed: int) -> torch.Tensor:
    name = name.removeprefix('module.backbone.')
    filled = originals.fill({name: tuple(shape)}, seed=f'{part}{seed}')[name]
    return filled - 1 if 'norm' in name and name.endswith('weight') else filled


def our_step(weights: convert.Weights, path, seed: int) -> convert.Weights:
    """One update by the code of `step.make_step`, on a checkpoint of ours; gradients by the tables
    too."""
    vit, predictor = weights.encoder, weights.predictor
    objective = MaskedVideo(vit, predictor, groups=2)
    params = {part: weights.params(net) for part, net in NETS.items()}
    mask = optim.decay_mask(params, objective.unused)
    tx = optim.adamw(RATES, mask)
    abstract = jax.eval_shape(tx.init, params)
    t = weights.training

    def fill(node):
        if isinstance(node, optax.ScaleByAdamState):
            moments = (
                {p: jax.tree.map(np.asarray, m[net]) for p, net in NETS.items()}
                for m in (t.mu, t.nu)
            )
            return optax.ScaleByAdamState(np.int32(t.count), *moments)
        return jax.tree.map(lambda a: np.full(a.shape, t.step, a.dtype), node)

    state = jax.tree.map(fill, abstract, is_leaf=lambda n: isinstance(n, optax.ScaleByAdamState))
    grads = {}
    for part, net in NETS.items():
        links = links_of(weights.nets[net], 'torch')
        arrays = {
            name: np.zeros(shape, np.float32)
            if UNUSED in name
            else gradient(part, name, shape, seed).numpy()
            for name, shape in tables.expected(links).items()
        }
        grads[part] = nest({link.path: link.ours(arrays.__getitem__) for link in links})

    @jax.jit  # a leaf at a time it would be a hundred small programs
    def update(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = update(grads, state, params)
    adam = next(s for s in state if isinstance(s, optax.ScaleByAdamState))

    def leaves(tree):
        return jax.tree.map(
            lambda a: Leaf(a.shape, np.dtype('float32'), lambda a=a: np.asarray(a)), tree
        )

    training = dataclasses.replace(
        t,
        step=t.step + 1,
        count=int(adam.count),
        mu={net: leaves(adam.mu[p]) for p, net in NETS.items()},
        nu={net: leaves(adam.nu[p]) for p, net in NETS.items()},
    )
    nets = dict(weights.nets)
    for part, net in NETS.items():
        nets[net] = dataclasses.replace(nets[net], tree=leaves(params[part]))
    stepped = dataclasses.replace(weights, nets=nets, training=training)
    convert.write(stepped, path, 'jax')
    return convert.read(path)


def test_a_step_on_each_side(tmp_path):
    first = originals.released()
    original = Original({part: first[part] for part in ('encoder', 'predictor')})
    for seed in range(3):
        original.step(seed)
    torch.save(original.content(3), tmp_path / 'a.pt')

    # PyTorch -> here: the fourth update is the same
    weights = convert.read(tmp_path / 'a.pt', **TINY, steps_per_epoch=3)
    assert weights.training.step == weights.training.count == 3
    assert weights.training.hyper['lr'] == RATES.lr
    convert.write(weights, tmp_path / 'three', 'jax')
    weights = our_step(convert.read(tmp_path / 'three'), tmp_path / 'four', 3)
    before = flatten(convert.read(tmp_path / 'three').params('online'))
    original.step(3)
    torch.save(original.content(4), tmp_path / 'b.pt')
    theirs = convert.read(tmp_path / 'b.pt', **TINY)
    for net in NETS.values():
        ours = flatten(weights.params(net))
        for name, leaf in flatten(theirs.params(net)).items():
            np.testing.assert_allclose(ours[name], leaf, rtol=0, atol=STEP, err_msg=name)
    moved = [
        np.abs(leaf - before[n]).max() for n, leaf in flatten(weights.params('online')).items()
    ]
    assert min(moved) > 1e-4

    # here -> PyTorch: so is the fifth, in an optimizer that loads our file
    convert.write(weights, tmp_path / 'c.pt', 'torch')
    content = torch.load(tmp_path / 'c.pt', weights_only=True)
    other = Original({part: content[part] for part in ('encoder', 'predictor')})
    other.adam.load_state_dict(content['opt'])
    other.step(4)
    original.step(4)
    for part in ('encoder', 'predictor'):
        assert list(other.params[part]) == list(original.params[part])
        for name, p in original.params[part].items():
            torch.testing.assert_close(other.params[part][name], p, rtol=0, atol=STEP)
    assert int(other.adam.state_dict()['state'][0]['step']) == 5
    idle = [p for n, p in other.params['predictor'].items() if UNUSED in n]
    assert torch.equal(idle[0], first['predictor'][f'module.backbone.{UNUSED}'])
    assert idle[0] not in other.adam.state


def test_what_the_file_says_comes_back(tmp_path):
    """Moments, groups and plain entries, bit for bit, through a checkpoint of ours."""
    first = originals.released()
    original = Original({part: first[part] for part in ('encoder', 'predictor')})
    for seed in range(2):
        original.step(seed)
    content = original.content(2)
    torch.save(content, tmp_path / 'a.pt')
    convert.write(convert.read(tmp_path / 'a.pt', **TINY), tmp_path / 'ours', 'jax')
    convert.write(convert.read(tmp_path / 'ours'), tmp_path / 'b.pt', 'torch')
    result = torch.load(tmp_path / 'b.pt', weights_only=True)
    state, expected = result['opt']['state'], content['opt']['state']
    assert state.keys() == expected.keys()
    for index, row in expected.items():
        assert state[index].keys() == row.keys()
        for key, value in row.items():
            assert torch.equal(state[index][key], value) and state[index][key].dtype == value.dtype
    assert result['opt']['param_groups'] == content['opt']['param_groups']
    for name in ('scaler', 'epoch', 'loss', 'batch_size', 'world_size', 'lr'):
        assert result[name] == content[name], name


def test_schedules_and_adam_may_count_differently(tmp_path):
    """A cooldown starts its schedules anew and keeps the moments (reference: vjepa2 §5.5)."""
    first = originals.released()
    original = Original({part: first[part] for part in ('encoder', 'predictor')})
    for seed in range(5):
        original.step(seed)
    content = {**original.content(5), 'epoch': 1}
    torch.save(content, tmp_path / 'a.pt')
    weights = convert.read(tmp_path / 'a.pt', **TINY, steps_per_epoch=2)
    assert (weights.training.step, weights.training.count) == (2, 5)
    convert.write(weights, tmp_path / 'ours', 'jax')
    weights = convert.read(tmp_path / 'ours')
    assert (weights.training.step, weights.training.count) == (2, 5)
    assumed = convert.read(tmp_path / 'a.pt', **TINY)
    assert assumed.training.step == 5
    assert any("Adam's count" in note for note in assumed.notes)


def test_action_conditioned_training(tmp_path):
    """Its encoder is in the optimizer's groups and has no gradient, nor has that of the camera."""
    prefix = 'module.'
    states = {
        'encoder': originals.fill(originals.encoder(), prefix),
        'predictor': originals.fill(originals.ac_predictor(), prefix),
    }
    original = Original(states)
    for part, state in original.params.items():
        for name, p in state.items():
            if part == 'predictor' and 'extrinsics' not in name:
                p.grad = gradient(part, name.removeprefix(prefix), p.shape, 0)
    original.adam.step()
    content = original.content(1)
    torch.save(content, tmp_path / 'a.pt')
    choices = {**TINY, 'predictor_heads': 4}
    weights = convert.read(tmp_path / 'a.pt', **choices)
    assert any('online: frozen in training' in note for note in weights.notes)
    assert list(weights.training.mu) == ['ac_predictor']
    convert.write(weights, tmp_path / 'ours', 'jax')
    convert.write(convert.read(tmp_path / 'ours'), tmp_path / 'b.pt', 'torch')
    result = torch.load(tmp_path / 'b.pt', weights_only=True)
    assert list(result['predictor']) == list(content['predictor'])
    state, expected = result['opt']['state'], content['opt']['state']
    assert state.keys() == expected.keys() and len(expected) == len(states['predictor']) - 2
    for index, row in expected.items():
        assert all(torch.equal(state[index][key], value) for key, value in row.items())
    assert result['opt']['param_groups'] == content['opt']['param_groups']
