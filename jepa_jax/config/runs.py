"""What every training run has: the base of the configs of all objectives."""

from dataclasses import dataclass, field

from jepa_jax.config.parts import (
    CheckpointsConfig,
    LoggingConfig,
    MeshConfig,
    OptimConfig,
    PeriodicEvalConfig,
)


@dataclass
class RunConfig:
    """One run of `python -m jepa_jax.train`.

    A recipe's config adds fields of its own, among them at least `data`, a LoaderConfig or more.
    """

    table = 'objective'  # the field that names its row, here of jepa_jax.recipes.RECIPES

    objective: str = ''
    name: str = ''
    seed: int = 239
    compute_dtype: str = 'bfloat16'  # of matmul inputs: bfloat16 | float32; the rest is float32
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    evals: list[PeriodicEvalConfig] = field(default_factory=list)  # beside training


@dataclass
class StudyConfig:
    """A run made of runs, in folders of one workdir."""

    table = 'study'  # its row is in jepa_jax.recipes.STUDIES

    study: str = ''
    name: str = ''
    seed: int = 239


@dataclass
class EvalConfig:
    """One run of `python -m jepa_jax.evaluate`."""

    table = 'evaluation'  # its row is in jepa_jax.evals.EVALS
    places = ()  # fields that name files or folders, as 'data.path': what they name must be there
    compute_dtype = 'float32'  # of matmul inputs of the model: a field where it may be another

    evaluation: str = ''
    name: str = ''
    seed: int = 0
    bootstrap: int = 1000  # resamples behind each interval
