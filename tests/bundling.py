# SPDX-License-Identifier: GPL-2.0-or-later
"""The bundle for rescue systems, made for tests: by the module that `make bundle` runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

from tests.conftest import REPOSITORY
from tests.package_makers import package_maker

RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
"""Version of the Python that runs, for which bundles are made."""


def bundle_maker() -> ModuleType:
    """Return the module that makes bundles."""
    return package_maker("bundle/make.py", "bundle_make")


def whole_bundle(folder: Path) -> Path:
    """Build the wheel and make the bundle with all packages, in a folder; takes wheels from a package index."""
    build = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(folder), str(REPOSITORY)]
    subprocess.run([*build, "--python", sys.executable], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    bundle_maker().make_bundle(wheel, folder / "hibernaut.pyz", [RUNNING])
    return folder / "hibernaut.pyz"
