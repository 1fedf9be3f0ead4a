# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs below packages/ that `make` runs, loaded as modules."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from tests.conftest import REPOSITORY

__all__ = ["package_maker"]


def package_maker(path: str, name: str) -> ModuleType:
    """Return the program at a path below packages/ as a module of that name."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "packages" / path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
