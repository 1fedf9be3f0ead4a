# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the bundle: one file with hibernaut and all that it needs, for systems without a package index.

`python packages/bundle/make.py WHEEL OUT PYTHON...` takes the wheels that requirements/bundle.txt locks, for each
Python (3.11, ...) on x86-64 with glibc 2.28 or newer. The same wheels give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["make_bundle", "write_bundle"]

REPOSITORY = Path(__file__).resolve().parents[2]
LOCK = REPOSITORY / "requirements/bundle.txt"
LAUNCHER = Path(__file__).with_name("launch.py")
SHEBANG = b"#!/usr/bin/env python3\n"
GLIBC = ("2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")
PLATFORMS = (*(f"manylinux_{version}_x86_64" for version in GLIBC), "manylinux2014_x86_64")
LEFT_OUT = ("/tests/", "/__pycache__/", "bin/", "/sboms/")
"""Parts of packages that no command needs."""
EPOCH = (1980, 1, 1, 0, 0, 0)


def make_bundle(wheel: Path, out: Path, pythons: Sequence[str]) -> None:
    """Write the bundle.

    Args:
        wheel: hibernaut's wheel.
        out: file to write.
        pythons: versions of Python, as "3.11".

    Raises:
        subprocess.CalledProcessError: pip cannot get a wheel.
        ValueError: two Pythons need different content in one file.
    """
    content: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for python in pythons:
            target = Path(folder) / python
            _install(["--require-hashes", "-r", str(LOCK)], python, target)
            _install([str(wheel)], python, target)
            _add(content, target)
    write_bundle(out, content, pythons)


def write_bundle(out: Path, content: Mapping[str, bytes], pythons: Sequence[str]) -> None:
    """Write a bundle, mode 0755.

    Args:
        out: file to write.
        content: files of site-packages by their names.
        pythons: versions of Python that the content is for.
    """
    digest = hashlib.sha256()
    for name, data in sorted(content.items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    manifest = {"pythons": list(pythons), "digest": digest.hexdigest()}
    files = {
        "__main__.py": LAUNCHER.read_bytes(),
        "bundle.json": json.dumps(manifest).encode(),
        **{f"site-packages/{name}": data for name, data in sorted(content.items())},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as stream:
        stream.write(SHEBANG)
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED)
    out.chmod(0o755)


def _install(what: list[str], python: str, target: Path) -> None:
    """Install wheels for another Python into a folder, nothing compiled, nothing resolved."""
    options = ["--no-deps", "--only-binary", ":all:", "--no-compile", "--python-version", python, "--quiet"]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--implementation", "cp"]
    words = [*pip, *options, *platforms, "--target", str(target), *what]
    subprocess.run(words, check=True)  # nosec B603 # this interpreter's pip


def _add(content: dict[str, bytes], target: Path) -> None:
    """Add the files of an installation. Raises ValueError if another one has other code in a file of the same name."""
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if not path.is_file() or any(
            part in f"/{name}" if part[0] == "/" else name.startswith(part) for part in LEFT_OUT
        ):
            continue
        data = path.read_bytes()
        if content.setdefault(name, data) != data and ".dist-info/" not in name and name != "numpy/__config__.py":
            raise ValueError(f"{name} differs between the Pythons; make a bundle for each")


if __name__ == "__main__":
    make_bundle(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
