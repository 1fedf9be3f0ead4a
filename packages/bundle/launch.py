# SPDX-License-Identifier: GPL-2.0-or-later
"""Start hibernaut out of its bundle: the `__main__` of the file that `make bundle` makes.

Python does not load compiled modules out of a zip file, so the bundle is unpacked once: into the first of
`$HIBERNAUT_BUNDLE_DIR`, `$XDG_CACHE_HOME/hibernaut` and `~/.cache/hibernaut` that can be written; else, as on a
read-only system, into a private folder below `$TMPDIR` or /tmp that is removed at the end.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

__all__ = ["main"]

CONTENT = "site-packages/"
MANIFEST = "bundle.json"
VARIABLE = "HIBERNAUT_BUNDLE_DIR"


def main() -> None:
    """Unpack the bundle where it is not yet, and run hibernaut. The exit status is 2 where it cannot run."""
    archive = Path(sys.argv[0]).resolve()
    with zipfile.ZipFile(archive) as bundle:
        manifest = json.loads(bundle.read(MANIFEST))
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        if python not in manifest["pythons"] or sys.implementation.name != "cpython":
            known = " and ".join(manifest["pythons"])
            _refuse(f"this file has modules for CPython {known}, not for {sys.version.split()[0]}; run it with one")
        try:
            folder = _unpacked(bundle, f"bundle-{manifest['digest'][:16]}-{python}")
        except OSError as error:
            place = f": {error.filename}" if error.filename else ""
            _refuse(f"cannot unpack: {error.strerror}{place}; set {VARIABLE} to a folder with room for it")
    sys.path.insert(0, str(folder))
    from hibernaut.cli import main as run

    run()


def _unpacked(bundle: zipfile.ZipFile, name: str) -> Path:
    """Return the folder with the content of the bundle. Raises OSError if there is no place for it."""
    for root in _roots():
        if (root / name).is_dir():
            return root / name
    for root in _roots():
        made: Path | None = None
        with suppress(OSError):
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            made = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root))
        if made is None:
            continue
        try:
            _extract(bundle, made)
            with suppress(OSError):  # another process was faster
                made.rename(root / name)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return root / name
    made = Path(tempfile.mkdtemp(prefix=f"hibernaut-{name}."))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    _extract(bundle, made)
    return made


def _roots() -> list[Path]:
    """Return the folders in which the bundle may lie unpacked, the first choice first."""
    if VARIABLE in os.environ:
        return [Path(os.environ[VARIABLE])]
    caches = [os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")]
    return [Path(cache) / "hibernaut" for cache in caches if os.path.isabs(cache)]


def _extract(bundle: zipfile.ZipFile, folder: Path) -> None:
    """Write the modules into a folder: of compiled ones those of the running Python alone."""
    others = f".cpython-{sys.version_info.major}{sys.version_info.minor}-"
    for entry in bundle.infolist():
        name = entry.filename
        if name.startswith(CONTENT) and (".cpython-" not in name or others in name):
            target = folder / name.removeprefix(CONTENT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(bundle.read(entry))


def _refuse(reason: str) -> None:
    sys.stderr.write(f"hibernaut: {reason}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
