# SPDX-License-Identifier: GPL-2.0-or-later
"""Run hibernaut's command line, and write how many units of an image are decompressed.

    python counted.py COUNTS ARGUMENT...

COUNTS becomes a JSON list: the number of different units that are decompressed, and that of all units of the images
that are read from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hibernaut.cli.app import run
from hibernaut.memory.page import Bytes
from hibernaut.swsusp.stream import Batch, UnitStream


def main() -> None:
    """Count, for as long as the command runs."""
    units: set[int] = set()
    total = 0
    decode = UnitStream.decode

    def counted(stream: UnitStream, first_unit: int, last_unit: int, out: Bytes | None = None) -> Batch:
        nonlocal total
        units.update(range(first_unit, last_unit))
        total = len(stream.index)
        return decode(stream, first_unit, last_unit, out)

    UnitStream.decode = counted  # type: ignore[method-assign, assignment]
    try:
        run(sys.argv[2:])
    finally:
        Path(sys.argv[1]).write_text(json.dumps([len(units), total]))


if __name__ == "__main__":
    main()
