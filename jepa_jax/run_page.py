"""The page of a training run, from what lies in its workdir: report.html."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa_jax import looks, page, recipes
from jepa_jax.checkpoint import complete_steps, read_manifest
from jepa_jax.config import RunConfig
from jepa_jax.errors import CheckpointError, printable
from jepa_jax.evals import pictures
from jepa_jax.metrics import read
from jepa_jax.objectives import Objective

PLOT = 'run.png'
NAMED = 30  # bad files that the page names


def write(
    workdir: Path,
    config: RunConfig,
    objective: Objective,
    report: Mapping[str, Any] | None,
    name: str = '',
) -> Path:
    """Draws run.png and writes report.html; returns its path.

    report: what report.json holds; None: the run has not ended. name: of the workdir, for a user.

    Raises:
      OSError, ValueError: metrics that cannot be read.
    """
    records = read(workdir) if (workdir / 'metrics.jsonl').exists() else []
    manifest = _newest(workdir)
    if any('loss' in row for row in records):
        bands = objective.bands(records)
        pictures.plot_run(
            records, workdir / PLOT, title=config.name, bands=bands, loss=objective.loss_words
        )
    if report:
        word, sentences, steps = report['verdict'], report['sentences'], report['steps']
    else:
        word, facts = objective.verdict(records)
        steps = records[-1]['step'] if records else 0
        word, sentences = f'{word} so far', [f'{word}: {facts}']
    parts = [
        page.heading(f'{config.name}: {word}', 1),
        page.paragraph(_extent(config, report, steps)),
        *map(page.paragraph, sentences),
        page.heading('Curves'),
        page.paragraph(
            'Green: where healthy runs are, as far as known. Speed leaves out the steps that '
            'compiled.'
        ),
        page.file(workdir / PLOT, 'loss, health and speed over the steps')
        or page.paragraph('Nothing was logged.'),
        *_drawn_at_the_end(workdir),
        *_samples(workdir),
        *_features(workdir),
        *_data(records, report, manifest),
        page.heading('To go on'),
        f'<pre>{html.escape(_commands(name or workdir, config, report, manifest, steps))}</pre>',
        page.heading('Config'),
        f'<details><summary>config.json</summary><pre>'
        f'{html.escape((workdir / "config.json").read_text())}</pre></details>',
    ]
    return page.write(workdir, config.name, parts)


def _newest(workdir: Path) -> dict[str, Any]:
    """What the newest checkpoint says of the run; {} if there is none that can be read."""
    steps = complete_steps(workdir / 'checkpoints')
    try:
        return read_manifest(workdir / 'checkpoints' / str(steps[-1]))['extra'] if steps else {}
    except CheckpointError:
        return {}


def _extent(config: RunConfig, report: Mapping[str, Any] | None, steps: int) -> str:
    text = f'Objective {config.objective}; {steps:,} of {config.optim.steps:,} steps of '
    text += f'{config.optim.batch:,} clips'
    if report:
        processes, devices = report['processes'], report['devices']
        text += (
            f'; {processes} process{"es"[: 2 * (processes > 1)]}, {devices} '
            f'device{"s"[: devices > 1]}; the last start took {report["seconds"]:,.0f} s'
        )
    return f'{text}.'


def _drawn_at_the_end(workdir: Path) -> list[str]:
    parts = []
    for path in sorted(workdir.glob('*.png')):
        if path.name != PLOT:
            words = path.stem.replace('_', ' ')
            parts += [page.heading(f'At the end: {words}'), page.file(path, words)]
    return parts


def _samples(workdir: Path) -> list[str]:
    samples = looks.read_samples(workdir)
    parts = [page.heading('What it is shown')]
    if not samples:
        return [*parts, page.paragraph('No pictures: batches have no frames, or none were kept.')]
    if any(sample.masks for sample in samples):
        words = 'Clips of the first batch. Dark: hidden, to be predicted; half dark: in neither.'
        parts.append(page.paragraph(words))
    for number, sample in enumerate(samples):
        rows = ''.join(
            f'<tr><td>{html.escape(name)}</td><td>{page.pixels(row, name)}</td></tr>'
            for name, row in looks.draw(sample).items()
        )
        parts.append(f'<h3>clip {number}</h3><table>{rows}</table>')
        if sample.words:
            parts.append(page.paragraph(sample.words))
    return parts


def _features(workdir: Path) -> list[str]:
    drawn = looks.drawn_features(workdir)
    parts = [page.heading('Features over training')]
    if not drawn:
        return [
            *parts,
            page.paragraph('None: logging.pictures is 0, or no step was made yet.'),
        ]
    parts.append(
        page.paragraph(
            'The same clips each time. Red, green, blue: the first three principal components of '
            'all their tokens, each moment for itself, turned to be like the moment after it. '
            'Features that collapse lose their pattern.'
        )
    )
    for name, moments in drawn.items():
        rows = ''.join(
            f'<tr><td>step {step:,}</td><td>{page.pixels(row, name)}</td></tr>'
            for step, row in moments
        )
        parts.append(f'<h3>{html.escape(name)}</h3><table>{rows}</table>')
    return parts


def _data(
    records: Sequence[Mapping[str, float]],
    report: Mapping[str, Any] | None,
    manifest: Mapping[str, Any],
) -> list[str]:
    parts = [page.heading('Data')]
    parts += [page.paragraph(line) for line in (report or {}).get('data', ())]
    last = next((row for row in reversed(records) if 'data/tried' in row), None)
    if last is None:
        return [*parts, page.paragraph('Nothing was read.')]
    tried = last['data/tried']
    failed = {
        k.removeprefix('data/failed/'): v for k, v in last.items() if k.startswith('data/failed/')
    }
    share = sum(failed.values()) / max(tried, 1)
    words = f'{tried:,.0f} records were tried, {sum(failed.values()):,.0f} of them '
    parts.append(page.paragraph(f'{words}({share:.2%}) could not be read and were replaced.'))
    if failed:
        rows = [(reason, f'{count:,.0f}') for reason, count in sorted(failed.items())]
        parts.append(page.table(('reason', 'times'), rows))
    if names := manifest.get('failures', {}).get('named', ()):
        more = f', the first {NAMED} of {len(names):,}' if len(names) > NAMED else ''
        parts.append(page.paragraph(f'Files that could not be read{more}:'))
        shown = '\n'.join(printable(name)[:300] for name in names[:NAMED])
        parts.append(f'<pre>{html.escape(shown)}</pre>')
    waited = [row for row in records if 'data_wait_s' in row and not row.get('compile_s')]
    if waited:
        mean = sum(row['data_wait_s'] for row in waited) / len(waited)
        parts_of = ('data_wait_s', 'step_s', 'overhead_s')  # rows of old runs lack the last
        whole = sum(row.get(key, 0.0) for row in waited for key in parts_of) / len(waited)
        parts.append(
            page.paragraph(
                f'A step waited {mean:.3g} s of {whole:.3g} s for its batch, on average.'
            )
        )
    if reading := (report or {}).get('reading'):
        rows = [(stage, f'{1e3 * seconds:.2f}') for stage, seconds in reading.items()]
        parts.append(page.table(('a record takes, on one core', 'ms'), rows))
    return parts


def _commands(
    workdir: str | Path,
    config: RunConfig,
    report: Mapping[str, Any] | None,
    manifest: Mapping[str, Any],
    steps: int,
) -> str:
    run = shlex.quote(str(workdir))
    part_of = manifest.get('part_of') or (report or {}).get('part_of')  # a study's workdir
    place = shlex.quote(part_of) if part_of else run
    file = shlex.quote(manifest.get('config_file') or 'NAME')
    command = (report or {}).get('command') or f'jepa train --config={file} --workdir={place}'
    if steps < config.optim.steps:
        lines = ['# from where it is, with the flags that it was started with', command]
    elif part_of:
        lines = [f'# all of {part_of}, of which this is a part; what is finished stays', command]
        lines += (line.format(run=run) for line in recipes.of(config).next)
    else:
        command = re.sub(r' --config\.optim\.steps[= ]\S+', '', command)
        lines = [
            '# twice as long',
            f'{command} --config.optim.steps={2 * config.optim.steps} '
            '--config.checkpoints.allow_config_change=True',
            *(line.format(run=run) for line in recipes.of(config).next),
        ]
    return '\n'.join([*lines, '# this page again', f'jepa report {run}'])


def read_config(workdir: Path) -> RunConfig:
    """Of the run in a workdir, one of an objective of the user's own as well.

    Raises:
      ConfigError: an objective or a field that there is not.
    """
    stored = json.loads((workdir / 'config.json').read_text())
    extra = {'config_file': _newest(workdir).get('config_file', ''), 'config': stored}
    return recipes.read_stored(extra, workdir)
