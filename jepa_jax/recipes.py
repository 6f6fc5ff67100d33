"""What can be run: a row an objective, and a row a study.

    RECIPES['mine'] = Recipe(config='my_file:MyConfig', build='my_file:build', ...)

Rows name what they load as `module:function`, so that this table needs no JAX. A file named
by `--config` may add rows of its own; nothing else has to be edited for a new objective.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jepa_jax.bucket import Bucket, is_url
from jepa_jax.config import check, layouts, store, trials
from jepa_jax.config.runs import RunConfig, StudyConfig
from jepa_jax.errors import BucketError, ConfigError
from jepa_jax.lookup import import_file, load, row
from jepa_jax.weights import names


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that the program asks of an objective, each as `module:name`."""

    config: str  # a dataclass that extends RunConfig
    build: str  # config -> jepa_jax.objectives.Objective
    # config, prepared, devices=, process_index=, process_count= -> jepa_jax.data.stream.Stream
    stream: str
    programs: str  # config, devices -> jepa_jax.objectives.Program of each set of static shapes
    workload: str  # config, stream -> step -> (FLOPs that a step is worth, tokens of its clips)
    activations: str  # config, rows -> jepa_jax.memory.Activations of so many rows at a time
    check: str = 'jepa_jax.recipes:no_complaints'  # config -> complaints
    smoke: str = 'jepa_jax.recipes:leave'  # shrinks a config to a trial, in place
    # config, workdir -> the config with what only files can say, before anything is made of it
    settle: str = 'jepa_jax.recipes:as_it_is'
    # config, objective, jepa_jax.origin.Origin -> jepa_jax.objectives.Prepared
    prepare: str = 'jepa_jax.objectives:nothing_to_prepare'
    # config -> names and paths of the models that it begins with, '' and 'random' among them
    models: str = 'jepa_jax.recipes:no_models'
    describe: str = 'jepa_jax.describe:run'  # config -> lines that say what its numbers mean
    # config -> jepa_jax.evals.entries.Entry of each evaluation beside training; raises ConfigError
    evals: str = 'jepa_jax.recipes:no_evals'
    # commands that a finished run is for; {run}: its workdir
    next: tuple[str, ...] = ('jepa convert {run} DIR',)
    # what is measured once, after the last step, in every process: config, objective,
    # jepa_jax.state.TrainState, frozen parameters, jepa_jax.objectives.Prepared.data, workdir ->
    # fields of report.json and sentences; process 0 puts pictures into the workdir
    at_end: str = 'jepa_jax.recipes:nothing_more'


@dataclasses.dataclass(frozen=True)
class Study:
    """A run made of runs, each as `module:name`."""

    config: str  # a dataclass that extends StudyConfig
    check: str  # config, workdir -> nothing; raises before anything is run
    stages: str  # config, workdir -> jepa_jax.studies.Stage of each step, in order
    report: str  # config, workdir -> nothing; measures and writes report.json, once all are there


FEATURES = (
    'jepa embed --model {run} --input clip.mp4 --out features.npz',
    'jepa evaluate --config=own --model {run} --config.data.train=LABELLED_CLIPS',
    'jepa convert {run} DIR --to hf',
)

RECIPES: dict[str, Recipe] = {
    'masked_video': Recipe(
        config='jepa_jax.config:MaskedVideoConfig',
        check='jepa_jax.config.masked_video:check',
        smoke='jepa_jax.config.trials:masked_video',
        build='jepa_jax.build:masked_video',
        prepare='jepa_jax.frozen:teacher',
        models='jepa_jax.config.masked_video:models',
        stream='jepa_jax.data.videos:VideoStream',
        programs='jepa_jax.objectives.programs:masked_video',
        workload='jepa_jax.objectives.programs:masked_video_workload',
        activations='jepa_jax.memory:masked_video',
        describe='jepa_jax.describe:masked_video',
        evals='jepa_jax.evals.entries:masked_video',
        next=FEATURES,
    ),
    'masked_image': Recipe(
        config='jepa_jax.config:MaskedImageConfig',
        check='jepa_jax.config.masked_image:check',
        smoke='jepa_jax.config.masked_image:smoke',
        build='jepa_jax.build:masked_image',
        stream='jepa_jax.data.images:ImageStream',
        programs='jepa_jax.objectives.image_programs:masked_image',
        workload='jepa_jax.objectives.image_programs:masked_image_workload',
        activations='jepa_jax.memory:masked_image',
        describe='jepa_jax.describe:masked_image',
        evals='jepa_jax.evals.entries:masked_video',
        next=FEATURES,
    ),
    'dense_video': Recipe(
        config='jepa_jax.config:DenseVideoConfig',
        check='jepa_jax.config.dense_video:check',
        smoke='jepa_jax.config.trials:dense_video',
        build='jepa_jax.build:dense_video',
        prepare='jepa_jax.frozen:teacher',
        models='jepa_jax.config.masked_video:models',
        stream='jepa_jax.data.videos:VideoStream',
        programs='jepa_jax.objectives.programs:masked_video',
        workload='jepa_jax.objectives.programs:masked_video_workload',
        activations='jepa_jax.memory:masked_video',
        describe='jepa_jax.describe:dense_video',
        evals='jepa_jax.evals.entries:masked_video',
        next=FEATURES,
    ),
    'masked_pixels': Recipe(
        config='jepa_jax.config:MaskedPixelsConfig',
        check='jepa_jax.config.masked_pixels:check',
        smoke='jepa_jax.config.trials:masked_pixels',
        build='jepa_jax.build:masked_pixels',
        stream='jepa_jax.data.videos:PixelStream',
        programs='jepa_jax.objectives.programs:masked_pixels',
        workload='jepa_jax.objectives.programs:masked_pixels_workload',
        activations='jepa_jax.memory:masked_pixels',
        describe='jepa_jax.describe:masked_pixels',
        at_end='jepa_jax.drawings:of_run',
        evals='jepa_jax.evals.entries:masked_video',
        next=FEATURES,
    ),
    'action_conditioned': Recipe(
        config='jepa_jax.config:ActionConditionedConfig',
        check='jepa_jax.config.action_conditioned:check',
        smoke='jepa_jax.config.trials:action_conditioned',
        build='jepa_jax.build:action_conditioned',
        prepare='jepa_jax.frozen:encoder_of_recordings',
        models='jepa_jax.config.action_conditioned:models',
        stream='jepa_jax.data.trajectories:RobotStream',
        programs='jepa_jax.objectives.programs:action_conditioned',
        workload='jepa_jax.objectives.programs:action_conditioned_workload',
        activations='jepa_jax.memory:action_conditioned',
        describe='jepa_jax.describe:action_conditioned',
        at_end='jepa_jax.evals.horizon:of_run',
        next=('jepa plan --model {run} --input episode.npz --out plan',),
    ),
    'questions': Recipe(
        config='jepa_jax.config:QuestionsConfig',
        check='jepa_jax.config.questions:check',
        smoke='jepa_jax.config.trials:questions',
        build='jepa_jax.build:questions',
        settle='jepa_jax.questions:settle',
        prepare='jepa_jax.questions:prepare',
        models='jepa_jax.config.questions:models',
        stream='jepa_jax.questions:stream',
        programs='jepa_jax.objectives.programs:questions',
        workload='jepa_jax.objectives.programs:questions_workload',
        activations='jepa_jax.memory:questions',
        describe='jepa_jax.describe:questions',
    ),
}

STUDIES: dict[str, Study] = {
    'distillation': Study(
        config='jepa_jax.config:DistillationConfig',
        check='jepa_jax.distillation:check',
        stages='jepa_jax.distillation:stages',
        report='jepa_jax.distillation:report',
    ),
    'sim_closed_loop': Study(
        config='jepa_jax.config:SimConfig',
        check='jepa_jax.sims.closed_loop:check',
        stages='jepa_jax.sims.closed_loop:stages',
        report='jepa_jax.sims.closed_loop:report',
    ),
    'video_questions': Study(
        config='jepa_jax.config.questions_study:QuestionsStudyConfig',
        check='jepa_jax.video_questions:check',
        stages='jepa_jax.video_questions:stages',
        report='jepa_jax.video_questions:report',
    ),
}


def of(config: RunConfig) -> Recipe:
    """The row of a run's config.

    Raises:
      ConfigError: there is none, or it is for another class of configs.
    """
    return _fits(config, 'objective', row(RECIPES, 'objective', config.objective))


def study_of(config: StudyConfig) -> Study:
    """The row of a study's config; raises as `of`."""
    return _fits(config, 'study', row(STUDIES, 'study', config.study))


def _fits(config: Any, key: str, fitting: Any) -> Any:
    kind, own = load(fitting.config), type(config)
    # by name: a config file that was run twice has two classes of it
    if (kind.__module__, kind.__qualname__) != (own.__module__, own.__qualname__):
        raise ConfigError(
            f"{key} = '{getattr(config, key)}': is for a {kind.__name__}, this config is a "
            f'{own.__name__}'
        )
    return fitting


def validate(config: RunConfig, workdir: str | os.PathLike | None = None) -> None:
    """Refuses what cannot work, as far as the config alone tells; with the workdir of a run that is
    about to start also what names something that is not there.

    Raises:
      ConfigError: one line with the first field at fault, what was found and what is allowed.
    """
    recipe = of(config)
    check.types_and_ranges(config)
    complaints = itertools.chain(
        layouts.kinds(config), load(recipe.check)(config), check.schedule(config)
    )
    if complaint := next(complaints, None):
        raise ConfigError(complaint)
    if workdir is not None:  # before the imports that take seconds
        _inputs(config, workdir)
    load(recipe.evals)(config)


def _inputs(config: RunConfig, workdir: str | os.PathLike) -> None:
    """Refuses to start where something that the config names is not there.

    Raises:
      ConfigError, ZooError: the first such field, and the nearest name.
    """
    if is_url(workdir):
        try:
            Bucket(str(workdir)).check()
        except BucketError as error:
            raise ConfigError(f'workdir {error}') from error
    if complaint := next(layouts.missing(config, workdir), None):
        raise ConfigError(complaint)
    for name in filter(None, config.logging.sinks.split(',')):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"logging.sinks = '{name}': {name} is not installed: pip install 'jepa_jax[{name}]'"
            )
    if (pathlib.Path(workdir) / 'frozen').exists():
        return  # a run keeps what it does not train
    for model in models(config):
        if model not in ('', 'random'):
            names.check(model)


def models(config: RunConfig) -> tuple[str, ...]:
    """Models that a run begins with, by the names in its config."""
    return load(of(config).models)(config)


def smoke(config: RunConfig, *, accumulate: int = 0) -> RunConfig:
    """Shrinks a run to a trial of a minute on two cores, and returns it.

    accumulate: of the trial; 0: 2 if the run's batch is cut into parts.
    """
    load(of(config).smoke)(config)
    trials.few_steps(config, accumulate)
    return config


def read_config(stored: dict[str, Any]) -> RunConfig:
    """The config that a run stored, through today's schema.

    Raises:
      ConfigError: an objective or a field that there is not.
    """
    values = store.upgrade(stored)
    recipe = row(RECIPES, 'objective', values['objective'])
    return store.from_dict(values, load(recipe.config))


def read_stored(extra: Mapping[str, Any], folder: str | os.PathLike) -> RunConfig:
    """The config of the run that wrote a checkpoint.

    extra: of the manifest. folder: that is read; see `add_rows`.

    Raises:
      ConfigError: an objective or a field that there is not.
    """
    if store.objective_of(extra['config']) not in RECIPES:
        add_rows(extra, folder)
    return read_config(extra['config'])


def add_rows(extra: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """Runs the config file that a checkpoint's run began with, which may have brought rows of its
    own; not one that lies within the folder that is read, which may come from a stranger, nor one
    by a relative path, which runs never store.

    Raises:
      ConfigError: there is no such file any more.
    """
    file = extra.get('config_file', '')
    if os.path.isabs(file) and not pathlib.Path(file).resolve().is_relative_to(
        pathlib.Path(folder).resolve()
    ):
        import_file(file)


def no_complaints(config: RunConfig) -> Iterator[str]:
    """For recipes whose fields cannot contradict each other."""
    del config
    return iter(())


def no_models(config: RunConfig) -> tuple[str, ...]:
    """For recipes that begin with no model."""
    del config
    return ()


def no_evals(config: RunConfig) -> list:
    """For recipes that do not say which clips their encoder reads, and how.

    Raises:
      ConfigError: evaluations are asked for.
    """
    if config.evals:
        raise ConfigError(
            f"evals: objective '{config.objective}' has no evaluations beside training; its row "
            'of RECIPES names none (`evals`)'
        )
    return []


def nothing_more(*run: Any) -> tuple[dict[str, Any], list[str]]:
    """For recipes that measure nothing at the end."""
    del run
    return {}, []


def as_it_is(config: RunConfig, workdir: pathlib.Path) -> RunConfig:
    """For recipes whose configs say all."""
    del workdir
    return config


def leave(config: RunConfig) -> None:
    """For recipes that are small already."""
