# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m tests.crashes`: print the table of docs/reliability.md."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.crashes.scenarios import SCENARIOS, record, small_image, tally
from tests.crashes.table import HEAD, row

__all__: list[str] = []


def main() -> None:
    """Run and judge every command."""
    sys.stdout.write(HEAD)
    with tempfile.TemporaryDirectory() as root:
        image = small_image(Path(root))
        for scenario in SCENARIOS:
            folder = Path(tempfile.mkdtemp(dir=root))
            found = record(scenario, folder, image)
            sys.stdout.write(row(found, tally(scenario, found.tree, found.calls)))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
