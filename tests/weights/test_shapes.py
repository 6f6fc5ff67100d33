"""Size and options of the released models, from names and shapes alone (reference: vjepa2 §1.1,
§2, §7.1, §9.1, §10.1)."""

import math

import jax
import originals
import pytest

from jepa_jax.errors import ConvertError
from jepa_jax.weights import shapes, tables
from jepa_jax.weights.parts import net


def reader(**told) -> shapes.Reader:
    return shapes.Reader('a.pt', shapes.Choices(**told))


def encoder(read: shapes.Reader, forms: dict):
    return shapes.encoder(read, 'online', forms, None)


def count(forms: dict) -> int:
    return sum(map(math.prod, forms.values()))


def fits(part: str, config, forms: dict) -> None:
    """The net of the config needs exactly these arrays."""
    rules, sizes = tables.table(part, config, 'torch')
    module = net(part, config)
    links = tables.bind(rules, module.abstract, sizes)
    assert tables.expected(links) == forms
    assert tables.file_order(links) == list(forms)
    assert sum(leaf.size for leaf in jax.tree.leaves(module.abstract)) == count(forms)


@pytest.mark.parametrize(
    'size, width, depth, hidden, heads, parameters',
    [
        ('tiny', 192, 12, 768, 3, 5_633_856),
        ('vitb', 768, 12, 3072, 12, 86_236_416),
        ('vitl', 1024, 24, 4096, 16, 303_885_312),
        ('vith', 1280, 32, 5120, 16, 631_648_000),
        ('vitg', 1408, 40, 6144, 22, 1_012_173_952),
        ('gigantic', 1664, 48, 6656, 26, 1_598_483_328),
    ],
)
def test_named_encoders(size, width, depth, hidden, heads, parameters):
    forms = originals.encoder(width, depth, hidden)
    assert count(forms) == parameters
    read = reader()
    config = encoder(read, forms)
    assert (shapes.size_of(config), config.heads) == (size, heads)
    assert not any(note.startswith('heads') for note in read.notes)
    assert [note.split()[0] for note in read.notes] == ['crop', 'frames']
    fits('encoder', config, forms)


@pytest.mark.parametrize(
    'width, parameters', [(1024, 22_086_016), (1280, 22_282_880), (1408, 22_381_312)]
)
def test_released_predictors(width, parameters):
    forms = originals.predictor(width, 384, 12, 10)
    assert count(forms) == parameters
    read = reader(crop=384, frames=64)
    config = shapes.predictor(read, 'predictor', forms, None)
    assert (config.heads, config.depth, config.mask_tokens) == (12, 12, 10)
    assert config.grid == (32, 24, 24) and not read.notes
    fits('predictor', config, forms)


def test_released_action_conditioned_predictor():
    forms = originals.ac_predictor(1408, 1024, 24)
    assert count(forms) == 305_220_992
    config = shapes.ac_predictor(reader(), 'ac_predictor', forms, None)
    assert (config.heads, config.depth, config.grid) == (16, 24, (16, 16))
    fits('ac_predictor', config, forms)


@pytest.mark.parametrize('width, parameters', [(1024, 49_514_670), (1408, 93_494_190)])
def test_released_probes(width, parameters):
    forms = originals.probe(width, 4, {'linear': 174})
    assert count(forms) == parameters
    pooler, classes = shapes.probe(reader(), 'probe', forms, None)
    assert (pooler.heads, pooler.depth, classes) == (16, 4, {'linear': 174})
    expected = tables.expected(
        tables.bind(tables.PROBE, net('probe', (pooler, classes)).abstract, {})
    )
    assert expected == forms


def test_heads_of_a_custom_model():
    """A known width keeps its heads at any depth; others have heads of 64 channels, or are told."""
    for width, heads in ((192, 3), (1408, 22), (640, 10), (96, 2)):
        read = reader()
        assert encoder(read, originals.encoder(width, 2, 4 * width)).heads == heads
        assert any(note.startswith(f'heads {heads} (') for note in read.notes)
    told = reader(heads=8)
    assert encoder(told, originals.encoder(96, 2, 384)).heads == 8
    assert not any(note.startswith('heads') for note in told.notes)


def test_hidden_widths_of_no_usual_ratio():
    for hidden in (100, 257, 1000):
        config = encoder(reader(), originals.encoder(96, 2, hidden))
        fits('encoder', config, originals.encoder(96, 2, hidden))
    for hidden in (256, 384, 300):
        forms = originals.encoder(96, 2, hidden, swiglu=True)
        fits('encoder', encoder(reader(), forms), forms)


def test_a_net_of_ours_that_the_original_cannot_have():
    from jepa_jax.models.ac_predictor import ACPredictorConfig

    config = ACPredictorConfig(96, 64, 2, 4, conditioning='adaln')
    with pytest.raises(ConvertError, match='has no place'):
        tables.bind(tables.AC_PREDICTOR, net('ac_predictor', config).abstract)
