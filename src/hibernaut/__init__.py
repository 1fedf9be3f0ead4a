# SPDX-License-Identifier: GPL-2.0-or-later
"""hibernaut: Linux x86-64 hibernation, on simulated machines, on dumps, on images of real kernels.

The names below are the public interface; each is imported when it is first used, so that importing the package
costs nothing.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

from hibernaut.errors import (
    CorruptImage,
    FormatError,
    HibernationRefused,
    HibernautError,
    MachineFault,
    OutOfMemory,
)

if TYPE_CHECKING:
    from hibernaut.exploration import explore
    from hibernaut.hibernation import Fixmap, Remap, RemapWhole, Snapshot, hibernate, resume
    from hibernaut.linux import DirectMap, Machine, build_machine
    from hibernaut.paging.tables import PageTables
    from hibernaut.sources import Source, open_memory
    from hibernaut.swsusp import Image, open_image

__all__ = [
    "CorruptImage",
    "DirectMap",
    "Fixmap",
    "FormatError",
    "HibernationRefused",
    "HibernautError",
    "Image",
    "Machine",
    "MachineFault",
    "OutOfMemory",
    "PageTables",
    "Remap",
    "RemapWhole",
    "Snapshot",
    "Source",
    "build_machine",
    "explore",
    "hibernate",
    "open_image",
    "open_memory",
    "resume",
]

__version__ = version("hibernaut")

_HOMES = {
    "DirectMap": "hibernaut.linux",
    "Fixmap": "hibernaut.hibernation",
    "Image": "hibernaut.swsusp",
    "Machine": "hibernaut.linux",
    "PageTables": "hibernaut.paging.tables",
    "Remap": "hibernaut.hibernation",
    "RemapWhole": "hibernaut.hibernation",
    "Snapshot": "hibernaut.hibernation",
    "Source": "hibernaut.sources",
    "build_machine": "hibernaut.linux",
    "explore": "hibernaut.exploration",
    "hibernate": "hibernaut.hibernation",
    "open_image": "hibernaut.swsusp",
    "open_memory": "hibernaut.sources",
    "resume": "hibernaut.hibernation",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hibernaut' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
