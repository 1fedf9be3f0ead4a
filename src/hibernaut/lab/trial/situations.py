# SPDX-License-Identifier: GPL-2.0-or-later
"""The situations that a kernel is judged in, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hibernaut.errors import HibernautError
from hibernaut.lab.variants import Variant

__all__ = ["CONTROL", "MANY_BLOCKS", "SITUATIONS", "TrialSituation", "situations_named"]

MANY_BLOCKS = 64
"""Blocks of 2 MiB out of the direct map in one situation."""
MEMORY_MIB, MANY_MEMORY_MIB, GIB_MEMORY_MIB, NODES_MEMORY_MIB = 256, 512, 3072, 512


@dataclass(frozen=True)
class TrialSituation:
    """A state of memory in which a kernel hibernates.

    Attributes:
        name: name on the command line.
        what: noun phrase for tables.
        variant: guest that is in it.
        lists: whether a crash in the allocator's lists after the resume counts as the judged code's.
    """

    name: str
    what: str
    variant: Variant
    lists: bool = False

    @property
    def fails_allocations(self) -> bool:
        """Whether an allocation is made to fail."""
        return self.variant.fail_allocations > 0


def _situation(
    name: str,
    what: str,
    *regions: str,
    memory_mib: int = MEMORY_MIB,
    fail: int = 0,
    skip: int = 0,
) -> TrialSituation:
    variant = Variant(
        name,
        what,
        memory_mib=memory_mib,
        compressor="none",
        regions=regions,
        fail_allocations=fail,
        skip_allocations=skip,
    )
    return TrialSituation(name, what, variant)


CONTROL = _situation("plain", "whole direct map present")
"""The control: a kernel that fails here cannot be judged."""

SITUATIONS = (
    CONTROL,
    _situation("4k", "one page not present", "4k:below"),
    _situation("4k-twice", "two neighbouring pages not present, each with other data", "4k-pair:below"),
    _situation("2m-above", "2 MiB not present, its table copied after the split", "2m:above"),
    _situation("2m-below", "2 MiB not present, its table copied before the split", "2m:below"),
    _situation("2m-fails", "2 MiB not present, the allocation for its split fails", "2m:above", fail=1),
    _situation("none", "a zero entry in an existing table", "none:below"),
    _situation("no-table", "no table for the page: a zero PMD entry", "none-2m:below"),
    _situation("1g", "1 GiB not present", "1g:below", memory_mib=GIB_MEMORY_MIB),
    _situation("1g-fails", "1 GiB not present, the first split fails", "1g:below", memory_mib=GIB_MEMORY_MIB, fail=1),
    _situation("1g-fails-second", "1 GiB not present, the second split fails", "1g:below", memory_mib=GIB_MEMORY_MIB,
               fail=1, skip=1),
    _situation("several", "four regions not present, tables on both sides", "2m:above", "2m:below", "2m:below",
               "4k:below"),
    _situation("many", f"{MANY_BLOCKS} blocks of 2 MiB not present", *(["2m:below"] * MANY_BLOCKS),
               memory_mib=MANY_MEMORY_MIB),
    TrialSituation(
        "torn-lists",
        "2 MiB not present between the struct pages and the CPU's lists (two nodes)",
        Variant("torn-lists", "two nodes", memory_mib=NODES_MEMORY_MIB, compressor="none", regions=("2m:below",),
                pages="below"),
        lists=True,
    ),
    TrialSituation(
        "kfence",
        "KFENCE switched on at run time",
        Variant("kfence", "KFENCE at run time", compressor="none", kfence=True),
    ),
)  # fmt: skip


def situations_named(names: Iterable[str] | None = None) -> list[TrialSituation]:
    """Return situations by name, in the order of the table, with the control; all of them if None.

    Raises:
        HibernautError: a name is unknown.
    """
    if names is None:
        return list(SITUATIONS)
    wanted = set(names)
    unknown = wanted - {one.name for one in SITUATIONS}
    if unknown:
        known = ", ".join(one.name for one in SITUATIONS)
        raise HibernautError(f"no case {min(unknown)!r}; expected {known}", advice="give one of these as --case")
    return [one for one in SITUATIONS if one is CONTROL or one.name in wanted]
