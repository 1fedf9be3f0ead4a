# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as JSON documents, text and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hibernaut.report.notebook_map import NotebookMap, memory_map

__all__ = ["NotebookMap", "memory_map"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'hibernaut.report' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("hibernaut.report.notebook_map"), name)
