"""The evaluation of answers about videos."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from jepa_jax.config.check import NOT_NEGATIVE, POSITIVE, RULES, OneOf
from jepa_jax.config.runs import EvalConfig
from jepa_jax.config.trials import parse_words
from jepa_jax.errors import allowed

# set -> its parts (splits or tasks), the first by default
SETS: dict[str, tuple[str, ...]] = {
    'causalvqa': ('all',),
    'intphys2': ('Main', 'Debug'),
    'mvbench': ('all',),
    'mvp': ('mini', 'full'),
    'perceptiontest': ('valid', 'train', 'test'),
    'self_made': ('test', 'few'),
    'tempcompass': ('multi-choice', 'yes_no', 'caption_matching'),
    'temporalbench': ('short_qa', 'long_qa'),
    'tomato': ('all',),
    'tvbench': ('all',),
}
# set -> ways to ask, of those that have several
PROMPTS: dict[str, tuple[str, ...]] = {'intphys2': ('yes_no', 'one_zero', 'possible')}


@dataclass
class QuestionSetConfig:
    """Questions and videos."""

    set: str = 'mvp'  # a key of SETS
    part: str = ''  # one of its parts; empty: the first
    path: str = ''  # folder of the official files; of self-made videos: where they are to lie
    videos: str = ''  # folder of the videos; empty: below `path`, as they are released
    prompt: str = ''  # a way to ask, where PROMPTS has several; empty: the first
    frames: int = 0  # of each video, from the middles of as many equal stretches; 0: as the model
    most: int = 0  # groups of questions (pairs, videos), drawn at random; 0: all


@dataclass
class QAConfig(EvalConfig):
    """Answers about videos: see jepa_jax.evals.qa."""

    places = 'data.path', 'data.videos'

    evaluation: str = 'qa'
    # of matmul inputs: float32 | bfloat16; frozen language models keep the type they are stored in
    compute_dtype: str = 'float32'
    data: QuestionSetConfig = field(default_factory=QuestionSetConfig)
    tokens: int = 32  # of an answer, at most
    likelihoods: bool = True  # of the choices, beside generated text
    blind: bool = True  # asks again without video
    shuffled: bool = True  # with the frames in another order
    one_frame: bool = True  # with the middle one alone, repeated


RULES[QAConfig] = {'tokens': POSITIVE, 'compute_dtype': OneOf(('float32', 'bfloat16'))}
RULES[QuestionSetConfig] = {
    'set': OneOf(tuple(SETS)),
    'frames': NOT_NEGATIVE,
    'most': NOT_NEGATIVE,
}


def check(config: QAConfig) -> Iterator[str]:
    data = config.data
    if data.part and data.part not in SETS[data.set]:
        if (data.set, data.part) == ('tempcompass', 'captioning'):
            yield "data.part = 'captioning': wants a language model as judge, none is asked here"
        else:
            yield f'data.part = {data.part!r}: {allowed(data.part, SETS[data.set])}'
    if data.prompt and data.prompt not in PROMPTS.get(data.set, ()):
        ways = PROMPTS.get(data.set, ("''",))
        yield f'data.prompt = {data.prompt!r}: {allowed(data.prompt, ways)}'
    if not data.path and data.set != 'self_made':
        yield f"data.path is empty: set '{data.set}' needs its folder, --config.data.path=DIR"


def question_set(name: str, arg: str) -> QAConfig:
    """The config of a set.

    Args:
      name: of the set.
      arg: a comma list of one of its parts, a prompt, and `smoke`: a few groups of questions.

    Raises:
      ConfigError: another word.
    """
    prompts = PROMPTS.get(name, ())
    part, words = parse_words(arg, SETS[name], (*prompts, 'smoke'))
    c = QAConfig(name=f'{name}-{part}')
    c.data.set, c.data.part = name, part
    c.data.prompt = next((p for p in prompts if p in words), '')
    if 'smoke' in words:
        c.name += '-smoke'
        c.data.most, c.bootstrap = 4, 100
    return c
