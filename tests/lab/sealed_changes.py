# SPDX-License-Identifier: GPL-2.0-or-later
"""Single-byte changes of a sealed image, each given to a machine that stands right before its resume.

`python -m tests.lab.sealed_changes --changes 1000 --write` tries them and writes `RECORD`, the record of the page
docs/reliability.md. It takes a laboratory with Linux 6.1.

A machine boots with packages/verifier/resume, as an initramfs has it. QEMU saves its state when the verifier's Python
has started and imported its modules, and has opened no device. Machines begin from there. A byte of the disk is
changed, the script runs, the verifier reads the disk, the script resumes or not; a machine that was stopped is given
the next change, up to one that it has to resume with. Witnesses of a stop are the machine's session, which a resume
would change, the kernel's log, and QEMU's count of writes to the disk, on which a kernel replaces the signature before
it reads more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from hibernaut.lab.guest.python_disk import BUNDLE
from hibernaut.lab.guest_state import RunningGuest
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.kernels import get_kernel, line_named
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.record import IMAGE_NAME, GuestRecord
from hibernaut.lab.verification import verify_resumed
from hibernaut.lab.vm.disks import copy_disk
from hibernaut.lab.vm.port import Port
from hibernaut.lab.vm.qemu import Hardware, qemu
from hibernaut.parallel import ordered_results
from hibernaut.sealing.reading_order import ReadingOrder
from tests.lab.sealed_guest import ENVIRONMENT, PYTHON, booted, hibernate_sealed, order_of

__all__ = ["RECORD", "Change", "Tried", "WaitingVerifier", "batches", "changes", "read_record", "try_changes"]

RECORD = Path(__file__).with_name("sealed_changes.jsonl")
PARTS = ("header", "map page", "info page", "data block", "unread block", "nothing")
"""Parts of a disk; the last two leave what a kernel reads as it is."""
SECONDS = 120
KERNEL_LOOKS = ("resume from hibernation", "Image signature found")
"""Messages of a kernel that looks for an image (`software_resume`, `swsusp_check`), seen with each whole image."""
VERDICTS = (": touched: ", "not an image: a resuming kernel would find no signature")
"""Verdicts of the verifier on a changed image, as opposed to a verifier that fails."""
GATE = f"""
import os, sys
from importlib import import_module
sys.path.insert(0, "{BUNDLE}")
from hibernaut.sealing import alone
for name in alone.LATER:
    import_module(name)
while True:
    with open("/tmp/arguments") as given:
        arguments = given.read().splitlines()
    child = os.fork()
    if not child:
        out = os.open("/tmp/answer", os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(out, 2)
        status = alone.main(arguments[3:])
        sys.stdout.flush()
        print("status", status, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
"""A Python that has imported the verifier, and forks for each of its runs: the modules are translated once by QEMU."""
CONF = "MANIFEST=/tmp/seal"
"""Not that in the area: to find it, the verifier reads 64 MiB, seconds of each run under emulation."""
PYTHON_SCRIPT = """#!/bin/sh
for word; do echo "$word"; done >/python/tmp/arguments
answer=$(cat /python/tmp/answer)
echo "${answer%status *}"
exit "${answer##*status }"
"""
"""`python3 -I -S hibernaut-verify.pyz ARGUMENTS`, as packages/verifier/resume runs it, by that Python."""
START = (
    "mkfifo /python/tmp/arguments /python/tmp/answer; cp /python/tmp/python /tmp/python; chmod +x /tmp/python; "
    f"env -i OPENSSL_ia32cap=0 chroot /python {PYTHON} -I -S /tmp/gate </dev/null >/dev/null 2>&1 & "
    "/tmp/python -I -S - --files >/dev/null"
)
RESUME = f"{ENVIRONMENT} sh /modules/resume"


@dataclass(frozen=True)
class Change:
    """A change of one byte of a disk.

    Attributes:
        part: one of `PARTS`.
        at: byte of the disk.
        bits: bits that are flipped, 1 to 255; 0 for none.
    """

    part: str
    at: int
    bits: int


@dataclass(frozen=True)
class Tried:
    """The outcome of a change.

    Attributes:
        part: see `Change`.
        at: see `Change`.
        bits: see `Change`.
        outcome: "stopped" before the kernel looks, "resumed" with every page as it was, or something else in words.
        line: line of the verifier.
    """

    part: str
    at: int
    bits: int
    outcome: str
    line: str


def changes(order: ReadingOrder, unread: list[int], number: int, seed: int, each: int = 50) -> Iterator[Change]:
    """Yield distinct changes of covered bytes; between them, and last, a whole image or an unread block.

    A fifth of them lie in the header, the map pages and the info page, which are few.

    Args:
        order: blocks that a kernel reads.
        unread: blocks that neither the image nor the saved machine uses.
        number: number of changes of covered bytes.
        seed: seed of the choices.
        each: number of changes for a whole image and an unread block, an even one.
    """
    pick = random.Random(seed)
    data = list(order.entries[1:])
    kinds = {"header": [order.header_block], "map page": order.map_blocks, "info page": [order.entries[0]]}
    seen: set[tuple[int, int]] = set()

    def change(part: str, block: int, within: int) -> Change:
        return Change(part, block * 4096 + within, pick.randrange(1, 256))

    while len(seen) < number:
        part = ("header", "map page", "info page")[len(seen) // 5 % 3] if len(seen) % 5 == 0 else "data block"
        one = change(part, pick.choice(kinds.get(part, data)), pick.randrange(4096))
        if (one.at, one.bits) in seen:
            continue
        seen.add((one.at, one.bits))
        yield one
        if len(seen) % each == each // 2:
            yield change("unread block", pick.choice(unread), pick.randrange(4096))
        elif len(seen) % each == 0 or len(seen) == number:
            yield Change("nothing", 0, 0)


class WaitingVerifier:
    """A machine whose verifier is about to read, saved as a file.

    Args:
        lab: the laboratory.
        record: record of the guest that has hibernated.
        folder: folder of `hibernate_sealed`.
    """

    def __init__(self, lab: Lab, record: GuestRecord, folder: Path) -> None:
        self._record = record
        self._folder = folder
        self._state = folder / "waiting-state"
        hardware: list[Hardware] = []

        def noted(one: Hardware) -> Hardware:
            hardware.append(one)
            return one

        with booted(lab, folder, {"gate": GATE, "python": PYTHON_SCRIPT}, conf=CONF, adapt=noted) as guest:
            guest.port.run(START, SECONDS)
            self._session = guest.session
            guest.qemu.save_state(self._state)
        self._hardware = hardware[0]

    def tried(self, batch: Sequence[Change]) -> Iterator[Tried]:
        """Begin from the state, and yield the outcome of each change, made right before the machine verifies.

        A machine that is stopped is given the next change; one that resumes is the last of its batch. Raises LabError.
        """
        disk = self._folder / f"changed-{threading.get_ident()}.img"
        if not disk.exists():
            copy_disk(self._folder / IMAGE_NAME, disk)
        first, *others = self._hardware.disks
        hardware = replace(self._hardware, disks=(replace(first, path=disk), *others), state=self._state)
        with qemu(hardware) as machine:
            port = Port(machine)
            machine.continue_from_state()
            guest = RunningGuest(machine, port, self._session, time.monotonic())
            for change in batch:
                with changed(disk, change):
                    outcome, line = self._outcome(guest)
                yield Tried(change.part, change.at, change.bits, outcome, line)
                if outcome != "stopped":
                    return

    def _outcome(self, guest: RunningGuest) -> tuple[str, str]:
        printed = len(guest.qemu.console())
        guest.port.send(RESUME)
        reply = guest.port.reply(None, SECONDS, "verifying")
        console = guest.qemu.console()[printed:]
        looks = [words for words in KERNEL_LOOKS if words in console]
        said = [line for line in console.splitlines() if "hibernaut: " in line]
        line = said[0].partition("hibernaut: ")[2] if said else ""
        if reply.session == self._record.session:
            passed, reason, _ = verify_resumed(guest, self._record, reply)
            if looks != list(KERNEL_LOOKS):
                return f"resumed without {KERNEL_LOOKS}", line
            return "resumed" if passed else reason, line
        writes = self._writes(guest)
        has_verdict = line.startswith("not resuming: ") and any(words in line for words in VERDICTS)
        if reply.session != self._session or looks or writes or not has_verdict:
            return f"session {reply.session}, {writes} writes, kernel says {looks}, verifier {said[-1:]}", line
        return "stopped", line

    @staticmethod
    def _writes(guest: RunningGuest) -> int:
        """Return how often the machine has written to its first disk, as QEMU counts."""
        (stats,) = [one["stats"] for one in guest.qemu.execute("query-blockstats") if one["device"] == "disk0"]
        return int(stats["wr_operations"])


@contextmanager
def changed(disk: Path, change: Change) -> Iterator[None]:
    """Flip the bits of a change for the time of the block."""
    with disk.open("r+b", buffering=0) as file:
        before = os.pread(file.fileno(), 1, change.at)
        os.pwrite(file.fileno(), bytes([before[0] ^ change.bits]), change.at)
        try:
            yield
        finally:
            os.pwrite(file.fileno(), before, change.at)


def unread_blocks(image: Path, order: ReadingOrder) -> list[int]:
    """Return the blocks of a disk that have no content, and that neither image nor manifest uses."""
    used = {order.header_block, *order.map_blocks, *order.entries}
    with image.open("rb") as file:
        return [
            number
            for number, block in enumerate(iter(partial(file.read, 4096), b""))
            if number not in used and not any(block)
        ]


def try_changes(lab: Lab, folder: Path, number: int, seed: int, jobs: int = 2) -> Iterator[Tried]:
    """Let a guest hibernate, seal its image, and yield the outcome of each change.

    Args:
        lab: the laboratory.
        folder: existing folder for disks and states.
        number: number of changes of covered bytes.
        seed: seed of the choices.
        jobs: machines at a time.

    Raises:
        LabUnavailable, LabError: a guest does not do its part.
    """
    record = hibernate_sealed(lab, folder)
    order = order_of(folder / IMAGE_NAME)
    waiting = WaitingVerifier(lab, record, folder)
    chosen = changes(order, unread_blocks(folder / IMAGE_NAME, order), number, seed)
    for some in ordered_results((partial(_list, waiting, one) for one in batches(chosen)), workers=jobs):
        yield from some


def _list(waiting: WaitingVerifier, batch: Sequence[Change]) -> list[Tried]:
    return list(waiting.tried(batch))


def batches(chosen: Iterable[Change]) -> Iterator[list[Change]]:
    """Yield changes in lists, each of which ends with one that leaves what a kernel reads as it is."""
    batch = []
    for one in chosen:
        batch.append(one)
        if one.part in PARTS[-2:]:
            yield batch
            batch = []


def read_record(path: Path = RECORD) -> tuple[dict[str, object], list[Tried]]:
    """Return the head of a record, and its outcomes."""
    head, *lines = map(json.loads, path.read_text().splitlines())
    return head, [Tried(*line) for line in lines]


def write_record(release: str, seed: int, found: Sequence[Tried]) -> None:
    """Write the outcomes so far, a line each, after a line about all."""
    number = sum(one.part not in PARTS[-2:] for one in found)
    head = {"kernel": release, "changes": number, "seed": seed, "of": [*asdict(found[0])]}
    lines = [head, *([*asdict(one).values()] for one in found)]
    RECORD.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def main() -> int:
    """Try changes and print a line for each outcome that is not as it must be; 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no change afterwards")
    parser.add_argument("--write", action="store_true", help=f"write {RECORD.name}")
    given = parser.parse_args()
    cache = Cache()
    lab = Lab(get_kernel(cache, line_named("6.1")), cache)
    found, begun, faults = [], time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="sealed-changes-") as folder:
        for tried in try_changes(lab, Path(folder), given.changes, given.seed, given.jobs):
            found.append(tried)
            is_expected = tried.outcome == ("resumed" if tried.part in PARTS[-2:] else "stopped")
            faults += not is_expected
            if not is_expected or tried.part in PARTS[-2:]:
                sys.stdout.write(f"{len(found)}, {time.monotonic() - begun:.0f} s: {tried}\n")
                sys.stdout.flush()
            if tried.part in PARTS[-2:] and given.write:  # a run of hours may be interrupted
                write_record(lab.kernel.release, given.seed, found)
            if tried.part in PARTS[-2:] and time.monotonic() - begun > given.seconds:
                break
    sys.stdout.write(f"{len(found)} tried in {time.monotonic() - begun:.0f} s, {faults} not as expected\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
