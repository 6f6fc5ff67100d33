"""How near the static-shape masks come to the original's, and what they cost.

    python -m tools.measure_masks [--steps 1000] [--images] [--json FILE]

runs both samplers over as many steps and clips on the three grids of the released recipes and
compares the share of the tokens kept, overall and in the tubelet where it differs most. Measured,
1,000 steps, default masks, `static - original` in share of the tokens:

    grid              batch  programs (original)  executed/real  largest overall  in any tubelet
    256 px/16 frames     24       4 (  948)           1.000          -0.0018         -0.0067
    256 px/64 frames     12       4 (  982)           1.000          -0.0030         +0.0096
    384 px/64 frames      6       4 (1,000)           1.000          -0.0024         +0.0089

The largest overall difference in share of the part itself is -2.2 % (384 px, context of the 2-block
mask: 0.1076 for 0.1101). One clip takes 0.3 to 0.45 ms of one core, both masks.

`--images` does the same for I-JEPA, whose shares are compared row by row: docs/family.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from typing import TYPE_CHECKING

from jepa_jax import cli
from jepa_jax.config import MaskedVideoConfig
from jepa_jax.errors import ConfigError
from jepa_jax.workdir import room_for

if TYPE_CHECKING:
    import numpy as np

CASES = {  # name: (grid, clips a GPU in the original)
    '256 px / 16 frames': ((8, 16, 16), 24),
    '256 px / 64 frames': ((32, 16, 16), 12),
    '384 px / 64 frames': ((32, 24, 24), 6),
}


def profile(ids: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Mean share of every tubelet `[t]` that rows of ids `[B, K]` hold."""
    import numpy as np

    cells = grid[1] * grid[2]
    return np.bincount(ids.ravel() // cells, minlength=grid[0]) / (len(ids) * cells)


def measure(
    grid: tuple[int, int, int], batch: int, steps: int, seed: int = 239, budgets: int = 4
) -> dict:
    """Both samplers over `steps` steps of `batch` clips: the figures of one row of the table."""
    import numpy as np

    from jepa_jax.masks.multiblock import ReferenceSampler, StaticSampler, reference_batch

    settings = MaskedVideoConfig().masks
    static = StaticSampler(settings, grid, seed, batch, budgets)
    reference = [ReferenceSampler(each, grid) for each in settings]
    kept = np.zeros(
        (2, len(settings), 2, grid[0])
    )  # [original or static, mask, context or target, t]
    programs, originals, executed, real, seconds = set(), set(), 0, 0, 0.0
    for step in range(steps):
        original = reference_batch(reference, seed, step, batch)
        began = time.perf_counter()
        clips = [static.sample(step, position) for position in range(batch)]
        seconds += time.perf_counter() - began
        ours = [tuple(np.stack(rows) for rows in zip(*masks)) for masks in zip(*clips)]
        shapes = tuple(tuple(ids.shape[1] for ids in pair) for pair in ours)
        if shapes != static.shapes(step):
            raise AssertionError(f'step {step}: {shapes} sampled, {static.shapes(step)} promised')
        programs.add(shapes)
        originals.add(tuple(tuple(ids.shape[1] for ids in pair) for pair in original))
        for i, masks in enumerate((original, ours)):
            for j, pair in enumerate(masks):
                kept[i, j] += [profile(ids, grid) / steps for ids in pair]
        for ids in (ids for pair in ours for ids in pair):
            executed += ids.size
            real += sum(len(np.unique(row)) for row in ids)
    masks = []
    for j, (a, b) in enumerate(zip(*kept)):
        for k, name in enumerate(('context', 'target')):
            off = b[k] - a[k]
            masks.append(
                {
                    'mask': j,
                    'part': name,
                    'original': a[k].mean(),
                    'static': b[k].mean(),
                    'difference': off.mean(),
                    'relative': off.mean() / a[k].mean(),
                    'largest_in_a_tubelet': off[np.abs(off).argmax()],
                    'tubelet': int(np.abs(off).argmax()),
                }
            )
    return {
        'grid': grid,
        'tokens': math.prod(grid),
        'batch': batch,
        'steps': steps,
        'programs': len(programs),
        'programs_original': len(originals),
        'executed_over_real': executed / real,
        'microseconds_a_clip': seconds / steps / batch * 1e6,
        'kept': masks,
    }


IMAGES = {  # name: (grid, images a GPU in the original)
    'ViT-H/14, 224 px': ((16, 16), 128),
    'ViT-g/16, 224 px': ((14, 14), 16),
    'ViT-H/16, 448 px': ((28, 28), 16),
}


def measure_images(
    grid: tuple[int, int], group: int, steps: int, seed: int = 0, budgets: int = 4
) -> dict:
    """Likewise of I-JEPA: shares of the rows of an image."""
    import numpy as np

    from jepa_jax.config import ImageMaskConfig
    from jepa_jax.masks.image import ReferenceSampler, StaticSampler

    settings = ImageMaskConfig(group=group)
    static = StaticSampler(settings, grid, seed, budgets)
    reference = ReferenceSampler(settings, grid)
    kept = np.zeros((2, 2, grid[0]))  # [original or static, context or a target, row]
    programs, originals, seconds = set(), set(), 0.0
    for step in range(steps):
        original = reference(step, np.random.RandomState([seed, step]), group)
        began = time.perf_counter()
        images = [static.sample(step, position)[0] for position in range(group)]
        seconds += time.perf_counter() - began
        ours = [np.stack(rows) for rows in zip(*images)]
        shapes = tuple(ids.shape[-1] for ids in ours)
        if (shapes,) != static.shapes(step):
            raise AssertionError(f'step {step}: {shapes} sampled, {static.shapes(step)} promised')
        if any((np.diff(ids) <= 0).any() for ids in ours):
            raise AssertionError(f'step {step}: a token twice, which would be padding')
        programs.add(shapes)
        originals.add(tuple(ids.shape[-1] for ids in original))
        for i, pair in enumerate((original, ours)):
            for j, ids in enumerate(pair):
                rows = np.bincount(ids.ravel() // grid[1], minlength=grid[0])
                kept[i, j] += rows / (steps * grid[1] * (ids.size // ids.shape[-1]))
    off = kept[1] - kept[0]
    return {
        'grid': grid,
        'group': group,
        'steps': steps,
        'programs': len(programs),
        'programs_original': len(originals),
        'executed_over_real': 1.0,  # no token is there twice
        'microseconds_an_image': seconds / steps / group * 1e6,
        'kept': [
            {
                'part': part,
                'original': a.mean(),
                'static': b.mean(),
                'largest_in_a_row': d[np.abs(d).argmax()],
            }
            for part, a, b, d in zip(('context', 'target'), *kept, off)
        ],
    }


def _run_images(steps: int, budgets: int) -> dict:
    results = {}
    for name, (grid, group) in IMAGES.items():
        results[name] = r = measure_images(grid, group, steps, budgets=budgets)
        print(
            f'{name}, {group} images, {steps} steps: programs {r["programs"]} (original '
            f'{r["programs_original"]}), executed / real {r["executed_over_real"]:.3f}, '
            f'{r["microseconds_an_image"]:.0f} us an image'
        )
        for m in r['kept']:
            print(
                f'  {m["part"]:>7}  original {m["original"]:.4f}  static {m["static"]:.4f}  '
                f'worst row {m["largest_in_a_row"]:+.4f}'
            )
    return results


def run(steps: int, budgets: int, images: bool, json_file: str | None) -> None:
    """Measures every case and prints it."""
    if json_file:
        room_for('--json', json_file)
    if steps < 1:
        raise ConfigError(f'--steps {steps}: must be at least 1')
    results = _run_images(steps, budgets) if images else _run_videos(steps, budgets)
    if json_file:
        with open(json_file, 'w') as file:
            json.dump(results, file, indent=2)
            file.write('\n')


def _run_videos(steps: int, budgets: int) -> dict:
    results = {}
    for name, (grid, batch) in CASES.items():
        results[name] = r = measure(grid, batch, steps, budgets=budgets)
        print(
            f'{name}, {r["tokens"]} tokens, {batch} clips, {steps} steps:'
            f' programs {r["programs"]} (original {r["programs_original"]}),'
            f' executed / real {r["executed_over_real"]:.3f},'
            f' {r["microseconds_a_clip"]:.0f} us a clip'
        )
        print('  mask     part  original  static    difference  of itself  worst tubelet')
        for m in r['kept']:
            print(
                f'  {m["mask"]:>4}  {m["part"]:>7}  {m["original"]:8.4f}  {m["static"]:6.4f}'
                f'  {m["difference"]:+12.4f}  {m["relative"]:+9.1%}'
                f'  {m["largest_in_a_tubelet"]:+7.4f} (t={m["tubelet"]})'
            )
    return results


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--steps', type=int, default=1000, metavar='N', help='training steps (%(default)s)')
    add('--budgets', type=int, choices=(1, 4), default=4, help="shapes; 1: mask_sampler 'single'")
    add('--images', action='store_true', help="I-JEPA's masks (those of videos)")
    add('--json', metavar='FILE', dest='json_file', help='write the figures (no file)')


def main(argv: list[str] | None = None) -> int:
    return cli.run(run, doc=__doc__, tables=(), options=_options, argv=argv)


if __name__ == '__main__':
    sys.exit(main())
