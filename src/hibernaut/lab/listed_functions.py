# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions of a guest's kernel in its /proc/kallsyms, whatever its compiler made of their names.

GCC adds a suffix to a function that it changed (`.isra.0`, `.constprop.0`), Clang with LTO to a static one that another
file uses (`.llvm.NUMBER`); with LTO, a function that only assembly calls is local. A part of a function that was moved
out of it (`.cold`, `.part.0`) is not the function.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hibernaut.lab.guest_state import RunningGuest

__all__ = ["ListedFunction", "functions_among", "listed_functions"]

FRAGMENTS = ("cold", "part")


@dataclass(frozen=True)
class ListedFunction:
    """A function in /proc/kallsyms.

    Attributes:
        address: its address.
        symbol: its name there, with the compiler's suffix.
    """

    address: int
    symbol: str

    @property
    def name(self) -> str:
        """Its name in the source."""
        return self.symbol.partition(".")[0]


def listed_functions(guest: RunningGuest, names: Sequence[str]) -> list[ListedFunction]:
    """Return the functions of these names in a guest's kernel, see `functions_among`. Raises LabError."""
    pattern = "|".join(map(re.escape, names))
    return functions_among(guest.port.run(f"grep -E ' ({pattern})([.].*)?$' /proc/kallsyms || true"), names)


def functions_among(lines: Iterable[str], names: Sequence[str]) -> list[ListedFunction]:
    """Return the functions of these names among lines of /proc/kallsyms: in the order of `names`, plain ones first."""
    found = []
    for line in lines:
        words = line.split()
        if len(words) != 3 or words[1] not in "tTwW":
            continue
        function = ListedFunction(int(words[0], 16), words[2])
        parts = function.symbol.split(".")[1:]
        if function.name in names and not any(part in FRAGMENTS for part in parts):
            found.append(function)
    return sorted(found, key=lambda one: (names.index(one.name), len(one.symbol)))
