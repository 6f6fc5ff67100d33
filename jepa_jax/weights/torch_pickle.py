"""The pickle of a `.pt` file, read without running what it names.

A pickle is a program for a small stack machine. This one knows containers, numbers, text, tensors
and numpy scalars. Whatever else it is told to import or call becomes a `Foreign` of that name, an
object that can do nothing: who uses the content refuses it (`foreign`), or leaves out where it is.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jepa_jax import files

OBJECTS = 16  # bytes in memory for a byte of a pickle, about
LARGEST_KEY = 2**40  # of dicts: numbers that share a hash are far above
# what a name may stand for; numpy 1 and 2 have the maker of scalars in different modules
TENSORS = {
    f'torch._utils._rebuild_{name}': form
    for name, form in {
        'tensor': 'plain',
        'tensor_v2': 'plain',
        'tensor_v3': 'typed',
        'parameter': 'first',
        'parameter_with_state': 'first',
    }.items()
}
SCALARS = {f'numpy.{core}.multiarray.scalar' for core in ('core', '_core')}
DICT = 'collections.OrderedDict'
MARK = object()


@dataclasses.dataclass(frozen=True, eq=False)
class Foreign:
    """What is not made: `words` say what the pickle asks for."""

    words: str


@dataclasses.dataclass(frozen=True, eq=False)
class Global:
    """A name of Python's, as `torch.FloatStorage`; nothing is imported."""

    name: str


@dataclasses.dataclass(eq=False)
class DType:
    """A numpy type on its way: its byte order comes later."""

    code: str
    order: str = '<'

    def scalar(self, data: bytes) -> Any:
        if len(self.code) > 8:
            return Foreign('it holds a numpy scalar of several fields')
        kind = np.dtype(self.code)
        if kind.kind not in 'biuf':
            return Foreign(f'it holds a numpy scalar of type {kind}')
        return np.frombuffer(data, kind.newbyteorder(self.order), 1)[0].astype(kind)


def run(
    path: str,
    data: bytes,
    storage: Callable[..., Any],
    tensor: Callable[..., Any],
) -> Any:
    """What a pickle describes.

    Args:
      path: of the file, for messages.
      data: the pickle.
      storage: (name of a storage type, key, count) -> a storage.
      tensor: (storage, offset, shape, strides, name of a type or '') -> a tensor.

    Raises:
      BadFile: no pickle, one that is damaged, too large, or of opcodes that nobody needs.
    """
    files.bound(path, 'index', OBJECTS * len(data), f'a pickle of {len(data):,} bytes')
    deadline = files.Deadline(path)
    machine = _Machine(storage, tensor)
    with files.reading(path, 'corrupt'):  # whatever goes wrong in it: the stack is the file's
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if number % 4096 == 0:
                float(deadline.left)  # raises when there is none
            if opcode.name == 'STOP':
                break
            machine.step(opcode.name, argument)
        (content,) = machine.stack
    return content


class _Machine:
    def __init__(self, storage: Callable[..., Any], tensor: Callable[..., Any]):
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._storage, self._tensor = storage, tensor

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in CONSTANTS:
            stack.append(argument)
        elif name in FRESH:
            stack.append(FRESH[name]())
        elif name in ('PROTO', 'FRAME'):
            pass
        elif name in ('BINPUT', 'LONG_BINPUT', 'PUT'):
            self._memo[argument] = stack[-1]
        elif name == 'MEMOIZE':
            self._memo[len(self._memo)] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET', 'GET'):
            stack.append(self._memo[argument])
        elif name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
            stack.append(tuple(reversed([stack.pop() for _ in range(int(name[-1]))])))
        elif name in COLLECTED:
            stack.append(COLLECTED[name](self._to_mark()))
        elif name in ('APPEND', 'APPENDS', 'ADDITEMS'):
            items = [stack.pop()] if name == 'APPEND' else self._to_mark()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
            elif not isinstance(stack[-1], Foreign):
                raise TypeError(f'{name} to a {type(stack[-1]).__name__}')
        elif name in ('SETITEM', 'SETITEMS'):
            items = [stack.pop(), stack.pop()][::-1] if name == 'SETITEM' else self._to_mark()
            if not isinstance(stack[-1], Foreign):
                _put(stack[-1], items)
        elif name == 'GLOBAL':
            stack.append(Global(argument.replace(' ', '.', 1)))
        elif name == 'STACK_GLOBAL':
            last, module = stack.pop(), stack.pop()
            stack.append(Global('.'.join((module, last))))  # of text alone: nothing else is shown
        elif name in ('REDUCE', 'NEWOBJ'):
            arguments, called = stack.pop(), stack.pop()
            stack.append(self._call(called, arguments))
        elif name == 'NEWOBJ_EX':
            _, _, called = stack.pop(), stack.pop(), stack.pop()
            stack.append(_foreign(called))
        elif name in ('INST', 'OBJ'):
            items = self._to_mark()
            stack.append(_foreign(Global(argument.replace(' ', '.')) if argument else items[0]))
        elif name == 'BUILD':
            _build(stack, stack.pop())
        elif name == 'BINPERSID':
            word, kind, key, _, count = stack.pop()
            if word != 'storage' or not isinstance(key, str) or type(count) is not int:
                raise ValueError('a persistent id that is no storage')
            stack.append(self._storage(kind.name, key, count))
        elif name == 'POP':
            stack.pop()
        elif name == 'POP_MARK':
            self._to_mark()
        elif name == 'DUP':
            stack.append(stack[-1])
        else:
            raise ValueError(f'opcode {name}, which no checkpoint needs')

    def _to_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def _call(self, called: Any, arguments: tuple) -> Any:
        """What a call would give, of the few that are known."""
        name = called.name if isinstance(called, Global) else ''
        if name == DICT:
            made: dict = {}
            for key, value in arguments[0] if arguments else ():
                _put(made, (key, value))
            return made
        if name == 'torch._tensor._rebuild_from_type_v2':
            function, kind, inner, _ = arguments
            plain = kind.name in ('torch.Tensor', 'torch.nn.parameter.Parameter')
            return self._call(function, inner) if plain else _foreign(kind)
        if (form := TENSORS.get(name)) == 'first':
            return arguments[0]
        if form:
            typed = arguments[6].name if form == 'typed' else ''
            return self._tensor(*arguments[:4], typed)
        if name in ('torch.Size', 'torch.device'):
            return arguments[0]
        if name == 'numpy.dtype':
            return DType(arguments[0])
        if name in SCALARS:
            kind, data = arguments
            return kind.scalar(data)
        if name == '_codecs.encode' and arguments[1] == 'latin1':  # bytes, in protocol 2
            return arguments[0].encode('latin1')
        return _foreign(called)


CONSTANTS = frozenset(
    'INT LONG BININT BININT1 BININT2 LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING '
    'UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8'.split()
)
FRESH: dict[str, Callable[[], Any]] = {
    'MARK': lambda: MARK,
    'NONE': lambda: None,
    'NEWTRUE': lambda: True,
    'NEWFALSE': lambda: False,
    'EMPTY_LIST': list,
    'EMPTY_TUPLE': tuple,
    'EMPTY_DICT': dict,
    'EMPTY_SET': list,  # a set would hash what is in it, and tuples hash without end
}
COLLECTED: dict[str, Callable[[list], Any]] = {
    'LIST': list,
    'TUPLE': tuple,
    'FROZENSET': list,
    'DICT': lambda items: _put({}, items),
}


def _foreign(called: Any) -> Foreign:
    if isinstance(called, Foreign):
        return called
    name = called.name if isinstance(called, Global) else type(called).__name__
    return Foreign(f'loading it would run {files.one_line(ValueError(name), 100)}')


def _put(into: dict, items: Any) -> dict:
    """Keys and values in turn; keys that no checkpoint has become Foreign."""
    if not isinstance(into, dict):
        raise TypeError(f'keys for a {type(into).__name__}')
    for key, value in zip(items[::2], items[1::2], strict=True):
        simple = isinstance(key, str) or isinstance(key, int) and abs(key) <= LARGEST_KEY
        into[key if simple else Foreign(f'it has a dict key of type {type(key).__name__}')] = value
    return into


def _build(stack: list[Any], state: Any) -> None:
    """State of the object on top: a type's byte order; that of an OrderedDict (a state dict's
    versions) and of what is not made anyway is left out."""
    if isinstance(stack[-1], DType):
        stack[-1].order = {'<': '<', '>': '>', '|': '|', '=': '<'}[state[1]]
    elif not isinstance(stack[-1], dict | Foreign):
        stack[-1] = Foreign(f'it sets the state of a {type(stack[-1]).__name__}')


def foreign(content: Any) -> Iterator[str]:
    """What of a content was not made: `loading it would run posix.system`, in its order."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Foreign):
            yield value.words
        elif isinstance(value, Global) and not value.name.startswith('torch.'):
            yield f'loading it would import {value.name}'
        elif isinstance(value, DType) or value is MARK:
            yield f'it holds a {type(value).__name__}'
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            pairs = isinstance(value, dict)
            inner = [*value.keys(), *value.values()] if pairs else list(value)
            waiting += inner[::-1]
