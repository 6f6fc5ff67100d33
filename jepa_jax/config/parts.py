"""The parts that configs of runs are made of.

Mutable dataclasses, so that `--config.optim.lr=3e-4` or `--config.data.lists[0].path=clips.txt` can
set any field. Defaults are the released V-JEPA 2 values (reference: vjepa2 §11.1); what has no
sensible default is empty and refused when the config is checked. A field that says "0: ..." derives
its value from the named rule. Nothing in this package needs JAX, so commands answer `--help` and
bad settings at once.
"""

from dataclasses import dataclass, field

# kinds of lists that need no path: `data.synthetic` makes the videos; `_few` is for trials
SELF_MADE = ('synthetic', 'synthetic_few')
# likewise, by `data.violations`, and without labels
WITHOUT_PATH = (*SELF_MADE, 'lawful', 'lawful_few')


SINKS = ('wandb', 'mlflow', 'trackio')  # libraries that metrics can go to; an extra each


@dataclass
class EncoderConfig:
    """The vision transformer. Width, depth, heads and MLP ratio come from `size` unless set."""

    size: str = 'vitl'  # one of its version's: tiny vits vitb vitl vith vitg gigantic ...
    version: str = '2.0'  # of V-JEPA, a key of jepa_jax.models.VERSIONS: 2.0 | 2.1
    width: int = 0  # 0: as the size says
    depth: int = 0  # 0: as the size says
    heads: int = 0  # 0: as the size says
    mlp_ratio: float = 0.0  # 0: as the size says
    patch: int = 16  # pixels, square
    tubelet: int = 2  # frames
    position: str = 'rope'  # rope | sincos
    uniform_power: bool = True  # sincos only: equal shares of the width for t, y and x
    # sincos: of images, what comes first, yx (V-JEPA) | xy (I-JEPA, MAE); or flat, a line of tokens
    axes: str = 'yx'
    # sincos only, clips shorter than trained on: first, the table's first rows | resized (V-JEPA 1)
    shorter: str = 'first'
    # sincos only: the table is a weight, as in converted files whose table is not the formula's
    stored_table: bool = False
    mlp: str = 'gelu'  # gelu | swiglu (two thirds of the hidden width) | swiglu_full
    # output layers of blocks start smaller the deeper they lie, in the predictor, too; I-JEPA and
    # V-JEPA 1 draw all of them once more, which undoes it
    rescale: bool = True


@dataclass
class MaskedPredictorConfig:
    """The narrow transformer that fills in the features of masked tokens."""

    width: int = 384
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    mask_tokens: int = 10  # as the released files
    # what has a token of its own: frames, the clips of a frame count | masks, a setting of `masks`
    tokens_of: str = 'frames'
    zero_init_mask_tokens: bool = True
    mlp: str = 'gelu'  # gelu | swiglu | swiglu_full


@dataclass
class MaskConfig:
    """One multi-block mask: every block hides a box of the token grid, the rest is context."""

    num_blocks: int = 8
    spatial_scale: tuple[float, float] = (0.15, 0.15)  # share of the frame that a block covers
    temporal_scale: tuple[float, float] = (1.0, 1.0)  # share of the clip's length, likewise
    aspect_ratio: tuple[float, float] = (0.75, 1.5)  # height over width
    max_temporal_keep: float = 1.0  # context only from this first share of the clip
    max_keep: int = 0  # most context tokens; 0: no bound
    full_complement: bool = False  # targets are all tokens that are not context
    pred_full_complement: bool = False  # context is all tokens that are not targets
    inverse: bool = False  # swap context and target
    # in place of blocks: share of the frame's cells, drawn one by one, that is hidden in all frames
    tube: float = 0.0


@dataclass
class AgainstCollapseConfig:
    """What keeps features from becoming the same everywhere; see docs/family_pixels.md.

    ema: targets are of the encoder's moving average, and no gradient passes. Otherwise they are of
    the encoder itself, which the named terms or nothing else hold.
    """

    method: str = 'ema'  # ema | vicreg | sigreg | none
    # whose terms: vicreg | eb_jepa; lejepa | minimal | paper | stable_pretraining | lewm | eb_jepa;
    # empty: the first of its method
    variant: str = ''
    stop_gradient: bool = False  # none through targets of the encoder itself
    # what is one of many: clips (mean of a clip's tokens) | positions (a token, among those at its
    # place in other clips) | both
    samples: str = 'both'
    positions: int = 16  # places that are looked at
    expander: tuple[int, int] = (256, 128)  # widths, hidden and out; (0, 0): none
    # where predictions meet targets: expanded, as in VICReg and LeWM; or features, which may then
    # shrink, unseen by terms that look behind a batch normalisation
    space: str = 'expanded'
    # 0: as the variant weighs them
    prediction_weight: float = 0.0
    std_weight: float = 0.0  # vicreg
    covariance_weight: float = 0.0  # vicreg
    sigreg_weight: float = 0.0
    directions: int = 0  # sigreg


@dataclass
class DataListConfig:
    """One list of records and its share of the batch."""

    path: str = ''  # what `kind` reads: a list file, a folder, a manifest, a prepared dataset
    kind: str = 'videos'  # a key of jepa_jax.config.layouts.SOURCES
    weight: float = 1.0  # sampling weight, relative to the other lists
    frames: int = 0  # frames a clip; 0: data.frames


@dataclass
class AugmentConfig:
    """Random resized crop and flip, the same for all frames of a clip."""

    scale: tuple[float, float] = (0.3, 1.0)  # share of the frame's area
    ratio: tuple[float, float] = (0.75, 1.35)  # width over height
    flip: bool = True  # horizontally, with probability one half
    antialias: bool = False  # resized as Pillow does, each pixel the mean of what it covers
    bicubic: bool = False  # with antialias only: Pillow's bicubic resize (MAE)
    motion_shift: bool = False  # crop window moves linearly from one random crop to another


@dataclass
class LoaderConfig:
    """How records are read: processes, patience with what cannot be read."""

    workers: int = 0  # processes that decode; 0: decode in threads of the main process
    prefetch: int = 2  # batches that each worker holds ready
    attempts: int = 16  # records tried in place of an unreadable one before the run stops
    max_failure_share: float = 0.2  # unreadable share of records tried, above which the run stops
    worker_timeout: float = 300.0  # seconds without a batch after which the run stops and says so
    confine: bool = True  # workers start no programs and open no sockets, on Linux


@dataclass
class ViewConfig(LoaderConfig):
    """How frames of recordings are read and cut."""

    crop: int = 256  # pixels, square
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class DataConfig(ViewConfig):
    """Where clips come from and how they are cut."""

    lists: list[DataListConfig] = field(default_factory=lambda: [DataListConfig()])
    frames: int = 16  # frames a clip
    fps: int = 4  # frames a second to sample at; exactly one of fps, frame_step, duration is not 0
    frame_step: int = 0  # take every n-th frame
    duration: float = 0.0  # seconds that a clip spans
    cache: str = ''  # folder for decoded clips; empty: no cache
    cache_gib: float = 20.0  # size at which the cache stops growing, GiB


@dataclass
class GuardConfig:
    """Which updates are left out: those of a loss far above what it was lately."""

    deviations: float = 0.0  # standard deviations above the mean of the last losses; 0: none is
    window: int = 300  # losses that count as the last
    after: int = 15_000  # updates before the first that may be left out
    most: int = 10  # left out, after which the run stops


@dataclass
class OptimConfig:
    """AdamW and its schedules. k is the 1-based step, T = int(ipe_scale * steps)."""

    batch: int = 3072  # clips a step, over all devices
    # parts of a batch, run one by one: same update, less memory; 0: as few as memory allows
    accumulate: int = 1
    steps: int = 240_000
    schedule: str = 'warmup_cosine'  # warmup_cosine | linear_decay | wsd | half_cosine (MAE)
    warmup: int = 12_000  # steps
    anneal: int = 0  # wsd only: steps of the final decline
    start_lr: float = 1e-4
    lr: float = 5.25e-4
    final_lr: float = 5.25e-4
    weight_decay: float = 0.04
    final_weight_decay: float = 0.04
    ipe_scale: float = 1.25  # schedules are laid out over this multiple of `steps`
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    # largest norm of the gradient of each net, or of all together, from which step on; 0: nothing
    # is clipped
    clip: float = 0.0
    clip_whole: bool = False
    clip_from: int = 0
    # factor on the learning rate from each block of the encoder to the one below it, down to the
    # layers that make tokens; 1: all alike
    layer_decay: float = 1.0
    guard: GuardConfig = field(default_factory=GuardConfig)


@dataclass
class EmaOptimConfig(OptimConfig):
    """AdamW with a moving average of what it trains: the target."""

    momentum: float = 0.99925  # of the moving average, at the first step
    final_momentum: float = 0.99925  # at step T


REMAT = 'full', 'attention', 'dots', 'none'  # keys of jepa_jax.nets.REMAT


@dataclass
class MeshConfig:
    """Devices as a grid; parameters are sharded over `fsdp`, the batch over both axes."""

    # at most 128; `data` takes the remaining devices; 0: as few as memory allows
    fsdp: int = 1
    # what the backward pass does not compute again: full, nothing but each block's input is kept |
    # attention, and what attention gives | dots, and products with weights | none, everything
    remat: str = 'full'


@dataclass
class CheckpointsConfig:
    """When to save, and where a run without checkpoints starts."""

    every: int = 1000  # steps between saves
    keep: int = 3  # newest ones kept
    keep_every: int = 0  # also keep those at multiples of this step; 0: none
    resume_from: str = ''  # workdir or checkpoint to resume from where this workdir has none
    init_from: str = ''  # likewise, but the weights only, not the optimizer
    restart_schedule: bool = False  # with resume_from: steps from 0, moments kept: a cooldown
    allow_config_change: bool = False  # resume although the stored config differs


@dataclass
class LoggingConfig:
    """What is written down, and how often."""

    every: int = 10  # steps between lines of metrics.jsonl
    health_every: int = 100  # steps between health checks; 0: never
    # moments at which features of two clips are looked at: after the first step, and whenever the
    # run has become twice as long, up to its end; 0: none
    pictures: int = 8
    sinks: str = ''  # where metrics go besides, of SINKS, as `wandb,mlflow`; empty: nowhere
    project: str = 'jepa_jax'  # what the run belongs to there


@dataclass
class ProbeConfig:
    """An attentive probe on frozen features; needs labelled clips."""

    enabled: bool = False  # at the end of the run, for its report
    steps: int = 400
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    depth: int = 1  # blocks of the pooler
    heads: int = 4
    seeds: int = 3  # of the probe, and of the random encoder
    bootstrap: int = 1000  # resamples of the test clips behind each interval


@dataclass
class LabelledListConfig:
    """Labelled clips: where they are listed, and which of them are for testing."""

    # a folder with a folder a class, a table (csv with a header, tab or semicolon as well), or a
    # list with `path label` lines
    train: str = ''
    test: str = ''  # likewise; empty: the table's column `split`, or a share of the sources
    test_share: float = 0.25  # of the sources, where nothing says which are for testing
    label: str = ''  # column with the labels; empty: label, class, target, value or y
    group: str = ''  # column with the source; empty: group, source, subject; else each file is one
    source: str = ''  # pattern of a source in a file's name, as '(.+)_clip[0-9]+'
    target: str = 'auto'  # class | number | labels (several, as `a|b`) | auto: as they look


@dataclass
class PeriodicEvalConfig:
    """An evaluation of a run's features beside its training: see jepa_jax.evals.beside."""

    evaluation: str = 'linear'  # a key of jepa_jax.evals.PERIODIC: linear | probe
    every: int = 500  # steps between two of them, and at the end; 0: at the end alone
    name: str = ''  # in metrics, evals/NAME/...; empty: `evaluation`
    labels: LabelledListConfig = field(default_factory=LabelledListConfig)  # empty: the run's
    clips: int = 512  # most clips that are read, evenly over classes; 0: as many as memory allows
    probe: ProbeConfig = field(default_factory=ProbeConfig)  # of evaluation `probe`


@dataclass
class RobotConfig:
    """Recordings of a robot and what their numbers mean; see jepa_jax.data.robot."""

    kind: str = 'droid'  # a key of jepa_jax.config.layouts.READERS
    path: str = ''  # what `kind` reads: a list of folders, or a folder
    robot: str = 'franka'  # its name; weights trained for another are refused
    # droid: key of the metadata; lerobot: video key; rlds: image of the observation; npz: any name
    camera: str = 'left_mp4_path'
    frame: str = 'base'  # of positions and angles: base | camera, which needs extrinsics
    gripper: str = 'closed'  # what 1 means in the recordings: closed | open
    metres: float = 1.0  # that a unit of the recorded positions is: 0.001 for millimetres
    # lerobot: x,y,z,roll,pitch,yaw,gripper among the columns of `state`, by name or by number from
    # 0; rlds: the observations that are these seven numbers one after the other
    columns: str = ''
    recorded_fps: float = 0.0  # rlds: frames a second of the recordings, which do not say it
    frames: int = 8  # of a piece
    fps: float = 4.0  # frames a second; recordings of a higher rate are thinned out
    angles: str = 'radians'  # of the recordings: radians | degrees
    # recorded values of the gripper when open and when closed, in place of `gripper`: (0.08, 0.0)
    # for an opening in metres, (0.0, 255.0), (-1.0, 1.0); (0.0, 0.0): from 0 to 1
    gripper_range: tuple[float, float] = (0.0, 0.0)
    check_units: bool = True  # refuse recordings whose numbers look like other units than these
    # lerobot: features that the state's columns are in; several, as `a,b`, one after the other
    state: str = 'observation.state'
    # lerobot: features of the pose that was commanded in each row, in the units of the state: an
    # action then leads from the measured state to the pose commanded last before the next frame;
    # empty: to the next measured state
    action: str = ''
    action_columns: str = ''  # as `columns`, among those of `action`; empty: the same as there


@dataclass
class ActionPredictorConfig:
    """The transformer that predicts the next frame's features from actions. (reference: vjepa2
    §7.1)"""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    # tokens: action and state tokens before each frame's, as released | adaln: they shift, scale
    # and gate every block
    conditioning: str = 'tokens'
    use_states: bool = True  # show it the measured states
    use_extrinsics: bool = False  # and camera poses; conditioning 'tokens' only
    residual: bool = False  # predict the change of the features instead of the features
    # factors of the numbers of an action: metres are small beside the first layer's weights
    action_scale: tuple[float, float, float, float, float, float, float] = (1.0,) * 7
    # of a state; 0: not seen
    state_scale: tuple[float, float, float, float, float, float, float] = (1.0,) * 7


@dataclass
class RolloutConfig:
    """How predictions that follow from predictions are trained. (reference: vjepa2 §7.4)"""

    steps: int = 2  # predictions in a row; 1: none follows from another
    # after which true frames a rollout starts. first: the first, as released | random: one or
    # more, another number every step
    prefix: str = 'first'
    stop_gradient: bool = False  # no gradient through one prediction into the one before
    normalise: bool = True  # standardise predictions, as their targets are
