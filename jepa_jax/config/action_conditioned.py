"""A run of post-training on a robot's recordings: V-JEPA 2-AC."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from jepa_jax.config.check import (
    AT_LEAST_ONE,
    NOT_NEGATIVE,
    RULES,
    OneOf,
    crop_fits,
    transformer,
)
from jepa_jax.config.derived import encoder_shape
from jepa_jax.config.parts import (
    ActionPredictorConfig,
    EncoderConfig,
    RobotConfig,
    RolloutConfig,
    ViewConfig,
)
from jepa_jax.config.runs import RunConfig


@dataclass
class ActionConditionedConfig(RunConfig):
    """A run that post-trains an action-conditioned predictor on a frozen encoder."""

    objective: str = 'action_conditioned'
    encoder_from: str = ''  # name or path of the frozen encoder; 'random': for tests of the pipes
    features: str = ''  # folder for its features, computed once; empty: anew in every step
    features_dtype: str = 'float16'  # as stored: float16 | bfloat16
    # draw the crop of every piece as data.augment says, in place of the middle; the encoder then
    # runs in every step
    augment: bool = False
    loss_exponent: float = 1.0  # 1: L1; 2: half the squared error
    # steps ahead up to which predictions are held against a copy of the last frame at the end
    # (horizon.png, report.json); 0: not at all
    horizon: int = 16
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    data: ViewConfig = field(default_factory=ViewConfig)
    robot: RobotConfig = field(default_factory=RobotConfig)
    ac: ActionPredictorConfig = field(default_factory=ActionPredictorConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)


RULES[ActionConditionedConfig] = {
    'features_dtype': OneOf(('float16', 'bfloat16')),
    'loss_exponent': AT_LEAST_ONE,
    'horizon': NOT_NEGATIVE,
}


def models(config: ActionConditionedConfig) -> tuple[str, ...]:
    """The frozen encoder."""
    return (config.encoder_from,)


def both_grippers(data: RobotConfig) -> Iterator[str]:
    """Complaints about what 1 means beside a range of the gripper."""
    if any(data.gripper_range) and data.gripper == 'open':
        yield (
            f"robot.gripper = 'open' with robot.gripper_range = {data.gripper_range}: the range "
            'alone says which value is open; leave robot.gripper as it is'
        )


def check(config: ActionConditionedConfig) -> Iterator[str]:
    """Complaints about what no single field is to blame for."""
    encoder, ac, robot = config.encoder, config.ac, config.robot
    shape = encoder_shape(encoder)
    yield from transformer(config, 'encoder', shape.width, shape.heads, encoder.position)
    yield from transformer(config, 'ac', ac.width, ac.heads)
    yield from crop_fits(config.data.crop, encoder)
    if config.rollout.steps >= robot.frames:
        yield (
            f'rollout.steps = {config.rollout.steps}: must be less than robot.frames = '
            f'{robot.frames}'
        )
    if config.augment and config.features:
        yield (
            f'augment = true with features = {config.features!r}: features are computed once, of '
            "one crop; set features = ''"
        )
    if config.augment and config.data.augment.flip:
        yield 'augment = true: set data.augment.flip = false, a mirrored arm moves the other way'
    if ac.use_extrinsics and ac.conditioning != 'tokens':
        yield f"ac.use_extrinsics: needs ac.conditioning = 'tokens', found {ac.conditioning!r}"
    if not config.encoder_from:
        yield (
            'encoder_from is empty: name the frozen encoder, --config.encoder_from=NAME_OR_PATH '
            "('random' tests the pipes)"
        )
    yield from both_grippers(robot)
    if not robot.path and robot.kind != 'synthetic':
        yield f"robot.path is empty: kind '{robot.kind}' needs --config.robot.path=PATH"
