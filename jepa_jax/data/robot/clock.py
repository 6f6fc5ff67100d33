"""When the rows of a recording were made, by its own clock, and which picture belongs to each."""

from __future__ import annotations

import dataclasses

import numpy as np

SNAP = 0.02  # share by which a measured rate may miss a whole number and still mean it
NEAR = 0.35  # share of the time between two kept frames by which one of them may be off
BELIEVED = 0.5, 1000.0  # rows a second; other clocks do not count milliseconds


@dataclasses.dataclass(frozen=True)
class Clock:
    """Of n rows."""

    fps: float  # rows a second; whole, if it nearly is
    # [n] seconds since the first, of the picture that a row has; NaN: it has none of its own
    times: np.ndarray = dataclasses.field(repr=False)
    # [n] which of the pictures, in the order in which they were taken; -1: none
    pictures: np.ndarray = dataclasses.field(repr=False)
    even: bool = True  # every row has a picture, one period after that of the row before

    @property
    def count(self) -> int:
        """Pictures that were taken, as far as rows tell."""
        return int(self.pictures.max()) + 1

    @classmethod
    def of(cls, stamps: np.ndarray) -> Clock | None:
        """From a stamp in milliseconds for each row, [n]; None if they cannot be that.

        A row whose stamp is not later than all before it, not finite, or not above 0, shows an
        older picture again, or none.
        """
        stamps = np.asarray(stamps, np.float64)
        known = np.where(np.isfinite(stamps) & (stamps > 0), stamps, -np.inf)
        before = np.concatenate([[0.0], np.maximum.accumulate(known)[:-1]])
        own = known > before
        return cls._made(np.where(own, stamps, np.nan), np.where(own, np.cumsum(own) - 1, -1))

    @classmethod
    def of_pictures(cls, taken: np.ndarray, stamps: np.ndarray) -> Clock | None:
        """From a stamp in milliseconds for each picture, [m], and for each row, [n], in any number:
        each picture is that of the row nearest in time, within half a row."""
        taken, stamps = np.asarray(taken, np.float64), np.asarray(stamps, np.float64)
        rows = cls.of(stamps)
        if rows is None or not np.isfinite(taken).all() or (np.diff(taken) < 0).any():
            return None
        usable = np.flatnonzero(np.isfinite(rows.times))
        at = usable[nearest(stamps[usable], taken)]
        apart = np.abs(stamps[at] - taken)
        times, pictures = np.full(len(stamps), np.nan), np.full(len(stamps), -1)
        for i in np.argsort(-apart, kind='stable'):  # of several the nearest, which comes last
            if apart[i] <= 500 / rows.fps:
                times[at[i]], pictures[at[i]] = taken[i], i
        return cls._made(times, pictures)

    @classmethod
    def _made(cls, stamps: np.ndarray, pictures: np.ndarray) -> Clock | None:
        """From milliseconds [n], NaN where a row has no picture."""
        seconds = (stamps - (np.nanmin(stamps) if np.isfinite(stamps).any() else 0)) / 1000
        gaps = np.diff(seconds[np.isfinite(seconds)])
        if not len(gaps) or not (middle := float(np.median(gaps))) > 0:
            return None
        usual = gaps[np.abs(gaps / middle - 1) < 0.5]
        fps = float(1 / usual.mean())
        if not BELIEVED[0] <= fps <= BELIEVED[1]:
            return None
        if abs(fps - round(fps)) <= SNAP * fps and round(fps):
            fps = float(round(fps))
        even = len(usual) == len(stamps) - 1
        return cls(fps, seconds, pictures, even)

    def words(self) -> list[str]:
        """What is odd about it."""
        times = self.times[np.isfinite(self.times)]
        lost = int(np.maximum(np.round(np.diff(times) * self.fps) - 1, 0).sum())
        doubled = len(self.times) - len(times)
        rows = (
            (lost, 'pictures were lost, by the clock of the recording'),
            (doubled, 'rows have no picture of their own'),
        )
        return [f'{count} {text}' for count, text in rows if count]


def nearest(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Places in `ascending` [n] of the numbers nearest to `values`; of two alike the earlier."""
    after = np.clip(np.searchsorted(ascending, values), 1, max(len(ascending) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(ascending) - 1)
    closer = np.abs(ascending[after] - values) < np.abs(ascending[before] - values)
    return np.where(closer, after, before)
