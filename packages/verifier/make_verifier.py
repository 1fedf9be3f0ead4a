# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the verifier: one file that a Python of 3.11 or newer runs with its standard library alone.

`python packages/verifier/make_verifier.py OUT` packs `hibernaut.sealing.alone` and the modules that it imports.
The same source gives the same bytes.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

__all__ = ["MODULES", "make_verifier"]

PACKAGE = Path(__file__).resolve().parents[2] / "src/hibernaut"
MODULES = (
    "__init__",
    "errors",
    "parallel",
    "sealing/__init__",
    "sealing/alone",
    "sealing/blocks",
    "sealing/counters",
    "sealing/ed25519",
    "sealing/in_window",
    "sealing/keys",
    "sealing/leaves",
    "sealing/making",
    "sealing/manifest",
    "sealing/reading_order",
    "sealing/tpm",
    "sealing/verification",
    "volumes/__init__",
    "volumes/closing",
    "volumes/output",
)
MAIN = b"""# SPDX-License-Identifier: GPL-2.0-or-later
import sys

from hibernaut.sealing.alone import main

sys.exit(main())
"""
EPOCH = (1980, 1, 1, 0, 0, 0)


def make_verifier(out: Path) -> None:
    """Write the file, mode 0755. Raises OSError."""
    files = {"__main__.py": MAIN}
    files.update({f"hibernaut/{name}.py": (PACKAGE / f"{name}.py").read_bytes() for name in MODULES})
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as stream:
        stream.write(b"#!/usr/bin/env -S python3 -I -S\n")
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED)
    out.chmod(0o755)


if __name__ == "__main__":
    make_verifier(Path(sys.argv[1]))
