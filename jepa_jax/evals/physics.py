"""Does a model find the impossible more surprising than the possible?

Pairs of videos differ in nothing but an event that breaks a law. A pair is won if the possible
member surprises less (see `surprise`). Frames, context, frame step, mask token and what is made of
the windows of a video are chosen on a calibration half of the groups of pairs; the other half is
reported, beside what needs no training: features of the last context frames repeated, pixels
likewise, and untrained nets of the same shape. Each of these chooses its settings in the same way.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from jepa_jax import pretrained
from jepa_jax.config.physics import PhysicsConfig
from jepa_jax.data import decode, violations
from jepa_jax.data.views import resize
from jepa_jax.data.windows import PIECE, ahead, open_input
from jepa_jax.errors import BadFile, ConfigError, InputError
from jepa_jax.evals import Figure, Results, examples, physics_pictures, physics_sets, surprise
from jepa_jax.evals.devices import everywhere, in_shares
from jepa_jax.evals.intervals import bootstrap, wilson
from jepa_jax.evals.physics_sets import Pair, Pairs
from jepa_jax.model import Loaded, Model
from jepa_jax.nets import ONCE
from jepa_jax.weights.parts import net

log = logging.getLogger(__name__)

READERS = ('model', 'copy', 'pixels', 'random')
# set -> pair accuracy in percent, by the papers, and people's (reference: evaluations.md §2)
PUBLISHED = {
    'intphys1': {'V-JEPA ViT-H': 98.0, 'untrained, at most': 55.0},
    'grasp': {'V-JEPA ViT-H': 66.0, 'untrained, at most': 58.0},
    'inflevel': {'V-JEPA ViT-H': 62.0, 'untrained': 52.0},
    'intphys2': {'V-JEPA 2': 57.5, 'people': 96.4},
}
SELF_MADE = {'self_made': 'violations', 'self_made_few': 'violations_few'}
SUMS = {'mean': np.nanmean, 'max': np.nanmax}


@dataclasses.dataclass(frozen=True, order=True)
class Setting:
    """How the surprise of a video is made."""

    step: int  # every n-th frame
    frames: int  # of a window
    context: int  # frames of it that are seen; 0: 'Filtered', the least over contexts
    token: int  # mask token
    sum: str  # a key of SUMS, over windows

    def __str__(self) -> str:
        seen = f'{self.context} of them seen' if self.context else 'least over contexts'
        return (
            f'every {self.step}. frame, windows of {self.frames}, {seen}, mask token {self.token}, '
            f'{self.sum} over windows'
        )


# setting -> surprise of possible and impossible members [2, seeds, pairs]
Scores = dict[Setting, np.ndarray]


def run(model, config: PhysicsConfig, workdir: Path) -> Results:
    """Pair accuracy by kind of violation.

    Raises:
      ConfigError: no predictor, or windows that the videos or the model cannot have.
      BadFile: the set is not what it should be.
    """
    if model.predictor is None:
        raise ConfigError('the model has no predictor: surprise needs one')
    pairs = load(config)
    if config.protocol == 'held_out':
        split(pairs.pairs)  # raises before hours of work
    readers = {'model': [expects(both_encoders(model), model)], 'random': []}
    for i in range(config.random_seeds):
        fresh = untrained(model, config.seed + 1 + i)
        readers['random'].append(expects(fresh, fresh))
    measured = measure(readers, pairs, config, _crop(model, config))
    kept = [pairs.pairs[i] for i in measured.kept]
    halves = split(kept) if config.protocol == 'held_out' else np.ones((2, len(kept)), bool)
    chosen = {
        name: choose(scores, kept, halves[0]) for name, scores in measured.scores.items() if scores
    }
    return _report(measured, kept, halves[1], chosen, pairs, config, workdir)


def load(config: PhysicsConfig) -> Pairs:
    """The pairs that a config names; makes those that are self-made."""
    data = config.data
    if data.kind not in SELF_MADE:
        return physics_sets.read(data.kind, data.path, data.videos)
    try:
        path = violations.ensure_pairs(SELF_MADE[data.kind], data.path)
    except ValueError as error:  # a folder that holds something else
        raise ConfigError(f'data.path: {error}') from error
    return physics_sets.read('pairs', path)


def contents(config: PhysicsConfig) -> str:
    """A hash of the pairs and their files."""
    return examples.hash_of([
        [pair.kind, *([str(p), examples.state_of(p)] for p in (pair.possible, pair.impossible))]
        for pair in load(config).pairs
    ])  # fmt: skip


def _crop(model, config: PhysicsConfig) -> int:
    crop = config.data.crop or model.config.image_size
    if crop % model.config.patch:
        raise ConfigError(f'data.crop = {crop}: must be a multiple of {model.config.patch}')
    return crop


# --- What surprises -------------------------------------------------------------------------------


def expects(online, target) -> surprise.Expects:
    """Context from one encoder, targets from the other, on all devices of this process; ids count
    on the grid that clips have."""
    if online.predictor is not None and online.predictor.config.out_width:
        raise InputError('the predictor expects features of another model, which is not here')
    seeing, local = everywhere(online)
    c, encoder = target.config, seeing if target is online else everywhere(target)[0]

    def predict(seen: np.ndarray, grid: tuple[int, int, int], token: int) -> np.ndarray:
        def ask(seen: jax.Array, known: jax.Array, asked: jax.Array) -> jax.Array:
            said = seeing.fill_in(grid)(
                seeing.predictor.params, seen, known, asked, mask_index=token
            )
            return said[..., -c.width :]  # of several levels the last

        t, h, w = grid
        ids = np.broadcast_to(np.arange(t * h * w, dtype=np.int32), (len(seen), t * h * w))
        K = seen.shape[1]
        return in_shares(local, ask)(seen, ids[:, :K], ids[:, K:])

    def context(clips: jax.Array) -> jax.Array:
        if online.predictor is None:  # whoever only compares what is seen
            return seeing.encode(clips)
        return seeing.seen(lambda levels: seeing.encode(clips, levels))[1]

    return surprise.Expects(
        in_shares(local, context), in_shares(local, encoder.encode), predict, c.tubelet, c.patch
    )


def both_encoders(model) -> Model:
    """The model with its online encoder, which reads the context where there are two."""
    if model.which == 'target' and model.name and not model.name.startswith('random:'):
        return pretrained.load(model.name, encoder='online')
    return model


def untrained(model, seed: int) -> Model:
    """Nets of the same shape, never trained."""
    keys = jax.random.split(jax.random.key(seed))
    parts = {'encoder': model.config}
    if model.predictor is not None:
        parts['predictor'] = model.predictor.config
    nets = {
        name: Loaded(config, jax.jit(net(name, config).init, compiler_options=ONCE)(key))
        for (name, config), key in zip(parts.items(), keys)
    }
    return Model(nets['encoder'], predictor=nets.get('predictor'))


def frames_of(
    path: Path, view: Callable[[np.ndarray], np.ndarray], step: int, skip: int, most: int
) -> np.ndarray:
    """Every `step`-th frame of a video or a folder of frames after the first `skip`, of its first
    `most` (0: all), uint8 [T, h, w, 3]. Raises BadFile."""
    if path.is_dir():
        source = open_input(path, 1.0)
        total, size, read = len(source.numbers), source.size, source.read
    else:
        info = decode.probe(path)
        total, size = info.frames, (info.height, info.width)

        def read(numbers: np.ndarray) -> np.ndarray:
            return decode.read_frames(path, lambda timing: numbers)

    numbers = np.arange(skip, min(total, most or total), step)
    if most:
        numbers = numbers[: most // step]
    if not len(numbers):
        raise BadFile(path, 'short', f'{total} frames, of which {skip} are left out')
    piece = max(1, PIECE // (3 * size[0] * size[1]))
    return np.concatenate([
        view(read(numbers[i : i + piece])) for i in range(0, len(numbers), piece)
    ])  # fmt: skip


def view_of(name: str, crop: int) -> Callable[[np.ndarray], np.ndarray]:
    """Frames [T, H, W, 3] -> [T, crop, crop, 3]: the middle square, or all of the frame squeezed
    into a square. (reference: what the original's training crop does at scale 1)"""

    def view(frames: np.ndarray) -> np.ndarray:
        H, W = frames.shape[1:3]
        if name == 'square':
            side = min(H, W)
            top, left = (H - side) // 2, (W - side) // 2
            frames = frames[:, top : top + side, left : left + side]
        return resize(frames, (crop, crop))

    return view


@dataclasses.dataclass(frozen=True)
class Measured:
    """Surprise of the pairs that could be read."""

    kept: list[int]  # which of the pairs
    problems: list[str]
    scores: dict[str, Scores]  # by READERS
    # (step, frames, context) -> model's series of possible and impossible member, one a pair
    over_time: dict[tuple[int, int, int, int], list[tuple[np.ndarray, np.ndarray]]]


def measure(
    readers: dict[str, Sequence[surprise.Expects]], pairs: Pairs, config: PhysicsConfig, crop: int
) -> Measured:
    """Surprise of every pair at every setting.

    Raises:
      ConfigError: no setting fits the model and the videos.
    """
    tubelet = readers['model'][0].tubelet
    view = view_of(config.data.view, crop)
    options = [
        (step, F, contexts)
        for step, F in itertools.product(sorted({*config.steps}), sorted({*config.frames}))
        if (contexts := contexts_of(F, tubelet, config.contexts))
    ]
    if not options:
        raise ConfigError(
            f'frames = {config.frames}: windows must be multiples of {tubelet}, the tubelet, and '
            'long enough for one of the contexts'
        )
    tokens = sorted({*config.mask_tokens})
    shortest = min(step * (F - 1) + 1 for step, F, _ in options)
    problems: dict[int, str] = {}
    scores: dict[str, Scores] = {name: {} for name in READERS if readers.get(name, True)}
    over_time, short = {}, []

    def videos(step: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for i, pair in enumerate(pairs.pairs):
            if i in problems:
                continue
            try:
                both = [
                    frames_of(path, view, step, skip, config.data.most)
                    for path, skip in zip((pair.possible, pair.impossible), pair.primed)
                ]
            except BadFile as error:
                problems[i] = str(error)
                continue
            if any(pair.primed):  # what is left out was not equally long: the ends are what counts
                length = min(map(len, both))
                both = [frames[-length:] for frames in both]
            if min(map(len, both)) * step < shortest:
                problems[i] = f'{pair.possible}: too short for a window of the shortest setting'
                continue
            yield i, *both

    collected = {}
    for step, F, contexts in options:
        rows: dict[str, dict[int, list]] = {name: {} for name in ('model', 'random')}
        label = f'step {step}, {F} frames'
        items = tqdm(ahead(videos(step)), label, len(pairs.pairs), unit='pair', disable=None)
        missing = False
        for i, *both in items:
            if min(map(len, both)) < F:
                missing = True
                short.append(f'{label}: {pairs.pairs[i].possible} is too short')
                break
            for name in rows:
                rows[name][i] = [
                    _rows(expected, both, F, contexts, tokens, config) for expected in readers[name]
                ]
        if not missing:
            collected[step, F, contexts] = rows
    if not collected:
        raise ConfigError(f'no window fits all videos: {"; ".join(short[:3])}')
    kept = [i for i in range(len(pairs.pairs)) if i not in problems]
    if not kept:
        raise ConfigError(f'no pair can be read: {next(iter(problems.values()))}')
    pad = config.protocol == 'upstream'
    for (step, F, contexts), rows in collected.items():
        for name in scores:
            source = 'random' if name == 'random' else 'model'
            field = {'copy': 'copy', 'pixels': 'pixels'}.get(name, 'model')
            for token_at, token in enumerate(tokens if field == 'model' else tokens[:1]):
                series = [
                    [_series(seed, field, token_at, pad) for seed in rows[source][i]] for i in kept
                ]  # pairs, seeds: [2, contexts + 1, windows]
                for at, C in enumerate((*contexts, 0)):
                    each = [[seed[:, at] for seed in seeds] for seeds in series]
                    for kind, total in SUMS.items():
                        values = np.array([[total(s, -1) for s in seeds] for seeds in each])
                        key = Setting(step, F, C, token, kind)
                        scores[name][key] = values.transpose(2, 1, 0)
                    if name == 'model':
                        over_time[step, F, C, token] = [seeds[0] for seeds in each]
    return Measured(kept, list(problems.values()) + short, scores, over_time)


def contexts_of(F: int, tubelet: int, shares: Sequence[int]) -> tuple[int, ...]:
    """Frames seen of a window of F: sixteenths of it, in whole tubelets, of which one is left."""
    if F % tubelet:
        return ()
    each = {F * share // 16 // tubelet * tubelet for share in shares}
    return tuple(sorted(C for C in each if 0 < C < F))


def _rows(expected, both, F, contexts, tokens, config) -> list[surprise.Rows]:
    """Of both members of a pair, over all their windows."""
    parts = [[], []]
    sizes = [len(surprise.starts(len(v), F, config.stride)) for v in both]
    for numbers, clips in surprise.batches(both, F, config.stride, config.batch):
        rows = surprise.surprise(expected, clips, contexts, mask_tokens=tokens)
        for member in (0, 1):
            chosen = np.flatnonzero(numbers == member)
            parts[member].append([getattr(rows, f.name)[chosen] for f in dataclasses.fields(rows)])
    result = []
    for member, size in zip(parts, sizes):
        rows = surprise.Rows(*(np.concatenate(each) for each in zip(*member)))
        assert len(rows.copy) == size
        result.append(rows)
    if config.warm_up:
        early = [C for C in range(2, max(contexts), 2)]
        for member, (rows, video) in enumerate(zip(result, both)):
            first = surprise.surprise(expected, video[None, :F], early, mask_tokens=tokens)
            result[member] = _preceded(rows, first, early, contexts)
    return result


def _preceded(rows, first, early: list[int], contexts: Sequence[int]) -> surprise.Rows:
    """Each context's series after the first window's with shorter contexts; NaN where another
    context has more of them. (reference: IntPhys 2, max_context_mode)"""

    def joined(values: np.ndarray, before: np.ndarray) -> np.ndarray:  # [n, ..., contexts]
        shorter = np.stack(
            [np.where(np.array(early) < C, before[0], np.nan) for C in contexts], -1
        )  # [..., early, contexts]
        return np.concatenate([np.moveaxis(shorter, -2, 0), values])

    return surprise.Rows(*(
        joined(getattr(rows, f.name), getattr(first, f.name)) for f in dataclasses.fields(rows)
    ))  # fmt: skip


def _series(members: list[surprise.Rows], field: str, token: int, pad: bool) -> np.ndarray:
    """[2, contexts + 1, windows] of a pair, the last row the least over contexts; NaN after the end
    of the shorter series, or zeros as in the original."""
    each = [getattr(rows, field) for rows in members]
    each = [rows[:, token] if field == 'model' else rows for rows in each]  # [n, contexts]
    both = surprise.padded([rows.T for rows in each])
    return surprise.with_filtered(np.nan_to_num(both) if pad else both)


# --- Halves, settings, figures --------------------------------------------------------------------


def split(pairs: Sequence[Pair]) -> np.ndarray:
    """Which pairs are for calibration and which are reported, bool [2, pairs]: half of the groups
    of each kind, by their names' hashes; a group is never divided.

    Raises ConfigError: there is but one group.
    """
    kinds: dict[str, set[str]] = {}
    for pair in pairs:
        kinds.setdefault(pair.group, set()).add(f'{pair.kind} {pair.more}')
    if len(kinds) < 2:
        raise ConfigError(
            f'all {len(pairs)} pairs are of one group, {pairs[0].group}: settings are chosen on it '
            'and none is left to report; name groups in the table, or --config.protocol=upstream'
        )

    def order(group: str) -> tuple:
        return sorted(kinds[group]), hashlib.sha256(
            group.encode('utf-8', 'surrogateescape')
        ).digest()

    first = set(sorted(kinds, key=order)[::2])
    calibration = np.array([pair.group in first for pair in pairs])
    return np.stack([calibration, ~calibration])


def wins(scores: np.ndarray) -> np.ndarray:
    """[2, seeds, pairs] -> [pairs], the share of seeds that win each. A tie is lost."""
    return (scores[0] < scores[1]).mean(0)


def choose(scores: Scores, pairs: Sequence[Pair], rows: np.ndarray) -> Setting:
    """The setting of the highest accuracy on `rows`, the mean over kinds; controls do not count."""
    kinds = [k for k in _kinds(pairs) if k not in violations.CONTROLS] or _kinds(pairs)
    masks = [rows & _of(pairs, kind) for kind in kinds]

    def accuracy(setting: Setting) -> float:
        won = wins(scores[setting])
        return float(np.mean([won[mask].mean() for mask in masks if mask.any()] or [0.0]))

    return max(sorted(scores), key=accuracy)


def _kinds(pairs: Sequence[Pair]) -> list[str]:
    return list(dict.fromkeys(pair.kind for pair in pairs))


def _of(pairs: Sequence[Pair], kind: str, more: str = '') -> np.ndarray:
    return np.array([pair.kind == kind and more in ('', pair.more) for pair in pairs])


def figure(won: np.ndarray) -> Figure:
    """Share of pairs won and Wilson's interval over them."""
    return Figure(float(won.mean()), *wilson(float(won.sum()), len(won)), len(won))


def _report(
    measured: Measured, pairs: list[Pair], rows: np.ndarray, chosen: dict[str, Setting],
    source: Pairs, config: PhysicsConfig, workdir: Path,
) -> Results:  # fmt: skip
    won = {name: wins(measured.scores[name][setting]) for name, setting in chosen.items()}
    kinds = _kinds(pairs)
    masks = {}
    if len(laws := [k for k in kinds if k not in violations.CONTROLS]) > 1:
        masks['all kinds'] = rows & np.logical_or.reduce([_of(pairs, k) for k in laws])
    for kind in kinds:
        masks[kind] = rows & _of(pairs, kind)
        variants = sorted({pair.more for pair in pairs if pair.kind == kind} - {''})
        if len(variants) > 1 and kind not in violations.CONTROLS:
            masks |= {f'{kind}, {more}': rows & _of(pairs, kind, more) for more in variants}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    groups = np.array([pair.group for pair in pairs])
    results = {name: figure(won['model'][mask]) for name, mask in masks.items()}
    baselines = {
        f'{name}: {other}': figure(won[other][mask])
        for name, mask in masks.items()
        for other in won
        if other != 'model'
    }
    for name in [n for n in masks if n == 'all kinds' or n in kinds]:
        gain = (won['model'] - won['copy'])[masks[name]]
        (ends,) = bootstrap(
            groups[masks[name]],
            functools.partial(lambda g, chosen_rows: (g[chosen_rows].mean(),), gain),
            config.bootstrap,
            config.seed,
        )
        results[f'{name}: model - copy'] = Figure(float(gain.mean()), *ends, len(gain))
    setting = chosen['model']
    possible, impossible = measured.scores['model'][setting][:, 0, rows]
    _, ties = surprise.outcome(possible, impossible)
    apart = [
        kind
        for kind in kinds
        if kind in masks
        and kind not in violations.CONTROLS
        and all(
            results[kind].low > baselines[f'{kind}: {other}'].high
            for other in ('copy', 'random')
            if other in won
        )
    ]
    how = {
        'held_out': 'chosen on the other half of the groups',
        'upstream': 'the best on the pairs reported, as the original does; no held-out estimate',
    }
    sentences = [
        f'settings, {how[config.protocol]}: '
        + '; '.join(f'{name}: {s}' for name, s in chosen.items()),
        f'{ties} of {len(possible)} pairs are ties, which count as lost, as in the original; as '
        f'half a win each the share of pairs won would be {wins_half(possible, impossible):.3f}',
        f'above copy and untrained nets with intervals apart: {", ".join(apart) or "no kind"}',
    ]
    if published := PUBLISHED.get(config.data.kind):
        words = ', '.join(f'{name} {value:g}' for name, value in published.items())
        sentences.append(f'published, pair accuracy in percent: {words}')
    if source.copies:
        sentences.append(_noise(source, pairs, measured.scores['model'][setting][:, 0]))
    if len(measured.problems) + len(source.problems):
        problems = (*source.problems, *measured.problems)
        sentences.append(f'{len(problems)} could not be used: {"; ".join(problems[:3])} ...')
    key = (setting.step, setting.frames, setting.context, setting.token)
    series = measured.over_time[key]
    lawless = np.flatnonzero(next(iter(masks.values())))  # 'all kinds', or the only one
    both = surprise.padded([member for i in lawless for member in series[i]])
    labels = np.tile([1, 0], len(lawless))
    physics_pictures.plot(
        workdir / 'surprise.png',
        [
            (pairs[i].kind, pairs[i].event, series[i]) for i in np.flatnonzero(rows)
        ],
        step=setting.step, frames=setting.frames, stride=config.stride,
        seen=setting.context or setting.frames // 2,
    )  # fmt: skip
    return Results(
        results=results,
        baselines=baselines,
        data={
            'expected': len(source.pairs) + len(source.problems),
            'read': len(pairs),
            'reported': int(rows.sum()),
            'hash': hashlib.sha256(
                '\n'.join(f'{p.possible} {p.impossible} {p.kind}' for p in source.pairs).encode(
                    'utf-8', 'surrogateescape'
                )
            ).hexdigest(),
            'problems': [*source.problems, *measured.problems],
            'settings': {name: dataclasses.asdict(s) for name, s in chosen.items()},
            'single_videos': dataclasses.asdict(surprise.metrics(both, labels)),
        },
        sentences=tuple(sentences),
    )


def wins_half(possible: np.ndarray, impossible: np.ndarray) -> float:
    """Share of pairs won, a tie as half a win."""
    won, ties = surprise.outcome(possible, impossible)
    return (won + ties / 2) / len(possible)


def _noise(source: Pairs, pairs: list[Pair], scores: np.ndarray) -> str:
    """How much surprise differs between renders of one event, beside what members differ by."""
    known = {}
    for pair, possible, impossible in zip(pairs, *scores):
        known |= {pair.possible: possible, pair.impossible: impossible}
    spread = [
        abs(known[a] - known[b])
        for each in source.copies
        for a, b in itertools.combinations([v for v in each if v in known], 2)
    ]
    between = abs(scores[0] - scores[1]).mean()
    return (
        f'renders of one event differ in surprise by {np.mean(spread or [np.nan]):.2g} on average, '
        f'members of a pair by {between:.2g}: what is below the first says nothing'
    )
