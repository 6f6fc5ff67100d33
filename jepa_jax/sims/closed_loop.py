"""The whole way in one resumable run: play in the simulator, pretrain an encoder on the recordings,
keep its features, train the action-conditioned predictor, plan with it in the simulator: a study.

The workdir is that of the predictor's run, with `recordings/`, `encoder/` (a run of its own),
`features/` and, if asked for, `random_encoder/` (a predictor on one) below it; `decoded/`, which
may be deleted, holds the recordings' frames for the encoder's training.
What is there already is not made again, whatever died. `report.html` shows what came out.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa_jax.config import (
    ActionConditionedConfig,
    DataListConfig,
    MaskedVideoConfig,
    SimConfig,
    SimEvaluationConfig,
    SimGatesConfig,
)
from jepa_jax.ending import FILE
from jepa_jax.errors import GateError, SimError, allowed
from jepa_jax.evals import horizon
from jepa_jax.sims import evaluate, page, pixels, recordings
from jepa_jax.sims.bench import PIXELS, RANDOM, TOLD, Bench, episodes_of, planners_of
from jepa_jax.sims.tasks import TASKS
from jepa_jax.sims.variation import SCENES
from jepa_jax.studies import Stage
from jepa_jax.workdir import lock, write_json

log = logging.getLogger(__name__)

# gate -> fields of `evaluation` and what they must have, one of several
REACH = {'tasks': ('reach',), 'scenes': ('standard',)}
NEVER_RECORDED = 'unseen', 'unseen_dark'
DIFFER = *NEVER_RECORDED, 'moderate_dark'
NEEDS = {
    'nearer': REACH,
    'within_8_cm': REACH,
    'reach': REACH,
    'grasp': REACH | {'tasks': ('grasp',)},
    'grasp_told': REACH | {'tasks': ('grasp',)},
    'pick_and_place_told': REACH | {'tasks': ('pick_and_place',)},
    'unseen': {'scenes': NEVER_RECORDED},
    'moderate_dark': {'scenes': ('moderate_dark',)},
    'over_random': {'scenes': DIFFER},
}


def check(config: SimConfig, workdir: Path) -> None:
    """Refuses settings that cannot work, before the trainings.

    Raises:
      SimError: which, what was found and what is allowed.
    """
    for name, table in (('tasks', TASKS), ('scenes', SCENES)):
        if wrong := [word for word in _words(config, name) if word not in table]:
            raise SimError(f"evaluation.{name} '{wrong[0]}': {allowed(wrong[0], table)}")
    _check_planner(config)
    for name, asked in dataclasses.asdict(config.gates).items():
        for field, words in NEEDS.get(name, {}).items() if asked else ():
            if not {*words} & {*_words(config, field)}:
                raise SimError(
                    f'gates.{name} = {asked}: evaluation.{field} must have {" or ".join(words)} '
                    'to measure it, '
                    f"found '{getattr(config.evaluation, field)}'"
                )
    asked, gates = config.evaluation, config.gates
    if gates.over_random and not asked.random_encoder:
        raise SimError('gates.over_random: needs evaluation.random_encoder = true to measure it')
    for name in ('grasp_told', 'pick_and_place_told'):
        if dataclasses.asdict(gates)[name] and not asked.gripper_weight:
            raise SimError(f'gates.{name}: needs evaluation.gripper_weight above 0 to measure it')
    recordings.check(config.collection)
    _same_evaluation(config.evaluation, _read(workdir), workdir)


def _check_planner(config: SimConfig) -> None:
    settings, training = config.evaluation, config.posttrain
    for least, names in (
        (0, ('compared', 'untrained', 'first', 'simulator_episodes')),
        (1, ('episodes', 'at_once')),
        (2, ('judged',)),  # an episode is judged with the actions of another
    ):
        for name in names:
            if (value := getattr(settings, name)) < least:
                raise SimError(f'evaluation.{name} {value}: must be at least {least}')
    if settings.exponent not in (1, 2):
        raise SimError(f'evaluation.exponent {settings.exponent}: allowed are 1, 2')
    if not settings.gripper_weight >= 0:
        raise SimError(f'evaluation.gripper_weight {settings.gripper_weight:g}: must be at least 0')
    planners_of(settings)
    if settings.horizon >= training.robot.frames:
        raise SimError(
            f'evaluation.horizon {settings.horizon}: must be less than posttrain.robot.frames = '
            f'{training.robot.frames}'
        )
    if settings.gripper_weight and not training.ac.use_states:
        raise SimError(
            f'evaluation.gripper_weight {settings.gripper_weight:g}: needs posttrain.ac.use_states '
            '= True'
        )


def stages(config: SimConfig, folder: Path) -> list[Stage]:
    """Play, the encoder's training, the predictor's, and those of what it is compared with."""
    pretrain, posttrain = trainings(config, folder)
    place = Path(posttrain.robot.path)

    def play(into: Path) -> None:
        with lock(into):
            recordings.collect(into, config.collection, config.workers)

    steps = [
        Stage('recordings', place, make=play),
        Stage('encoder', Path(posttrain.encoder_from), pretrain),
        Stage('predictor', folder, posttrain),
    ]
    if config.evaluation.random_encoder:
        steps.append(Stage(RANDOM, folder / RANDOM, _on_random_encoder(posttrain)))
    if config.evaluation.pixel_encoder:
        shown = _on_pixels(posttrain, folder / PIXELS / 'encoder')

        def show(into: Path) -> None:
            if not into.exists():
                pixels.save(shown, into)

        steps.append(Stage('pixels', Path(shown.encoder_from), make=show))
        steps.append(Stage(PIXELS, folder / PIXELS, shown))
    return steps


def report(config: SimConfig, folder: Path) -> None:
    """Plans in the simulator and writes what came of it.

    Raises:
      GateError: the run is finished and reached less than its gates ask for.
    """
    with lock(folder) as path:
        measured = measure(config, path)
    failed = [row for row in measured['gates'] if not row['passed']]
    if failed:
        words = ', '.join(
            f'{row["name"]} {row["measured"]:.2f}, asked {row["asked"]:g}' for row in failed
        )
        raise GateError(f'{folder}: the run is whole, but reached too little: {words}')


def trainings(config: SimConfig, folder: Path) -> tuple[MaskedVideoConfig, ActionConditionedConfig]:
    """The two trainings, with the paths and sizes that follow from each other."""
    recordings, size = folder / 'recordings', config.collection.image_size
    first, second = config.pretrain, config.posttrain
    pretrain = dataclasses.replace(
        first,
        name=f'{config.name}-encoder',
        seed=config.seed,
        data=dataclasses.replace(
            first.data,
            crop=size,
            lists=[DataListConfig(kind='videos', path=str(recordings))],
            # a small encoder waits for videos that are decoded anew for every clip
            cache=first.data.cache or str(folder / 'decoded'),
        ),
    )
    posttrain = dataclasses.replace(
        second,
        name=config.name,
        seed=config.seed,
        compute_dtype=first.compute_dtype,
        encoder=first.encoder,
        encoder_from=str(folder / 'encoder'),
        features=str(folder / 'features'),
        robot=dataclasses.replace(
            second.robot, kind='npz', path=str(recordings), robot='panda-sim', camera='outside'
        ),
        data=dataclasses.replace(second.data, crop=size),
    )
    return pretrain, posttrain


def _on_random_encoder(posttrain: ActionConditionedConfig) -> ActionConditionedConfig:
    return dataclasses.replace(posttrain, name=f'{posttrain.name}-random', encoder_from='random')


def _on_pixels(posttrain: ActionConditionedConfig, encoder: Path) -> ActionConditionedConfig:
    own = dataclasses.replace(posttrain.encoder)
    shown = dataclasses.replace(
        posttrain, name=f'{posttrain.name}-pixels', encoder=own, encoder_from=str(encoder)
    )
    pixels.shape(shown)
    return shown


def _words(config: SimConfig, field: str) -> list[str]:
    """Of a comma list of `evaluation`."""
    return [name.strip() for name in getattr(config.evaluation, field).split(',')]


def _rows(config: SimConfig) -> dict[str, tuple[str, str]]:
    """Names of the rows of `tasks`: a task, in standard scenes, or with a word for others."""
    return {
        task if scenes == 'standard' else f'{task} {scenes}': (task, scenes)
        for scenes in _words(config, 'scenes')
        for task in _words(config, 'tasks')
    }


def _read(folder: Path) -> dict[str, Any]:
    """report.json of the predictor's run; empty before there is one."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else {}


def measure(
    config: SimConfig, folder: Path, bench_of: Callable[[SimConfig, Path], Bench] = Bench
) -> dict[str, Any]:
    """Adds to report.json what it lacks of `cost`, `dynamics`, `tasks` and `gates`, one after the
    other, draws the pictures and writes the page."""
    path, report = folder / FILE, _read(folder)
    report['evaluation'] = _same_evaluation(config.evaluation, report, folder)
    episodes = episodes_of(config.evaluation)
    left = {row: _missing(report, row, episodes) for row in _rows(config)}
    judged = set(report.get('dynamics', ())) >= episodes.keys() & {'planner', RANDOM, PIXELS}
    if judged and not any(left.values()) and 'gates' in report:
        report['gates'] = judge(config.gates, report)  # these may be asked anew
        return report
    bench = bench_of(config, folder)
    for line in bench.about:
        log.info('%s', line)
    if not judged:
        before = 'cost' in report and _cost_words(report['cost'], report['dynamics']['planner'])
        benchmark = bench.judge(folder)
        far = benchmark.pop('horizon', {})
        for task, row in far.items():
            where = f'new scenes, the script at {task}'
            old = report.get('horizon', {}).get(task)
            words = horizon.words_of(where, row)
            _say(report, words, horizon.words_of(where, old) if old else None)
        report['horizon'] = report.get('horizon', {}) | far
        report |= benchmark
        _say(report, _cost_words(report['cost'], report['dynamics']['planner']), before or None)
        write_json(path, report)
    for task, names in left.items():
        if not names:
            continue
        results = bench.play(*_rows(config)[task], names)
        before = report['tasks'].get(task)
        known = before['policies'] if before else {}
        known |= {name: episodes.summary() for name, episodes in results.items()}
        in_order = {name: known[name] for name in episodes_of(config.evaluation) if name in known}
        row = report['tasks'][task] = evaluate.row(in_order | known, 'planner')
        _say(report, evaluate.verdict(task, row), before and evaluate.verdict(task, before))
        for name in page.DRAWN & results.keys():
            title = f'{config.name}, {task}, simulated, {name}'
            for kind, draw in (('png', evaluate.plot_episodes), ('gif', evaluate.animate_episodes)):
                draw(results[name], folder / page.picture(task, name, kind), title)
        write_json(path, report)
    before = report.get('gates')
    report['gates'] = judge(config.gates, report)
    if report['gates']:
        report['verdict'] = 'passed' if all(r['passed'] for r in report['gates']) else 'failed'
        _say(report, gate_words(report['gates']), before and gate_words(before), report['verdict'])
    write_json(path, report)
    written = page.write(folder, config, report)
    log.info('page: %s', written)
    return report


def _missing(report: Mapping[str, Any], task: str, episodes: Mapping[str, int]) -> list[str]:
    """Policies that have not played as many episodes of a task as are episodes."""
    known = report['tasks'].get(task, {}).get('policies', {})
    return [n for n, count in episodes.items() if known.get(n, {}).get('episodes') != count]


def _same_evaluation(
    settings: SimEvaluationConfig, report: Mapping[str, Any], folder: str | Path
) -> dict[str, Any]:
    """The settings of `evaluation` that all rows of a report share: all but those which add rows.

    Raises:
      SimError: the report's were others; rows of two kinds would stand side by side.
    """
    asked = dataclasses.asdict(settings)
    for name in (
        'tasks', 'scenes', 'random_encoder', 'pixel_encoder', 'planners', 'simulator_episodes',
        'at_once',
    ):  # fmt: skip
        del asked[name]
    # the row with a weight may come later; where it is not asked for the one there keeps its own
    before = {k: v for k, v in report.get('evaluation', {}).items() if k != 'gripper_weight' or v}
    asked['gripper_weight'] = asked['gripper_weight'] or before.get('gripper_weight', 0.0)
    for name, value in asked.items():
        if before.get(name, value) != value:
            raise SimError(
                f'{folder}: was measured with evaluation.{name} {before[name]}, {value} here; '
                'name another folder'
            )
    return asked


def _say(report: dict[str, Any], words: str, before: str | None = None, title: str = '') -> None:
    """Adds a sentence to a report, or puts it in the place of the one before, and logs it."""
    said = report['sentences']
    if before in said:
        said[said.index(before)] = words
    else:
        said.append(words)
    log.info('%s', f'{title}: {words}' if title else words)


def judge(gates: SimGatesConfig, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each gate that asks for something: its `name`, what was `asked` and `measured`,
    whether it `passed`, and what an `untrained` predictor reaches, None where the gate is not about
    the predictor.
    """

    def reach(summary: Mapping[str, float]) -> dict[str, float]:
        return {
            'nearer': 1 - summary['distance'] / summary['start'],
            'within_8_cm': summary['within_8_cm'],
        }

    measured = {'rank_correlation': report['cost']['rank_correlation']}
    untrained: dict[str, float] = {}
    for name, into in (('planner', measured), ('untrained', untrained)):
        into['shuffled_over_true'] = report['dynamics'][name]['shuffled_over_true']
        for task, row in report['tasks'].items():
            summary = row['policies'][name]
            into[task] = summary['success']
            if TOLD in row['policies']:
                measured[f'{task}_told'] = row['policies'][TOLD]['success']
            if task == 'reach':
                into |= reach(summary)
            kind = task.split()[-1]
            gate = 'unseen' if kind in NEVER_RECORDED else kind
            if kind in DIFFER and gate not in into:  # of the first task
                into[gate] = summary['success']
                if RANDOM in row['policies']:
                    above = summary['success'] - row['policies'][RANDOM]['success']
                    into.setdefault('over_random', above)
    rows = []
    for name, asked in dataclasses.asdict(gates).items():
        if not asked:
            continue
        rows.append(
            {
                'name': name,
                'asked': asked,
                'measured': measured[name],
                'passed': measured[name] >= asked,
                'untrained': untrained.get(name),
            }
        )
    return rows


def gate_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on the gates."""

    def words(row: Mapping[str, Any]) -> str:
        end = '' if row['untrained'] is None else f', untrained {row["untrained"]:.2f}'
        return f'{row["name"]} {row["measured"]:.2f} (asked {row["asked"]:g}{end})'

    return 'gates: ' + '; '.join(words(row) for row in rows)


def _cost_words(cost: Mapping[str, Any], dynamics: Mapping[str, float]) -> str:
    return (
        f'the distance of features falls in {100 * cost["falls"]:.0f} % of steps towards the goal, '
        f'on average to {cost["energy_at_end"]:.2f} of what it was; rank correlation with the '
        f'distance in metres {cost["rank_correlation"]:.2f}; a move towards the camera counts '
        f'{cost["depth_over_across"]:.2f} of one across; in new scenes the error of '
        f'predictions is {dynamics["error_over_copy"]:.2f} of that of copying the frame, and '
        f"{dynamics['shuffled_over_true']:.2f} times as large with another episode's actions; of "
        f'what the gripper does to the cost {dynamics["gripper_range"]:.2f} is predicted'
    )
