# SPDX-License-Identifier: GPL-2.0-or-later
"""The verifier in one file, made for tests by the module that `make verifier` runs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from tests.conftest import REPOSITORY
from tests.package_makers import package_maker

FOLDER = REPOSITORY / "packages/verifier"


def verifier_maker() -> ModuleType:
    """Return the module that makes the verifier."""
    return package_maker("verifier/make_verifier.py", "make_verifier")


def verifier_file(folder: Path) -> Path:
    """Make the verifier in a folder and return its path."""
    out = folder / "hibernaut-verify.pyz"
    verifier_maker().make_verifier(out)
    return out
