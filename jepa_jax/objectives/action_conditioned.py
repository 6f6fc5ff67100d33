"""V-JEPA 2-AC: predict the features of the next frame from those so far and the actions taken.

The encoder is frozen. Features come with the batch (computed once, see data/features.py), or are
computed from its frames.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import poses
from jepa_jax.data.trajectories import Trajectories, words_of
from jepa_jax.models.ac_predictor import ACPredictorConfig, encode_frames
from jepa_jax.models.layers import standardise
from jepa_jax.models.vit import ViTConfig
from jepa_jax.nets import Net
from jepa_jax.objectives import Objective, Sample, error_words
from jepa_jax.sharding import batch_spec
from jepa_jax.weights.parts import net

PREFIXES = ('first', 'random')
COPY, ACTIONS = 0.95, 1.02  # error over copying above which, and over another clip's actions below


@dataclasses.dataclass(frozen=True)
class ACLoss:
    """What the predictor is trained for. (reference: vjepa2 §7.4)"""

    exponent: float = 1.0  # p of the error |z - h|^p / p; 1: L1, 2: half the squared error
    rollout_steps: int = 2  # predictions in a row, each from the one before; 1: no more than one
    # where a rollout starts. first: after one true frame, as released; random: after one or more,
    # another number every step, so that predictions also follow a longer true past
    prefix: str = 'first'
    stop_gradient: bool = False  # no gradient through a prediction into the one before it
    normalise: bool = True  # standardise predictions, as the features they are compared with


class ActionConditioned(Objective):
    """Nets and loss of the action-conditioned predictor."""

    def __init__(
        self,
        encoder: ViTConfig | None,
        predictor: ACPredictorConfig,
        loss: ACLoss = ACLoss(),
        *,
        features: bool = False,
    ):
        """features: batches hold the frozen encoder's features, and the encoder, if one is told, is
        kept beside them; else it reads their frames."""
        if loss.prefix not in PREFIXES:
            raise ValueError(f"prefix '{loss.prefix}': allowed are {', '.join(PREFIXES)}")
        if loss.rollout_steps < 1:
            raise ValueError(f'rollout_steps {loss.rollout_steps}: must be at least 1')
        self.nets = {'predictor': net('ac_predictor', predictor)}
        fixed = {'encoder': net('encoder', encoder)} if encoder else {}
        self.frozen, self.kept = ({}, fixed) if features else (fixed, {})
        self.encoder_config, self.config, self.settings = encoder, predictor, loss
        self.loss_words = error_words(loss.exponent)
        unused = ('kernel', 'bias') if predictor.conditioning == 'tokens' else ()
        self.unused = frozenset(
            f'predictor/extrinsics_encoder/{name}'
            for name in unused
            if not predictor.use_extrinsics
        )

    def encoder(self, params: dict, ema: dict, frozen: dict) -> tuple[Net, dict]:
        """The frozen encoder.

        Raises:
          ValueError: batches hold features, and the encoder is on no device.
        """
        if 'encoder' not in frozen:
            raise ValueError('the encoder of kept features is on no device')
        return self.frozen['encoder'], frozen['encoder']

    def targets(self, frozen: dict, batch: Trajectories) -> jax.Array:
        """Standardised features of every frame [B, T, N, D]; no gradient passes."""
        if batch.features is not None:
            return batch.features.astype(jnp.float32)
        frames = encode_frames(
            self.frozen['encoder'], frozen['encoder'], batch.frames, self.encoder_config.tubelet
        )
        return jax.lax.stop_gradient(frames)

    def predict(self, params: dict, frames: jax.Array, *conditions, **past):
        """The predictor over frames [B, T, N, D] -> the frames after them, standardised if so
        set."""
        B, T, N, D = frames.shape
        spec = batch_spec(frames)
        flat = jnp.reshape(frames, (B, T * N, D), out_sharding=spec)
        z, past = self.nets['predictor'](params, flat, *conditions, return_past=True, **past)
        z = jnp.reshape(z, frames.shape, out_sharding=spec)
        return (standardise(z) if self.settings.normalise else z), past

    def error(self, predicted: jax.Array, targets: jax.Array) -> jax.Array:
        """Mean of |predicted - targets|^p / p."""
        p = self.settings.exponent
        return (jnp.abs(predicted - targets) ** p / p).mean()

    def loss(
        self, params: dict, ema: dict, frozen: dict, batch: Trajectories, step: jax.Array
    ) -> tuple[jax.Array, dict]:
        """Teacher forcing plus rollout. (reference: vjepa2 §7.4, §13)

        Teacher forcing: from all true frames but the last, the frame after each. Rollout: after a
        prefix of true frames, `rollout_steps` predictions in a row, the first being the one that
        teacher forcing made. True states are given throughout. Frames before the rollout keep the
        keys and values of the teacher-forced pass, which is exact, as no frame sees a later one.

        Metrics: both parts, and `copy`, the error of taking each frame for the next.
        """
        del ema, step
        with jax.named_scope('target'):
            h = self.targets(frozen, batch)
        T = h.shape[1]
        steps = self.settings.rollout_steps
        assert steps < T, f'{steps} rollout steps need more than {T} frames'

        with jax.named_scope('teacher_forcing'):
            z, past = self.predict(params['predictor'], h[:, :-1], *batch.conditions(0, T - 1))
        size = past[0].shape[2] // (T - 1)

        def roll(prefix: int, params: dict, z: jax.Array, past, h: jax.Array) -> jax.Array:
            past = jax.tree.map(lambda a: a[:, :, : prefix * size], past)
            made = [z[:, prefix - 1 : prefix]]
            for frame in range(prefix, prefix + steps - 1):
                fed = jax.lax.stop_gradient(made[-1]) if self.settings.stop_gradient else made[-1]
                new, past = self.predict(
                    params, fed, *batch.conditions(frame, frame + 1), past=past
                )
                made.append(new)
            return self.error(jnp.concatenate(made, axis=1), h[:, prefix : prefix + steps])

        with jax.named_scope('rollout'):
            inputs = params['predictor'], z, past, h
            if self.settings.prefix == 'first':
                rollout = roll(1, *inputs)
            else:
                # recomputed in the backward pass, or every branch would keep its activations
                branches = [
                    jax.checkpoint(functools.partial(roll, k)) for k in range(1, T - steps + 1)
                ]
                prefix = batch.prefix.max()  # all alike
                rollout = jax.lax.switch(prefix - 1, branches, *inputs)
        parts = {
            'loss/teacher_forcing': self.error(z, h[:, 1:]),
            'loss/rollout': rollout,
            'loss/copy': self.error(h[:, :-1], h[:, 1:]),
        }
        return parts['loss/teacher_forcing'] + rollout, parts

    def trace(self, params: dict, ema: dict, frozen: dict, batch: Trajectories) -> dict:
        """Activations of a step by name, in order of computation."""
        h = self.targets(frozen, batch)
        conditions = batch.conditions(0, h.shape[1] - 1)
        z, (keys, values) = self.predict(params['predictor'], h[:, :-1], *conditions)
        activations = {'actions': batch.actions, 'states': batch.states, 'target features': h}
        for layer in range(self.config.depth):
            activations[f'predictor block {layer:02d}: keys'] = keys[layer]
            activations[f'predictor block {layer:02d}: values'] = values[layer]
        return {**activations, 'prediction': z}

    def health(self, params: dict, ema: dict, frozen: dict, batch: Trajectories) -> dict:
        """Teacher-forced errors as scalars: `true`; `shuffled`, with the actions of the clip
        before in the batch, if it has two; `copy`, of taking each frame for the next.

        A model that ignores actions has shuffled = true.
        """
        h = self.targets(frozen, batch)

        def error(batch: Trajectories) -> jax.Array:
            conditions = batch.conditions(0, h.shape[1] - 1)
            return self.error(
                self.predict(params['predictor'], h[:, :-1], *conditions)[0], h[:, 1:]
            )

        errors = {'true': error(batch), 'copy': self.error(h[:, :-1], h[:, 1:])}
        if len(batch.actions) == 1:
            return errors
        others, spec = batch.actions, batch_spec(batch.actions)
        if spec is not None:  # a mesh does not shift rows from one device to the next
            others = jax.reshard(others, jax.P())
        others = jnp.roll(others, 1, axis=0)
        others = others if spec is None else jax.reshard(others, spec)
        return errors | {'shuffled': error(dataclasses.replace(batch, actions=others))}

    def ahead(
        self, params: dict, frozen: dict, batch: Trajectories, known: int
    ) -> tuple[jax.Array, jax.Array]:
        """Errors of predictions 1 to H steps after the first `known` of a batch's known + H frames,
        and of taking the last known frame for what comes: both [B, H].

        Each prediction is made from the `known` frames before it, true or predicted. States after
        the known ones are integrated from the actions, as a planner does. (reference: vjepa2 §8.3)
        """
        h = self.targets(frozen, batch)
        H = h.shape[1] - known
        windows = jnp.stack([batch.actions[:, k : k + known] for k in range(H)])

        def error(predicted: jax.Array, true: jax.Array) -> jax.Array:
            p = self.settings.exponent
            return (jnp.abs(predicted - true) ** p / p).mean((-2, -1))

        def move_on(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.concatenate([old[:, 1:], new[:, None]], axis=1)

        def predict(carry, actions: jax.Array):
            frames, states = carry
            z, _ = self.predict(params['predictor'], frames, actions, states)
            if states is not None:
                states = move_on(states, poses.apply(states[:, -1], actions[:, -1]))
            return (move_on(frames, z[:, -1]), states), z[:, -1]

        states = None if batch.states is None else batch.states[:, :known]
        _, made = jax.lax.scan(predict, (h[:, :known], states), windows)
        true = h[:, known:]
        return error(jnp.moveaxis(made, 0, 1), true), error(h[:, known - 1 : known], true)

    def measure(self, health: dict) -> dict[str, float]:
        """Health metrics from `health`: how much worse the prediction is with another clip's
        actions (1: actions are ignored), where there is another, and its error over that of
        copying the frame (1: nothing is predicted)."""
        true = float(health['true'])
        values = {'health/error_over_copy': true / max(float(health['copy']), 1e-12)}
        if 'shuffled' in health:
            values['health/shuffled_actions'] = float(health['shuffled']) / max(true, 1e-12)
        return values

    def verdict(self, records: Sequence[Mapping[str, float]]) -> tuple[str, str]:
        """One word and one sentence on a run: unknown, undertrained, ignores actions, healthy."""
        lines = [r for r in records if 'health/error_over_copy' in r]
        if not lines:
            return 'unknown', 'health was not measured'
        last = lines[-1]
        copy = last['health/error_over_copy']
        if (actions := last.get('health/shuffled_actions')) is None:
            return 'unknown', (
                f"error {copy:.2f} of copying the frame's; with optim.batch = 1 there is no other "
                "clip's actions to compare with"
            )
        facts = (
            f"error {copy:.2f} of copying the frame's, and {actions:.2f} times as large with "
            "another clip's actions"
        )
        if copy > COPY:
            return 'undertrained', f'the predictor hardly beats copying the frame: {facts}'
        if actions < ACTIONS:
            return 'ignores actions', f'another action changes hardly anything: {facts}'
        return 'healthy', facts

    def bands(self, records) -> dict[str, tuple[float, float]]:
        del records
        return {'health/error_over_copy': (0.0, COPY), 'health/shuffled_actions': (ACTIONS, np.inf)}

    def samples(self, batch: Trajectories, count: int) -> list[Sample]:
        """Frames, if batches have them, and by how much the pose changes in between."""
        if batch.frames is None:
            return []
        pairs = zip(batch.frames[:count], batch.actions)
        return [Sample(np.asarray(f), words=words_of(np.asarray(a))) for f, a in pairs]

    def shown(self, batch: Trajectories) -> Trajectories:
        return batch

    def picture(
        self, params: dict, ema: dict, frozen: dict, shown: Trajectories
    ) -> dict[str, jax.Array]:
        """Features of all frames but the first, and what is predicted of them from the true ones
        before."""
        del ema
        h = self.targets(frozen, shown)
        conditions = shown.conditions(0, h.shape[1] - 1)
        z, _ = self.predict(params['predictor'], h[:, :-1], *conditions)
        B, T, _, D = z.shape
        shape = (B, T, *self.config.grid, D)
        both = {'frames 2 to the last': h[:, 1:], 'what is predicted of them': z}
        return {k: jnp.reshape(x, shape, out_sharding=batch_spec(x)) for k, x in both.items()}
