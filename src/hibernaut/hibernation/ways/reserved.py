# SPDX-License-Identifier: GPL-2.0-or-later
"""The alternative of 2008: pages for tables are reserved before the copy, so that a split cannot fail."""

from __future__ import annotations

from collections.abc import Hashable

from hibernaut.errors import HibernationRefused, OutOfMemory
from hibernaut.hibernation.ways.remap import Remap
from hibernaut.linux.machine import Machine

__all__ = ["Reserved"]


class Reserved(Remap):
    """`Remap` with a pool of pages for tables, filled before the list of pages is fixed (CPA's page pool of 2008).

    A split takes its table from the pool, and from the allocator once the pool is empty. The tables are therefore on
    the list of pages to save. A pool is large enough with one page for each not-present large entry with a page to
    save, and 512 more for one of 1 GiB; then nothing is allocated during the copy.

    Args:
        nr_pages: size of the pool.
    """

    def __init__(self, nr_pages: int = 1) -> None:
        self.nr_pages = nr_pages

    @property
    def name(self) -> str:
        """Name in reports, with the size of the pool."""
        return f"Reserved({self.nr_pages})"

    @property
    def in_copy(self) -> tuple[Hashable, ...]:
        """See `Way.in_copy`: the size of the pool takes no part; what is left of it belongs to the machine."""
        return Remap().in_copy

    def prepare(self, machine: Machine) -> None:
        """Fill the pool. Raise HibernationRefused if an allocation fails."""
        try:
            for number in range(len(machine.table_pool), self.nr_pages):
                machine.reserve_table(f"table {number + 1} of {self.nr_pages} reserved before the copy")
        except OutOfMemory:
            raise HibernationRefused(
                "the tables could not be reserved", errno="ENOMEM", log=machine.log.kernel_lines
            ) from None
