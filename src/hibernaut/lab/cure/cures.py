# SPDX-License-Identifier: GPL-2.0-or-later
"""The cures, read from cures.toml: edits of the kernel's source, the case that notices a wrong one, commit messages."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hibernaut.errors import LabUnavailable
from hibernaut.lab.cure.edits import Edit, apply_edits, unified_patch

__all__ = ["STOCK", "Cure", "cure_named", "cures"]

STOCK = "stock"
"""Name of the kernel without a change."""
FILE = Path(__file__).with_name("cures.toml")


@dataclass(frozen=True)
class Cure:
    """A change to the kernel.

    Attributes:
        name: name on the command line.
        what: noun phrase for help and tables.
        kind: "cure"; "wrong" for a cure with one mistake; "alternative" for another way to copy unmapped pages.
        noticed: what a wrong cure or an alternative does to a guest, a clause; empty for the cure.
        message: commit message, subject first.
        edits: edits of the kernel's source, in order.
    """

    name: str
    what: str
    kind: str
    noticed: str
    message: str
    edits: tuple[Edit, ...]

    @property
    def files(self) -> set[str]:
        """Files that it changes, by path below the kernel's source."""
        return {edit.file for edit in self.edits}

    def changes(self, source: Path) -> dict[str, tuple[str, str]]:
        """Return the files of a source tree that it changes: path -> content before, content after.

        Raises:
            FormatError: the source does not fit.
        """
        return apply_edits(source, self.edits)

    def patch(self, source: Path) -> str:
        """Return it as a patch against a source tree. Raises FormatError: see `changes`."""
        return unified_patch(self.changes(source), self.message)


@cache
def cures() -> dict[str, Cure]:
    """Return all cures by name, as cures.toml lists them, the kernel without a change first."""
    found = {STOCK: Cure(STOCK, "the kernel as its source is", "stock", "", "", ())}
    for name, entry in tomllib.loads(FILE.read_text())["cure"].items():
        found[name] = _cure(name, entry, found)
    return found


def cure_named(name: str) -> Cure:
    """Return a cure. Raises LabUnavailable, with the known names."""
    try:
        return cures()[name]
    except KeyError:
        known = ", ".join(cures())
        raise LabUnavailable(f"no cure {name!r}; expected {known}", advice="give one of these as --cure") from None


def _cure(name: str, entry: dict[str, Any], earlier: dict[str, Cure]) -> Cure:
    """Return a cure from its table: edits of its own, or those of `base` without some, or with parts of its text."""
    edits = [Edit(**edit) for edit in entry.get("edit", ())]
    if "base" in entry:
        base = earlier[entry["base"]]
        kept = [edit for edit in base.edits if edit.name not in entry.get("without", ())]
        edits = [_varied(edit, entry.get("replaced", {}).get(edit.name)) for edit in kept] + edits
    message = (
        entry.get("message") or f"hibernate: {entry['what']}\n\nFor hibernaut's laboratory only: {entry['noticed']}."
    )
    return Cure(name, entry["what"], entry["kind"], entry.get("noticed", ""), message, tuple(edits))


def _varied(edit: Edit, text: str | None) -> Edit:
    return edit if text is None else replace(edit, text=text)
