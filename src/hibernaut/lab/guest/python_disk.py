# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk with the Python that runs this program, hibernaut and the packages that it needs, for use inside a guest."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from hibernaut.errors import LabUnavailable
from hibernaut.lab.host.programs import program, run
from hibernaut.lab.host.temporary import temporary_folder
from hibernaut.swsusp.system_codecs import LZ4_NAMES, LZO_NAMES, library_file

__all__ = ["BUNDLE", "BUNDLE_COMMAND", "PYTHON_COMMAND", "PYTHON_MOUNT", "make_python_disk"]

PACKAGES = ("cramjam", "isal", "lz4", "lzallright", "numpy", "pyelftools", "rich", "typer", "zstandard")
"""The packages that hibernaut itself needs (pyproject.toml)."""
SIZE_MIB = 320
FOLDERS = ("proc", "sys", "dev", "tmp", "etc", "run")
LEFT_OUT = ("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "site-packages", "lib2to3", "config-*")
"""Parts of the standard library that no command needs."""
LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
PYTHON_MOUNT = (
    "mkdir -p /python && mount -t ext4 -o ro {device} /python && mount -t proc proc /python/proc && "
    "mount -t sysfs sys /python/sys && mount -o bind /dev /python/dev && mount -t tmpfs tmp /python/tmp && "
    "(mount -t securityfs sec /python/sys/kernel/security || true)"
)
"""Command that mounts the disk in a guest."""
BUNDLE = Path("/hibernaut.pyz")
PYTHON_COMMAND = (
    f"env -i PATH=/usr/bin PYTHONPATH=/packages PYTHONDONTWRITEBYTECODE=1 TMPDIR=/tmp chroot /python "
    f"{Path(sys.executable).resolve()}"
)
"""Beginning of a command that runs Python there."""
BUNDLE_COMMAND = (
    f"env -i PATH=/usr/bin HOME=/nonexistent TMPDIR=/tmp chroot /python {Path(sys.executable).resolve()} -I {BUNDLE}"
)
"""Beginning of a command that runs the bundle there."""


def make_python_disk(path: Path, bundle: Path | None = None) -> None:
    """Write the disk, an ext4 file system.

    Args:
        path: file to write.
        bundle: hibernaut in one file (`make bundle`), which the disk then has as `BUNDLE` in place of packages.

    Raises:
        LabUnavailable: mkfs.ext4 or a package is missing.
    """
    with temporary_folder("python") as top:
        tree = top / "tree"
        for name in FOLDERS:
            (tree / name).mkdir(parents=True)
        _copy_python(tree)
        packages = tree / "packages"
        for name in sorted(_closure()):
            _copy_package(name, packages)
        shutil.copytree(
            Path(__file__).parents[2], packages / "hibernaut", ignore=shutil.ignore_patterns("__pycache__", "*.tmp")
        )
        for library in (*_libraries(tree), *_codec_libraries()):
            target = tree / str(library).lstrip("/")
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, target)
        if bundle is not None:
            shutil.rmtree(packages)
            shutil.copy(bundle, tree / BUNDLE.name)
        run(
            [program("mkfs.ext4"), "-q", "-F", "-b", "4096", "-d", tree, path, f"{SIZE_MIB}M"],
            doing="making the disk with Python",
        )


def _copy_python(tree: Path) -> None:
    """Copy the interpreter, its library and the standard library, to the places that they have here."""
    executable = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_path("stdlib"))
    _copy_file(executable, tree)
    for library in Path(sysconfig.get_config_var("LIBDIR") or "/nowhere").glob("libpython3.*.so.*"):
        _copy_file(library, tree)
    target = tree / str(standard).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(standard, target, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)


def _closure() -> set[str]:
    """Return the names of the packages, and of those that they need. Raises LabUnavailable if one is missing."""
    found: set[str] = set()
    waiting = [*PACKAGES]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            raise LabUnavailable(f"the Python package {name} is not installed") from None
        found.add(name)
        waiting += [re.split(r"[\s<>=!~;\[(]", need)[0] for need in needs if "extra ==" not in need and ";" not in need]
    return found


def _copy_package(name: str, target: Path) -> None:
    """Copy the files of an installed package, without its programs and tests."""
    distribution = metadata.distribution(name)
    for file in distribution.files or ():
        source = Path(str(distribution.locate_file(file)))
        if ".." in file.parts or "tests" in file.parts or not source.is_file():
            continue
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)


def _libraries(tree: Path) -> Iterator[Path]:
    """Yield the shared libraries that the files of the tree need, with those of the packages' own folders left out."""
    for file in tree.rglob("*"):
        if not file.is_file() or not (".so" in file.name or file.parent.name == "bin"):
            continue
        command = [program("ldd"), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # nosec B603 # installed files
        for library in LIBRARY.findall(done.stdout):
            if not library.startswith(str(tree)):
                yield Path(library)


def _codec_libraries() -> Iterator[Path]:
    """Yield the system's compressors, which no file names: they are loaded when they are needed."""
    for names in (LZO_NAMES, LZ4_NAMES):
        if library := library_file(names):
            yield library


def _copy_file(source: Path, tree: Path) -> None:
    target = tree / str(source).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
