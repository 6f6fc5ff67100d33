"""The schema of runs: what `configs/*.py:get_config` builds, flags override and `validate` checks.

Nothing here needs JAX. Which recipe a config belongs to, and what judges and shrinks it, is in
jepa_jax.recipes.
"""

import importlib

from jepa_jax.config.action_conditioned import ActionConditionedConfig as ActionConditionedConfig
from jepa_jax.config.benchmark import AnticipationConfig as AnticipationConfig
from jepa_jax.config.benchmark import BenchmarkConfig as BenchmarkConfig
from jepa_jax.config.benchmark import BenchmarkDataConfig as BenchmarkDataConfig
from jepa_jax.config.benchmark import HeadsConfig as HeadsConfig
from jepa_jax.config.benchmark import LabelledSetConfig as LabelledSetConfig
from jepa_jax.config.conversations import ConversationsConfig as ConversationsConfig
from jepa_jax.config.conversations import MixtureConfig as MixtureConfig
from jepa_jax.config.dense_video import ContextLossConfig as ContextLossConfig
from jepa_jax.config.dense_video import DenseVideoConfig as DenseVideoConfig
from jepa_jax.config.derived import cache_root as cache_root
from jepa_jax.config.derived import encoder_shape as encoder_shape
from jepa_jax.config.derived import frame_counts as frame_counts
from jepa_jax.config.derived import half_life as half_life
from jepa_jax.config.derived import horizon as horizon
from jepa_jax.config.distillation import DistillationConfig as DistillationConfig
from jepa_jax.config.labelled import AttentiveConfig as AttentiveConfig
from jepa_jax.config.labelled import LabelledDataConfig as LabelledDataConfig
from jepa_jax.config.labelled import OwnConfig as OwnConfig
from jepa_jax.config.labelled import RetrievalConfig as RetrievalConfig
from jepa_jax.config.labelled_sets import labelled_set as labelled_set
from jepa_jax.config.masked_image import ImageMaskConfig as ImageMaskConfig
from jepa_jax.config.masked_image import MaskedImageConfig as MaskedImageConfig
from jepa_jax.config.masked_pixels import MaskedDecoderConfig as MaskedDecoderConfig
from jepa_jax.config.masked_pixels import MaskedPixelsConfig as MaskedPixelsConfig
from jepa_jax.config.masked_video import MaskedVideoConfig as MaskedVideoConfig
from jepa_jax.config.parts import SELF_MADE as SELF_MADE
from jepa_jax.config.parts import WITHOUT_PATH as WITHOUT_PATH
from jepa_jax.config.parts import ActionPredictorConfig as ActionPredictorConfig
from jepa_jax.config.parts import AgainstCollapseConfig as AgainstCollapseConfig
from jepa_jax.config.parts import AugmentConfig as AugmentConfig
from jepa_jax.config.parts import CheckpointsConfig as CheckpointsConfig
from jepa_jax.config.parts import DataConfig as DataConfig
from jepa_jax.config.parts import DataListConfig as DataListConfig
from jepa_jax.config.parts import EmaOptimConfig as EmaOptimConfig
from jepa_jax.config.parts import EncoderConfig as EncoderConfig
from jepa_jax.config.parts import GuardConfig as GuardConfig
from jepa_jax.config.parts import LabelledListConfig as LabelledListConfig
from jepa_jax.config.parts import LoaderConfig as LoaderConfig
from jepa_jax.config.parts import LoggingConfig as LoggingConfig
from jepa_jax.config.parts import MaskConfig as MaskConfig
from jepa_jax.config.parts import MaskedPredictorConfig as MaskedPredictorConfig
from jepa_jax.config.parts import MeshConfig as MeshConfig
from jepa_jax.config.parts import OptimConfig as OptimConfig
from jepa_jax.config.parts import PeriodicEvalConfig as PeriodicEvalConfig
from jepa_jax.config.parts import ProbeConfig as ProbeConfig
from jepa_jax.config.parts import RobotConfig as RobotConfig
from jepa_jax.config.parts import RolloutConfig as RolloutConfig
from jepa_jax.config.parts import ViewConfig as ViewConfig
from jepa_jax.config.questions import ClipsConfig as ClipsConfig
from jepa_jax.config.questions import LanguageConfig as LanguageConfig
from jepa_jax.config.questions import QuestionsConfig as QuestionsConfig
from jepa_jax.config.questions import VisualProjectorConfig as VisualProjectorConfig
from jepa_jax.config.runs import EvalConfig as EvalConfig
from jepa_jax.config.runs import RunConfig as RunConfig
from jepa_jax.config.runs import StudyConfig as StudyConfig
from jepa_jax.config.self_made import SelfMadeConfig as SelfMadeConfig
from jepa_jax.config.sim import CollectionConfig as CollectionConfig
from jepa_jax.config.sim import SimConfig as SimConfig
from jepa_jax.config.sim import SimEvaluationConfig as SimEvaluationConfig
from jepa_jax.config.sim import SimGatesConfig as SimGatesConfig
from jepa_jax.config.trials import parse_arg as parse_arg
from jepa_jax.config.trials import parse_words as parse_words
from jepa_jax.errors import ConfigError as ConfigError

# What users' own config files may still call things.
_OLD_NAMES = {
    'DecoderConfig': 'jepa_jax.config:MaskedDecoderConfig',
    'DataList': 'jepa_jax.config:DataListConfig',
    'MaskBlocks': 'jepa_jax.config:MaskConfig',
    'TrainConfig': 'jepa_jax.config:MaskedVideoConfig',
    'RobotTrainConfig': 'jepa_jax.config:ActionConditionedConfig',
    'smoke': 'jepa_jax.recipes:smoke',
}


def __getattr__(name: str):
    if name in _OLD_NAMES:
        module, _, new = _OLD_NAMES[name].partition(':')
        return getattr(importlib.import_module(module), new)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
