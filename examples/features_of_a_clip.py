"""Features of a clip: which of its moments look alike, and where.

    python examples/features_of_a_clip.py [VIDEO] [--model vitl]

Without arguments the clip and the encoder that come with the package, no download.
"""

import argparse

import numpy as np

import jepa_jax


def main(argv: list[str] | None = None) -> np.ndarray:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('video', nargs='?', default=jepa_jax.example(), help='(the bundled clip)')
    parser.add_argument('--model', default='tiny', help='name or path of a model (%(default)s)')
    options = parser.parse_args(argv)

    model = jepa_jax.load(options.model)
    print('\n'.join(model.about))
    features = model.embed(options.video, frames=8, fps=8)
    tokens = features.tokens  # [windows, N, D]; coords [N, 3] say where each lies: seconds, y, x
    print(f'{options.video}: {tokens.shape[0]} windows of {tokens.shape[1]} tokens')

    # one vector a window, and the cosine between every two of them
    windows = tokens.mean(axis=1) - tokens.mean(axis=(0, 1))
    windows /= np.linalg.norm(windows, axis=1, keepdims=True)
    likeness = windows @ windows.T
    print('cosine between windows:')
    print(np.array2string(likeness, precision=2, suppress_small=True))

    # the token of the first window that changes most over its time
    seconds = np.unique(features.coords[:, 0])
    over_time = tokens[0].reshape(len(seconds), -1, tokens.shape[-1])
    moving = over_time.std(axis=0).mean(axis=-1).argmax()
    _, y, x = features.coords[moving]
    print(f'most changes around y {y:.0f}, x {x:.0f} (pixels of what the model saw)')
    return likeness


if __name__ == '__main__':
    main()
