"""Which rows of a table of planners are compared."""

import dataclasses

import jax
import pytest

from jepa_jax.contrib import measure, options, planners
from jepa_jax.contrib.planners import Row

CEM = Row('cem', 64, 4, 40, 50, 0.010)
ROWS = [
    Row('cem', 8, 2, 30, 50, 0.002),
    CEM,
    Row('cem', 128, 8, 44, 50, 0.040),
    Row('adam', 1, 5, 25, 50, 0.004),
    Row('adam', 4, 10, 39, 50, 0.0105),  # within a tenth: as long
    Row('adam', 4, 20, 45, 50, 0.020),
    Row('mppi', 128, 8, 20, 50, 0.030),
]


def test_equal_seconds_and_equal_success():
    assert planners.reference(ROWS) == CEM
    assert planners.at_equal_seconds(ROWS, 'adam').won == 39
    assert planners.at_equal_seconds(ROWS, 'mppi') is None
    assert planners.at_equal_success(ROWS, 'adam').iterations == 20
    assert planners.at_equal_success(ROWS, 'mppi') is None
    assert planners.at_equal_success(ROWS, 'cem') == CEM
    quick = [*ROWS, dataclasses.replace(CEM, samples=32, won=41, seconds=0.005)]
    assert planners.at_equal_success(quick, 'cem').samples == 32
    assert planners.at_equal_seconds(quick, 'cem').samples == 32


def test_tables_say_it():
    words = planners.tables(ROWS).splitlines()
    assert '| cem | 64 x 4 | 40 of 50 (0.67 to 0.89) | 10.0 |' in words  # Wilson's, by scipy
    assert '| mppi | takes longer | not reached |' in words
    adam = '| adam | 39 of 50 (0.65 to 0.87), 4 x 10 | 20.0 ms, 2.00 times, 4 x 20 |'
    assert adam in words


@pytest.mark.parametrize('name', ['collocation'])  # the others are planned with elsewhere
def test_every_planner_fits_together(name):
    """From the features of a predictor to an episode, longer ahead than it has frames."""
    option = options.OPTIONS['adaln']
    objective = options.objective_of(option, 32, 1)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    planner = options.planner_of(option, name, 16, 2, 4, planners.elites(16))

    def run(params, key):
        world = options.world_of(option, objective, params, slide=True)
        return options.episode_of(option, world, 20.0, planner)(key)

    won, first, last = jax.eval_shape(run, params, jax.random.key(0))
    assert won.dtype == bool and first.shape == last.shape == ()


def test_tables_of_one_page_do_not_overwrite_each_other(tmp_path):
    page = tmp_path / 'options.md'
    measure.put(page, '', 'options\n')
    measure.put(page, measure.PLANNERS, '\nplanners\n')
    assert page.read_text() == 'options\n\n## Planners\n\nplanners\n'
    measure.put(page, measure.PLANNERS, '\nothers\n')
    measure.put(page, '', 'anew\n')
    assert page.read_text() == 'anew\n\n## Planners\n\nothers\n'
