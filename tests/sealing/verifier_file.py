# SPDX-License-Identifier: GPL-2.0-or-later
"""The verifier in one file, made for tests by the module that `make verifier` runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "packages/verifier"


def verifier_maker() -> ModuleType:
    """Return the module that makes the verifier."""
    spec = importlib.util.spec_from_file_location("make_verifier", FOLDER / "make_verifier.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def verifier_file(folder: Path) -> Path:
    """Make the verifier in a folder and return its path."""
    out = folder / "hibernaut-verify.pyz"
    verifier_maker().make_verifier(out)
    return out
