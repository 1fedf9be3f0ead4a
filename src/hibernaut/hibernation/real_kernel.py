# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of a real kernel, probed in a dump, an image or a kernel file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hibernaut.errors import FormatError, HibernautError
from hibernaut.kernel.bzimage import bzimage_release
from hibernaut.kernel.symbol_names import SymbolNames, names_in_memory, names_of_vmlinuz
from hibernaut.kernel_line import Probed
from hibernaut.linux.rules import KernelRules, rules_probed
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo, parse_vmcoreinfo
from hibernaut.sources import Source
from hibernaut.swsusp.rules import ImageRules, image_rules_probed

__all__ = ["image_rules_of_vmlinuz", "rules_of_source", "rules_of_vmlinuz"]


def rules_of_source(source: Source) -> Probed[KernelRules]:
    """Return the rules of the kernel in a dump or an image.

    Never fails: without VMCOREINFO these are the rules of the oldest line, without kallsyms those of the kernel's line;
    `reason` of the result has the cause.
    """
    release: str | None = None
    try:
        vmcoreinfo = source.vmcoreinfo if source.vmcoreinfo is not None else find_vmcoreinfo(source.memory)
        if vmcoreinfo:
            release = parse_vmcoreinfo(vmcoreinfo).get("OSRELEASE")
        names = names_in_memory(source.memory, vmcoreinfo, name=source.name)
    except HibernautError as error:
        return replace(rules_probed(None, release), reason=str(error))
    return rules_probed(names, release)


def rules_of_vmlinuz(path: Path) -> Probed[KernelRules]:
    """Return the rules of a kernel file, a bzImage; those of its line if its symbols cannot be found.

    Raises:
        FormatError: the file is not a bzImage, or has no release.
        OSError: the file cannot be read.
    """
    names, reason = _names(path)
    return replace(rules_probed(names, bzimage_release(path)), reason=reason)


def image_rules_of_vmlinuz(path: Path) -> Probed[ImageRules]:
    """Return the rules by which a kernel file reads an image; those of its line if its symbols cannot be found.

    Raises:
        FormatError: the file is not a bzImage, has no release, or is older than any line.
        OSError: the file cannot be read.
    """
    names, reason = _names(path)
    return replace(image_rules_probed(names, bzimage_release(path)), reason=reason)


def _names(path: Path) -> tuple[SymbolNames | None, str | None]:
    try:
        return names_of_vmlinuz(path), None
    except FormatError as error:
        return None, str(error)
