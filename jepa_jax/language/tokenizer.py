"""Text to token ids and back, by the `tokenizers` library.

A folder of a language model as Hugging Face writes it has tokenizer.json, and beside it small files
that say which tokens end an answer. Ids of special tokens are read there, never assumed, and text
never becomes one: a question that contains `<|im_end|>` ends no turn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jepa_jax import files
from jepa_jax.errors import ConfigError, InputError, printable

if TYPE_CHECKING:
    import tokenizers

FILE = 'tokenizer.json'
SETTINGS = ('tokenizer_config.json', 'generation_config.json', 'config.json')


def library() -> ModuleType:
    """`tokenizers`. Raises ConfigError: it is not installed."""
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        words = 'text needs the library tokenizers: pip install jepa_jax[llm]'
        raise ConfigError(words) from error
    return tokenizers


class Tokenizer:
    """A tokenizer and its special tokens.

    Attributes:
      family: a key of `chat.TEMPLATES`, told by the special tokens.
      stops: ids of which any ends an answer, the end of a turn first.
      pad: id that stands where there is no token.
      size: one more than the largest id.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: dict[str, Any] | None = None):
        """settings: what the files beside it say, by their names in SETTINGS.

        Raises:
          ConfigError: the special tokens are those of no known family, or of another model.
        """
        from jepa_jax.language import chat

        self._take(tokenizer)
        self._settings = settings = settings or {}
        added = tokenizer.get_added_tokens_decoder()
        self._special = {t.content: i for i, t in added.items() if t.special}
        self.size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        own = settings.get('tokenizer_config.json', {})
        self.family = chat.family_of(self._special, own.get('chat_template'))
        end = self.special(chat.TEMPLATES[self.family].end)
        ids = [i for name in SETTINGS[1:] for i in _ends(settings.get(name, {}), name)]
        self._check_ends(ids)
        self.stops = tuple(dict.fromkeys([end, *ids]))
        self.pad = self._special.get(_word(own.get('pad_token')), self.stops[-1])

    @classmethod
    def read(cls, folder: str | os.PathLike) -> Tokenizer:
        """That of a language model's folder, or a tokenizer.json.

        Raises:
          BadFile: a file that is missing or that no tokenizer can be made of.
          ConfigError: as the class does.
        """
        made_by = library()
        place = Path(folder).expanduser()
        path = place / FILE if place.is_dir() else place
        files.bound(path, 'index', size := files.size(path), f'{size:,} bytes')
        with files.reading(path, 'not_text'):
            made = made_by.Tokenizer.from_file(str(path))
        beside = [path.with_name(name) for name in SETTINGS]
        settings = {p.name: files.read_json(p) for p in beside if p.exists()}
        try:
            return cls(made, settings)
        except ConfigError as error:
            raise ConfigError(f'{path}: {error}') from error

    def _take(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # text is text; pickling forgets it
        self._tokenizer = tokenizer

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._take(self._tokenizer)

    def special(self, name: str) -> int:
        """The id of a special token. Raises ConfigError."""
        if name not in self._special:
            has = ', '.join(list(self._special)[:6]) or 'none'
            raise ConfigError(f'the tokenizer has no special token {name!r}; it has {has}')
        return self._special[name]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, none of them special. Raises InputError: it holds what no text does."""
        if odd := unwritten(text):
            raise InputError(odd)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, up to the first that ends an answer, without special tokens."""
        ids = [int(i) for i in ids]
        end = next((n for n, i in enumerate(ids) if i in self.stops), len(ids))
        return self._tokenizer.decode(ids[:end], skip_special_tokens=True)

    def check(self, vocabulary: int, folder: Path | None = None) -> None:
        """Refuses to serve a model with fewer tokens, or one that ends its answers with a token
        that is none of its own. folder: of the model, where config.json may say which.

        Raises:
          ConfigError: it is the tokenizer of another model.
        """
        path = folder / 'config.json' if folder else None
        if path and path.is_file():
            self._check_ends(_ends(files.read_json(path), str(path)))
        if self.size > vocabulary:
            raise ConfigError(
                f'the tokenizer has {self.size} tokens, the language model {vocabulary}: the '
                'tokenizer of another model'
            )

    def _check_ends(self, ids: Sequence[int]) -> None:
        added = self._tokenizer.get_added_tokens_decoder()
        if strangers := [i for i in ids if i not in added]:
            raise ConfigError(
                f'eos_token_id {strangers[0]} is no special token of the tokenizer: the tokenizer '
                'of another model'
            )

    def save(self, folder: str | os.PathLike) -> None:
        """Writes what `read` needs."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(place / FILE))
        for name, values in self._settings.items():
            if name == 'config.json':  # the rest of it is the model's
                values = {key: values[key] for key in ('eos_token_id',) if key in values}
            (place / name).write_text(json.dumps(values))


def unwritten(text: str) -> str:
    """Which character of a text no encoding has, in words: half of a pair, as JSON may hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        odd = printable(text[error.start])
        return f'character {error.start + 1}, {odd}, is half of a character'
    return ''


def _word(value: Any) -> str:
    """The text of a token as the files give it: a word, or an object with `content`."""
    return str(value.get('content')) if isinstance(value, dict) else str(value)


def _ends(values: Any, where: str) -> list[int]:
    """Ids of tokens that end an answer, as a file of settings has them."""
    ids = values.get('eos_token_id') if isinstance(values, dict) else None
    return _numbers(ids, f'{where}: eos_token_id')


def _numbers(value: Any, where: str) -> list[int]:
    """The ids of a field that holds one, several or none. Raises ConfigError."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    for each in values:
        if not isinstance(each, int) or isinstance(each, bool) or each < 0:
            raise ConfigError(f'{where} is {printable(value)}: must be a token id or several')
    return values
