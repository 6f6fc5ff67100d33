"""What is asked of a model's features: a row an evaluation.

    EVALS['mine'] = Evaluation(config='my_file:MyConfig', run='my_file:run')
    PERIODIC['mine'] = Periodic(run='my_file:beside_training')

A file named by `--config` may add rows of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jepa_jax.config import EvalConfig
from jepa_jax.config.check import types_and_ranges
from jepa_jax.errors import ConfigError
from jepa_jax.lookup import load, row


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a model is evaluated, each as `module:name`."""

    config: str  # a dataclass that extends EvalConfig
    run: str  # model, config, workdir -> Results; pictures go into the workdir
    protocol: str = ''  # what was done, for the report
    check: str = 'jepa_jax.recipes:no_complaints'  # config -> complaints
    # config -> a hash of what it reads: names, labels, sizes and times of files. A finished report
    # is shown again for the same alone; '': nothing but the config says what is read
    contents: str = ''
    # model, config, workdir, place -> None: judges what arrives there; '' where there is nothing to
    watch: str = ''


@dataclasses.dataclass(frozen=True)
class Periodic:
    """What a run may ask of its features beside its training, each as `module:name`."""

    run: str  # jepa_jax.evals.beside.Asked -> Measured; in every process
    check: str = 'jepa_jax.recipes:no_complaints'  # jepa_jax.evals.entries.Entry -> complaints
    kinds: tuple[str, ...] = ('class', 'number', 'labels')  # of labels that it reads


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured value and its 95 % interval."""

    value: float
    low: float
    high: float
    n: int  # of what was measured: clips, episodes


@dataclasses.dataclass(frozen=True)
class Results:
    """What an evaluation measured."""

    results: dict[str, Figure]
    baselines: dict[str, Figure]  # what the results are to be held against
    data: dict[str, Any]  # expected and read records, hash of their list
    sentences: tuple[str, ...] = ()
    # reader -> how well each test clip was answered [m], the higher the better, and the source of
    # each [m]: what another model is compared by, clip by clip
    outcomes: dict[str, Any] = dataclasses.field(default_factory=dict)
    sources: Any = None


EVALS: dict[str, Evaluation] = {
    'anomaly': Evaluation(
        config='jepa_jax.config.anomaly:AnomalyConfig',
        run='jepa_jax.evals.anomaly:run',
        contents='jepa_jax.evals.anomaly:contents',
        protocol='scores of frames by predicted against observed features and by distance to '
        'normal ones, learnt from normal video alone; areas under the ROC curve, intervals over '
        'videos',
        check='jepa_jax.config.anomaly:check',
        watch='jepa_jax.evals.watch:run',
    ),
    'benchmark': Evaluation(
        config='jepa_jax.config:BenchmarkConfig',
        run='jepa_jax.evals.benchmark:run',
        contents='jepa_jax.evals.benchmark:contents',
        protocol='attentive probes on frozen features of an official set, or a released probe; '
        'config.protocol says how clips are counted and the head is chosen',
    ),
    'depth': Evaluation(
        config='jepa_jax.config.dense:DepthConfig',
        run='jepa_jax.evals.depth:run',
        contents='jepa_jax.evals.dense:contents',
        protocol='a linear head with batch norm on frozen tokens of pictures, bins of distance; '
        'chosen on training sources, intervals by bootstrap over sources',
        check='jepa_jax.config.dense:check',
    ),
    'ek100': Evaluation(
        config='jepa_jax.config:AnticipationConfig',
        run='jepa_jax.evals.anticipation:run',
        contents='jepa_jax.evals.benchmark:contents',
        protocol='attentive probes with three queries on frozen features and what the predictor '
        'expects a second later, or a released probe; class-mean recall@5 on logits',
    ),
    'image_linear': Evaluation(
        config='jepa_jax.config.image_linear:ImageLinearConfig',
        run='jepa_jax.evals.image_linear:run',
        contents='jepa_jax.evals.image_linear:contents',
        protocol='linear heads by LARS on mean features of pictures that are cut anew in every '
        'epoch, as I-JEPA was judged; config.protocol says what the head is chosen on',
        check='jepa_jax.config.image_linear:check',
    ),
    'own': Evaluation(
        config='jepa_jax.config:OwnConfig',
        run='jepa_jax.evals.own:run',
        contents='jepa_jax.evals.own:contents',
        protocol='nearest neighbours, ridge, logistic regression and an attentive probe on frozen '
        'features; no source on both sides of the split; settings chosen on training clips',
    ),
    'physics': Evaluation(
        config='jepa_jax.config.physics:PhysicsConfig',
        run='jepa_jax.evals.physics:run',
        contents='jepa_jax.evals.physics:contents',
        protocol='pairs won by surprise, the mean distance of predicted from observed features of '
        "what follows; settings chosen on half of the groups, intervals Wilson's over pairs",
        check='jepa_jax.config.physics:check',
    ),
    'propagation': Evaluation(
        config='jepa_jax.config.dense:PropagationConfig',
        run='jepa_jax.evals.propagation:run',
        contents='jepa_jax.evals.dense:contents',
        protocol="the first frame's labels carried to later frames by likeness of frozen tokens, "
        'each encoded without later frames; J and F over frames without the first and last, '
        'intervals by bootstrap over videos',
    ),
    'qa': Evaluation(
        config='jepa_jax.config.qa:QAConfig',
        run='jepa_jax.evals.qa:run',
        contents='jepa_jax.evals.qa:contents',
        protocol='answers of a language model about videos, by the rule of each benchmark and by '
        'likelihood of the choices; beside it without video, with shuffled frames, with one frame; '
        'intervals by bootstrap over videos or pairs',
        check='jepa_jax.config.qa:check',
    ),
    'retrieval': Evaluation(
        config='jepa_jax.config:RetrievalConfig',
        run='jepa_jax.evals.retrieval:run',
        contents='jepa_jax.evals.own:contents',
        protocol="cosine of mean features, the query's own source left out",
    ),
    'segmentation': Evaluation(
        config='jepa_jax.config.dense:SegmentationConfig',
        run='jepa_jax.evals.segmentation:run',
        contents='jepa_jax.evals.dense:contents',
        protocol='a linear head with batch norm on frozen tokens of pictures; IoU of intersections '
        'and unions summed over pictures; chosen on training sources, intervals by bootstrap over '
        'sources',
        check='jepa_jax.config.dense:check',
    ),
    'self_made': Evaluation(
        config='jepa_jax.config:SelfMadeConfig',
        run='jepa_jax.evals.self_made:run',
        protocol='attentive probe on frozen features of self-made videos, 95 % intervals by '
        'bootstrap over the test clips',
    ),
}

PERIODIC: dict[str, Periodic] = {
    'linear': Periodic(run='jepa_jax.evals.beside:linear'),
    'probe': Periodic(
        run='jepa_jax.evals.beside:probe',
        check='jepa_jax.evals.entries:probe',
        kinds=('class',),
    ),
}


def of(config: EvalConfig) -> Evaluation:
    """The row of a config.

    Raises:
      ConfigError: there is none, it is for another class of configs, or the settings cannot work.
    """
    fitting = row(EVALS, 'evaluation', config.evaluation)
    kind, own = load(fitting.config), type(config)
    # by name: a config file that was run twice has two classes of it
    if (kind.__module__, kind.__qualname__) != (own.__module__, own.__qualname__):
        raise ConfigError(
            f"evaluation = '{config.evaluation}': is for a {kind.__name__}, this config is a "
            f'{own.__name__}'
        )
    types_and_ranges(config)
    if complaint := next(iter(load(fitting.check)(config)), None):
        raise ConfigError(complaint)
    return fitting
