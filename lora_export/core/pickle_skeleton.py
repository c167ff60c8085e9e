"""The structure of a pickle, read without anything that it names.

Whatever a pickle imports is `_Nothing` here: a class that takes every argument and does nothing. So
nothing is executed or allocated but the plain values that stand in the file itself.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import BinaryIO

    from typing_extensions import Self

__all__ = ["BoundedReader", "Skeleton", "count_operations"]

_STOP: Final = ord(".")
_FIXED: Final = {
    **dict.fromkeys(b"BCTUX\x8a\x8b\x8c\x8d\x8e\x96", -1),  # a length, then so many bytes
    **dict.fromkeys(b"IFLSVPcgpi", -2),  # a line, or two
    **dict.fromkeys(b"Khq\x80\x82", 1),
    **dict.fromkeys(b"M\x83", 2),
    **dict.fromkeys(b"Jjr\x84", 4),
    **dict.fromkeys(b"G\x95", 8),
}
"""How many bytes follow an operation; 0 where it is not here."""

_LENGTHS: Final = {
    **dict.fromkeys(b"CU\x8a\x8c", 1),
    **dict.fromkeys(b"BTX\x8b", 4),
    **dict.fromkeys(b"\x8d\x8e\x96", 8),
}
"""How many bytes the length has that follows an operation."""

_STORAGE_FIELDS: Final = 5
_DEEPEST_TUPLE: Final = 16
_NOT_KNOWN: Final = frozenset({0x90, 0x91, 0x96, 0x97, 0x98})
"""Operations that PyTorch does not write: sets, byte arrays, buffers beside the pickle."""


def count_operations(data: bytes, pickles: int, limit: int) -> int:
    """Return how many operations the first pickles in `data` have, or `limit` where there are more.

    Each takes an unpickler microseconds, whatever it does: bytes alone do not bound the time.
    """
    position = count = 0
    while position < len(data) and count < limit:
        operation = data[position]
        count += 1
        position += 1
        if operation == _STOP:
            pickles -= 1
            if pickles == 0:
                break
        following = _FIXED.get(operation, 0)
        if following == -1:
            width = _LENGTHS.get(operation, 4)
            following = width + int.from_bytes(data[position : position + width], "little")
        elif following == -2:  # noqa: PLR2004
            lines = 2 if operation in b"ci" else 1
            for _ in range(lines):
                position = data.find(b"\n", position) + 1 or len(data)
            following = 0
        position += following
    return count


class BoundedReader:
    """A file of which no more is asked for than it has: ``read(2**62)`` allocates before it reads.

    Args:
        stream: The file.
        size_bytes: Its size.
    """

    def __init__(self, stream: BinaryIO, size_bytes: int) -> None:
        self._stream = stream
        self._size_bytes = size_bytes

    def read(self, count: int = -1) -> bytes:
        """Return at most `count` bytes; all that are left where it is negative."""
        left = max(0, self._size_bytes - self._stream.tell())
        return self._stream.read(left if count < 0 else min(count, left))

    def __getattr__(self, name: str) -> Any:
        """Return what the file has under a name."""
        return getattr(self._stream, name)


class _Nothing:
    """Stands for every class and function."""

    def __init__(self, *_arguments: object, **_named: object) -> None:
        pass

    def __call__(self, *_arguments: object, **_named: object) -> _Nothing:
        return self

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass

    def append(self, _value: object) -> None:
        """Take an element."""

    def extend(self, _values: object) -> None:
        """Take elements."""

    add = append


class _Tuple(tuple[Any, ...]):  # noqa: SLOT001  (a tuple has no room for further slots)
    """A tuple that knows how deep tuples are nested in it."""

    depth: int

    def __new__(cls, values: Iterable[Any]) -> Self:
        made = super().__new__(cls, values)
        made.depth = 1 + max((each.depth for each in made if isinstance(each, _Tuple)), default=0)
        if made.depth > _DEEPEST_TUPLE:
            msg = f"its tuples are nested more than {_DEEPEST_TUPLE} deep"
            raise pickle.UnpicklingError(msg)
        return made


def _put_tuple(count: int | None) -> Callable[[Any], None]:
    """Return the operation that makes a tuple of so many values; None is those since a mark."""

    def put(reader: Any) -> None:
        if count is None:
            values = reader.pop_mark()  # which exchanges `append`
            reader.append(_Tuple(values))
        else:
            reader.stack[-count:] = [_Tuple(reader.stack[-count:])]

    return put


class Skeleton(pickle._Unpickler):  # noqa: SLF001
    """Reads one pickle, and notes the storages of PyTorch that it refers to.

    The unpickler in Python: the one in C makes room for as many values as a pickle counts.
    Operations that make room for bytes before they are there are not known, and tuples are not
    nested deeply: to hash one that holds another twice, and so on, takes twice as long each time.

    Args:
        stream: The file.
        announced: Gets the number of elements of each storage by its key.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{
            code: operation
            for code, operation in pickle._Unpickler.dispatch.items()  # noqa: SLF001
            if code not in _NOT_KNOWN
        },
        ord("t"): _put_tuple(None),
        0x85: _put_tuple(1),
        0x86: _put_tuple(2),
        0x87: _put_tuple(3),
    }

    def __init__(self, stream: BinaryIO, announced: dict[str, int]) -> None:
        super().__init__(stream)
        self._announced = announced

    def find_class(self, module: str, name: str, /) -> type[_Nothing]:
        """Return a class that does nothing."""
        del module, name
        return _Nothing

    def persistent_load(self, pid: Any, /) -> _Nothing:
        """Note ``("storage", type, key, device, elements, …)``.

        Raises:
            UnpicklingError: It is something else.
        """
        fields = pid if isinstance(pid, tuple) and len(pid) >= _STORAGE_FIELDS else (None,) * 5
        if not isinstance(fields[2], str) or type(fields[4]) is not int:
            msg = "it refers to something that is not a tensor storage"
            raise pickle.UnpicklingError(msg)
        self._announced[fields[2]] = max(fields[4], self._announced.get(fields[2], 0))
        return _Nothing()
