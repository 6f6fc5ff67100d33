"""Makes what comes with the package: the encoder `tiny` and a clip to try it on.

    python -m jepa_jax.train --config=configs/tiny.py --workdir=runs/tiny
    python -m tools.make_bundled runs/tiny

Writes jepa_jax/bundled/tiny.npz, the run's target encoder as float16, and clip.mp4, a self-made
video of the main job's test split, which the encoder has not been trained on; and says how far
features of that clip move by the rounding. Both may be given away: Apache-2.0, the handwritten
digit from scikit-learn's set (UCI, CC BY 4.0).
"""

from __future__ import annotations

import argparse
import sys

from jepa_jax import cli


def make(run: str, out: str) -> None:
    """Writes both files.

    Raises:
      ConvertError, CheckpointError: the run has no encoder.
    """
    import json
    import pathlib

    import numpy as np

    import jepa_jax
    from jepa_jax.data import synthetic
    from jepa_jax.weights import bundled
    from jepa_jax.weights.read import read

    folder = pathlib.Path(out) if out else bundled.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    synthetic.write(folder / 'clip.mp4', synthetic.video('test', 0))
    report = json.loads(pathlib.Path(run, 'report.json').read_text())
    origin = f'the main job, {report["steps"]} steps: {report["verdict"]}'
    weights = read(run, weights_only=True)
    bundled.write(weights, folder / 'tiny.npz', origin)
    for path in sorted(folder.iterdir()):
        print(f'{path}: {path.stat().st_size:,} bytes')
    if out:
        return
    trained, rounded = (
        jepa_jax.load(name).embed(folder / 'clip.mp4', frames=8, fps=8).tokens
        for name in (run, 'tiny')
    )
    off = np.abs(trained - rounded)
    print(
        f'features of the clip differ by at most {off.max():.4f}, {off.mean():.5f} in the mean; '
        f'their deviation is {trained.std():.3f}'
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('run', metavar='RUN', help='workdir of a finished run of configs/tiny.py')
    parser.add_argument('--out', default='', metavar='DIR', help="(the package's own folder)")


def main() -> int:
    return cli.run(make, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
