# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts of a kernel read one apart from the other: what one of them lacks leaves the rest as it is.

Nothing that is read is trusted: strings and lists have bounds, and a list that returns to itself ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from hibernaut.errors import FormatError
from hibernaut.kernel.kernel_memory import string_at

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel

__all__ = ["FactReader", "list_objects", "popcount", "rb_objects", "sibling_objects", "text_at"]

T = TypeVar("T")

MAX_REMARK = 300


class FactReader:
    """Reads facts of a kernel, and keeps a remark on each that could not be read.

    Args:
        kernel: the kernel.

    Attributes:
        kernel: as given.
        remarks: a sentence on each fact that is unknown or not whole.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.remarks: list[str] = []

    def fact(self, what: str, read: Callable[[], T]) -> T | None:
        """Return a fact; None, with a remark, if it cannot be read.

        Args:
            what: name of the fact, for the remark.
            read: returns it.
        """
        try:
            with self.kernel.reads.question():
                return read()
        except Exception as error:  # drgn's errors share no narrower base
            self.remark(what, f"not known: {_reason(error)}")
            return None

    def items(
        self, what: str, objects: Callable[[], Iterable[Any]], item: Callable[[Any], T], limit: int
    ) -> tuple[T, ...] | None:
        """Return the items of a list as far as they can be read; None, with a remark, if there is not even the list.

        Args:
            what: name of the list, for remarks.
            objects: returns the objects of the list.
            item: returns the item that an object stands for.
            limit: most items that are read.
        """
        found: list[T] = []
        unread: list[str] = []
        objects_read = 0
        try:
            for one in self._each(objects()):
                if objects_read == limit:
                    self.remark(what, f"the first {limit} are read, there are more")
                    break
                objects_read += 1
                try:
                    with self.kernel.reads.question():
                        found.append(item(one))
                except Exception as error:
                    unread.append(_reason(error))
        except Exception as error:
            if not objects_read:
                self.remark(what, f"not known: {_reason(error)}")
                return None
            self.remark(what, f"the list breaks off after {objects_read}: {_reason(error)}")
        if unread:
            self.remark(what, f"{len(unread)} of {objects_read} could not be read, the first: {unread[0]}")
        return tuple(found)

    def _each(self, objects: Iterable[Any]) -> Iterator[Any]:
        """Yield objects; to find each is a question of its own."""
        found = iter(objects)
        while True:
            with self.kernel.reads.question():
                one = next(found, None)
            if one is None:
                return
            yield one

    def text(self, what: str, address: Callable[[], int], limit_bytes: int) -> str | None:
        """Return a string of the kernel; None, with a remark, if it cannot be read. One that is cut has a remark.

        Args:
            what: name of the fact, for remarks.
            address: returns the address of its first character.
            limit_bytes: most bytes that are read.
        """
        found = self.fact(what, lambda: text_at(self.kernel, address(), limit_bytes + 1))
        if found is not None and len(found) > limit_bytes:
            self.remark(what, f"cut after {limit_bytes} bytes")
            return found[:limit_bytes]
        return found

    def remark(self, what: str, remark: str) -> None:
        """Keep a remark on a fact."""
        self.remarks.append(f"{what}: {remark}"[:MAX_REMARK])


def _reason(error: Exception) -> str:
    """Return the reason for an error in one line, without the name of the file."""
    if isinstance(error, FormatError):
        return error.complaint
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__


def text_at(kernel: Kernel, address: int, limit_bytes: int) -> str:
    """Return the string at an address up to its NUL, or its first bytes if it is longer.

    Raises:
        FormatError: nothing can be read there.
    """
    return string_at(kernel, address, limit_bytes).decode("utf-8", "backslashreplace")


def list_objects(head: Any, type_name: str, member: str) -> Iterator[Any]:
    """Yield pointers to the objects on a `struct list_head`.

    Args:
        head: the head, an object that is not a pointer.
        type_name: type of the objects.
        member: their member that links them.

    Raises:
        ValueError: the list returns to an object other than its head.
    """
    from drgn import container_of

    end = head.address_of_().value_()
    seen: set[int] = set()
    at = head.next
    while at.value_() != end:
        _require_new(at.value_(), seen)
        yield container_of(at, type_name, member)
        at = at.next


def sibling_objects(first: Any, type_name: str, member: str) -> Iterator[Any]:
    """Yield pointers to the objects on a `struct hlist_head`; `first` is its first node, others as `list_objects`."""
    from drgn import container_of

    seen: set[int] = set()
    at = first
    while at.value_():
        _require_new(at.value_(), seen)
        yield container_of(at, type_name, member)
        at = at.next


def rb_objects(root: Any, type_name: str, member: str) -> Iterator[Any]:
    """Yield pointers to the objects in a `struct rb_root` in order; arguments and errors as for `list_objects`."""
    from drgn import container_of

    seen: set[int] = set()
    waiting: list[Any] = []
    at = root.rb_node
    while waiting or at.value_():
        while at.value_():
            _require_new(at.value_(), seen)
            waiting.append(at)
            at = at.rb_left
        at = waiting.pop()
        yield container_of(at, type_name, member)
        at = at.rb_right


def popcount(words: Any) -> int:
    """Return the number of bits set in an array of unsigned long."""
    return sum(word.value_().bit_count() for word in words)


def _require_new(address: int, seen: set[int]) -> None:
    if address in seen:
        raise ValueError(f"it returns to {address:#x} and has no end")
    seen.add(address)
