"""What features tell of your own labelled clips: a folder with a folder a class.

    python examples/own_labels.py CLIPS --model vitl

Trains a linear reader on a half of the clips, tests it on the other and says what chance gives; for
baselines, intervals and readers of more kinds: jepa evaluate --config=own.
"""

import argparse
import pathlib

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import jepa_jax


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('clips', type=pathlib.Path, help='folder with a folder of videos a class')
    parser.add_argument('--model', default='tiny', help='name or path of a model (%(default)s)')
    parser.add_argument('--frames', type=int, default=8, help='of a window (%(default)s)')
    parser.add_argument('--fps', type=float, default=8.0, help='frames a second (%(default)s)')
    options = parser.parse_args(argv)

    files = sorted(path for path in options.clips.glob('*/*') if path.is_file())
    if not files:
        parser.error(f'{options.clips}: must be a folder with a folder of videos a class')
    model = jepa_jax.load(options.model)
    labels = np.array([path.parent.name for path in files])
    # the mean over windows, of the tokens in their order: what a thing does and where
    pooled = [
        model.embed(path, frames=options.frames, fps=options.fps).tokens.mean(axis=0).reshape(-1)
        for path in files
    ]
    train, test, known, asked = train_test_split(
        np.stack(pooled), labels, test_size=0.5, stratify=labels, random_state=0
    )
    reader = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    accuracy = float(reader.fit(train, known).score(test, asked))
    chance = max(np.mean(asked == name) for name in set(asked))
    print(f'{len(test)} clips: accuracy {accuracy:.3f}, the most frequent class alone {chance:.3f}')
    return accuracy


if __name__ == '__main__':
    main()
