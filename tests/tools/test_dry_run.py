"""Counting what a compiled program does, and what the step of any recipe costs: on this machine,
and on a slice that is not there."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from conftest import HERE

from jepa_jax import cli, flops
from jepa_jax.build import ac_predictor, frame_encoder
from jepa_jax.chips import TPUS
from jepa_jax.config import ActionConditionedConfig, RunConfig
from jepa_jax.errors import ConfigError
from jepa_jax.memory import GIB
from jepa_jax.models.decoder import DecoderConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights.parts import net
from tools import compiled, cost, steps
from tools.compiled import Expected, holds_scores, objections
from tools.hlo import Array, Collective, Program


def test_products_count_as_often_as_their_loops_run():
    def f(x, w, v):
        def outer(x, w):
            x = jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x)
            return jnp.tanh(x), None

        x = jax.lax.scan(outer, x, w)[0]
        y = jax.lax.cond(x[0, 0] > 0, lambda: (x @ v).sum(), lambda: 0.0)
        return y + jnp.einsum('bij,bkj->bik', x.reshape(2, 4, 64), x.reshape(2, 4, 64)).sum()

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, 64), (5, 64, 64), (64, 32))]
    program = Program(jax.jit(f).lower(*shapes).compile().as_text())
    expected = 5 * 3 * 2 * 8 * 64 * 64 + 2 * 8 * 64 * 32 + 2 * 2 * 4 * 4 * 64
    assert program.flops() == expected
    assert not program.unknown_loops


# as libtpu writes them, shortened: batched scores as a dilated convolution, a collective that runs
# beside the products (written down three times), a reduce-scatter, a kernel, a counted loop
TPU = """\
HloModule jit_step

%start.1 (p: bf16[1,48,384]) -> (bf16[1,96,384], u32[]) {
  %p = bf16[1,48,384]{2,1,0} parameter(0)
  %g.1 = bf16[1,96,384]{2,1,0} all-gather(%p), channel_id=140, replica_groups=mesh['axis_0'=2,\
'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_0'}, dimensions={1}
  ROOT %c.1 = (bf16[1,96,384]{2,1,0}, u32[]) custom-call(%g.1), \
custom_call_target="AsyncCollectiveStart"
}

%done.1 (p.1: bf16[1,48,384]) -> bf16[1,96,384] {
  %p.1 = bf16[1,48,384]{2,1,0} parameter(0)
  ROOT %g.2 = bf16[1,96,384]{2,1,0} all-gather(%p.1), channel_id=140, replica_groups=mesh[\
'axis_0'=2,'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_0'}, dimensions={1}
}

%all-reduce-scatter.3 (p.2: f32[1024,1024]) -> f32[256,1024] {
  %p.2 = f32[1024,1024]{1,0} parameter(0)
  %r.1 = f32[1024,1024]{1,0} all-reduce(%p.2), channel_id=2, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %s.1 = f32[256,1024]{1,0} dynamic-slice(%r.1), dynamic_slice_sizes={256,1024}
}

%body (b: (s32[], bf16[1,48,384], f32[1024,1024], f32[8,64,4,24])) -> (s32[]) {
  %b = (s32[], bf16[1,48,384], f32[1024,1024], f32[8,64,4,24], bf16[2,4,512,64]) parameter(0)
  %w = bf16[1,48,384]{2,1,0} get-tuple-element(%b), index=1
  %dw = f32[1024,1024]{1,0} get-tuple-element(%b), index=2
  %q = f32[8,64,4,24]{3,2,1,0} get-tuple-element(%b), index=3
  %k = bf16[2,4,512,64]{3,2,1,0} get-tuple-element(%b), index=4
  %m = s8[1,1,1]{2,1,0} constant({...})
  %f.1 = (bf16[1,96,384]{2,1,0}, u32[]) fusion(%w), kind=kCustom, calls=%start.1
  %f.2 = bf16[1,96,384]{2,1,0} fusion(%w), kind=kCustom, calls=%done.1
  %f.3 = f32[256,1024]{1,0} fusion(%dw), kind=kCustom, calls=%all-reduce-scatter.3
  %a = f32[8,4,64,64]{3,2,1,0} convolution(%q, %q), \
window={size=8x4 stride=7x3 lhs_dilate=8x4}, dim_labels=0b1f_0o1i->01bf
  %splash_mha_dkv_no_residuals.1 = (bf16[2,4,512,64]{3,2,1,0}) custom-call(%m, %k, %k, %k), \
custom_call_target="tpu_custom_call"
}

%condition (b.1: (s32[])) -> pred[] {
  %n = s32[] constant(6)
  %b.1 = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%b.1), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[16]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  %t = (s32[]) tuple(%x)
  %l = (s32[]) while(%t), condition=%condition, body=%body
  ROOT %r.2 = f32[16]{0} all-reduce(%x), channel_id=9, replica_groups=[2,8]<=[16], to_apply=%add
}
"""


def test_reads_what_libtpu_writes():
    program = Program(TPU)
    scores = 2 * 8 * 4 * 64 * 64 * 24
    kernel = 4 * 2 * 2 * 4 * 512 * 512 * 64
    assert program.flops() == 6 * (scores + kernel)
    assert program.kernels() == {'splash_mha_dkv_no_residuals': 6}
    assert not program.unknown_loops and not program.uncounted_kernels
    collectives = [(c.kind, c.group, c.times, c.bytes) for c in program.collectives()]
    assert collectives == [
        ('all-gather', 2, 6, 2 * 96 * 384),
        ('reduce-scatter', 4, 6, 4 * 1024 * 1024),
        ('all-reduce', 8, 1, 64),
    ]
    gather, scatter, reduce = program.collectives()
    assert gather.received == 6 * 96 * 384  # half of the result is here already
    assert scatter.received == 6 * 4 * 1024 * 1024 * 3 / 4
    assert reduce.received == 2 * 64 * 7 / 8


def collective(kind: str, *dims: int) -> Collective:
    return Collective(kind, (Array('f32', dims, False),), 8, 1, 'somewhere')


def test_what_parameters_and_gradients_move_is_expected():
    """176 columns of ViT-g on a device, which libtpu pads to 192 and puts right."""
    kernels = {'qkv': (40, 1408, 4224), 'proj': (40, 1408, 1408)}
    abstract = {
        'blocks': {
            'attn': {
                name: {'kernel': jax.ShapeDtypeStruct(shape, jnp.float32)}
                for name, shape in kernels.items()
            }
        }
    }
    specs = jax.tree.map(lambda _: jax.P(None, 'fsdp', None), abstract)
    net = types.SimpleNamespace(abstract=abstract, specs=specs)
    expected = Expected({'encoder': net}, fsdp=8)
    for kind, *dims in [
        ('all-gather', 1, 1408, 4224),
        ('reduce-scatter', 1408, 4224),
        ('reduce-scatter', 1536, 4224),
        ('all-reduce', 40, 176, 4224),
        ('all-reduce', 64, 1024),  # few elements
        ('collective-permute', 112, 4224),
    ]:
        assert expected.holds(collective(kind, *dims)), (kind, dims)
    for kind, *dims in [
        ('all-gather', 48, 576, 1408),  # activations
        ('all-reduce', 2048, 4224),  # more than padding
        ('collective-permute', 8, 1024),  # few elements, but of no parameter
        ('collective-permute', 1408, 4224),  # a whole one
    ]:
        assert not expected.holds(collective(kind, *dims)), (kind, dims)


def test_scores_are_recognised():
    tokens = {2048, 495, 1463}
    assert holds_scores((24, 22, 2048, 2048), tokens)
    assert holds_scores((528, 1536, 1536), tokens)  # padded to a kernel's blocks
    assert not holds_scores((24, 2048, 1408), tokens)
    assert not holds_scores((24, 2048, 2048 * 3), tokens)


def test_weights_as_wide_as_a_sequence_is_long_are_no_scores():
    """ViT-G is 1664 wide, and a mask of V-JEPA 2.1 leaves 192 + 1472 tokens."""
    expected = Expected({'encoder': net('encoder', ViTConfig(1664, 2, 26))}, 8)
    arrays = [Array('bf16', dims, False) for dims in ((1, 1664, 1664), (26, 1664, 1664))]
    assert compiled.scores(arrays, {1664, 2048}, expected) == ['bf16[26,1664,1664]']


def test_a_stream_as_wide_as_a_sequence_is_long_is_no_scores():
    """Llama 3.1 8B is 4096 wide, and has as many heads as layers."""
    llama = DecoderConfig(128, 4096, 256, 32, 32, 8, 128)
    expected = Expected({'decoder': net('decoder', llama)}, 64)
    stream = ('bf16', (32, 4, 4096, 4096)), ('bf16', (4, 4096, 4096)), ('f32', (4, 4096, 4096))
    heads = ('f32', (4, 32, 4096, 4096)), ('bf16', (24, 4096, 4096)), ('f32', (2, 32, 4096, 4096))
    arrays = [Array(*each, False) for each in (*stream, *heads)]
    assert compiled.scores(arrays, {4096}, expected, 4) == sorted(map(str, arrays[3:]))


def test_objections():
    fine = {
        'memory_fraction': 0.5, 'score_buffers': [], 'unexpected_collectives': [],
        'uncounted_kernels': [], 'loops_of_unknown_length': 0,
    }  # fmt: skip
    assert objections(fine) == []
    bad = {'memory_fraction': 0.9, 'score_buffers': ['f32[2,2048,2048]'],
           'unexpected_collectives': ['all-to-all of f32[9]'], 'uncounted_kernels': ['k'],
           'loops_of_unknown_length': 2}  # fmt: skip
    assert len(objections(bad)) == 5


NO_SLICES = 'v5p v3:2x2 v3:1 v7:1 v5e:2 v5e:2x2x v5p:4x4 v4:2x2 v4:2x2x1x1 v5e:4x4x4 v6e:0x0 '
NO_SLICES += 'v5e:3x3 v5p:1x1x1 v5e:-2x2'


@pytest.mark.parametrize('topology', NO_SLICES.split())
def test_topologies_are_checked_first(topology):
    """Whatever is asked for: `--what memory` needs no libtpu that would refuse them."""
    words = f'--topology {topology}: allowed are v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB; A and B '
    for use in (steps.topology_of, steps.slice_devices):
        with pytest.raises(ConfigError, match=words):
            use(topology)


@pytest.mark.parametrize(
    ('topology', 'chips'),
    [('v5p:4x4x4', 64), ('v4:2x2x3', 12), ('v5e:16x16', 256), ('v6e:2x2x1', 4), ('v5e:1x1', 1)],
)
def test_chips_of_a_topology(topology, chips):
    assert steps.topology_of(topology) == (chips, TPUS[topology.partition(':')[0]])


def recordings(**ac) -> ActionConditionedConfig:
    config = ActionConditionedConfig(name='ac', encoder_from='random', compute_dtype='float32')
    config.encoder.width, config.encoder.depth, config.encoder.heads = 48, 2, 2
    config.ac.width, config.ac.depth, config.ac.heads = 48, 2, 2
    config.data.crop, config.robot.frames, config.optim.batch = 32, 4, 8
    config.mesh.fsdp = 2
    return config


def test_the_step_on_recordings():
    """Its own FLOPs, the frozen encoder, and nothing that a masked step would have."""
    config, devices = recordings(), jax.devices()[:2]
    result, _ = compiled.analyse(steps.settle(config, 2, 0.0), devices, 'two')
    vit = frame_encoder(config)
    predictor = ac_predictor(config, vit)
    count = flops.action_conditioned_step(predictor, 8, 4, rollout=2, prefix=1, encode=vit)
    assert result['model_flops'] == count
    # nothing but products is counted on either side; scores are computed again in the backward pass
    assert 1 <= result['recomputation'] < 2
    assert result['program'] == '4 frames of 6 tokens, from pixels'
    assert result['tokens'] == [4, 6, 12, 18]
    step = steps.Step.of(config, devices)
    assert result['frozen_params'] == steps.size(step.objective.frozen) > 0
    assert result['params'] == steps.size(step.objective.nets)
    # parameters and two moments of what is trained, the frozen net once: shared by both devices
    held = result['state_bytes'] + result['frozen_bytes']
    vectors = result['replicated_state_bytes']
    assert 12 * result['params'] + 4 * result['frozen_params'] <= held + 64
    assert held / 2 < result['argument_bytes_per_device'] < held / 2 + vectors + 2**18
    assert result['collectives'].keys() >= {'all-gather'}
    config.features = 'kept'
    assert steps.programs(config, 2)[0].total == flops.action_conditioned_step(
        predictor, 8, 4, rollout=2, prefix=1
    )
    assert steps.Step.of(config, devices).frozen == {}


@pytest.mark.parametrize('file', ['ac_vitg', 'vitl', 'vitg_384'])
def test_shapes_of_batches_too_large_to_make(file):
    config = steps.settle(cli.load(f'configs/{file}.py'), 8, 0.0)
    for program in steps.programs(config, 8):
        rows = {leaf.shape[0] for leaf in jax.tree.leaves(program.shapes)}
        assert rows == {config.optim.batch}
    config.optim.batch, config.data.crop = 8, 64
    for program in steps.programs(config, 8):
        made = jax.tree.map(lambda a: (a.shape, a.dtype), program.batch(0))
        assert made == jax.tree.map(lambda a: (a.shape, a.dtype), program.shapes)


TOY = """
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jepa_jax.config import LoaderConfig, RunConfig
from jepa_jax.memory import Activations
from jepa_jax.nets import Net
from jepa_jax.objectives import Objective, Program
from jepa_jax.recipes import RECIPES, Recipe
from jepa_jax.sharding import gather

RULES = (('kernel', jax.P('fsdp', None)), ('bias', jax.P()))


@dataclasses.dataclass
class ToyConfig(RunConfig):
    objective: str = 'toy'
    width: int = 24
    data: LoaderConfig = dataclasses.field(default_factory=LoaderConfig)


def net(width):
    return Net(lambda rngs: nnx.Linear(width, width, rngs=rngs), rules=RULES)


class Toy(Objective):
    def __init__(self, width):
        self.nets, self.frozen = {'student': net(width)}, {'teacher': net(width)}

    def loss(self, params, ema, frozen, batch, step):
        z = self.nets['student'](gather(params['student']), batch)
        h = self.frozen['teacher'](gather(frozen['teacher']), batch)
        return jnp.mean((z - h) ** 2), {}


def build(config):
    return Toy(config.width)


def programs(config, devices):
    def batch(seed):
        shape = (config.optim.batch, config.width)
        return np.random.default_rng(seed).standard_normal(shape, np.float32)

    worth = 3 * 2 * config.optim.batch * config.width**2
    return [Program(batch, {'all': worth}, frozenset(), 'one')]


def activations(config, rows):
    return Activations(saved=4 * rows * config.width)


RECIPES['toy'] = Recipe(
    config=f'{__name__}:ToyConfig', build=f'{__name__}:build', stream='', workload='',
    programs=f'{__name__}:programs', activations=f'{__name__}:activations',
)


def get_config(arg=''):
    config = ToyConfig(name='toy', compute_dtype='float32')
    config.optim.batch = 16
    config.mesh.fsdp, config.optim.accumulate = 0, 0
    return config
"""


def price(tmp_path, *options: str) -> tuple[int, dict]:
    """Exit status and JSON of tools.cost on the toy."""
    (tmp_path / 'toy_recipe.py').write_text(TOY)
    path = tmp_path / 'cost.json'
    argv = [f'--config={tmp_path / "toy_recipe.py"}', f'--json={path}', *options]
    status = cli.run(cost.run, doc=cost.__doc__, options=cost._options, argv=argv)
    return status, json.loads(path.read_text()) if path.exists() else {}


def test_a_recipe_of_the_users_own(tmp_path, capsys):
    """Priced like those that come with the program; what it leaves to the program is chosen."""
    status, result = price(tmp_path)
    assert status == 0 and result['objective'] == 'toy'
    assert result['params'] == result['frozen_params'] == 24 * 25
    assert (result['mesh']['fsdp'], result['accumulate']) == (1, 1)
    # forward with both nets, and the gradient of the weights: no gradient of the input is needed
    assert result['model_flops'] == result['program_flops'] == 3 * 2 * 16 * 24**2
    said = capsys.readouterr().out
    assert [line.split()[2] for line in said.splitlines()[:3]] == [
        'tracing', 'lowering', 'compiling',
    ]  # fmt: skip
    assert 0 <= result['checkpoint_bytes'] - 3 * 24 * 25 * 4 < 64  # and counters
    assert (result['hosts'], result['checkpoints_kept']) == (1, 3)
    assert result['disk_bytes'] == 4 * result['checkpoint_bytes'] + 24 * 25 * 4
    status, result = price(tmp_path, '--what=memory', '--devices=2')
    weights = 24 * 25 * 4
    assert status == 0 and result['clips_per_device'] == 8
    assert result['gib']['frozen nets'] == weights / GIB
    assert result['gib']['parameters, moments, averages'] == 3 * weights / GIB
    assert result['gib']['kept for the backward pass'] == 4 * 8 * 24 / GIB
    words = 'would be chosen by the memory of a device, which is not known here: 1 is taken'
    assert f'optim.accumulate and mesh.fsdp {words}' in capsys.readouterr().out
    price(tmp_path, '--what=memory', '--config.optim.accumulate=2')
    assert words not in capsys.readouterr().out
    status, result = price(tmp_path, '--what=remat', '--config.mesh.fsdp=2')
    assert status == 0 and result.keys() == {'full', 'attention', 'dots', 'none'}
    assert result['full']['flops'] == result['full']['model_flops']
    status, _ = price(tmp_path, '--devices=2')
    assert status == 1 and 'goes with --what memory' in capsys.readouterr().err
    status, _ = price(tmp_path, '--what=memory', '--decode=20')  # it would say nothing of hosts
    assert status == 1 and '--decode 20: goes with --what step' in capsys.readouterr().err


def test_what_hosts_decode_and_disks_hold(capsys):
    step = {'global_batch': 3000, 'step_seconds_bound': 2.0}
    facts = cost.fed(step, 4, 10.0)
    assert facts == {'hosts': 4, 'clips_per_s_of_a_host': 375.0, 'decode_cores_of_a_host': 38}
    assert cost.fed({'step_seconds_bound': None}, 2, 10.0) == {'hosts': 2}
    said = '4 hosts: at most 375 clips a second each, which take 38 cores at 10 clips a second each'
    assert capsys.readouterr().out == f'{said}\n'
    config = RunConfig()
    config.optim.steps, config.checkpoints.every = 4500, 1000
    config.checkpoints.keep, config.checkpoints.keep_every = 2, 2000
    assert cost.kept_of(config) == {2000, 4000, 4500}
    config.checkpoints.keep_every = 0
    assert cost.kept_of(config) == {4000, 4500}


def test_what_a_cooldown_saves(tmp_path, capsys):
    status, result = price(
        tmp_path, f'--then={tmp_path / "toy_recipe.py"}', '--config.width=12',
        '--config.optim.steps=80000',
    )  # fmt: skip
    # a quarter of the FLOPs for 80 of 320 thousand steps
    assert status == 0 and result['saved'] == 0.25 * 0.75
    assert '18.8% are saved' in capsys.readouterr().out


@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="needs libtpu, of the extra [tpu]: pip install '.[tpu]'",
)
def test_step_for_tpus(tmp_path):
    """The real step of a small model for four TPUs: the kernel, the collectives, the memory."""
    command = [
        sys.executable, '-m', 'tools.dry_run', '--config=configs/tiny.py', '--topology=v5e:2x2',
        '--config.data.crop=64', '--config.compute_dtype=bfloat16', '--config.mesh.fsdp=2',
        '--config.mesh.remat=full', '--config.encoder.depth=2', '--json', tmp_path / 'cost.json',
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=HERE.parent, env=os.environ | {'PYTHONPATH': str(HERE.parent)},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'fits' in done.stdout and 'MFU at most' in done.stdout
    result = json.loads((tmp_path / 'cost.json').read_text())
    assert result['devices'] == 4 and result['device'] == 'TPU v5 lite'
    assert {name.partition('_mha_')[2].split('_')[0] for name in result['kernels']} == {
        'fwd', 'dq', 'dkv',
    }  # fmt: skip
    assert result['score_buffers'] == result['unexpected_collectives'] == []
    assert result['collectives'].keys() >= {'all-gather', 'all-reduce', 'reduce-scatter'}
    # 24 rows of a device are padded to 32, and put right
    permutes = {k: n for k, n in result['collectives'].items() if k == 'collective-permute'}
    assert result['collectives_for_padding'] == permutes
    # with full recomputation the trained parts run forward twice, and kernels pad
    assert 1.1 < result['recomputation'] < 2.0
    assert 0 < result['memory_fraction'] < 0.85 and 0 < result['mfu_ceiling'] < 1
    assert result['step_seconds_bound'] == max(result['seconds_at_least'].values())


def test_what_a_whole_run_costs(capsys):
    """By hand: FLOPs over an H100's 989 TFLOP/s at a quarter of them, and an hour of it at 3."""
    c = cli.load(str(HERE.parent / 'configs/tiny.py'))
    flops, clips = cost._flops_and_clips(c)
    assert clips == c.optim.batch * c.optim.steps
    result = cost.whole_run([c, c], 'h100', 4, 0.25, 3.0)
    chip_hours = 2 * clips * flops / (989e12 / 4) / 3600
    assert result == {
        'flops': pytest.approx(2 * clips * flops), 'chip_hours': pytest.approx(chip_hours),
        'hours': pytest.approx(chip_hours / 4), 'money': pytest.approx(3 * chip_hours),
    }  # fmt: skip
    assert 'on 4 h100 of 989 TFLOP/s at MFU 25%' in capsys.readouterr().out
    for flags, words in (
        (('--chip=h100',), '--mfu 0: must be above 0 and at most 1'),
        (('--mfu=0.4',), 'needs --chip, one of a100, h100'),
        (('--chip=h100', '--mfu=1.5'), '--mfu 1.5: must be above 0 and at most 1'),
        (('--topology=v4:2x2',), 'v4:2x2: goes with --what step, memory, remat, not run'),
        (('--chip=v4', '--mfu=0.4', '--json=/no/where/a.json'), '--json /no/where/a.json: No such'),
        (('--chip=v4', '--mfu=0.4', '--hlo=a'), '--hlo a: goes with --what step, not run'),
        (('--chip=v4', '--mfu=0.4', '--price=-3'), '--price -3: must not be negative'),
        (('--what=step', '--decode=-3'), '--decode -3: must not be negative'),
        (('--what=step', '--hlo=/'), '--hlo /: a folder is in its place'),
        (('--what=memory', '--then=tiny'), '--then tiny: goes with --what step, run, not memory'),
        (('--what=remat', '--chip=v4'), '--chip v4: goes with --what run, not remat'),
        (('--what=step', '--then=tiny', '--hlo=a'), 'goes with --what step without --then'),
    ):
        argv = ['cost', '--what=run', f'--config={HERE.parent / "configs/tiny.py"}', *flags]
        with mock.patch.object(sys, 'argv', argv):
            assert cost.main() == 1
        printed = capsys.readouterr()
        assert words in printed.err and not printed.out


@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="needs libtpu, of the extra [tpu]: pip install '.[tpu]'",
)
def test_slices_of_libtpu_without_its_noise():
    """A single chip, too; in another process, since libtpu writes past Python's sys.stderr."""
    script = """
from tools import steps
for topology in ('v5e:1x1', 'v6e:2x2', 'v5p:2x2x1'):
    print(len(steps.slice_devices(topology)))
"""
    command = [sys.executable, '-c', script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    assert done.stdout.split() == ['1', '4', '4'] and not done.stderr
