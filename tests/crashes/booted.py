# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m tests.crashes.booted`: give real kernels areas as a loss of power leaves them in `rewrite --in-place`.

A guest of the laboratory hibernates; its image is rewritten in place, with two of its pages changed, and the calls are
recorded. An instant is a set of those calls that are on the disk, whole or in a share of their sectors. Each is judged
by reading every page (`Judge`), and then given to a machine that has booted the guest's kernel: it resumes, and the
guest compares all of its pages and reads the two changed ones; or it continues, and swaps to the area.

With a sync left out, the judge says "half" of some instants: the kernels' outcomes show whether such a state matters.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import HibernautError, LabError
from hibernaut.lab.cases.steps import hibernate, open_saved
from hibernaut.lab.guest_state import RunningGuest, image_messages
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.kernels import get_kernel, line_named
from hibernaut.lab.laboratory import HIBERNATE_SECONDS, Hibernated, Lab, silent_since_a_crash, start_resume
from hibernaut.lab.parser.waiting import WaitingMachine
from hibernaut.lab.record import SPARE_NAME, GuestRecord
from hibernaut.lab.variants import variant_named
from hibernaut.lab.vm.disks import copy_disk
from hibernaut.swsusp import open_image, rewrite_image
from tests.crashes.calls import Call, Recorder
from tests.crashes.disk import lose_power

__all__ = [
    "CHANGES",
    "HEAD",
    "IMAGES",
    "IN_PLACE",
    "RECORDED",
    "REWRITTEN",
    "Booted",
    "Instant",
    "booted_states",
    "drawn",
    "named",
    "table",
]

RECORDED = Path(__file__).with_name("booted.jsonl")
CHANGES = {17: b"changed by a rewrite", 900: b"changed by the same one"}
"""Pages of the guest's locked region, and what the rewrite writes at their begin."""
SIGNATURE_AT, SWAP_SIGNATURE = 4086, b"SWAPSPACE2"
REWRITTEN = "none, rewritten"
IMAGES = {"lzo": "lzo", "none": "none", REWRITTEN: "none"}
"""Kinds of images, and the variant of the guest: compressed or not, as the kernel wrote it; and not compressed and
rewritten once before, so that the blocks stay where they are and only sectors of the changed pages differ."""
IN_PLACE = ("nothing", "half of the blocks", "the header", "half of the blocks, not given up",
            "the header and half of the blocks")  # fmt: skip
"""Instants of `named` that matter if blocks stay in place: with all or none of them on the disk, nothing is mixed."""
KERNELS = ("6.1", "7.3")
COMPLAINT = re.compile(r"Invalid|[Mm]ismatch|[Ff]ailed|error|decompress", re.MULTILINE)
"""Words of a kernel that began to read an image, and gave it up."""


@dataclass(frozen=True)
class Instant:
    """Calls of the rewrite that are on the disk when power is lost.

    Attributes:
        name: noun phrase.
        synced: positions of the calls that are on the disk, of all writes in their order.
        pending: positions of calls of which a share of the sectors is.
        share: that share.
        without: the sync that is left out: "", "first" or "second".
        seed: seed of the share.
    """

    name: str
    synced: tuple[int, ...] = ()
    pending: tuple[int, ...] = ()
    share: float = 1.0
    without: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Booted:
    """An area that a kernel was given.

    Attributes:
        kernel: its release.
        image: its kind, of `IMAGES`.
        instant: what was on the disk.
        without: the sync that was left out, or "".
        judged: old, none, new, or half with the reason.
        outcome: old, new or none, as the guest and its kernel show; or refused, wrong, crashed, hung.
        says: the kernel's words, or what the guest found.
    """

    kernel: str
    image: str
    instant: str
    without: str
    judged: str
    outcome: str
    says: str


# ---- instants ----


def _steps(writes: int) -> tuple[int, tuple[int, ...], int]:
    """Return the positions of the writes that give the old image up, put the blocks, and put the header."""
    return 0, tuple(range(1, writes - 1)), writes - 1


def named(writes: int) -> tuple[Instant, ...]:
    """Return an instant of each kind: those of the rewrite as it is, then those without its first and second sync."""
    given_up, blocks, header = _steps(writes)
    return (
        Instant("nothing"),
        Instant("given up", (given_up,)),
        Instant("half of the blocks", (given_up,), blocks, 0.5),
        Instant("all blocks", (given_up, *blocks)),
        Instant("the header", (given_up, *blocks, header)),
        Instant("half of the blocks, not given up", (), blocks, 0.5, "first"),
        Instant("all blocks, not given up", blocks, without="first"),
        Instant("the header and no block", (given_up, header), without="second"),
        Instant("the header and half of the blocks", (given_up, header), blocks, 0.5, "second"),
    )


def drawn(calls: Sequence[Call], count: int, seed: int) -> Iterator[Instant]:
    """Yield instants of the rewrite as it is, drawn from all: a prefix of the calls, and a share of what is not synced.

    Args:
        calls: its writes and syncs.
        count: number of instants.
        seed: the same seed draws the same instants.
    """
    luck = random.Random(seed)
    for number in range(count):
        stop = luck.randint(0, len(calls))
        synced = max((at + 1 for at, call in enumerate(calls[:stop]) if call.what == "sync"), default=0)
        writes = [at for at, call in enumerate(calls) if call.what == "write"]
        done = tuple(at for at, call in enumerate(writes) if call < synced)
        pending = tuple(at for at, call in enumerate(writes) if synced <= call < stop)
        share = luck.choice((0.05, 0.5, 0.95))
        name = f"call {stop} of {len(calls)}, {share:.0%} of what is not synced"
        yield Instant(name, done, pending, share, seed=seed + number)


def put(disk: Path, writes: Sequence[Call], instant: Instant) -> None:
    """Bring a disk, which has the old image, to an instant."""
    sync = Call("sync", 0)
    calls = [*(writes[at] for at in instant.synced), sync, *(writes[at] for at in instant.pending)]
    with disk.open("r+b") as file:
        lose_power(file.fileno(), calls, instant.seed, instant.share)


# ---- the judge ----


class Judge:
    """Reads an area as no kernel does: every page, against those of the old image and of the new one.

    Args:
        record: the guest's record.
        old: disk with the old image.
        new: disk with the new one.
    """

    def __init__(self, record: GuestRecord, old: Path, new: Path) -> None:
        self._record = record
        self._old, self._new = self._digests(old), self._digests(new)
        assert (self._old != self._new).any()

    def _digests(self, disk: Path) -> NDArray[np.uint32]:
        """Return the CRC-32 of each saved frame, by its number."""
        with open_image(disk, offset=self._record.offset, partition=self._record.partition) as image:
            found = np.zeros(image.frames.pfns().max() + 1, dtype=np.uint32)

            def note(pfns: NDArray[np.int64], pages: NDArray[np.uint8]) -> None:
                found[pfns] = [zlib.crc32(page) for page in pages]

            image.for_each(note)
        return found

    def verdict(self, disk: Path) -> str:
        """Return old, none, new, or half with the reason."""
        with disk.open("rb") as file:
            file.seek(SIGNATURE_AT)
            if file.read(len(SWAP_SIGNATURE)) == SWAP_SIGNATURE:
                return "none"
        try:
            found = self._digests(disk)
        except HibernautError as error:
            return f"half: {str(error).replace(str(disk), 'the area')}"
        for word, digests in (("old", self._old), ("new", self._new)):
            if np.array_equal(found, digests):
                return word
        if found.shape != self._old.shape:
            return "half: other frames"
        neither = int(((found != self._old) & (found != self._new)).sum())
        of_new = int(((found != self._old) & (found == self._new)).sum())
        return f"half: {neither} pages of neither image, {of_new} of the {int((self._old != self._new).sum())} changed"


# ---- the kernel ----


class Machine(WaitingMachine):
    """A machine that has booted, and is given one area after another."""

    def _outcome(self, guest: RunningGuest) -> tuple[str, str]:
        """Return the outcome, and what shows it."""
        record, port = self._record, guest.port
        port.is_lost = silent_since_a_crash(guest, 0)
        start_resume(guest, "vda", record.partition, record.offset)
        try:
            reply = port.reply(None, HIBERNATE_SECONDS, "resuming")
            if reply.session == guest.session:
                return _not_resumed(guest)
            if reply.session != record.session:
                return "wrong", f"another machine was resumed (session {reply.session})"
            return _resumed(guest)
        except LabError as error:
            if port.ended or port.lost:
                return "crashed", guest.crash_message()
            return "hung", str(error)


def _not_resumed(guest: RunningGuest) -> tuple[str, str]:
    """Return whether the kernel saw no image, or refused one, and whether the area is swap."""
    log = guest.qemu.console()
    swap = guest.port.ask("echo 3 > /proc/sys/vm/drop_caches; swapon /dev/vda && cat /proc/swaps")
    if swap.status:
        return "wrong", f"{image_messages(log)}; swapon: {' / '.join(swap.lines)}"
    return "refused" if COMPLAINT.search(log) else "none", f"{image_messages(log)}; the area is swap"


def _resumed(guest: RunningGuest) -> tuple[str, str]:
    """Return which image a resumed guest has: it compares its pages, and reads the changed ones."""
    locked, loose = guest.port.ask("!verify locked"), guest.port.ask("!verify loose")
    seen = {
        page: guest.port.ask(f"!peek locked {page} 0 {len(data)}").lines == (f"bytes {data.hex()}",)
        for page, data in CHANGES.items()
    }
    bad = sorted(int(found[1]) for line in locked.lines if (found := re.match(r"bad page=(\d+) ", line)))
    says = f"{locked.lines[-1]}, {loose.lines[-1]}, changed pages {[page for page, there in seen.items() if there]}"
    if loose.status == 0 and locked.status == 0 and not any(seen.values()):
        return "old", says
    if loose.status == 0 and bad == sorted(CHANGES) and all(seen.values()):
        return "new", says
    return "wrong", says


# ---- all of it ----


def rewritten(saved: Hibernated, disk: Path) -> list[Call]:
    """Rewrite the image on a copy of the guest's disk in place, and return the writes and syncs."""
    writes = []
    for page, data in CHANGES.items():
        first, frame = next(
            (start, frame) for start, frame, count in saved.record.frames if start <= page < start + count
        )
        writes.append(((frame + page - first) * 4096, data))
    copy_disk(saved.image, disk)
    recorder = Recorder(disk.parent, contents=False)
    with open_saved(replace(saved, folder=disk.parent)) as image, recorder.watching():
        rewrite_image(image, writes=writes)
    return [call for call in recorder.calls if call.what in ("write", "sync")]


def booted_states(
    lab: Lab, kind: str, folder: Path, *, count: int = 0, seed: int = 0, names: Iterable[str] | None = None
) -> Iterator[Booted]:
    """Yield what a kernel does with each instant.

    Args:
        lab: laboratory with the kernel.
        kind: kind of image, of `IMAGES`.
        folder: existing empty folder.
        count: number of instants that are drawn, besides those of `named`.
        seed: their seed.
        names: names of those of `named` that are wanted; None: all.
    """
    (folder / "saved").mkdir()
    (folder / "new").mkdir()
    saved = hibernate(lab, variant_named(IMAGES[kind]), folder / "saved")
    if kind == REWRITTEN:
        with open_saved(saved) as image:
            rewrite_image(image)
        names = set(IN_PLACE) & set(IN_PLACE if names is None else names)
    new = folder / "new" / saved.image.name
    calls = rewritten(saved, new)
    writes = [call for call in calls if call.what == "write"]
    judge = Judge(saved.record, saved.image, new)
    machine = Machine(lab, saved.record, [saved.image, saved.folder / SPARE_NAME], folder)
    instants = [one for one in named(len(writes)) if names is None or one.name in names]
    for instant in [*instants, *drawn(calls, count, seed)]:
        tried = folder / "tried.img"
        copy_disk(saved.image, tried)
        put(tried, writes, instant)
        judged = judge.verdict(tried)
        seed = instant.seed
        while instant.without and not judged.startswith("half"):  # none of the changed sectors, or all of them
            seed += 1
            copy_disk(saved.image, tried)
            put(tried, writes, replace(instant, seed=seed))
            judged = judge.verdict(tried)
        found = machine.resume(tried)
        yield Booted(lab.kernel.release, kind, instant.name, instant.without, judged, found.outcome, found.says)


HEAD = "| image | on the disk | without a sync | judged |"


def table(found: Iterable[Booted]) -> str:
    """Return the table of docs/reliability.md: a column for each kernel, one row for all instants that are drawn."""
    kernels: list[str] = []
    rows: dict[tuple[str, ...], dict[str, Counter[str]]] = {}
    for one in found:
        kernels += [one.kernel] if one.kernel not in kernels else []
        instant = "drawn" if one.instant.startswith("call ") else one.instant
        row = rows.setdefault((one.image, instant, one.without, one.judged.partition(":")[0]), {})
        row.setdefault(one.kernel, Counter())[one.outcome] += 1
    lines = [f"{HEAD} {' | '.join(kernels)} |\n", f"|{'---|' * (4 + len(kernels))}\n"]
    for words, outcomes in sorted(rows.items(), key=lambda row: list(IMAGES).index(row[0][0])):
        counts = [outcomes.get(kernel, Counter()).items() for kernel in kernels]
        cells = [", ".join(f"{n} {word}" if words[1] == "drawn" else word for word, n in one) for one in counts]
        lines.append(f"| {' | '.join((*words, *cells))} |\n")
    return "".join(lines)


def main() -> None:
    """Boot all instants, and replace those of the same kernels in `RECORDED`."""
    parser = argparse.ArgumentParser(prog="python -m tests.crashes.booted", description=main.__doc__)
    parser.add_argument("--kernel", action="append", help=f"kernel line; repeatable. Default: {', '.join(KERNELS)}")
    parser.add_argument("--image", action="append", choices=tuple(IMAGES), help="kind of image. Default: all")
    parser.add_argument("--count", type=int, default=2, help="instants to draw for each kernel and image. Default: 2")
    parser.add_argument("--seed", type=int, default=0, help="seed of those that are drawn. Default: 0")
    arguments = parser.parse_args()
    cache = Cache()
    lines = RECORDED.read_text().splitlines() if RECORDED.exists() else []
    kept = [Booted(**json.loads(line)) for line in lines]
    for line in arguments.kernel or KERNELS:
        lab = Lab(get_kernel(cache, line_named(line)), cache)
        images = arguments.image or tuple(IMAGES)
        kept = [one for one in kept if one.kernel != lab.kernel.release or one.image not in images]
        for kind in images:
            folder = Path(tempfile.mkdtemp(prefix="booted-"))
            try:
                for one in booted_states(lab, kind, folder, count=arguments.count, seed=arguments.seed):
                    kept.append(one)
                    sys.stdout.write(f"{json.dumps(asdict(one))}\n")
                    sys.stdout.flush()
            finally:
                shutil.rmtree(folder)
            kept.sort(key=lambda one: ([int(part) for part in re.findall(r"\d+", one.kernel)], one.image))
            RECORDED.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in kept))


if __name__ == "__main__":
    main()
