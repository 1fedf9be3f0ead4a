#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Time until the program answers, as ratios to the start of the interpreter alone, in the same run."""

from __future__ import annotations

import subprocess
import sys
import time

ROUNDS = 15
COMMANDS = {
    "import hibernaut": ["-c", "import hibernaut"],
    "--version": ["-m", "hibernaut", "--version"],
    "no arguments": ["-m", "hibernaut"],
    "--help": ["-m", "hibernaut", "--help"],
    "inspect --help": ["-m", "hibernaut", "inspect", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """Return the time that one start takes."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=False)
    return time.perf_counter() - begin


def main() -> None:
    """Print the least time of each, and its ratio to that of the interpreter."""
    everything = {"python -c pass": ["-c", "pass"], **COMMANDS}
    least = dict.fromkeys(everything, float("inf"))
    for _ in range(ROUNDS):  # by turns: a load beside it falls on all
        for name, arguments in everything.items():
            least[name] = min(least[name], seconds(arguments))
    alone = least["python -c pass"]
    for name, taken in least.items():
        print(f"{name:16} {taken * 1000:6.0f} ms  {taken / alone:5.1f}")


if __name__ == "__main__":
    main()
