# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine in a dump or an image, as `audit`, `explore` and `replay` take it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.common import (
    BaseOption,
    Cr3Option,
    LevelsOption,
    OffsetOption,
    PartitionOption,
    paging_of,
    rules_of,
    say,
)
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.kernel.suspend import pages_to_save, secret_users
from hibernaut.kernel_line import RulesFrom
from hibernaut.linux import Machine
from hibernaut.linux.rules import KernelRules
from hibernaut.memory.page import Pfns
from hibernaut.sources import open_memory
from hibernaut.swsusp import open_image

__all__ = ["MachineOptions", "machine_in"]


@dataclass(frozen=True)
class MachineOptions:
    """Where in a source the machine is, and which of its pages are saved."""

    pages_from: Annotated[
        Path | None, typer.Option("--pages-from", help="An image of the same machine, whose list of pages is taken.")
    ] = None
    cr3: Cr3Option = None
    levels: LevelsOption = None
    offset: OffsetOption = 0
    partition: PartitionOption = None
    base: BaseOption = None


def machine_in(
    stack: ExitStack, source: Path, options: MachineOptions, rules: KernelRules | None, quiet: bool
) -> tuple[Machine, RulesFrom]:
    """Return the machine in a source, open as long as the stack is, and where its rules come from.

    Its list of pages is that of --pages-from, of the kernel in a dump (stopped in swsusp_save; needs drgn), or every
    frame that the direct map speaks of.

    Raises:
        FormatError: the source cannot be read, or has no page tables.
    """
    opened = stack.enter_context(
        open_memory(source, offset=options.offset, partition=options.partition, base=options.base)
    )
    listed: Pfns | None
    reason: str | None = None
    if options.pages_from is not None:
        listed = stack.enter_context(open_image(options.pages_from)).pfns
    else:
        pages = pages_to_save(opened)
        listed, reason = pages.pfns, pages.reason
        if reason is not None:
            say(f"every frame that the direct map speaks of counts as one to save: {reason}", quiet)
    root, known_levels = paging_of(opened, options.cr3, options.levels)
    found = rules_of(rules, opened, quiet, told=reason)
    machine = machine_from_memory(opened.memory, root, known_levels, saveable=listed, rules=found.rules)
    machine.secretmem_users = secret_users(opened.memory) or 0
    return machine, found.rules_from
