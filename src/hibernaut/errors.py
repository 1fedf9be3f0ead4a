# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors of the library: each carries its facts as attributes and has a message of one line.

The message says what is wrong, where, what was expected, and what to do next, in that order.
"""

from __future__ import annotations

import copy
import sys
from typing import Any, Self

__all__ = [
    "ContradictoryMemory",
    "CorruptImage",
    "FormatError",
    "HibernationRefused",
    "HibernautError",
    "LabError",
    "LabUnavailable",
    "MachineFault",
    "OutOfMemory",
    "how_to_install",
]


class HibernautError(Exception):
    """Base class of all errors of this library. All of them can be pickled.

    Attributes:
        advice: what to do next, an imperative clause without a full stop; None if nothing can be done.
    """

    def __init__(self, *args: object, advice: str | None = None) -> None:
        self.advice = advice
        super().__init__(*args)

    @property
    def statement(self) -> str:
        """The message without its advice: the defect, its place, and the expected content."""
        return Exception.__str__(self)

    def __str__(self) -> str:
        return f"{self.statement}; {self.advice}" if self.advice else self.statement

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args), self.__dict__

    def with_facts(self, **facts: object) -> Self:
        """Return a copy with other values of some attributes, to raise from this error.

        Raises:
            TypeError: the error has no such attribute.
        """
        unknown = facts.keys() - self.__dict__.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        twin = copy.copy(self)
        twin.__dict__.update(facts)
        return twin


def _again(kind: type[HibernautError], args: tuple[Any, ...]) -> HibernautError:
    """Return an error made without its constructor, since most require keywords; pickle restores the attributes."""
    error = BaseException.__new__(kind, *args)
    error.args = args
    return error


class FormatError(HibernautError, ValueError):
    """Input that cannot be used.

    Attributes:
        what: the defect, a clause without a full stop.
        source: name of the file; None if unknown.
        offset: byte offset of the defect in that file; None if it has no place.
        expected: the valid content; None if it cannot be stated.
        found: the content found; None if it cannot be stated.
    """

    def __init__(
        self,
        what: str,
        *,
        source: str | None = None,
        offset: int | None = None,
        expected: str | None = None,
        found: str | None = None,
        advice: str | None = None,
    ) -> None:
        self.what = what
        self.source = source
        self.offset = offset
        self.expected = expected
        self.found = found
        super().__init__(what, advice=advice)

    @property
    def where(self) -> str:
        """The place as text: `file, byte N`, as far as known; else empty."""
        place = "" if self.offset is None else f"byte {self.offset}"
        return ", ".join(part for part in (self.source, place) if part)

    @property
    def statement(self) -> str:
        """The defect, its place, the expected content and the content found."""
        return f"{self.what}: {self.where}{self._details}" if self.where else self.complaint

    @property
    def complaint(self) -> str:
        """The statement without the place, for tables with a column for the place."""
        return self.what + self._details

    @property
    def _details(self) -> str:
        expected = "" if self.expected is None else f"; expected {self.expected}"
        return expected if self.found is None else f"{expected}; found {self.found}"


class CorruptImage(FormatError):
    """A file of the right format that is damaged: its fields or checksums contradict each other."""


class ContradictoryMemory(FormatError):
    """Raw memory that cannot be where its file has it: page tables name other places, and none fits alone."""


class MachineFault(HibernautError):
    """A fault of the *modelled* machine, never of this program.

    Attributes:
        address: virtual address that faulted.
        entry: page-table entry of that address; None if there is no table.
        pfn: page frame number of the accessed page; None if unknown.
        doing: activity of the machine, a clause.
        log: last log lines of the modelled kernel, oldest first.
    """

    def __init__(
        self,
        what: str,
        *,
        address: int,
        entry: int | None,
        pfn: int | None,
        doing: str,
        log: tuple[str, ...] = (),
    ) -> None:
        self.what = what
        self.address = address
        self.entry = entry
        self.pfn = pfn
        self.doing = doing
        self.log = log
        super().__init__(what)

    @property
    def statement(self) -> str:
        """The fault, its address and entry, and the activity of the machine."""
        entry = "no table" if self.entry is None else f"entry {self.entry:#x}"
        frame = "" if self.pfn is None else f", frame {self.pfn:#x}"
        return f"{self.what}: address {self.address:#x}, {entry}{frame}, while {self.doing}"


NO_FREE_FRAME = "no free frame"
NOT_ABOVE_MARK = "the zone is not above its min mark"
"""Reasons for which an allocation fails by itself. Saved runs contain them, so they must not change."""


class OutOfMemory(HibernautError, MemoryError):
    """An allocation of the *modelled* machine failed.

    Attributes:
        number: number of the allocation since the machine was made, from 1.
        injected: whether the environment chose the failure (True) or memory was exhausted (False).
        at_mark: whether memory was exhausted as far as the zone's min mark: pages may be left.
    """

    def __init__(self, number: int, *, injected: bool, at_mark: bool = False) -> None:
        self.number = number
        self.injected = injected
        self.at_mark = at_mark
        super().__init__(number)

    @property
    def statement(self) -> str:
        """The number of the failed allocation, and the reason."""
        reason = "injected" if self.injected else NOT_ABOVE_MARK if self.at_mark else NO_FREE_FRAME
        return f"page allocation {self.number} failed ({reason})"


class HibernationRefused(HibernautError):
    """The *modelled* kernel refuses or aborts hibernation and continues; nothing is saved.

    Attributes:
        what: the reason, a clause.
        errno: name of the error that the kernel returns.
        log: log lines of the modelled kernel, oldest first.
    """

    def __init__(self, what: str, *, errno: str, log: tuple[str, ...] = ()) -> None:
        self.what = what
        self.errno = errno
        self.log = log
        super().__init__(what)

    @property
    def statement(self) -> str:
        """The reason of the refusal, with the kernel's error."""
        return f"hibernation refused: {self.what} (-{self.errno})"


class LabError(HibernautError):
    """A failure of a laboratory guest.

    Attributes:
        what: the failure, a clause.
        log: the last lines of the guest's kernel log, oldest first.
    """

    def __init__(self, what: str, *, log: tuple[str, ...] = (), advice: str | None = None) -> None:
        self.what = what
        self.log = log
        super().__init__(what, advice=advice)

    @property
    def statement(self) -> str:
        """The failure, and the last log lines of the guest."""
        return f"{self.what}; last log lines of the guest: {' / '.join(self.log)}" if self.log else self.what


class LabUnavailable(LabError):
    """A need of the laboratory that this machine does not meet: a program, a package, a mirror.

    Attributes:
        cure: the command or option that meets it, if there is one.
    """

    def __init__(self, what: str, *, cure: str | None = None, advice: str | None = None) -> None:
        self.cure = cure
        super().__init__(what, advice=advice or (f"try: {cure}" if cure else None))


def how_to_install(*packages: str) -> str:
    """Return the command that adds packages of PyPI to the environment that hibernaut runs in.

    The command names the interpreter, so that the environment is right for any `pip` in PATH. An
    interpreter that a distribution manages (PEP 668) refuses pip; there the packages come from the distribution.
    """
    import importlib.util
    import sysconfig
    from pathlib import Path

    names = " ".join(packages)
    if sys.prefix == sys.base_prefix and (Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").exists():
        return f"install your distribution's packages of {' and '.join(packages)} for {sys.executable}"
    if importlib.util.find_spec("pip") is None:
        return f"uv pip install --python {sys.executable} {names}"
    return f"{sys.executable} -m pip install {names}"
