# SPDX-License-Identifier: GPL-2.0-or-later
"""The alternative of 2008: tables reserved before the copy, so that a split cannot fail."""

from __future__ import annotations

from hibernaut.errors import HibernationRefused, OutOfMemory
from hibernaut.hibernation.ways.remap import Remap
from hibernaut.linux.machine import Machine

__all__ = ["Reserved"]


class Reserved(Remap):
    """`Remap` with a pool of pages for tables, filled before the list of pages is fixed (CPA's page pool of 2008).

    A split takes its table from the pool while there is one, then from the allocator. So the tables are on the list of
    pages to save, and nothing is allocated in the middle of the copy if the pool is large enough: as many pages as
    there are not-present large entries with a page to save, and for a 1 GiB one 512 more.

    Args:
        pages: size of the pool.
    """

    def __init__(self, pages: int = 1) -> None:
        self.pages = pages

    @property
    def name(self) -> str:
        """With the size of its pool."""
        return f"Reserved({self.pages})"

    def prepare(self, machine: Machine) -> None:
        """Fill the pool. Raises HibernationRefused if the allocator cannot."""
        try:
            for number in range(len(machine.table_pool), self.pages):
                machine.reserve_table(f"table {number + 1} of {self.pages} reserved before the copy")
        except OutOfMemory:
            raise HibernationRefused(
                "the tables could not be reserved", errno="ENOMEM", log=machine.log.kernel_lines
            ) from None
