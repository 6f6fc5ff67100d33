"""Scenes that differ: the ranges they are drawn from, what cameras see of them, and pixels as
features."""

import colorsys
import dataclasses

import numpy as np
import pytest

pytest.importorskip('jepa_jax.sims.panda', reason='needs MuJoCo', exc_type=ModuleNotFoundError)

from jepa_jax import cli, pretrained  # noqa: E402
from jepa_jax.errors import SimError  # noqa: E402
from jepa_jax.sims import closed_loop, pixels, variation  # noqa: E402
from jepa_jax.sims.panda import Panda  # noqa: E402
from jepa_jax.sims.tasks import PandaEnv, oracle  # noqa: E402
from jepa_jax.sims.variation import SCENES, STANDARD, Distractor, Variation  # noqa: E402


def drawn(kind: str, count: int = 150) -> list[Variation]:
    return [SCENES[kind](np.random.default_rng(seed))[0] for seed in range(count)]


def hue(rgb) -> float:
    return 6 * colorsys.rgb_to_hsv(*rgb)[0]


def test_seen_and_unseen_have_nothing_in_common():
    seen, unseen = drawn('seen'), drawn('unseen')

    def things(scenes):
        for v in scenes:
            yield v.cube_shape, v.cube_texture, v.cube_rgb
            yield from ((d.shape, d.texture, d.rgb) for d in v.distractors)

    def looks(scenes):
        shapes, textures, colours = zip(*things(scenes))
        textures += tuple(v.table_texture for v in scenes)
        return set(shapes), set(textures), {round(hue(c), 1) for c in colours}

    for ours, theirs in zip(looks(seen), looks(unseen)):
        assert len(ours) > 1 and len(theirs) > 1 and not ours & theirs
    assert not {round(hue(v.table_rgb), 1) for v in seen} & {
        round(hue(v.table_rgb), 1) for v in unseen
    }
    for name, span in (('light', (0.7, 1.15)), ('cube_scale', (0.85, 1.1))):
        assert all(span[0] <= getattr(v, name) <= span[1] for v in seen)
        assert not any(span[0] <= getattr(v, name) <= span[1] for v in unseen)
    assert max(np.hypot(*v.lamp) for v in seen) < 0.4 < min(np.hypot(*v.lamp) for v in unseen)
    for v in seen + unseen:  # one camera range, as stated
        assert abs(v.camera_turn) <= 8 and abs(v.camera_lift) <= 4
    assert {len(v.distractors) for v in seen} == {2, 3}
    assert any(d.radius for v in seen for d in v.distractors)


def test_relit_goals_differ_in_the_lamp_alone():
    scene, shown = SCENES['unseen_relit'](np.random.default_rng(0))
    assert (scene.light, scene.lamp) != (shown.light, shown.lamp)
    assert dataclasses.replace(shown, light=scene.light, lamp=scene.lamp) == scene


def test_dark_scenes_differ_in_the_noise_alone():
    noises = []
    kinds = ('seen', 'unseen', 'moderate')
    for plain, dark in ((kind, f'{kind}_dark') for kind in kinds):
        pairs = list(zip(drawn(plain), drawn(dark)))
        assert all(dataclasses.replace(b, noise=0.0) == a for a, b in pairs)
        noises.append([b.noise for _, b in pairs])
    seen, unseen, moderate = noises
    assert 20 <= min(moderate) < max(moderate) <= 30
    assert 35 <= min(seen) < max(seen) <= 50 <= min(unseen) < max(unseen) <= 60
    assert len({*seen}) == len(seen)


def test_noise_of_a_sensor(gl):
    """As strong as it is said to be, alike in no two pictures, and in the same picture the same."""
    pictures = {}
    for noise in (0.0, 30.0):
        with Panda(64, Variation(noise=noise)) as panda:
            panda.place([0.45, 0.0, 0.2], cube=[0.5, 0.1])
            begin = panda.save()
            first = panda.draw()
            np.testing.assert_array_equal(panda.draw(), first)
            panda.act(np.zeros(7))  # the arm rests, time goes on
            second = panda.draw()
            panda.restore(begin)
            np.testing.assert_array_equal(panda.draw(), first)
        pictures[noise] = np.stack([first, second]).astype(float)
    apart = pictures[30.0] - pictures[0.0]
    middle = (pictures[0.0] > 90) & (pictures[0.0] < 165)  # two and a half deviations from the ends
    assert apart[middle].std() == pytest.approx(30, rel=0.05) and abs(apart[middle].mean()) < 2
    assert abs(np.corrcoef(apart[0].ravel(), apart[1].ravel())[0, 1]) < 0.05


def test_the_script_grasps_every_shape():
    for shape, scale in zip(variation.SHAPES, (0.72, 1.25, 0.72, 1.25)):
        scene = Variation(cube_shape=shape, cube_scale=scale, distractors=(Distractor(),))
        env = PandaEnv('grasp', pictures=False, variation=scene)
        env.reset(seed=1)
        over = False
        while not over:
            *_, over, info = env.step(oracle(env))
        assert info['success'], (shape, scale)


MOVING = Variation(distractors=(Distractor(rgb=(0, 1, 0), place=(0.6, 0.3), radius=0.05),))


def test_what_stands_about_moves_and_touches_nothing(gl):
    """It goes round while the arm acts, is elsewhere in goal images, and physics does not know."""

    def play(scene, look):
        with Panda(48, scene) as panda:
            panda.place((0.5, 0, 0.2), cube=(0.5, 0))
            frames = []
            for _ in range(3):
                frames += [panda.draw(), panda.draw(later=2.0)] if look else []
                panda.act([0.02, 0, -0.02, 0, 0, 0, 0])
            return frames, np.concatenate([panda.data.qpos, panda.data.qvel])

    frames, state = play(MOVING, True)
    _, unseen = play(MOVING, False)
    _, without = play(STANDARD, False)
    np.testing.assert_array_equal(state, unseen)
    np.testing.assert_array_equal(state, without)

    def green(image):
        return np.argwhere((image[..., 1] > 90) & (image[..., [0, 2]].max(-1) < 80)).mean(0)

    places = np.array([green(image) for image in frames])
    apart = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert (apart > 0.3).all()
    # 2 seconds of 4 are half a round: as far as its diameter, more than a quarter of a second does
    assert apart[0] > 2 * np.linalg.norm(places[2] - places[0])
    x, y = MOVING.distractors[0].at(1.0)  # a quarter of a round
    np.testing.assert_allclose((x, y), (0.6, 0.35), atol=1e-9)


def test_scenes_share_textures_and_each_is_drawn_as_its_own(gl):
    def draw(**change):
        with Panda(48, Variation(**change)) as panda:
            panda.place((0.5, 0.2, 0.3), cube=(0.5, -0.1))
            return panda.draw()

    first = {name: draw(table_texture=name) for name in ('', *variation.TEXTURES)}
    for name, image in first.items():
        np.testing.assert_array_equal(draw(table_texture=name), image)
        assert sum(np.array_equal(image, other) for other in first.values()) == 1
    plain = first['wood'].astype(int)
    for change in (
        {'table_rgb': (0.5, 0.5, 1.0)}, {'lamp': (0.5, 0.3)}, {'cube_shape': 'bottle'},
        {'cube_texture': 'dots'},
    ):  # fmt: skip
        assert np.abs(draw(**change) - plain).max() > 10, change


def test_goal_images_under_another_lamp(gl):
    dark = dataclasses.replace(STANDARD, light=0.5)
    lit, unlit = (PandaEnv('reach', 48, shown=shown) for shown in (None, dark))
    (a, _), (b, _) = lit.reset(seed=2), unlit.reset(seed=2)
    for name in ('image', 'state', 'goal_state'):
        np.testing.assert_array_equal(a[name], b[name])
    assert b['goal_image'].mean() < 0.7 * a['goal_image'].mean()
    for env in (lit, unlit):
        env.close()
    there = PandaEnv('reach', 48, dark)
    np.testing.assert_array_equal(there.reset(seed=2)[0]['goal_image'], b['goal_image'])
    there.close()


@pytest.mark.parametrize('size, pixel', [('ci', 64), ('varied', 96)])
def test_features_of_the_encoder_that_shows_pixels_are_standardised_patches(tmp_path, size, pixel):
    config = cli.load(f'configs/sim_panda.py:{size}', ['study'])
    _, posttrain = closed_loop.trainings(config, tmp_path)
    shown = closed_loop._on_pixels(posttrain, tmp_path / 'encoder')
    pixels.save(shown, tmp_path / 'encoder')
    model = pretrained.load(str(tmp_path / 'encoder'))
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, pixel, pixel, 3), dtype=np.uint8)
    frames[:, 1] = frames[:, 0]
    features = np.asarray(model.encoder(frames))
    side = pixel // 16
    patches = frames[0, 0].reshape(side, 16, side, 16, 3).transpose(0, 2, 1, 3, 4)
    patches = patches.reshape(side**2, -1)
    mean, std = (np.tile(255 * np.array(v), 256) for v in (MEAN, STD))
    x = (patches - mean) / std
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(features.reshape(side**2, -1), x, atol=1e-4)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_refusals():
    for change, words in (
        ({'cube_shape': 'torus'}, "cube_shape 'torus': allowed are 'box', 'cylinder'"),
        ({'table_texture': 'lace'}, "table_texture 'lace': allowed are '', 'wood'"),
        ({'lamp': (9.0, 0.0)}, 'lamp .9.0, 0.0.: must be 2 numbers from -1.5 to 1.5'),
        ({'distractors': (Distractor(scale=9.0),)}, r'distractors.0..scale 9.0: must be from 0.3'),
    ):
        with pytest.raises(SimError, match=words):
            Variation(**change)
