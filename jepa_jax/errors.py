"""Every error that a user may see, and the exit statuses of commands.

An error says in one line what was found and what is allowed; `jepa_jax.cli` shows it without a
traceback. Nothing of the package is imported here.
"""

from __future__ import annotations

import difflib
import os
import select
import sys
from collections.abc import Iterable
from typing import Any

# exit statuses; 75 is EX_TEMPFAIL of sysexits.h: start the same command again
OK, FAILED, USAGE, UNUSABLE, QUEUE_AGAIN, STOPPED = 0, 1, 2, 3, 75, 130

# why a file cannot be used
REASONS = {
    'missing': 'there is no such file',
    'unreadable': 'the file system refuses to give the file',
    'empty': 'the file holds no bytes',
    'not_video': 'the bytes are no video container that libav knows',
    'not_image': 'the bytes are no image that Pillow knows',
    'no_video_stream': 'a container without a video stream',
    'unsupported': 'there is no decoder for the codec',
    'no_frames': 'a video stream without frames',
    'truncated': 'the end of the file is missing',
    'corrupt': 'the decoder reports an error at or before a chosen frame',
    'size_change': 'the picture size changes within the video',
    'pixels': 'a frame or picture of more pixels than the limit',
    'frames': 'more frames than the limit',
    'packets': 'more packets than the limit',
    'index': 'a header, list or index of more bytes than the limit',
    'decoded': 'it unpacks to more bytes than the limit',
    'ratio': 'it unpacks to more times its own size than the limit',
    'work': 'more pixels have to be decoded than the limit for its size',
    'seconds': 'reading it takes longer than the limit',
    'memory': 'reading it takes more memory than a data worker may have',
    'not_local': 'it refers to other files, a network or a program',
    'outside': 'a path that leads out of its folder',
    'not_text': 'no list, index or metadata that can be understood',
    'bad_units': 'numbers in other units than they should be',
    'not_finite': 'NaN or infinity among its numbers',
    'slow': 'fewer frames a second than asked for',
    'no_images': 'a folder without images',
    'not_array': 'no array of uint8 frames',
    'unfit': 'frames of a size that the model cannot take',
    'short': 'fewer frames than a clip needs',
    'mismatch': 'states and video do not belong together',
    'bad_state': 'states that cannot be used',
    'bad_action': 'actions that cannot be used',
    'no_camera': 'no video from the camera',
}


class ConfigError(ValueError):
    """A setting that cannot work: names the field, what was found and what is allowed."""


class UsageError(Exception):
    """A command line that cannot be understood: exit status 2."""


class Interrupted(Exception):
    """The run was asked to stop, saved its state and wants to be queued again: exit status 75."""


class TrainingError(RuntimeError):
    """The run cannot go on: names the step and what was found."""


class GateError(ValueError):
    """A finished run that reached less than its config asks for."""


class NoLabels(ConfigError):
    """No labelled clips that an evaluation could read."""


class NoFile(ConfigError):
    """None of the files that a set may have in its folder."""


class DataError(RuntimeError):
    """Data that cannot be had: names the list, file or worker."""


class BadFile(Exception):
    """A file that cannot be used: its path, a key of `REASONS`, and what was found."""

    def __init__(self, path: str | os.PathLike, reason: str, detail: str = ''):
        super().__init__(os.fspath(path), reason, detail)  # as args, so that it survives pickling
        self.path, self.reason, self.detail = self.args

    def __str__(self) -> str:
        return printable(f'{self.path}: {self.reason}: {self.detail or REASONS[self.reason]}')


class Unsuitable(ValueError):
    """A readable video that the settings cannot use; `reason` is a key of `REASONS`."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail


class InputError(ValueError):
    """Pixels, files or settings that a model cannot use: what was found and what is allowed."""


class InputsFailed(ValueError):
    """Some inputs could not be used; all others, if any, are done."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: names folder, file or array, what was found and allowed."""


class Damaged(CheckpointError):
    """Files are not what was written."""


class BucketError(OSError):
    """A bucket did not do as asked: one line with its address and its own words."""


class TakenOver(BucketError):
    """Another run has the bucket's folder."""


class ConvertError(ValueError):
    """Weights that cannot be converted: names the file, what was found and what is allowed."""


class ZooError(ValueError):
    """Weights that cannot be had: what was asked for, what is wrong, what to do."""


class PlanError(ValueError):
    """A model or pixels that cannot be planned with: what was found and what is allowed."""


class Unusable(Exception):
    """What was asked for is there and should not be used: why. Exit status 3."""


class SimError(ValueError):
    """A simulation that cannot be had, or settings that it cannot have."""


class DoctorError(ValueError):
    """Checks that failed."""


class CostError(RuntimeError):
    """The step would not run well: says why, one reason after the other."""


class BenchError(RuntimeError):
    """A side of a comparison failed, or the sides disagree."""


def printable(text: object) -> str:
    """A text or path in one line that does nothing to a terminal: names of files hold line breaks,
    NUL, escape sequences and bytes that are no text."""
    text = str(text)
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def allowed(word: Any, words: Iterable[str]) -> str:
    """`allowed are A, B; did you mean B?` for a word that is none of a few."""
    words = list(words)
    return f'allowed are {", ".join(words)}{nearest(str(word), words)}'


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean X?` for a word near to the one given, else nothing."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f'; did you mean {near[0]}?' if near else ''


def reader_left() -> bool:
    """Whether who read standard output has gone, as `head` does: then nothing more goes there."""
    place = sys.stdout.fileno()
    (looks := select.poll()).register(place, select.POLLOUT)
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in looks.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), place)
    return True
