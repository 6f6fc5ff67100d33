"""What README and docs name is there, and the examples do what they say."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import jepa_jax
from jepa_jax import cli, commands
from jepa_jax.weights import names

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
PAGES = [
    *(ROOT / name for name in ('README.md', 'CHANGELOG.md', 'SECURITY.md', 'launch/README.md')),
    *sorted((ROOT / 'docs').glob('*.md')),
    *sorted((ROOT / 'jepa_jax').rglob('*.md')),
]


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / f'examples/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_short_and_opens_with_a_picture():
    assert len(README.splitlines()) <= 120
    (picture,) = re.findall(r'!\[[^]]+\]\(([^)]+)\)', README)
    assert README.index(picture) < 200
    assert (ROOT / picture).stat().st_size < 150_000


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.S)
    for link in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_tests_and_modules_that_are_named_are_there(page):
    text = page.read_text()
    for place, name in re.findall(r'((?:\w+/)*test_\w+\.py)(?:::(\w+))?', text):
        files = [*ROOT.glob(f'tests/**/{place.removeprefix("tests/")}')]
        assert files, place
        assert not name or any(f'def {name}(' in file.read_text() for file in files), name
    if page.name != 'CHANGELOG.md':  # which names what is gone
        for package, name in re.findall(r'python -m (tools|jepa_jax)\.(\w+)', text):
            assert name == 'NAME' or [*(ROOT / package).glob(f'{name}*')], name


def test_the_commands_of_the_readme_exist():
    told = re.findall(r'`(?:jepa|python -m jepa_jax)[ .](?!jax|NAME)([^`]+)`', README)
    assert len(told) > 15
    for text in told:
        command, *words = text.split()
        assert command in commands.COMMANDS, text
        for word in words:
            if word.startswith('--config='):
                tables = 'evaluation' if command == 'evaluate' else ('objective', 'study')
                cli.load(word.removeprefix('--config='), np.atleast_1d(tables).tolist())
        if '--model' in words and 'runs/mine' not in words:
            names.check(words[words.index('--model') + 1])


def test_every_released_model_is_in_the_readme():
    table = README.split('\n## Models\n')[1].split('\n## ')[0]
    told = set(re.findall(r'`([\w-]+)`', table))
    assert {*names.BUNDLED, *names.RELEASED} - told == {
        name for name, row in names.RELEASED.items() if row.probe_of and name not in told
    }
    probes = [row.version for row in names.RELEASED.values() if row.probe_of]
    # one and five more, one and fourteen more
    assert (probes.count('2.0'), probes.count('1'), len(probes)) == (6, 15, 21)


def test_memory_and_licences_of_the_readme_are_those_of_the_table():
    table = README.split('\n## Models\n')[1].split('\n## ')[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split('|')]
        for name in re.findall(r'`([\w-]+)`', cells[1]) if len(cells) > 5 else ():
            if name in names.MEMORY:
                assert names.MEMORY[name] in cells[4], line
            if name in names.RELEASED:
                assert names.LICENCES[names.RELEASED[name].version] in cells[5], line


def test_the_three_lines_of_the_readme():
    lines = re.search(r'```python\n(.*?)```', README, re.S)[1]
    told = re.search(r'# \((.+)\) \((.+)\)', lines)
    place: dict = {}
    exec(lines, place)
    shapes = [tuple(map(int, group.split(','))) for group in told.groups()]
    assert [place['features'].tokens.shape, place['features'].coords.shape] == shapes


def test_what_comes_with_the_package_is_small_and_ours():
    from jepa_jax.weights import bundled

    assert (bundled.FOLDER / 'tiny.npz').stat().st_size < 1e6
    weights = bundled.read('tiny')
    shape = weights.encoder
    assert (shape.width, shape.depth, shape.heads, shape.patch) == (96, 4, 4, 8)
    assert (shape.image_size, shape.frames) == (32, 8)
    from configs import tiny

    assert weights.fps == tiny.get_config().data.fps  # or a warning would say another rate
    assert weights.alone and 'healthy' in weights.origin
    # the clip: of the main job's test split
    from jepa_jax.data import decode, synthetic

    video = decode.read_frames(jepa_jax.example(), lambda timing: np.arange(timing.frames))
    made = synthetic.video('test', 0)
    assert video.shape == made.shape
    assert np.abs(video.astype(int) - made).mean() < 8  # H.264


def test_weights_are_written_and_read_as_float16(tmp_path, monkeypatch):
    from jepa_jax.weights import bundled
    from jepa_jax.weights.tables import flatten

    weights = bundled.read('tiny')
    monkeypatch.setattr(bundled, 'FOLDER', tmp_path)
    bundled.write(weights, tmp_path / 'again.npz', 'a test')
    again = bundled.read('again')
    assert (again.origin, again.encoder) == ('a test', weights.encoder)
    trees = [flatten(each.params('target')) for each in (weights, again)]
    assert trees[0].keys() == trees[1].keys()
    for name, array in trees[0].items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, trees[1][name])
        np.testing.assert_array_equal(array, np.float32(np.float16(array)))
    (tmp_path / 'again.npz').write_bytes(b'PK\3\4 and no more')
    with pytest.raises(ValueError, match='again.npz'):
        bundled.read('again')


def test_example_features(capsys):
    likeness = example('features_of_a_clip').main([])
    assert likeness.shape == (3, 3) and np.allclose(np.diag(likeness), 1, atol=1e-5)
    assert 'most changes around' in capsys.readouterr().out


@pytest.mark.parametrize(('levels', 'accuracies'), [((60, 180), (1, 1)), ((120, 120), (0.2, 0.8))])
def test_example_own_labels(levels, accuracies, tmp_path, capsys):
    """Dark and light noise are told apart without a mistake, noise of one level is not."""
    rng = np.random.default_rng(0)
    for name, level in zip('ab', levels):
        (tmp_path / name).mkdir()
        for i in range(10):
            clip = rng.normal(level, 20, (8, 40, 40, 3)).clip(0, 255).astype(np.uint8)
            np.save(tmp_path / name / f'{i}.npy', clip)
    accuracy = example('own_labels').main([str(tmp_path)])
    assert 'the most frequent class alone 0.500' in capsys.readouterr().out
    assert accuracies[0] <= accuracy <= accuracies[1]


def test_example_own_labels_without_clips(tmp_path, capsys):
    with pytest.raises(SystemExit):
        example('own_labels').main([str(tmp_path)])
    assert 'must be a folder with a folder of videos a class' in capsys.readouterr().err


def test_example_plan(capsys):
    actions, report = example('plan_with_random_weights').main([])
    assert actions.shape == (2, 7) and np.isfinite(actions).all()
    assert np.abs(actions[:, :3]).max() <= 0.05 + 1e-6  # metres along an axis
    assert not actions[:, 3:6].any()  # rotations are not planned
    assert report['energies'].shape == (3,)


@pytest.mark.parametrize(
    ('model', 'words'),
    [
        ('http://127.0.0.1:9', 'error: no server answers: '),
        ('runs/none', "error: model 'runs/none': no such file"),
    ],
)
def test_the_closed_loop_says_what_is_lacking(model, words):
    pytest.importorskip('mujoco')
    done = subprocess.run(
        [sys.executable, ROOT / 'examples/control_loop.py', '--model', model],
        capture_output=True, text=True, timeout=120, env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(words)
    assert 'Traceback' not in done.stderr
