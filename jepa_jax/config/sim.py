"""The study in the simulator: play, pretrain, post-train, plan."""

from dataclasses import dataclass, field

from jepa_jax.config.action_conditioned import ActionConditionedConfig
from jepa_jax.config.masked_video import MaskedVideoConfig
from jepa_jax.config.runs import StudyConfig

# kinds of scenes; jepa_jax.sims.variation, which needs numpy, says how each is drawn
SCENES = (
    'standard', 'moderate', 'seen', 'unseen', 'unseen_relit', 'seen_dark', 'unseen_dark',
    'moderate_dark',
)  # fmt: skip


@dataclass
class CollectionConfig:
    """Recordings of the simulated arm at play; see jepa_jax.sims.recordings. Two collections that
    differ in the seed share no episode."""

    episodes: int = 400  # in all
    frames: int = 20  # of an episode, four a second; one more than actions
    image_size: int = 64  # pixels, square; even
    seed: int = 0  # of all that is drawn
    explore: float = 0.3  # share of episodes in which the tool drifts about,
    reach: float = 0.3  # in which it goes to places, half of them at the cube,
    pick: float = 0.4  # in which it picks the cube up and puts it down
    noise: float = 0.02  # metres; each episode draws its strength from 0 to this
    max_step: float = 0.05  # metres along an axis
    vary: bool = False  # the same as scenes = 'moderate'
    scenes: str = 'standard'  # that episodes are recorded in, a key of jepa_jax.config.sim.SCENES


@dataclass
class SimEvaluationConfig:
    """Planning in the simulator, and what it is compared with; see jepa_jax.sims.evaluate."""

    tasks: str = 'reach'  # keys of jepa_jax.sims.tasks.TASKS, with commas between
    # that each task is played in, keys of SCENES with commas between; cost and dynamics are judged
    # in the first
    scenes: str = 'standard'
    first: int = 10_000  # number of the first episode: choose settings on others than are reported
    episodes: int = 50  # of each task
    # of an untrained predictor, and of one on a random encoder, which plan as long; 0: as many
    compared: int = 0
    untrained: int = 0  # of an untrained predictor, if others than `compared`
    judged: int = 20  # scenes in which cost and dynamics are judged, without a closed loop
    samples: int = 128  # of the cross-entropy method
    iterations: int = 6
    elites: int = 12
    horizon: int = 1
    max_step: float = 0.05  # metres along an axis
    exponent: int = 1  # of the distance of features: 1 | 2
    at_once: int = 1  # episodes that are planned side by side; more keeps an accelerator busy
    # episodes that are also planned with the simulator itself in place of the predictor, once with
    # the distance of features and once with that of pixels; slow
    simulator_episodes: int = 0
    # also post-train on an encoder of random weights, as long, and plan with that
    random_encoder: bool = False
    # also plan towards goals that tell how far the gripper is closed there, whose distance from
    # that of the plan weighs this much in the cost; 0: no such row
    gripper_weight: float = 0.0
    # also plan with others, NAME:SAMPLESxITERATIONS with commas between (adam:8x20, for example;
    # names are keys of jepa_jax.planning.cem.PLANNERS), as many episodes as `compared`
    planners: str = ''
    # also one that is shown pixels: patches as they are, in place of an encoder's features
    pixel_encoder: bool = False


@dataclass
class SimGatesConfig:
    """What a run must reach at least, or it ends as failed; 0 asks for nothing."""

    # predictions' error with another episode's actions over that with their own; 1: ignores actions
    shuffled_over_true: float = 0.0
    rank_correlation: float = 0.0  # of the cost with the distance in metres
    nearer: float = 0.0  # share of the way that the median episode of `reach` covers
    within_8_cm: float = 0.0  # share of episodes of `reach` that end so near
    reach: float = 0.0  # shares of success
    grasp: float = 0.0
    grasp_told: float = 0.0  # where goals tell how far the gripper is closed
    pick_and_place_told: float = 0.0
    unseen: float = 0.0  # of the first task, in scenes `unseen` or `unseen_dark`
    moderate_dark: float = 0.0  # likewise
    over_random: float = 0.0  # by which one of these is above a predictor's on a random encoder


@dataclass
class SimConfig(StudyConfig):
    """A study in the simulator: play, pretrain an encoder, post-train a predictor, plan.

    What one stage takes from another (paths, crop, encoder) is filled in; see
    jepa_jax.sims.closed_loop.
    """

    study: str = 'sim_closed_loop'
    workers: int = 2  # processes that play
    collection: CollectionConfig = field(default_factory=CollectionConfig)
    pretrain: MaskedVideoConfig = field(default_factory=MaskedVideoConfig)
    posttrain: ActionConditionedConfig = field(default_factory=ActionConditionedConfig)
    evaluation: SimEvaluationConfig = field(default_factory=SimEvaluationConfig)
    gates: SimGatesConfig = field(default_factory=SimGatesConfig)
