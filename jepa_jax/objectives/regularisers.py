"""Terms that keep features from becoming the same everywhere: VICReg and SIGReg, by variant.

Both are of the whole batch: samples lie on axis 0, and a mean over it is over all devices. What is
called by the same name differs between published code by factors of up to a thousand, so a variant
says which code is meant. (reference: family §4)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Vicreg:
    """How the parts of VICReg are weighed: prediction error, standard deviations, covariances."""

    prediction: float
    std: float
    covariance: float
    # what squared covariances [D, D] without their diagonal are summed up to: their sum over D, or
    # their mean
    mean: bool = False

    def of(self, z: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        """Terms of samples z [B, ..., D], as of two views that are both z."""
        del key
        std = (2 if self.mean else 1) * std_term(z)
        return {'std': std, 'covariance': 2 * covariance_term(z, mean=self.mean)}

    def columns(self, width: int) -> int:
        """Numbers that its terms look at together, of samples of `width` numbers."""
        return width

    def table(self, width: int) -> int:
        """Numbers that its terms make of one set of samples, however many these are."""
        return width**2

    def total(self, prediction: jax.Array, terms: Mapping[str, jax.Array]) -> jax.Array:
        """The whole loss."""
        return (
            self.prediction * prediction
            + self.std * terms['std']
            + self.covariance * terms['covariance']
        )

    def collapsed(self, samples: int) -> float:
        """What it adds to the loss where all samples are the same, however many they are."""
        del samples
        return self.std * (2 if self.mean else 1) * (1 - 1e-2)


@dataclasses.dataclass(frozen=True)
class Sigreg:
    """How the distance from a normal distribution is measured, and what it weighs."""

    weight: float  # lambda
    directions: int  # drawn anew at every step
    points: int  # of the trapezoid rule
    reach: float  # from -reach, or from 0, to it
    half: bool = True  # points from 0 on, each counted twice, of an integrand that is even
    times_samples: bool = True  # the distance is a test's statistic, which grows with the samples
    convex: bool = False  # the prediction error weighs 1 - lambda
    prediction: float = 1.0  # what else it weighs

    def of(self, z: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        """The term of samples z [B, ..., D]; key: of the directions."""
        return {'sigreg': sigreg(z, directions(key, z.shape[-1], self.directions), self)}

    def columns(self, width: int) -> int:
        """Directions that samples are looked at from."""
        del width
        return self.directions

    def table(self, width: int) -> int:
        """Numbers that its terms make of one set of samples: the directions."""
        return width * self.directions

    def total(self, prediction: jax.Array, terms: Mapping[str, jax.Array]) -> jax.Array:
        """The whole loss."""
        rest = self.prediction * (1 - self.weight if self.convex else 1)
        return rest * prediction + self.weight * terms['sigreg']

    def quadrature(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points of the trapezoid rule, their weights, and the normal distribution's characteristic
        function there: each [points]."""
        points = np.linspace(0.0 if self.half else -self.reach, self.reach, self.points)
        weights = np.full(self.points, points[1] - points[0])
        weights[[0, -1]] /= 2
        normal = np.exp(-np.square(points) / 2)
        return points, weights * normal * (2 if self.half else 1), normal

    def collapsed(self, samples: int) -> float:
        """What it adds to the loss where all samples lie at 0."""
        _, weights, normal = self.quadrature()
        distance = float((weights * np.square(1 - normal)).sum())
        return self.weight * distance * (samples if self.times_samples else 1)


VICREG = {
    'vicreg': Vicreg(25.0, 25.0, 1.0),
    'eb_jepa': Vicreg(1.0, 1.0, 80.0, mean=True),
}
SIGREG = {
    'lejepa': Sigreg(0.02, 1024, 17, 3.0, convex=True),
    'minimal': Sigreg(0.02, 256, 17, 3.0, convex=True),  # LeJEPA's README
    'paper': Sigreg(0.05, 1024, 17, 5.0, half=False, convex=True),
    'stable_pretraining': Sigreg(0.02, 1024, 17, 3.0),
    'lewm': Sigreg(0.09, 1024, 17, 3.0),
    'eb_jepa': Sigreg(10.0, 256, 10, 3.0, half=False, times_samples=False),
}
VARIANTS = {'vicreg': VICREG, 'sigreg': SIGREG}  # by method


def std_term(z: jax.Array) -> jax.Array:
    """How much the standard deviations of z [B, ..., D] over B fall short of 1, on average. []"""
    return jax.nn.relu(1 - jnp.sqrt(z.var(0, ddof=1) + 1e-4)).mean()


def covariance_term(z: jax.Array, *, mean: bool = False) -> jax.Array:
    """Squares of the covariances over B of different dimensions of z [B, ..., D]: their sum over D,
    or their mean; averaged over what lies between. []"""
    B, *_, D = z.shape
    z = z - z.mean(0)
    outside = jax.sharding.get_abstract_mesh().empty
    whole = None if outside else jax.P()
    covariance = jnp.einsum('b...i,b...j->...ij', z, z, out_sharding=whole) / (B - 1)
    off = jnp.square(covariance * (1 - jnp.eye(D))).sum((-2, -1))
    return (off / (D * (D - 1) if mean else D)).mean()


def directions(key: jax.Array, width: int, count: int) -> jax.Array:
    """Unit vectors [D, S], one a column, spread evenly."""
    drawn = jax.random.normal(key, (width, count))
    return drawn / jnp.linalg.norm(drawn, axis=0)


def epps_pulley(p: jax.Array, variant: Sigreg) -> jax.Array:
    """Distance of samples p [B, ...] from the standard normal distribution, by their empirical
    characteristic function over axis 0: [...].

    In float32 whatever p is: cosines of coarse angles have lost their phase.
    """
    p = p.astype(jnp.float32)
    points, weights, normal = variant.quadrature()

    @jax.checkpoint  # or as many copies of p as there are points would be kept
    def at(point):
        t, weight, expected = point
        real, imaginary = jnp.cos(t * p).mean(0), jnp.sin(t * p).mean(0)
        return weight * (jnp.square(real - expected) + jnp.square(imaginary))

    points = jnp.asarray(np.stack([points, weights, normal], axis=1), jnp.float32)
    distance = jax.lax.map(at, points).sum(0)
    return distance * p.shape[0] if variant.times_samples else distance


def sigreg(z: jax.Array, along: jax.Array, variant: Sigreg) -> jax.Array:
    """Mean over directions `along` [D, S], and over what lies between, of `epps_pulley` of samples
    z [B, ..., D]. []"""
    z = z.astype(jnp.float32)
    projected = jnp.matmul(z, along, precision=jax.lax.Precision.HIGHEST)
    return epps_pulley(projected, variant).mean()
