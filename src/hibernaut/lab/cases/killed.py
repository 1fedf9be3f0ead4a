# SPDX-License-Identifier: GPL-2.0-or-later
"""The case of a writer that is killed: `rewrite --in-place` leaves the old image, none, or the new one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.lab.cases.case import CaseFailed
from hibernaut.lab.cases.steps import hibernate, resume_from
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.variants import variant_named
from hibernaut.lab.vm.disks import copy_disk
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp import open_image
from hibernaut.swsusp.declarations import SIGNATURE

__all__ = ["KILLS", "killed"]

KILLS = 20
SEED = 20
MARGIN = 1.2
"""Kills fall into this multiple of each phase's duration, so that some come right after it."""


def killed(lab: Lab, folder: Path) -> str:
    """Kill the writer at random instants and boot from each kind of area that is left."""
    saved = hibernate(lab, variant_named("none"), folder)
    chance = random.Random(SEED)  # nosec B311 # moments of kills
    area = folder / "area.img"
    preparing, without_image = _phases(saved.image, area)
    outcomes = {"old": 0, "none": 0, "new": 0}
    boots: dict[str, str] = {}
    for number in range(KILLS):
        # Half of the kills while the new image is prepared, half while the area holds none.
        with _rewriting(saved.image, area) as writer:
            if number % 2:
                _wait_for(writer, area, image_there=False)
            time.sleep(chance.uniform(0, MARGIN * (without_image if number % 2 else preparing)))
        state = _state_of(area)
        outcomes[state] += 1
        if state not in boots:
            resumed = resume_from(lab, saved, area)
            if resumed.passed is not (state != "none"):
                raise CaseFailed(f"area left with {state} image: {resumed.reason}")
            boots[state] = resumed.reason
    counted = ", ".join(f"{count} {state}" for state, count in outcomes.items())
    return f"{KILLS} kills: {counted}; booted: {'; '.join(f'{state}: {reason}' for state, reason in boots.items())}"


def _phases(image: Path, area: Path) -> tuple[float, float]:
    """Return how long the writer takes until it gives the old image up, and from there until the new one is there."""
    for _ in range(2):  # the first run finds its files out of the page cache and takes longer than all others
        with _rewriting(image, area) as writer:
            began = time.monotonic()
            _wait_for(writer, area, image_there=False)
            given_up = time.monotonic()
            _wait_for(writer, area, image_there=True)
            preparing, without_image = given_up - began, time.monotonic() - given_up
    return preparing, without_image


@contextmanager
def _rewriting(image: Path, area: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command that rewrites a copy of an image in place, as LZO; kill it on leaving if it still runs."""
    copy_disk(image, area)
    command = [sys.executable, "-m", "hibernaut", "rewrite", str(area), "--in-place", "--compressor", "lzo", "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:  # nosec B603 # words of the case
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def _wait_for(writer: subprocess.Popen[bytes], area: Path, *, image_there: bool) -> None:
    """Wait until the area holds an image, or none; or until its writer has ended."""
    with area.open("rb", buffering=0) as file:
        while writer.poll() is None:
            if (os.pread(file.fileno(), len(SIGNATURE), PAGE_SIZE - len(SIGNATURE)) == SIGNATURE) is image_there:
                return
            time.sleep(0.0005)


def _state_of(area: Path) -> str:
    """Return the image that a killed writer left: old, none or new. Raises CaseFailed for anything else."""
    try:
        with open_image(area) as image:
            image.read_all()
            return "new" if image.compressor == "lzo" else "old"
    except CorruptImage as error:
        raise CaseFailed(f"a partial image that a kernel could accept: {error}") from error
    except FormatError:
        return "none"
