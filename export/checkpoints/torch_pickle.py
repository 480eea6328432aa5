"""The pickle inside a PyTorch archive, read as data: what it names is described, and nothing of it is made or called.

A pickle is a program for a small stack machine. Python's own machine calls whatever functions the program names, so that loading a
stranger's pickle runs a stranger's code. The machine here knows the instructions that PyTorch writes. Of functions it knows those
that put tensors together, each of which it answers with a description (`StoredTensor`); classes of TorchScript become `Inert`
objects, which have attributes and no behaviour; dictionaries, lists, tuples, texts and numbers are what they are. Any other name is
refused. Work and memory grow with the length of the pickle and with nothing that it says.

Source: Python's ``pickletools`` for the instructions, which it only parses; for names and arguments, archives written by PyTorch.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from coupled_sampling.errors import CheckpointError

__all__ = ["Inert", "Storage", "StoredTensor", "read_pickle"]

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""PyTorch's names of storages, and numpy's of their elements."""

_SHOWN = 120
"""Characters of a name in a message."""

_INERT = "__torch__"
"""TorchScript's own name before those of all classes."""


class Storage(NamedTuple):
    """A run of elements in the archive."""

    dtype: str
    key: str
    """Name of its entry, under ``data/``."""
    elements: int


class StoredTensor(NamedTuple):
    """A tensor: which elements of a storage it has."""

    storage: Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""


class Inert:
    """An object of a class of TorchScript: attributes by name."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}


class _Global(NamedTuple):
    """A function or a class by name."""

    module: str
    name: str


class _DamagedError(Exception):
    """An instruction that nobody would write."""


class _Mark:
    """Where a group of values on the stack begins."""


_MARK = _Mark()
_Call = Callable[[tuple[Any, ...]], Any]


def read_pickle(data: bytes, where: Path) -> Any:
    """What the pickle ``data`` describes.

    Parameters
    ----------
    data
        The whole pickle.
    where
        The archive, for messages.

    Returns
    -------
    Any
        `StoredTensor` and `Inert` objects, dictionaries, lists, tuples, texts, numbers, booleans and None, in each other. It may
        hold itself, and be as deep as the pickle is long.

    Raises
    ------
    CheckpointError
        It is damaged, has an instruction that PyTorch does not write, or names what is none of these.

    Examples
    --------
    >>> import pickle
    >>> from pathlib import Path
    >>> from coupled_sampling.export.checkpoints.torch_pickle import read_pickle
    >>> read_pickle(pickle.dumps({"step": 3}, protocol=2), Path("model.pt"))
    {'step': 3}
    >>> read_pickle(pickle.dumps(print, protocol=2), Path("model.pt"))
    Traceback (most recent call last):
    coupled_sampling.errors.CheckpointError: model.pt: its pickle names __builtin__.print, which is no part of a checkpoint...
    """
    machine = _Machine(where)
    try:
        for instruction, argument, _ in pickletools.genops(data):
            if instruction.name == "STOP":
                return machine.pop()
            machine.run(instruction.name, argument)
    except (_DamagedError, ValueError, TypeError, IndexError, KeyError) as error:
        raise CheckpointError(
            f"{where}: its pickle is damaged ({error or type(error).__name__}); copy or download the file again"
        ) from error
    raise CheckpointError(f"{where}: its pickle has no end; copy or download the file again")


class _Machine:
    """The stack, the memo, and what each instruction does to them."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in _NOTHING:
            return
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            self._stack.append(argument)
        elif name in _LENGTHS:
            self._stack.append(tuple(self._last(_LENGTHS[name])))
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        else:
            raise CheckpointError(
                f"{self._where}: its pickle has the instruction {name}, which PyTorch does not write for weights; save the model's "
                "state_dict, a table of tensors alone"
            )

    def pop(self) -> Any:
        """The value on top."""
        if not self._stack:
            raise _DamagedError("a value is missing")
        return self._stack.pop()

    def _last(self, count: int) -> list[Any]:
        """The ``count`` values on top, the topmost last."""
        if len(self._stack) < count:
            raise _DamagedError("a value is missing")
        values = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return values

    def _group(self) -> list[Any]:
        """The values above the last mark, which goes."""
        values = []
        while (value := self.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise _DamagedError(f"there is no {kind.__name__} to fill")
        return self._stack[-1]

    def mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def empty_list(self, _: Any) -> None:
        self._stack.append([])

    def make_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._group()))

    def append(self, _: Any) -> None:
        value = self.pop()
        self._top(list).append(value)

    def appends(self, _: Any) -> None:
        values = self._group()
        self._top(list).extend(values)

    def set_item(self, _: Any) -> None:
        self._fill(self._last(2))

    def set_items(self, _: Any) -> None:
        self._fill(self._group())

    def _fill(self, values: list[Any]) -> None:
        # Only what is quick to hash: a tuple of tuples of tuples may take for ever.
        if not all(key is None or isinstance(key, str | int | float) for key in values[::2]):
            raise _DamagedError("a key of a dictionary is no text and no number")
        self._top(dict).update(zip(values[::2], values[1::2], strict=True))

    def put(self, number: int | None) -> None:
        if not self._stack:
            raise _DamagedError("a value is missing")
        self._memo[len(self._memo) if number is None else number] = self._stack[-1]

    def get(self, number: int) -> None:
        if number not in self._memo:
            raise _DamagedError(f"nothing is kept under the number {number}")
        self._stack.append(self._memo[number])

    def name(self, both: str) -> None:
        self._named(*both.split(" ", 1))

    def stacked_name(self, _: Any) -> None:
        self._named(*self._last(2))

    def _named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise _DamagedError("a name is no text")
        known = _Global(module, name) in _CALLS or (module == "torch" and name in STORAGES)
        if not known and module.partition(".")[0] != _INERT:
            raise CheckpointError(
                f"{self._where}: its pickle names {f'{module}.{name}'[:_SHOWN]}, which is no part of a checkpoint of weights: "
                "expected tensors in dictionaries, and nothing is run to find out what else there is. Save the model's state_dict "
                "alone, where PyTorch is at hand and you trust the file"
            )
        self._stack.append(_Global(module, name))

    def call(self, _: Any) -> None:
        function, arguments = self._last(2)
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise _DamagedError("a call of what is no function")
        if function.module.partition(".")[0] == _INERT:
            self._stack.append(Inert())  # an enumeration's member, or an object made by its class
        elif function in _CALLS:
            self._stack.append(_CALLS[function](arguments))
        else:
            raise _DamagedError(f"a call of {function.name}")

    def build(self, _: Any) -> None:
        state, made = self.pop(), self._stack[-1] if self._stack else None
        if isinstance(made, Inert) and isinstance(state, dict):
            made.attributes.update(state)
        elif not isinstance(made, Inert | dict):  # a state_dict's versions of modules change no tensor
            raise _DamagedError("a state of what has none")

    def persistent(self, _: Any) -> None:
        given = self.pop()
        if (
            not isinstance(given, tuple)
            or len(given) != 5
            or given[0] != "storage"
            or not isinstance(given[1], _Global)
        ):
            raise _DamagedError("a storage is not described as one")
        _, storage, key, _, elements = given
        if storage.name not in STORAGES or not isinstance(key, str) or not _is_size(elements):
            raise _DamagedError("a storage is not described as one")
        self._stack.append(Storage(STORAGES[storage.name], key, elements))


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    storage, first, shape, strides, *_ = arguments
    axes = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    if not isinstance(storage, Storage) or not axes or not all(map(_is_size, (first, *shape, *strides))):
        raise _DamagedError("a tensor is not described as one")
    return StoredTensor(storage, first, shape, strides)


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    if not arguments or not isinstance(arguments[0], StoredTensor):
        raise _DamagedError("a parameter is no tensor")
    return arguments[0]


def _ordered(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise _DamagedError("a dictionary begins with values")
    return {}


def _first(arguments: tuple[Any, ...]) -> Any:
    if not arguments:
        raise _DamagedError("a list is missing")
    return arguments[0]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


_CALLS: dict[_Global, _Call] = {
    _Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Global("torch._utils", "_rebuild_tensor"): _tensor,
    _Global("torch._utils", "_rebuild_parameter"): _parameter,
    _Global("collections", "OrderedDict"): _ordered,
    **{
        _Global("torch.jit._pickle", name): _first
        for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
    },
}
"""What each function that PyTorch writes gives, of its arguments."""

_NOTHING = ("PROTO", "FRAME")
_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = frozenset(
    ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES")
)
_LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_HANDLERS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "EMPTY_DICT": _Machine.empty_dict,
    "EMPTY_LIST": _Machine.empty_list,
    "TUPLE": _Machine.make_tuple,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stacked_name,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
"""Instructions of pickles by ``pickletools``' names: what is passed over, what stands for itself, and what does something."""
