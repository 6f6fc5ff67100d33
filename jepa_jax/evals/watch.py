"""Judges video as it arrives: files in a folder, a stream on standard input, a camera.

A line of JSON each, in watch.jsonl of the workdir and on the terminal: of a file the window with
the highest score, of a stream every window. A bad file is a line, too, and so is a bad frame. Ends
with the stream, or with Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from jepa_jax.config.anomaly import AnomalyConfig
from jepa_jax.data.kinds import VIDEOS
from jepa_jax.data.live import Stream
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.evals import normality, surprise
from jepa_jax.evals.anomaly import DETECTOR, nets
from jepa_jax.evals.normality import Detector
from jepa_jax.evals.physics import view_of

LINES = 'watch.jsonl'
POLL = 0.5  # seconds between two looks at a folder
SUFFIXES = VIDEOS | {'.npy', '.gif'}


@dataclasses.dataclass
class Judge:
    """Scores of windows, and lines about them."""

    expects: surprise.Expects
    predicts: bool
    config: AnomalyConfig
    crop: int
    detector: Detector
    out: TextIO
    lines: int = 0
    alarms: int = 0
    stopped: bool = False  # by a signal

    def file(self, path: str, state: list) -> None:
        """One line about a file."""
        try:
            shown = normality.look(self.expects, path, self.config, self.crop, self.predicts)
        except BadFile as error:
            self.say(source=path, state=state, error=str(error))
            return
        scores = self.detector.scores(shown.errors, shown.features)
        worst = int(scores[self.config.judge].argmax())
        first, end = shown.covers[worst]
        own = {name: float(values[worst]) for name, values in scores.items()}
        self.verdict(
            own, path, shown.seconds[shown.numbers[[first, end - 1]]],
            time.time() - state[1] / 1e9, state=state, windows=len(shown.covers),
        )  # fmt: skip

    def window(self, clip: np.ndarray) -> dict[str, float]:
        """Scores of one window uint8 [F, crop, crop, 3]."""
        one = dataclasses.replace(self.config, batch=1)
        errors, features = normality.errors_of(self.expects, clip[None], one, self.predicts)
        return {k: float(v[0]) for k, v in self.detector.scores(errors, features).items()}

    def verdict(self, scores: dict[str, float], source: str, seconds, delay: float, **more) -> None:
        name = self.config.judge
        limit = self.detector.thresholds[name]
        alarm = scores[name] > limit
        self.alarms += alarm
        self.say(
            source=source, seconds=[round(float(s), 3) for s in seconds],
            score=round(scores[name], 4), threshold=round(limit, 4), alarm=bool(alarm),
            delay=round(max(0.0, delay), 3), judge=name,
            scores={k: round(v, 4) for k, v in scores.items()}, **more,
        )  # fmt: skip

    def say(self, **line: Any) -> None:
        """Appends a line, at once."""
        self.lines += 1
        now = datetime.datetime.now().astimezone().isoformat(timespec='milliseconds')
        text = json.dumps({'time': now, **line}, allow_nan=False)
        self.out.write(text + '\n')
        self.out.flush()
        print(text, flush=True)


def run(model, config: AnomalyConfig, workdir: Path, place: str) -> None:
    """Watches a folder, a camera's device or, as `-`, standard input until it ends or is stopped.

    Raises:
      ConfigError: nothing that can be watched, or no detector for this model and these settings.
      BadFile: what is on standard input is no video.
    """
    if config.smooth:
        raise ConfigError(f'smooth = {config.smooth:g} looks ahead in time: --watch needs 0')
    watch = _way(place)
    expects, known = nets(model)
    detector = Detector.load(workdir / DETECTOR, known)
    if config.judge not in detector.thresholds:
        raise ConfigError(f"judge = '{config.judge}': the model has no predictor, use density")
    with open(workdir / LINES, 'a', encoding='utf-8') as out:
        crop = normality.crop_of(model, config)
        judge = Judge(expects, model.predictor is not None, config, crop, detector, out)
        try:
            with _stopped(judge):
                watch(judge, place)
        except KeyboardInterrupt:
            print('stopped', file=sys.stderr)
    print(f'{judge.lines} lines, {judge.alarms} alarms in {workdir / LINES}', file=sys.stderr)


def _way(place: str):
    if place == '-':
        return _standard_input
    try:
        mode = os.stat(place).st_mode
    except (OSError, ValueError):
        mode = 0
    if stat.S_ISDIR(mode):
        return _folder
    if stat.S_ISCHR(mode):
        return _camera
    what = 'a file, which --config.data.test judges' if mode else 'nothing of that name'
    raise ConfigError(f'--watch {place}: {what}; must be a folder, a camera as /dev/video0, or -')


@contextlib.contextmanager
def _stopped(judge: Judge) -> Iterator[None]:
    """SIGTERM is KeyboardInterrupt, as SIGINT is unless the shell that started this in the
    background ignores it. Where Python drops exceptions, in callbacks of the garbage collector, the
    judge's next step ends it, or a stream that stands still asks whether to wait on."""

    def stop(number, frame):
        judge.stopped = True
        raise KeyboardInterrupt

    heard = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        heard.append(signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- Files in a folder ----------------------------------------------------------------------------


def _folder(judge: Judge, place: str) -> None:
    """Judges every file once it has been left alone for a while; those that stand in the lines of
    an earlier watch, unchanged, are not judged again."""
    done = _judged(Path(judge.out.name))
    seen: dict[str, tuple[list, float]] = {}  # state, and since when
    while not judge.stopped:
        for path in _files(place):
            try:
                status = os.stat(path)
            except OSError:  # gone again
                continue
            state = [status.st_size, status.st_mtime_ns]
            if done.get(path) == state:
                continue
            if path not in seen or seen[path][0] != state:
                still = max(0.0, time.time() - state[1] / 1e9)
                seen[path] = state, time.monotonic() - still
            if time.monotonic() - seen[path][1] >= judge.config.settle:
                judge.file(path, state)
                done[path] = state
        time.sleep(POLL)
    raise KeyboardInterrupt


def _files(place: str) -> Iterator[str]:
    for parent, below, names in os.walk(os.path.abspath(place)):
        below[:] = sorted(name for name in below if not name.startswith('.'))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith('.'):
                yield os.path.join(parent, name)


def _judged(path: Path) -> dict[str, list]:
    """File -> its state when it was judged. A line that a power cut left half is passed over."""
    result = {}
    for text in path.read_text(encoding='utf-8').splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and 'state' in line:
                result[line.get('source')] = line['state']
    return result


# --- Streams --------------------------------------------------------------------------------------


def _standard_input(judge: Judge, place: str) -> None:
    _stream(judge, sys.stdin.fileno(), 'standard input')


def _camera(judge: Judge, place: str) -> None:
    """A camera of Video4Linux, by the program ffmpeg: PyAV's wheels read none."""
    program = shutil.which('ffmpeg')
    if program is None:
        raise ConfigError(
            f'--watch {place}: cameras are read by the program ffmpeg, which is not there; or pipe '
            'a stream into --watch -'
        )
    command = [program, '-nostdin', '-loglevel', 'error', '-f', 'v4l2', '-i', place]
    command += ['-pix_fmt', 'yuv420p', '-f', 'yuv4mpegpipe', '-']
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            _stream(judge, process.stdout.fileno(), place)
        except BadFile as error:
            raise ConfigError(f'--watch {place}: no video from ffmpeg: {error}') from error
        finally:
            process.terminate()


def _stream(judge: Judge, descriptor: int, name: str) -> None:
    """Judges each window as soon as its last frame is there."""
    data = judge.config.data
    judge.window(np.zeros((data.frames, judge.crop, judge.crop, 3), np.uint8))  # compiles
    stream = Stream(descriptor, name, data.rate, lambda: judge.stopped)
    view = view_of(data.view, judge.crop)
    held: collections.deque = collections.deque(maxlen=data.frames)
    count = fresh = 0
    with contextlib.closing(stream):
        step = normality.step_of(name, stream.rate, data.fps)
        for item in stream.frames():
            if isinstance(item, BadFile):
                judge.say(source=name, error=str(item))
                continue
            if judge.stopped:
                raise KeyboardInterrupt
            count += 1
            if (count - 1) % step:
                continue
            arrived = time.monotonic()
            seconds, frame = item
            held.append((seconds, view(frame[None])[0]))
            fresh += 1
            if len(held) == data.frames and fresh >= data.ahead:
                fresh = 0
                scores = judge.window(np.stack([pixels for _, pixels in held]))
                ends = held[-data.ahead][0], held[-1][0]
                judge.verdict(scores, name, ends, time.monotonic() - arrived)
    if judge.stopped:
        raise KeyboardInterrupt
