# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls of the copy loop, as a real kernel's are recorded and as the model makes them, so that both can be compared.

A call bears the name of the kernel's function, and its facts: frames, entries, results. `copy` stands for
`kernel_page_present`, with which the copy of a page begins; `split_large_page` for the large entry that becomes a
table; `crash` for the access that ends the loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hibernaut.paging.entries import Level

__all__ = ["KINDS", "Call", "allocated", "copied", "crashed", "entry_text", "merged", "split"]

KINDS: Mapping[str, tuple[str, ...]] = {
    "copy": ("pfn", "pages"),
    "set_direct_map_default_noflush": ("pfn", "before", "after", "error"),
    "set_direct_map_invalid_noflush": ("pfn", "before", "after", "error"),
    "alloc_page": ("pfn",),
    "split_large_page": ("entry", "before", "after"),
    "flush_tlb_all": (),
    "flush_tlb_kernel_range": ("start", "end"),
    "crash": ("address",),
}
"""Name of a call -> names of its facts."""


@dataclass(frozen=True)
class Call:
    """A call of the copy loop.

    Attributes:
        name: the kernel's function, or one of those of this module.
        facts: name and value of each fact, in the order of `KINDS`: numbers of bits in hex, counts as they are.
    """

    name: str
    facts: tuple[tuple[str, str | int | None], ...] = ()

    @classmethod
    def of(cls, name: str, *values: str | int | None) -> Call:
        """Return a call with values for the facts of its kind."""
        return cls(name, tuple(zip(KINDS[name], values, strict=True)))

    @classmethod
    def from_json(cls, found: Any) -> Call:
        """Return a call from its JSON. Raises ValueError if it is not one."""
        if not isinstance(found, dict) or not isinstance(found.get("event"), str) or found["event"] not in KINDS:
            raise ValueError(f"{found!r:.80} is not an event; expected one of {', '.join(KINDS)}")
        names = KINDS[found["event"]]
        if set(found) != {"event", *names} or not all(isinstance(one, str | int | None) for one in found.values()):
            raise ValueError(f"the facts of {found['event']} are not {', '.join(names) or 'none'}")
        return cls.of(found["event"], *(found[name] for name in names))

    def as_json(self) -> dict[str, str | int | None]:
        """Return the call for JSON."""
        return {"event": self.name, **dict(self.facts)}

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.facts)])


def copied(pfn: int, pages: int = 1) -> Call:
    """Return the beginning of the copy of pages, one after another."""
    return Call.of("copy", hex(pfn), pages)


def allocated(pfn: int | None) -> Call:
    """Return an allocation of a page for a table, with its frame; None if it failed."""
    return Call.of("alloc_page", None if pfn is None else hex(pfn))


def split(level: Level, paddr: int, before: int, after: int) -> Call:
    """Return the split of a large entry at a physical address."""
    return Call.of("split_large_page", f"{level.name} {paddr:#x}", hex(before), hex(after))


def crashed(address: int) -> Call:
    """Return the access to an address that ends the loop."""
    return Call.of("crash", hex(address))


def entry_text(level: Level | None, paddr: int, entry: int) -> str | None:
    """Return the entry of a page as a fact: its level, its physical address, its value; None if there is no table."""
    return None if level is None else f"{level.name} {paddr:#x} {entry:#x}"


def merged(calls: Iterable[Call]) -> tuple[Call, ...]:
    """Return calls with copies of neighbouring frames as one, where nothing else is called between them."""
    found: list[Call] = []
    end = -1  # one past the last frame of the copy that was found last
    for call in calls:
        if call.name != "copy":
            found.append(call)
            end = -1
            continue
        facts = dict(call.facts)
        pfn, pages = int(str(facts["pfn"]), 16), int(facts["pages"] or 0)
        if pfn == end:
            before = dict(found.pop().facts)
            call = copied(int(str(before["pfn"]), 16), int(before["pages"] or 0) + pages)
        found.append(call)
        end = pfn + pages
    return tuple(found)
