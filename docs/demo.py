# %% [markdown]
# # Features, a picture of them, predictions, classes
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/jepa_jax/blob/main/docs/demo.ipynb)
#
# From a video to features, offline and on a CPU, in about a minute. The videos are self-made: a
# handwritten digit and a ball go round each other among shapes that bounce.

# %%
import tempfile
from pathlib import Path

import numpy as np

import jepa_jax  # in Colab first: !pip install git+https://github.com/OWNER/jepa_jax
from jepa_jax import Fill
from jepa_jax.data import synthetic
from jepa_jax.evals.pictures import plot_features, plot_similarity

# 'tiny' comes with the package and was trained on such videos, on 32 pixels and 8 frames a second.
# With the weights of the release: 'vitl'. jepa_jax.models() shows all names.
MODEL = 'tiny'
FOLDER = Path(tempfile.mkdtemp())


def show(path):
    """The picture here in a notebook, its path in a script."""
    if 'get_ipython' in globals():
        from IPython.display import Image, display

        display(Image(filename=str(path)))
    else:
        print(path)


# %% [markdown]
# ## A model and a video

# %%
model = jepa_jax.load(MODEL)
print(model)

# %%
video = jepa_jax.example()
CROP = min(64, model.config.image_size)  # pixels: small, to be quick
VIEW = {'frames': 8, 'crop': CROP, 'fps': synthetic.FPS}  # frames a second: each one of this video
features = model.embed(video, **VIEW)
print(features)

# %% [markdown]
# `tokens` has a vector for each tubelet of two frames and patch of pixels, of each window of eight
# frames. `coords` says where in time and space each lies:

# %%
print('grid (time, y, x):', features.grid)
seconds, y, x = features.coords[-1]
print(f'last token: {seconds:.4f} s, y {y:.0f}, x {x:.0f}')

# %% [markdown]
# ## A picture of features
#
# The three leading principal components of the tokens as red, green and blue; and how alike every
# token is to the one in the middle of the first frames. Larger pictures give more tokens; that they
# are beyond what the model was trained with is said, and it does well all the same.

# %%
large = model.embed(video, **VIEW | {'crop': max(96, CROP)})
tokens = large.tokens[0].reshape(*large.grid, -1)
plot_features(large.clips[0], tokens, FOLDER / 'pca.png', title=f'{MODEL}: features')
show(FOLDER / 'pca.png')

# %%
plot_similarity(large.clips[0], tokens, FOLDER / 'alike.png', title=f'{MODEL}: likeness')
show(FOLDER / 'alike.png')

# %% [markdown]
# ## A prediction
#
# The encoder sees the first half of a window; the predictor says what features the second half
# will have. Judged by the mean absolute error beside two baselines that need no predictor: each
# place keeps the features it had last, and the mean of what was seen. 'tiny' is an encoder alone;
# then random weights show the way, and lose, as they must.


# %%
def judge(model, path):
    """Mean absolute errors of what is predicted of the second half."""
    whole = model.embed(path, **VIEW)
    result = model.predict(path, Fill.after(whole.grid, whole.grid[0] // 2), **VIEW)
    true = whole.tokens[0][result.ids]
    seen = result.context[0]
    last = np.resize(seen[-np.prod(whole.grid[1:]) :], true.shape)  # again and again
    baselines = {
        'the predictor': result.tokens[0],
        'nothing changes': last,
        'the mean': seen.mean(0),
    }
    return {name: float(np.abs(true - frame).mean()) for name, frame in baselines.items()}


predicting = model if model.predictor else jepa_jax.load('random:tiny')
print(predicting.name)
for name, error in judge(predicting, video).items():
    print(f'{name:16} {error:.3f}')

# %% [markdown]
# ## Classes
#
# On which side of the digit does the ball keep: right, below, left, above? No place in the picture
# is lighter or darker for it, so pixels tell little. A logistic regression learns from the tokens'
# mean over time, place by place, of 160 clips, and is judged on 80 others, beside one that learns
# from pixels in the same way; chance is a quarter.

# %%
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

view = jepa_jax.preprocessor(crop=CROP)


def clips_of(split, count):
    """Clips uint8 [n, 8, crop, crop, 3], and the side."""
    clips = np.stack([view(synthetic.video(split, i)[:8]) for i in range(count)])
    return clips, np.array([synthetic.labels(i)['side'] for i in range(count)])


def features_of(clips):
    """[n, places * D]"""
    tokens = np.concatenate([model.encoder(clips[i : i + 20]) for i in range(0, len(clips), 20)])
    times = model.config.grid(*clips.shape[1:4])[0]
    return tokens.reshape(len(clips), times, -1).mean(axis=1)


def pixels_of(clips):
    """[n, crop * crop * 3]"""
    return clips.mean(axis=1).reshape(len(clips), -1) / 255


(train, train_labels), (test, test_labels) = clips_of('train', 160), clips_of('test', 80)
for name, read in (('features', features_of), ('pixels', pixels_of)):
    reader = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=300))
    right = reader.fit(read(train), train_labels).score(read(test), test_labels)
    spread = 1.96 * (right * (1 - right) / len(test)) ** 0.5
    print(f'{name:9} {right:.0%} right, +- {spread:.0%} with {len(test)} clips')

# %% [markdown]
# What better readers make of this question and of others stands in numbers.md; your own videos and
# labels are asked by `python -m jepa_jax.evaluate --config=configs/eval/own.py`.
