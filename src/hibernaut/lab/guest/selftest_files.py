# SPDX-License-Identifier: GPL-2.0-or-later
"""The self-test for a kernel tree: our module and a script that reports in the kernel's test format (KTAP)."""

from __future__ import annotations

from pathlib import Path

from hibernaut.lab.guest.initramfs import GUEST_FOLDER
from hibernaut.volumes.output import write_file

__all__ = ["SELFTEST_SCRIPT", "selftest_sources", "write_selftest"]

SELFTEST_SCRIPT = GUEST_FOLDER / "selftest" / "hibernate_direct_map.sh"


def selftest_sources() -> tuple[Path, ...]:
    """Return the files of the self-test: Makefile, script, and the module with its Kbuild."""
    sources = (*(GUEST_FOLDER / "selftest").iterdir(), *(GUEST_FOLDER / "region").iterdir())
    return tuple(sorted(path for path in sources if path.is_file()))


def write_selftest(folder: Path) -> list[Path]:
    """Write the self-test into a folder, for example one below tools/testing/selftests, and return its files.

    Args:
        folder: existing folder.

    Raises:
        FileExistsError: it has a file of one of the names already.
        OSError: a file cannot be written.
    """
    targets = [folder / source.name for source in selftest_sources()]
    for target in targets:
        if target.exists():
            raise FileExistsError(17, "File exists", str(target))
    for source, target in zip(selftest_sources(), targets, strict=True):
        write_file(target, source.read_bytes(), public=True)
        if source == SELFTEST_SCRIPT:
            target.chmod(0o755)
    return targets
