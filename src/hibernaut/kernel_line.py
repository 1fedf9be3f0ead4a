# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel releases and kernel lines: one parser, one order, one lookup for every table that is kept by line.

Where a real kernel is at hand, it is asked first: `ProbedKernel` is the question, `Probed` the answer.

A line is named by the version that begins it: `6.12`, or `6.13-rc` for the release candidates of a version that differ
from its release. Tables that are kept by line (the rules of the memory model, the rules of reading an image, the
laboratory's packages) hold their own fields only; `LineTable` looks them up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Protocol, TypeVar

from hibernaut.errors import FormatError

__all__ = [
    "LINES_BY_NAME",
    "KernelVersion",
    "LineTable",
    "Probe",
    "Probed",
    "ProbedKernel",
    "RulesFrom",
    "answers_of",
    "line_named",
    "newest_not_newer",
    "parse_release",
]

RELEASE = re.compile(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:\.\d+)*([-~]rc\d*(?![0-9A-Za-z]))?(?:[.~+-]\S*)?")
"""`6.1`, `6.1.0-56-amd64`, `6.12.118+deb13-amd64`, `6.13-rc`, `6.13.0-rc5-next-20241206`; Debian writes `~rc5`. In
`2.6.32-754.el6` the third number is the version's, too."""
EXPECTED = "6.1, or in full: 6.1.0-56-amd64"

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class KernelVersion:
    """The version of a kernel, as far as lines go: point releases do not count.

    Versions are ordered; the candidates of a version precede it.

    Attributes:
        major: 6 in 6.13.2.
        minor: 13 in 6.13.2.
        sublevel: 32 in 2.6.32.60, where the third number is the version's; 0 elsewhere.
        final: False for the release candidates of the version.
    """

    major: int
    minor: int
    sublevel: int = 0
    final: bool = True

    def __str__(self) -> str:
        """The name of a line that begins here."""
        third = f".{self.sublevel}" if self.sublevel else ""
        return f"{self.major}.{self.minor}{third}{'' if self.final else '-rc'}"


def parse_release(release: str) -> KernelVersion:
    """Return the version in a release, as `uname -r` prints it.

    Raises:
        FormatError: not a kernel release.
    """
    match = RELEASE.fullmatch(release)
    if not match:
        raise FormatError(
            f"{release!r} is not a kernel release", expected=EXPECTED, advice="give it as `uname -r` prints it"
        )
    major, minor = int(match[1]), int(match[2])
    sublevel = int(match[3] or 0) if (major, minor) == (2, 6) else 0
    return KernelVersion(major, minor, sublevel, final=match[4] is None)


LINES_BY_NAME: Mapping[str, KernelVersion] = {
    str(version): version
    for version in sorted(
        map(
            parse_release,
            (
                *("2.6.24", "2.6.37", "3.2", "3.10", "3.11", "4.8", "4.10", "4.18", "4.19"),
                *("5.10", "5.11", "5.13", "5.17"),
                *("6.1", "6.2", "6.6", "6.9", "6.12", "6.13-rc", "6.13", "6.15", "6.19", "7.3", "7.4"),
            ),
        )
    )
}
"""Every line that a table knows, by name, oldest first."""


def line_named(name: str, known: Iterable[str] = LINES_BY_NAME) -> KernelVersion:
    """Return the version that begins a line.

    Args:
        name: of the line: `6.13-rc`.
        known: the names to choose from, for the message.

    Raises:
        FormatError: there is no such line.
    """
    if name not in LINES_BY_NAME:
        raise FormatError(f"no kernel line is named {name!r}", expected=", ".join(known), advice="give one of these")
    return LINES_BY_NAME[name]


def newest_not_newer(release: str, lines: Iterable[KernelVersion]) -> KernelVersion | None:
    """Return the newest of some lines that is not newer than a release; None if all are.

    What a version brings comes with its first candidate: a release candidate counts as its version, unless a line of
    its own is among `lines`.

    Raises:
        FormatError: not a kernel release.
    """
    known = sorted(lines)
    wanted = parse_release(release)
    if not wanted.final and wanted not in known:
        wanted = replace(wanted, final=True)
    return max((line for line in known if line <= wanted and (line.final or line == wanted)), default=None)


class LineTable(Mapping[str, T], Generic[T]):
    """Facts by kernel line: a mapping by name, oldest first.

    Args:
        entries: name of a line of `LINES_BY_NAME` -> what holds for it.
    """

    def __init__(self, entries: Mapping[str, T]) -> None:
        self._entries = {name: entries[name] for name in sorted(entries, key=line_named)}

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def oldest(self) -> T:
        """Entry of the oldest line."""
        return next(iter(self._entries.values()))

    def for_release(self, release: str) -> T | None:
        """Return what holds for a release: the entry of the newest line that is not newer; None if all are newer.

        Raises:
            FormatError: not a kernel release.
        """
        found = newest_not_newer(release, (LINES_BY_NAME[name] for name in self._entries))
        return None if found is None else self._entries[str(found)]


class ProbedKernel(Protocol):
    """A real kernel, as far as it can be probed. An answer is None if it is unknown."""

    def has_function(self, name: str) -> bool | None:
        """Tell whether the kernel has a function of that name, not inlined everywhere."""

    def has_data(self, name: str) -> bool | None:
        """Tell whether the kernel has a variable of that name. Kallsyms lists those only under CONFIG_KALLSYMS_ALL."""

    def has_member(self, type_name: str, member: str) -> bool | None:
        """Tell whether a type of the kernel has a member: `("struct page", "flags")`."""


Probe = Callable[[ProbedKernel], Any]
"""A question to a kernel: the value of a rule, None if unknown."""
RulesFrom = Literal["probed", "line"]


@dataclass(frozen=True)
class Probed(Generic[T]):
    """The rules of a real kernel, and where each comes from.

    Attributes:
        rules: the rules.
        probed: fields that the kernel answered.
        line: fields that its line answered.
        reason: why the kernel could not be asked; None if it was.
    """

    rules: T
    probed: tuple[str, ...]
    line: tuple[str, ...]
    reason: str | None = None

    @property
    def rules_from(self) -> RulesFrom:
        """`probed` if the kernel answered anything, else `line`."""
        return "probed" if self.probed else "line"


def answers_of(kernel: ProbedKernel | None, probes: Mapping[str, Probe]) -> dict[str, Any]:
    """Return the answers of a kernel by field, without unknown ones."""
    if kernel is None:
        return {}
    answers = {field: probe(kernel) for field, probe in probes.items()}
    return {field: answer for field, answer in answers.items() if answer is not None}
