"""A page on a run of the closed loop: tables of what was measured, and its pictures."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa_jax import page
from jepa_jax.config import SimConfig

POLICIES = {
    'planner': 'planner: learned features, learned predictor',
    'random_encoder': 'the same on an encoder of random weights',
    'pixel_encoder': 'the same on pixels, patches as they are',
    'untrained': 'the same encoder, an untrained predictor',
    'gripper_told': 'the first, towards goals that tell how far the gripper is closed',
    'simulator_learned_cost': 'the simulator as predictor, learned features',
    'simulator_pixel_cost': 'the simulator as predictor, pixels',
    'oracle': 'the script, which knows where everything is',
    'random': 'random actions',
    'no_op': 'no motion',
}
KINDS = 'png', 'gif'  # of pictures of episodes
DRAWN = {'planner', 'gripper_told'}  # whose episodes are drawn


def picture(task: str, policy: str, kind: str) -> str:
    """The name of a picture of episodes."""
    stem = f'episodes_{task.replace(" ", "_")}'
    return f'{stem}.{kind}' if policy == 'planner' else f'{stem}_{policy}.{kind}'


def write(folder: Path, config: SimConfig, report: Mapping[str, Any]) -> Path:
    """Writes report.html into a run's folder with the pictures there, and returns its path."""
    settings, plays = config.evaluation, config.collection
    parts = [
        f'<h1>{html.escape(config.name)}: {html.escape(report["verdict"])}</h1>',
        '<p>Simulated, by the simulator that the training data are from: this says nothing about a '
        'real robot. Success is judged at the last step of an episode; intervals are 95 % '
        "(Wilson's).</p>",
        f'<p>{plays.episodes} recordings of {plays.frames} frames, {plays.image_size} pixels; '
        f'cross-entropy method with {settings.samples} samples, {settings.iterations} iterations, '
        f'{settings.elites} elites, horizon {settings.horizon}.</p>',
    ]
    if report['gates']:
        parts.append('<h2>Gates</h2>')
        rows = [
            (
                row['name'],
                f'{row["asked"]:g}',
                f'{row["measured"]:.2f}',
                '' if row['untrained'] is None else f'{row["untrained"]:.2f}',
                'passed' if row['passed'] else 'failed',
            )
            for row in report['gates']
        ]
        parts.append(page.table(('gate', 'asked', 'measured', 'untrained predictor', ''), rows))
    for task, row in report['tasks'].items():
        parts.append(f'<h2>{html.escape(task)}</h2>')
        rows = [
            (
                POLICIES.get(name, f'other planner: {name}'),
                f'{100 * policy["success"]:.0f} %',
                f'{100 * policy["low"]:.0f} to {100 * policy["high"]:.0f}',
                f'{policy["episodes"]}',
                f'{100 * policy["start"]:.1f}',
                f'{100 * policy["distance"]:.1f}',
                f'{policy["seconds_per_action"]:.3f}',
            )
            for name in (*POLICIES, *(n for n in row['policies'] if n not in POLICIES))
            if (policy := row['policies'].get(name))
        ]
        head = 'policy', 'success', 'interval', 'episodes', 'cm off at first', 'at last', 's/action'
        parts.append(page.table(head, rows))
        parts += [
            page.file(folder / picture(task, name, kind), f'episodes of {task}, {name}')
            for name in sorted(DRAWN, reverse=True)
            for kind in KINDS
        ]
    parts.append('<h2>Cost and predictions apart</h2>')
    parts += [f'<p>{html.escape(line)}</p>' for line in report['sentences']]
    parts += [
        page.file(folder / 'energy.png', 'energy over actions'),
        page.file(folder / 'horizon_tasks.png', 'error of predictions over steps, by task'),
        page.file(folder / 'horizon.png', 'error of predictions over steps'),
        page.file(folder / 'run.png', 'loss and health over the run'),
    ]
    return page.write(folder, config.name, parts)
