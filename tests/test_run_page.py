"""What a run leaves to be looked at: samples, features over training, its page."""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.decomposition import PCA

from jepa_jax import commands, health, looks, report, run_page
from jepa_jax.config import MaskedVideoConfig
from jepa_jax.data import Batch, Group
from jepa_jax.data.trajectories import Trajectories
from jepa_jax.errors import ConfigError
from jepa_jax.masks import Mask
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives import HIDDEN, LEFT_OUT, SEEN, Objective, Sample
from jepa_jax.objectives.action_conditioned import ActionConditioned
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.sharding import make_mesh
from jepa_jax.state import TrainState

ENCODER = ViTConfig(48, 1, 4, dtype=jnp.float32)
RNG = np.random.default_rng(0)


def test_the_page_of_a_run_in_a_bucket_is_there_already():
    for place in ('s3://mine/runs/a', 'gs://mine/runs/a'):
        with pytest.raises(ConfigError, match=f'^{place}: must be a folder; the run put its page'):
            report.run(place)


def test_moments_double():
    assert looks.moments(64, 4) == {1, 16, 32, 64}
    assert looks.moments(5, 8) == {1, 2, 5}
    assert looks.moments(100, 0) == looks.moments(0, 8) == set()


def test_a_mask_is_drawn_over_its_tokens(tmp_path):
    """Two tubelets of 2 x 2 tokens of 48 pixels: one hidden, two seen, one in neither."""
    mask = np.array([[[SEEN, HIDDEN], [LEFT_OUT, SEEN]]] * 2, np.int8)
    whole = Sample(np.full((4, 96, 96, 3), 200, np.uint8), {'mask 0': mask}, 'words')
    looks.write_samples(tmp_path / looks.FOLDER / 'samples.npz', [looks.thinned(whole)])
    (sample,) = looks.read_samples(tmp_path)
    assert sample.words == 'words' and sample.frames.shape == (2, 96, 96, 3)
    rows = looks.draw(sample)
    assert (rows['frames'][:, :96] == 200).all()
    for start in (0, 96 + looks.GAP):
        frame = rows['mask 0'][:, start : start + 96]
        assert (frame[:48, :48] == 200).all() and (frame[48:, 48:] == 200).all()
        assert (frame[:48, 48:] == 30).all() and (frame[48:, :48] == 100).all()


def test_components_are_those_of_the_first():
    a, b = RNG.normal(size=(2, 2, 3, 4, 4, 8)) * np.arange(8, 0, -1)
    parts = looks.components({'a': a, 'b': b})
    pca = PCA(3).fit(a.reshape(-1, 8))
    np.testing.assert_allclose(parts['shares'], pca.explained_variance_ratio_, rtol=1e-6)
    deviations = np.sqrt(pca.explained_variance_ * (1 - 1 / 96))
    for name, x in (('a', a), ('b', b)):
        expected = pca.transform(x.reshape(-1, 8)) / deviations
        ours = parts[name].reshape(-1, 3)
        signs = np.sign((ours * expected).sum(0))
        np.testing.assert_allclose(ours * signs, expected, atol=1e-4)


def test_moments_are_turned_to_be_like_the_last(tmp_path):
    last = RNG.normal(size=(1, 2, 4, 4, 3))
    turned = last @ ortho_group.rvs(3, random_state=1)
    folder = tmp_path / looks.FOLDER
    folder.mkdir()
    for step, a in ((4, turned), (16, last)):
        np.savez(folder / f'features_{step:08d}.npz', encoder=a, shares=np.ones(3) / 3)
    ((name, rows),) = looks.drawn_features(tmp_path).items()
    assert name == 'encoder, clip 0' and [step for step, _ in rows] == [4, 16]
    assert np.abs(rows[0][1].astype(int) - rows[1][1]).max() <= 1
    assert not np.ptp(rows[1][1][:24, :24], axis=(0, 1)).any()  # a token, enlarged by whole pixels


def test_samples_and_features_of_masked_video():
    objective = MaskedVideo(ENCODER, PredictorConfig(48, width=24, depth=1, heads=2), groups=1)
    clips = RNG.integers(0, 256, (3, 4, 32, 32, 3), np.uint8)
    context, target = np.array([[0, 1, 6]] * 3), np.array([[2, 3], [4, 5], [5, 7]])
    batch = Batch((Group(clips, (Mask(context, target),)),))
    samples = objective.samples(batch, 2)
    assert [np.array_equal(s.frames, c) for s, c in zip(samples, clips)] == [True, True]
    flat = samples[1].masks['mask 0'].ravel()
    assert samples[1].masks['mask 0'].shape == (2, 2, 2)
    expected = [SEEN, SEEN, LEFT_OUT, LEFT_OUT, HIDDEN, HIDDEN, SEEN, LEFT_OUT]
    assert flat.tolist() == expected
    ids = np.broadcast_to(np.arange(8.0)[None, :, None], (2, 8, 48))
    objective.nets = {'encoder': lambda params, clips: params * ids}
    assert objective.shown(batch) is clips
    tokens = objective.picture({}, {'encoder': 3}, {}, clips[:2])['target encoder']
    assert tokens.shape == (2, 2, 2, 2, 48)
    assert np.asarray(tokens[1, ..., 0]).ravel().tolist() == [3 * i for i in range(8)]


@pytest.mark.parametrize('features', [True, False])
def test_what_is_pictured_of_action_conditioned(features):
    config = ACPredictorConfig(48, width=32, depth=1, heads=2, grid=(2, 2), dtype=jnp.float32)
    objective = ActionConditioned(ENCODER, config, features=features)
    of = jax.ShapeDtypeStruct
    batch = Trajectories(
        of((2, 3, 7), jnp.float32), of((2, 4, 7), jnp.float32), of((2,), jnp.int32),
        frames=None if features else of((2, 4, 32, 32, 3), jnp.uint8),
        features=of((2, 4, 4, 48), jnp.float16) if features else None,
    )  # fmt: skip
    frozen = {name: net.abstract for name, net in objective.frozen.items()}
    drawn = jax.eval_shape(objective.picture, objective.abstract, {}, frozen, batch)
    assert {a.shape for a in drawn.values()} == {(2, 3, 2, 2, 48)} and len(drawn) == 2
    frames = None if features else np.zeros((2, 4, 32, 32, 3), np.uint8)
    whole = Trajectories(np.ones((2, 3, 7)), None, np.ones(2), frames=frames)
    words = [sample.words for sample in objective.samples(whole, 1)]
    assert words == ([] if features else ['actions: ' + '; '.join([' '.join(['+1.000'] * 7)] * 3)])


class Scaled(Objective):
    """Features are the clips times the only parameter."""

    nets = ema = {}

    def shown(self, batch):
        return batch

    def picture(self, params, ema, frozen, shown):
        return {'scaled': shown * params['scale']}


class Pictures(list):
    def picture(self, step, name, image):
        self.append((step, name, image.shape))


def test_the_same_clips_are_looked_at_after_a_restart(tmp_path):
    mesh = make_mesh(1, jax.devices()[:1])
    batches = RNG.normal(size=(2, 3, 2, 4, 4, 8)).astype(np.float32)

    def start(batch, step: int, scale: float) -> Pictures:
        seen, told = looks.Looks(Scaled(), mesh, tmp_path, steps=8, count=4), Pictures()
        seen.cut_back(step - 1)
        state = TrainState(step, {'scale': jnp.float32(scale)}, {}, ())
        assert seen.due(step)
        with jax.set_mesh(mesh):
            seen.take(step, state, {}, batch, told)
        return told

    told = start(batches[0], 4, 1.0)
    assert told == [(4, f'scaled/{i}', (96, 2 * (96 + looks.GAP), 3)) for i in range(looks.COUNT)]
    start(batches[1], 8, 2.0)
    assert [step for step, _ in looks.features_of(tmp_path)] == [4, 8]
    first, second = (np.load(path)['scaled'] for _, path in looks.features_of(tmp_path))
    np.testing.assert_allclose(first, second, atol=1e-4)  # in deviations, so alike
    pca = PCA(3).fit_transform(batches[0][: looks.COUNT].reshape(-1, 8))
    ours = first.reshape(-1, 3)
    assert [round(abs(np.corrcoef(ours[:, i], pca[:, i])[0, 1]), 5) for i in range(3)] == [1] * 3
    start(batches[1], 2, 1.0)
    assert [step for step, _ in looks.features_of(tmp_path)] == [2]  # those of later steps went


def rows() -> list[dict]:
    """Of a run whose features are too much alike, after a first row that compiled."""
    rows = []
    for step in range(1, 9):
        row = {'step': step, 'loss': 0.5, 'clips_per_s': 8.0, 'step_s': 1.0, 'data_wait_s': 0.25}
        row |= {'overhead_s': 0.75, 'data/tried': 8.0 * step}
        if step == 1:
            row |= {'compile_s': 9.0, 'clips_per_s': 0.001, 'data_wait_s': 99.0}
        else:
            row |= {'data/failed/corrupt': 2.0}
        for of in ('target', 'context'):
            row |= {f'health/{of}_rank': 8.0, f'health/{of}_std_share': 0.05}
        rows.append(row | {'health/loss_share': 0.5, 'health/target_clip_share': 0.5})
    return rows


def test_the_page_of_a_run_at_work(tmp_path, capsys, monkeypatch):
    config = MaskedVideoConfig(name='<mine>')
    (tmp_path / 'config.json').write_text(json.dumps(dataclasses.asdict(config)))
    text = ''.join(json.dumps(row) + '\n' for row in rows())
    (tmp_path / 'metrics.jsonl').write_text(text)
    monkeypatch.setattr(
        run_page, '_newest', lambda _: {'failures': {'named': ['a&b.mp4']}, 'config_file': ''}
    )
    monkeypatch.setattr(run_page.pictures, 'plot_run', plot := Plot())
    monkeypatch.setattr(sys, 'argv', ['jepa report', str(tmp_path)])
    assert commands.module('report').main() == 0
    assert capsys.readouterr().out == f'page: {tmp_path}/report.html\n'
    assert plot.bands['health/target_std_share'] == (health.VARIES, 1.0)
    page = (tmp_path / 'report.html').read_text()
    assert '<h1>&lt;mine&gt;: partial collapse so far</h1>' in page
    assert '64 records were tried, 2 of them (3.12%) could not be read' in page
    assert '<td>corrupt</td><td>2</td>' in page and 'a&amp;b.mp4' in page
    assert 'A step waited 0.25 s of 2 s for its batch' in page  # without the row that compiled
    assert f'jepa train --config=NAME --workdir={tmp_path}' in page
    assert not re.search(r'<script|https?:|src="(?!data:)', page)


def test_what_to_type_next(tmp_path):
    config = MaskedVideoConfig()
    config.optim.steps = 40
    told = {'command': 'jepa train --config=x --config.optim.steps=40 --workdir=y'}
    again, words, *_ = run_page._commands(tmp_path, config, told, {}, 30).splitlines()
    assert again.startswith('# from where it is') and words == told['command']
    lines = run_page._commands(tmp_path, config, told, {}, 40).splitlines()
    assert lines[1] == (
        'jepa train --config=x --workdir=y --config.optim.steps=80 '
        '--config.checkpoints.allow_config_change=True'
    )
    assert f'jepa embed --model {tmp_path} --input clip.mp4 --out features.npz' in lines
    assert lines[-1] == f'jepa report {tmp_path}'
    # a part of a study, before and after its end: the study goes on, not this alone
    part = {'part_of': 'runs/all', 'config_file': 'study.py'}
    for done in (30, 40):
        lines = run_page._commands(tmp_path, config, None, part, done).splitlines()
        assert lines[1] == 'jepa train --config=study.py --workdir=runs/all'


def test_rows_of_old_runs_are_enough():
    row = {'step': 1, 'loss': 0.5, 'data_wait_s': 0.5, 'step_s': 1.5, 'data/tried': 8.0}
    assert '<p>A step waited 0.5 s of 2 s for its batch, on average.</p>' in run_page._data(
        [row], None, {}
    )


class Plot:
    def __call__(self, records, path, title, bands, loss):
        self.bands, self.loss = bands, loss
        path.write_bytes(b'')


def test_no_run_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['jepa report', str(tmp_path)])
    assert commands.module('report').main() == 1
    assert capsys.readouterr().err == (
        f'error: {tmp_path}: no training run, which has a config.json and metrics.jsonl\n'
    )
