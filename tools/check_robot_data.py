"""What recordings of a robot hold, and what may be wrong with them, before anything is trained.

    python -m tools.check_robot_data --kind droid --path FOLDER --picture clip.png [--model RUN]

Reports rates, lengths, ranges, units, the sense of the gripper, still frames, lost pictures, how
large what moves is and how wide the picture, and every episode that cannot be read; draws one piece
with its actions. With --model the same measures of what a run was trained on stand beside. Lines
that begin with `look:` are suspicions, with the setting that mends them. Exit status 1 if no
episode can be read, or training would refuse all of them for their units.

Nothing is known of cameras and objects. What moves from one kept frame to the next is the robot
and what it holds; how far the end of it wanders in the picture while the gripper travels a metre
says how many metres the picture shows there. Other things that move, flicker and noise blur both,
and neither says how large the object is.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from jepa_jax import cli
from jepa_jax.config import RobotConfig, layouts
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.workdir import room_for

NAMED = 10  # episodes of a kind that are named


def add_options(parser: argparse.ArgumentParser) -> None:
    cli.add_fields(parser, RobotConfig)
    parser.add_argument(
        '--crop', type=int, default=0, help="pixels that the model sees (the model's, else 256)"
    )
    parser.add_argument(
        '--model', default='', metavar='RUN', help='a run or checkpoint to compare with (none)'
    )
    parser.add_argument('--episodes', type=int, default=200, help='looked at, evenly spread')
    parser.add_argument(
        '--picture', default='', metavar='FILE.png', help='draw a piece there (none)'
    )


def run(crop: int, model: str, episodes: int, picture: str, **fields) -> None:
    """Measures, prints, draws."""
    for name, value, least in (('crop', crop, 0), ('episodes', episodes, 1)):
        if value < least:
            raise ConfigError(f'--{name} {value}: must be at least {least}')
    data = layouts.of_flags(RobotConfig(**fields))
    if picture:
        room_for('--picture', picture)
    from jepa_jax.data import robot

    from . import robot_findings as findings

    trained = findings.Trained.at(model) if model else None
    crop = crop or (trained.crop if trained else 256)
    recordings = robot.open_recordings(data)
    print(f'{data.kind} {data.path}: {len(recordings)} episodes')
    measured = findings.measure(recordings, data, crop, episodes)
    for line in measured.bad:
        print(f'cannot be read: {line}')
    if not measured.states:
        raise BadFile(data.path, 'no_frames', 'no episode can be read')
    print('\n'.join(findings.report(measured, data, crop, trained)))
    for line in measured.units[:NAMED]:
        print(f'refused in training: {line}')
    if len(measured.units) > NAMED:
        print(f'refused in training, too: {len(measured.units) - NAMED} more')
    if picture:
        for i in range(len(recordings)):
            try:
                piece = robot.cut(recordings.episode(i), data.frames, data.fps, lambda n: n // 2)
            except (BadFile, OSError):
                continue
            seen = dataclasses.replace(piece, frames=robot.view(piece.frames, (crop, crop)))
            findings.draw(seen, Path(picture), f'{recordings.name(i)}, as the model sees it')
            print(f'picture: {picture}')
            break
    if data.check_units:
        robot.check_units(recordings, data)


def main() -> int:
    return cli.run(run, doc=__doc__, tables=(), options=add_options)


if __name__ == '__main__':
    sys.exit(main())
