# SPDX-License-Identifier: GPL-2.0-or-later
"""The smallest counter of a seal that is accepted, kept from one image to the next: in a file, or in a TPM."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hibernaut.errors import FormatError
from hibernaut.sealing.tpm import TpmCounter
from hibernaut.sealing.verification import SealVerdict
from hibernaut.volumes.output import write_file

__all__ = ["MOST_COUNT", "Counter", "CounterFile", "accept", "counter_of", "least_words"]

MOST_COUNT = (1 << 63) - 1
"""Largest counter that is given or kept."""
LINE = re.compile(rb"([0-9]{1,19})\n?")
TPM_INDICES = range(0x01000000, 0x02000000)
"""Handles of NV indices (TPM 2.0 Library, part 2, section 7)."""


class Counter(Protocol):
    """The smallest counter that is accepted."""

    @property
    def name(self) -> str:
        """Name in messages."""

    def value(self) -> int:
        """Return it. Raises HibernautError, OSError."""

    def at_most(self, manifest_counter: int) -> int:
        """Return it, for a manifest with a counter. Raises HibernautError, OSError."""

    def raise_to(self, count: int) -> None:
        """Raise it to a count, on stable storage on return; never lower it. Raises HibernautError, OSError."""

    def next_value(self) -> int:
        """Return the counter of the next seal. Raises HibernautError, OSError."""


@dataclass(frozen=True)
class CounterFile:
    """A file with a number in one line. One program at a time may raise it.

    Attributes:
        path: the file.
        name: see `Counter`.
    """

    path: Path
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", str(self.path))

    def value(self) -> int:
        """See `Counter`. Raises FormatError, also if there is no file: without one, any image would be accepted."""
        try:
            with self.path.open("rb") as file:
                match = LINE.fullmatch(file.read(32))
        except FileNotFoundError:
            raise FormatError(
                "there is no file with a counter",
                source=self.name,
                advice="give the one that `seal --counter-file` wrote",
            ) from None
        if match is None or int(match[1]) > MOST_COUNT:
            raise FormatError(
                "the file holds no counter",
                source=self.name,
                expected="one line with a number from 0 to 2^63 - 1",
                advice="give the file that `seal` wrote",
            )
        return int(match[1])

    def at_most(self, manifest_counter: int) -> int:
        """See `Counter`."""
        del manifest_counter
        return self.value()

    def raise_to(self, count: int) -> None:
        """See `Counter`. The file is replaced at once, synced."""
        if count > MOST_COUNT:
            raise FormatError(
                f"the counter would be {count}", source=self.name, expected="at most 2^63 - 1", advice="use a new key"
            )
        if not self.path.exists() or self.value() < count:
            write_file(self.path, b"%d\n" % count)

    def next_value(self) -> int:
        """See `Counter`: 1 without a file."""
        return (self.value() if self.path.exists() else 0) + 1


def counter_of(path: str | os.PathLike[str] | None, index: int | None) -> Counter | None:
    """Return the counter that two options name, or None.

    Args:
        path: file with a counter.
        index: NV index of a TPM.

    Raises:
        FormatError: both are given, or the index is not one.
    """
    if path is not None and index is not None:
        raise FormatError("two counters are given", expected="a file or an index of the TPM", advice="leave one out")
    if index is not None and index not in TPM_INDICES:
        raise FormatError(
            f"{index:#x} is not an NV index of a TPM",
            expected="0x1000000 to 0x1ffffff",
            advice="give one, as 0x1500010",
        )
    if index is not None:
        return TpmCounter(index)
    return None if path is None else CounterFile(Path(path))


def least_words(least: int | None) -> str:
    """Return the end of a verdict's line that says which counters are refused from now on; empty for None."""
    return "" if least is None else f"; from now on, counters below {least} are refused"


def accept(verdict: SealVerdict, counter: Counter | None, once: bool) -> int | None:
    """Raise a counter after a verdict: to that of a whole image or, if each is accepted once, above it.

    Returns:
        The smallest counter that is accepted from now on; None without a counter, or if the image is not whole.

    Raises:
        HibernautError, OSError: it cannot be raised; then the image must not be resumed from.
    """
    if counter is None or verdict.state != "whole":
        return None
    least = verdict.manifest.counter + once
    counter.raise_to(least)
    return least
