"""Surprise of one video at a time, as the original has it and physics.measure has it of many."""

from collections.abc import Sequence

import numpy as np

from jepa_jax.evals import surprise


def series(
    model: surprise.Expects,
    frames: np.ndarray,
    window: int,
    contexts: Sequence[int],
    *,
    stride: int = 2,
    warm_up: bool = False,
    ahead: int = 0,
    normalise: bool = True,
) -> list[np.ndarray]:
    """Surprise of one video over time, for each context [n]: see `surprise.surprise`.

    warm_up: each series is preceded by that of the first window with contexts of 2, 4, ... up to
      its own, so that what happens early is seen. (reference: IntPhys 2, max_context_mode)
    ahead: frames that are predicted after a context of F - ahead frames, whatever `contexts` says;
      0: the rest of the window.
    """
    if ahead:
        contexts = [window - ahead] * len(contexts)
    options = dict(ahead=ahead, normalise=normalise)
    clips = np.stack([frames[s : s + window] for s in surprise.starts(len(frames), window, stride)])
    whole = surprise.surprise(model, clips, contexts, **options).model[:, 0]
    result = []
    for i, C in enumerate(contexts):
        shorter = list(range(2, C, 2)) if warm_up else []
        early = np.empty(0)
        if shorter:
            early = surprise.surprise(model, clips[:1], shorter, **options).model[0, 0]
        result.append(np.concatenate([early, whole[:, i]]))
    return result
