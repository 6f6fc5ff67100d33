"""How benchmarks read a choice out of generated text, each by its own rule, oddities included.

Rules are what the benchmarks' own code or lmms-eval does (reference: video_qa.md §2.4), so that
figures can be held against published ones: of MVP's matches the second counts, a Because is a B,
and of `Answer: B` TemporalBench reads an A. What a judge model would decide is left undecided.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from jepa_jax.language.items import HIDDEN, LETTERS, Item

OTHER = -2  # something was read that is no choice


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a rule makes of a text."""

    right: bool
    matched: bool = True  # False: no rule did, and the answer is wrong for that alone
    picked: int = OTHER  # index of the choice that was read
    counted: bool = True  # False: left out of the benchmark's denominator


Rule = Callable[[Item, str], Verdict]
NONE = Verdict(False, matched=False)


def pick(item: Item, index: int, matched: bool = True) -> Verdict:
    return Verdict(index == item.answer != HIDDEN, matched, index)


def _letter(item: Item, letter: str) -> Verdict:
    index = LETTERS.index(letter.upper())
    return pick(item, index if index < len(item.choices) else OTHER)


def words(item: Item, text: str) -> Verdict:
    """The choice that the answer begins with, the longest if several; of ours."""
    said = text.strip().lower()
    fitting = [
        i for i, c in enumerate(item.choices) if re.match(rf'{re.escape(c.lower())}\b', said)
    ]
    return pick(item, max(fitting, key=lambda i: len(item.choices[i]))) if fitting else NONE


def perceptiontest(item: Item, text: str) -> Verdict:
    """The first capital A to D that stands alone; lmms-eval."""
    match = re.search(r'\b([A-D])\b', text)
    return _letter(item, match[1]) if match else NONE


def mvp(item: Item, text: str) -> Verdict:
    """Of all words that end in a or b the second, if there is one; lmms-eval."""
    letters = re.findall(r'(?:answer|assistant)?:?\s*([ab])\b', text.lower())
    return _letter(item, letters[:2][-1]) if letters else NONE


def _stripped(text: str) -> str:
    return text.replace('</s>', '').strip()


def tempcompass_choice(item: Item, text: str) -> Verdict:
    """The option's line, its letter alone, or the letter with a stop or bracket."""
    text = _stripped(text)
    if item.options and text in item.options[item.answer : item.answer + 1]:
        return pick(item, item.answer)
    match = re.match(r'([ABCD])(?:\Z|[.)])', text)
    return _letter(item, match[1]) if match else NONE


def yes_or_no(text: str) -> str:
    """yes or no by how a text begins; '' for another."""
    return next((word for word in ('yes', 'no') if text.lower().startswith(word)), '')


def tempcompass_yes_no(item: Item, text: str) -> Verdict:
    said = yes_or_no(_stripped(text))
    return pick(item, item.choices.index(said)) if said else NONE


def tempcompass_matching(item: Item, text: str) -> Verdict:
    """An option's line, its sentence (also after a bracket), or what it is called; the options'
    lines are `Caption A: ...`, `Sentence A: ...` or `Option 1: ...`."""
    text, picked = _stripped(text), None
    after = text.split(') ')[1] if ') ' in text else text
    for index, line in enumerate(item.options):
        name, sentence = line.split(': ')[:2]
        names = name, re.sub('Sentence |Option |Caption ', '', name)
        if text == line or sentence in (text, after):
            picked = index
        elif text in names or text.replace('.', '') in names:
            picked = index
    return NONE if picked is None else pick(item, picked)


def temporalbench(item: Item, text: str) -> Verdict:
    """The first character, whatever it belongs to."""
    first = text[:1].upper()
    return _letter(item, first) if first and first in item.choices else NONE


def tomato(item: Item, text: str) -> Verdict:
    """A letter alone, `L: TEXT` in capitals, or `Answer is:(L)`; all else is the judge's, who is
    not asked."""
    text = text.strip()
    if len(text) == 1 and text.upper() in item.choices:
        return _letter(item, text)
    lines = [f'{letter}: {option}' for letter, option in zip(item.choices, item.options)]
    if text.upper() in lines:
        return pick(item, lines.index(text.upper()))
    match = re.match(r'Answer is:?\(?([A-Fa-f])\)?$', text)
    return _letter(item, match[1]) if match else NONE


def tomato_lmms(item: Item, text: str) -> Verdict:
    """A letter anywhere as a capital, the last in brackets of several; then an option's words; then
    A. Of lmms-eval, without a judge."""
    for mark in ",.!?;:'":
        text = text.strip(mark)
    there = [i for i, letter in enumerate(item.choices) if letter in text]
    spelt = [f'({letter})' for letter in item.choices]
    if not there and len(text.split()) > 5:
        text, spelt = text.lower(), [option.lower() for option in item.options]
        there = [i for i, option in enumerate(spelt) if option in text]
    if not there:
        return pick(item, 0, matched=False)
    return pick(item, max(there, key=lambda i: text.rfind(spelt[i])) if there[1:] else there[0])


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def _plain(text: str) -> str:
    """Lower-case without punctuation, as both lmms-eval's tasks and VQA's scorer clean it."""
    text = re.sub('[\n\t]', ' ', text).strip()
    number = re.search(r'\d,\d', text)
    out = text
    for mark in _PUNCTUATION:
        joined = f'{mark} ' in text or f' {mark}' in text or number
        out = out.replace(mark, '' if joined else ' ')
    out = re.sub(r'\.(?!\d)', '', out, count=32)
    return out.strip("'").strip('"').strip(')').strip('(').strip().lower()


def mvbench(item: Item, text: str) -> Verdict:
    """`L. text`, else the first letter that stands alone in any case, be it an article; lmms-eval.
    Empty answers do not count."""
    if not text:
        return dataclasses.replace(NONE, counted=False)
    match = re.match(r'([A-E])\.\s*.+$', text.strip(), re.IGNORECASE) or re.search(
        r'\b([a-e])\b', _plain(text)
    )
    return _letter(item, match[1]) if match else NONE


def mvbench_notebook(item: Item, text: str) -> Verdict:
    """The first word within the right option's `(L)`, or the other way round: an empty answer is
    always right. Of the authors' notebook, where every answer begins with `Best option:(`."""
    if item.answer == HIDDEN:
        return NONE
    first, gold = text.lower().split(' ')[0], f'({LETTERS[item.answer].lower()})'
    right = first.replace('.', '') in gold or gold in first
    return Verdict(right, picked=item.answer if right else OTHER)


def tvbench(item: Item, text: str) -> Verdict:
    """The first letter that stands alone, else the first of all letters, else the only option whose
    words are in the text; lmms-eval."""
    upper = text.strip().upper()
    for match in (
        re.search(r'\b([A-Z])\b', upper),
        re.match(r'[(\[]?([A-Z])', upper),
    ):
        if match and match[1] in item.choices:
            return _letter(item, match[1])
    said = ' '.join(text.lower().split())
    plain = [' '.join(option.lower().split()) for option in item.options]
    there = [i for i, option in enumerate(plain) if option and option in said]
    return pick(item, there[0]) if len(there) == 1 else NONE


def causalvqa(item: Item, text: str) -> Verdict:
    """The last letter A to E that stands alone, in any case."""
    letters = re.findall(r'\b([a-e])\b', _plain(text))
    return _letter(item, letters[-1]) if letters else NONE


def intphys2_yes_no(item: Item, text: str) -> Verdict:
    """Contains yes, else no, as small or capitalised words or parts of them."""
    said = next((w for w in ('yes', 'no') if w in text or w.capitalize() in text), '')
    return pick(item, item.choices.index(said)) if said else NONE


def intphys2_one_zero(item: Item, text: str) -> Verdict:
    """Contains 1, else 0."""
    said = next((digit for digit in '10' if digit in text), '')
    return pick(item, item.choices.index(said)) if said else NONE


def intphys2_possible(item: Item, text: str) -> Verdict:
    """Impossible, not possible, cannot, can't; else possible; lmms-eval."""
    said = text.lower()
    if re.search("impossible|not possible|cannot|can't", said):
        return pick(item, 1)
    return pick(item, 0) if 'possible' in said else NONE


# item.rule -> column of the report -> rule
RULES: dict[str, dict[str, Rule]] = {
    'words': {'official': words},
    'perceptiontest': {'official': perceptiontest},
    'mvp': {'official': mvp},
    'tempcompass_choice': {'official': tempcompass_choice},
    'tempcompass_yes_no': {'official': tempcompass_yes_no},
    'tempcompass_matching': {'official': tempcompass_matching},
    'temporalbench': {'official': temporalbench},
    'tomato': {'official': tomato, 'lmms-eval': tomato_lmms},
    'mvbench': {'official': mvbench, 'notebook': mvbench_notebook},
    'tvbench': {'official': tvbench},
    'causalvqa': {'official': causalvqa},
    'intphys2_yes_no': {'official': intphys2_yes_no},
    'intphys2_one_zero': {'official': intphys2_one_zero},
    'intphys2_possible': {'official': intphys2_possible},
}


def likeliest(item: Item, likelihoods: tuple[float, ...]) -> Verdict:
    """The choice of the highest likelihood; of several none.

    Raises:
      ValueError: not a number for each choice.
    """
    if len(likelihoods) != len(item.choices) or any(x != x for x in likelihoods):
        raise ValueError(
            f'{item.id}: likelihoods {likelihoods}: must be a number for each of '
            f'{len(item.choices)} choices'
        )
    best = [i for i, x in enumerate(likelihoods) if x == max(likelihoods)]
    return pick(item, best[0]) if len(best) == 1 else NONE
