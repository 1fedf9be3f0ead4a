# SPDX-License-Identifier: GPL-2.0-or-later
"""What must pass: each case a function that runs real kernels and says what it saw; and what runs them all.

A case raises `Failed` where a kernel, or we, did not do what is claimed.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hibernaut.errors import CorruptImage, FormatError, HibernautError, LabUnavailable
from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.operations import hibernation
from hibernaut.exploration.plan import layouts
from hibernaut.exploration.replay import FamilyMachine, Written, play
from hibernaut.hibernation.ways import FixmapNoFlush, Remap, Way
from hibernaut.lab.confirm import confirm, died_of_a_list, foretold
from hibernaut.lab.conformance import Compared, compare_copy, compare_death, random_variant
from hibernaut.lab.golden import check_golden, make_golden
from hibernaut.lab.host.kernels import Kernel
from hibernaut.lab.scenario import SPARE_NAME, Hibernated, Lab, Resumed
from hibernaut.lab.takeover import Takeover, take_over
from hibernaut.lab.variants import Swap, Variant, variant_named
from hibernaut.lab.vm.disks import PARTITION_START_BYTES, copy_disk
from hibernaut.linux import DirectMap
from hibernaut.linux.rules import LINES
from hibernaut.memory.physical import PAGE_SIZE
from hibernaut.paging.spans import Stop
from hibernaut.swsusp import Image, inspect_image, open_image, rewrite_image
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.declarations import HEADER, INFO, SIGNATURE
from hibernaut.swsusp.rules import image_rules_for_release
from hibernaut.swsusp.verdict import Answer, ResumingMachine, Verdict, verdict_on
from hibernaut.volumes.files import open_plain

__all__ = ["QUICK", "Case", "Result", "cases_of", "prove"]

CHANGED = b"changed by hibernaut rewrite"
CHANGED_PAGE = 17
COPY_SEED, LA57_SEED, DEATH_SEED = 1, 3, 2
KILLS = 20
KILL_SEED = 20


class Failed(Exception):
    """A claim that did not hold; the message says what was seen instead."""


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: what is tried.
        must: what must come of it.
        run: does it in a folder of its own and says what was seen. Raises Failed.
    """

    name: str
    must: str
    run: Callable[[Lab, Path], str]


@dataclass(frozen=True)
class Result:
    """What came of a case on a kernel.

    Attributes:
        kernel: the line's name, or the release.
        release: of the kernel.
        case: the case's name.
        must: what must come of it.
        passed: True, False, or None if it could not be run.
        seen: what was seen.
        seconds: how long it took.
    """

    kernel: str
    release: str
    case: str
    must: str
    passed: bool | None
    seen: str
    seconds: float

    @property
    def word(self) -> str:
        """PASS, FAIL or SKIP."""
        return {True: "PASS", False: "FAIL", None: "SKIP"}[self.passed]


# ---- tools of the cases ----


def _hibernate(lab: Lab, variant: Variant, folder: Path) -> Hibernated:
    """Let a guest hibernate. Raises Failed if it does not."""
    done = lab.hibernate(variant, folder)
    if done.outcome != "hibernated":
        raise Failed(f"the guest did not hibernate: {done.outcome}: {done.reason}")
    return done


def _resume(lab: Lab, saved: Hibernated, image: Path, questions: Sequence[str] = ()) -> Resumed:
    """Resume from a disk in place of the guest's own."""
    record = saved.record
    disks = [image, saved.folder / SPARE_NAME]
    return lab.resume(
        record, disks, image.parent, partition=record.partition, offset=record.offset, questions=questions
    )


def _must_pass(resumed: Resumed, what: str) -> str:
    if not resumed.passed:
        raise Failed(f"{what}: {resumed.reason}")
    return resumed.reason


def _must_be_whole(taken: Takeover) -> None:
    """Our image resumes and the direct map is what it was. Raises Failed."""
    _must_pass(taken.resumed, "our image")
    if taken.findings:
        raise Failed(f"direct map: {taken.findings[0]}")


def _open(saved: Hibernated) -> Image:
    """The image on the guest's disk."""
    return open_image(saved.image, offset=saved.record.offset, partition=saved.record.partition)


def _verdict(lab: Lab, disk: Path, machine: ResumingMachine) -> Verdict:
    """What `inspect` says that the guest's kernel will say. Raises FormatError if there is no image."""
    with open_plain(disk) as file:
        return verdict_on(inspect_image(file), image_rules_for_release(lab.kernel.release), machine)


def _compressors(lab: Lab) -> list[CompressorName]:
    return [*image_rules_for_release(lab.kernel.release).compressors, "none"]


def _rewritten(lab: Lab, saved: Hibernated, compressor: CompressorName) -> str:
    """Rewrite the guest's image and resume from that."""
    out = saved.folder / f"rewritten-{compressor}.img"
    with _open(saved) as image:
        written = rewrite_image(image, out, compressor=compressor)
    _must_pass(_resume(lab, saved, out), f"rewritten with {compressor}")
    return f"{compressor}: {written.stored_pages} pages in {written.blocks} blocks"


# ---- the cases ----


def _own_words(lab: Lab, folder: Path) -> str:
    """Images and dumps of four guests, read by us, against what the guest and its kernel said of them."""
    golden, workshop = folder / "golden", folder / "workshop"
    golden.mkdir()
    workshop.mkdir()
    expected = make_golden(lab, golden, workshop, lambda _text: None)
    wrong = check_golden(golden, expected)
    if wrong:
        raise Failed("; ".join(wrong))
    return f"{', '.join(expected)}: {sum(map(len, expected.values()))} facts agree"


def _rewrite(lab: Lab, folder: Path) -> str:
    """The kernel's own image, uncompressed so that every other form fits its blocks, in each form it knows."""
    saved = _hibernate(lab, variant_named("none"), folder)
    own = _must_pass(_resume(lab, saved, saved.image), "the kernel's own image")
    seen = [_rewritten(lab, saved, compressor) for compressor in _compressors(lab)]
    return f"{own}; {'; '.join(seen)}"


def _changed_marker(lab: Lab, folder: Path) -> str:
    """One page of the guest's changed in the image: the resumed guest sees this change and no other."""
    saved = _hibernate(lab, variant_named("lzo"), folder)
    first, frame = next(
        (page, frame) for page, frame, count in saved.record.frames if page <= CHANGED_PAGE < page + count
    )
    paddr = (frame + CHANGED_PAGE - first) * PAGE_SIZE
    out = folder / "changed.img"
    with _open(saved) as image:
        rewrite_image(image, out, writes=[(paddr, CHANGED)], compressor="lzo")
    resumed = _resume(lab, saved, out, [f"!peek locked {CHANGED_PAGE} 0 {len(CHANGED)}", "!verify locked"])
    peek, verify = resumed.facts.get("answers") or ([resumed.reason], [""])
    if list(peek) != [f"bytes {CHANGED.hex()}"]:
        raise Failed(f"the guest sees {peek}")
    if not verify[-1].endswith("bad=1") or f"page={CHANGED_PAGE} " not in verify[0]:
        raise Failed(f"the guest says {verify}")
    return f"page {CHANGED_PAGE} at {paddr:#x} reads {CHANGED.decode()!r}, the other pages as they were"


def _from_dump(variant: str, lab: Lab, folder: Path) -> str:
    """A guest stopped before the copy loop, saved by us, resumed by its stock kernel."""
    taken = take_over(lab, variant_named(variant), folder)
    _must_be_whole(taken)
    return f"{taken.resumed.reason}; {taken.written.saved_pages} pages; direct map entry by entry the same"


def _lost_table(lab: Lab, folder: Path) -> str:
    """A block whose PMD table is copied after the split: the kernel's image is torn and shows it, ours is whole."""
    taken = take_over(lab, variant_named("hole-2m"), folder, resume_stock=True)
    if taken.stock_resumed is None:
        raise Failed(f"the kernel made no image of its own: {taken.stock.outcome} {taken.stock.reason}")
    if "direct map garbage" not in taken.stock_resumed.reason:
        raise Failed(f"the kernel's own image was to come back with garbage: {taken.stock_resumed.reason}")
    block = int(taken.stock.record.regions[0]["block"], 16)
    with _open(taken.stock) as image:
        found = {hole.kind for hole in DirectMap.find(image.memory(), image.info.cr3).holes if hole.start_pfn == block}
    if Stop.TABLE_MISSING not in found:
        raise Failed(f"the map of the kernel's image says {found} of block {block:#x}")
    _must_be_whole(taken)
    return f"its own: {taken.stock_resumed.reason}, map said table-missing; ours: {taken.resumed.reason}"


def _failing_allocation(lab: Lab, folder: Path) -> str:
    """The split's allocation fails: the stock kernel dies, ours resumes."""
    taken = take_over(lab, variant_named("hole-2m-fails"), folder)
    if taken.stock.outcome != "died" or "Failed to remap page" not in taken.stock.log:
        raise Failed(f"the stock kernel was to die: {taken.stock.outcome} {taken.stock.reason}")
    _must_be_whole(taken)
    return f"stock: {taken.stock.reason}; ours: {taken.resumed.reason}"


def _as_modelled(compare: Callable[[Lab, Variant, Path], Compared], variant: Variant, lab: Lab, folder: Path) -> str:
    """A guest with regions drawn by chance: its kernel's copy and the model's come to the same."""
    compared = compare(lab, variant, folder)
    if compared.differences:
        more = len(compared.differences) - 3
        raise Failed("; ".join(compared.differences[:3]) + (f"; and {more} more" if more > 0 else ""))
    return compared.seen


def _flawed_way(way: Way, block: str, must: str, lab: Lab, folder: Path) -> str:
    """A way known to be wrong: the resumed guest must find out, else its checks are worth nothing."""
    taken = take_over(lab, variant_named(block), folder, way=way)
    if taken.passed or must not in taken.resumed.reason:
        raise Failed(f"{way.name} was to end in {must!r}: {taken.resumed.reason}")
    return taken.resumed.reason


def _swap_place(swap: Swap, lab: Lab, folder: Path) -> str:
    """The swap area not at the start of a disk: own image, and rewritten."""
    saved = _hibernate(lab, variant_named(swap.value), folder)
    own = _must_pass(_resume(lab, saved, saved.image), "the kernel's own image")
    record = saved.record
    where = f"partition at byte {PARTITION_START_BYTES}" if record.partition else f"resume_offset {record.offset}"
    return f"{where}: {own}; {_rewritten(lab, saved, 'lzo')}"


Damage = Callable[[Image, Path], None]


def _flip_bit(image: Image, disk: Path) -> None:
    """One bit of compressed data: in the first block of the unit that has most, so that it cannot be padding."""
    index = image.stream.index
    block = int(image.swap_map.entries[index.first_entry[int(np.argmax(index.compressed_bytes))]])
    _patch(disk, image.area.offset_of(block) + PAGE_SIZE // 2, lambda old: bytes([old[0] ^ 0x10]), 1)


def _cut(image: Image, disk: Path) -> None:
    """The disk ends in the middle of the image."""
    blocks = sorted(image.swap_map.blocks.tolist())
    os.truncate(disk, image.area.offset_of(blocks[len(blocks) // 2]))


def _other_memory_map(image: Image, disk: Path) -> None:
    """The info page of a machine with another firmware memory map."""
    _patch_info(image, disk, "e820_checksum", lambda value: value ^ 1)


def _other_memory_size(image: Image, disk: Path) -> None:
    """The info page of a machine with more memory."""
    _patch_info(image, disk, "num_physpages", lambda value: value + 0x8000)


def _other_magic(image: Image, disk: Path) -> None:
    """The info page of a kernel with another format of it."""
    _patch_info(image, disk, "magic", lambda _value: 0x0123456789ABCDEF)


def _plain_swap(image: Image, disk: Path) -> None:
    """The signature of an area without an image."""
    at = image.area.offset_of(image.area.header_block) + _offset_in(HEADER, "sig")
    _patch(disk, at, lambda _old: image.header.orig_sig, 10)


def _patch_info(image: Image, disk: Path, name: str, change: Callable[[int], int]) -> None:
    at, size_bytes = _offset_in(INFO, name), INFO[name].itemsize
    block = image.area.offset_of(int(image.swap_map.entries[0]))
    _patch(
        disk,
        block + at,
        lambda old: change(int.from_bytes(old, "little")).to_bytes(size_bytes, "little"),
        size_bytes,
    )


def _offset_in(record: np.dtype[np.void], name: str) -> int:
    """Byte at which a field of a declared structure begins."""
    fields = record.fields
    assert fields is not None
    return fields[name][1]


def _patch(path: Path, at: int, change: Callable[[bytes], bytes], size_bytes: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(size_bytes)
        file.seek(at)
        file.write(change(old))


DAMAGES: tuple[Damage, ...] = (_flip_bit, _cut, _other_memory_map, _other_memory_size, _other_magic, _plain_swap)


def _refusals(lab: Lab, folder: Path) -> str:
    """Damaged and foreign images: `inspect` says beforehand what the kernel then says itself."""
    saved = _hibernate(lab, variant_named("lzo"), folder)
    with _open(saved) as image:
        machine = ResumingMachine(
            "the guest", image.info.e820_checksum, image.info.physical_pages, 0, lab.kernel.release
        )
        _foretell_good(lab, image, machine)
        seen = []
        for damage in DAMAGES:
            name = damage.__name__.strip("_").replace("_", " ")
            disk = folder / f"{damage.__name__.strip('_')}.img"
            copy_disk(saved.image, disk)
            damage(image, disk)
            said = _foretold(lab, disk, machine)
            resumed = _resume(lab, saved, disk)
            if resumed.passed or not resumed.reason.startswith("fresh boot"):
                raise Failed(f"{name}: the kernel was to refuse: {resumed.reason}")
            if said and not re.search(_pattern(said), resumed.log):
                raise Failed(f"{name}: foretold {said!r}, the kernel said {resumed.reason}")
            seen.append(f"{name}: {said or 'no image, no word'}")
            disk.unlink()
    return "; ".join(seen)


def _foretell_good(lab: Lab, image: Image, machine: ResumingMachine) -> None:
    verdict = _verdict(lab, image.area.file.path, machine)
    if verdict.resumes is not True:
        raise Failed(f"an undamaged image was foretold to be refused: {verdict.checks}")


def _foretold(lab: Lab, disk: Path, machine: ResumingMachine) -> str | None:
    """What `inspect` says the kernel will say; None if it says that there is no image."""
    try:
        verdict = _verdict(lab, disk, machine)
    except FormatError as error:
        if isinstance(error, CorruptImage):
            raise
        return None
    refusals = [check for check in verdict.checks if check.answer is Answer.REFUSES]
    if not refusals:
        raise Failed(f"{disk.stem}: inspect foretold no refusal")
    return refusals[0].message


def _pattern(message: str) -> str:
    """A message as a pattern: `?` stands for what cannot be known beforehand."""
    return ".*".join(re.escape(part) for part in message.split("?"))


def _killed(lab: Lab, folder: Path) -> str:
    """`rewrite --in-place` killed at random instants: what is left is the old image, none, or the new one."""
    saved = _hibernate(lab, variant_named("none"), folder)
    chance = random.Random(KILL_SEED)
    area = folder / "area.img"
    for _ in range(2):  # the first one finds its files not in memory, and takes longer than all others
        with _rewriting(saved.image, area) as writer:
            began = time.monotonic()
            _wait_for(writer, area, image_there=False)
            given_up = time.monotonic()
            _wait_for(writer, area, image_there=True)
            until_given_up, without_image = given_up - began, time.monotonic() - given_up
    outcomes = {"old": 0, "none": 0, "new": 0}
    boots: dict[str, str] = {}
    for number in range(KILLS):
        # Half of the kills while the new image is prepared, half while the area holds none, and a little after each.
        with _rewriting(saved.image, area) as writer:
            if number % 2:
                _wait_for(writer, area, image_there=False)
            time.sleep(chance.uniform(0, 1.2 * (without_image if number % 2 else until_given_up)))
        state = _state_of(area)
        outcomes[state] += 1
        if state not in boots:
            resumed = _resume(lab, saved, area)
            if resumed.passed is not (state != "none"):
                raise Failed(f"area left with {state} image: {resumed.reason}")
            boots[state] = resumed.reason
    counted = ", ".join(f"{count} {state}" for state, count in outcomes.items())
    return f"{KILLS} kills: {counted}; booted: {'; '.join(f'{state}: {reason}' for state, reason in boots.items())}"


@contextmanager
def _rewriting(image: Path, area: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command line rewriting a copy of an image in place, as LZO; killed on leaving, if it is still there."""
    copy_disk(image, area)
    command = [sys.executable, "-m", "hibernaut", "rewrite", str(area), "--in-place", "--compressor", "lzo", "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def _wait_for(writer: subprocess.Popen[bytes], area: Path, *, image_there: bool) -> None:
    """Until the area holds an image, or none; or until its writer has ended."""
    with area.open("rb", buffering=0) as file:
        while writer.poll() is None:
            if (os.pread(file.fileno(), len(SIGNATURE), PAGE_SIZE - len(SIGNATURE)) == SIGNATURE) is image_there:
                return
            time.sleep(0.0005)


def _state_of(area: Path) -> str:
    """old, none or new: which image a killed writer left. Raises Failed for anything else."""
    try:
        with open_image(area) as image:
            image.read_all()
            return "new" if image.compressor == "lzo" else "old"
    except CorruptImage as error:
        raise Failed(f"half an image that a kernel may take: {error}") from error
    except FormatError:
        return "none"


def _as_explored(region: RegionKind, tables: Side, choices: tuple[int, ...], lab: Lab, folder: Path) -> str:
    """One of the explorer's counterexamples, arranged in a guest: its kernel must do what the model did."""
    return _confirmed(Family(regions=(1,), kinds=(region,), tables=(tables,)), choices, lab, folder)


def _allocator_as_explored(pages: Side, lists: Side, lab: Lab, folder: Path) -> str:
    """The same with the allocator's own pages elsewhere, and pages allocated on the resumed machine."""
    family = Family(
        regions=(1,),
        kinds=(RegionKind.BLOCK,),
        tables=(Side.BELOW,),
        mem_map=(pages,),
        zone=(pages,),
        free=(pages,),
        pcp=(lists,),
    )
    return _confirmed(family, (), lab, folder, allocations_after=family.free_pages)


def _confirmed(family: Family, choices: tuple[int, ...], lab: Lab, folder: Path, *, allocations_after: int = 0) -> str:
    """A family's only machine saved by Remap, and a guest arranged like it."""
    (unit,) = layouts(family)
    operations = hibernation("remap", allocations_after)
    played = play(Written(FamilyMachine(family, unit), LINES[0].line, operations, choices))
    found = confirm(lab, foretold(played), folder)
    if not found.agrees:
        raise Failed(f"the model says {played.outcome}; {found.seen}")
    return found.seen


def _torn_lists(lab: Lab, folder: Path) -> str:
    """Struct pages below a block, the CPU's lists above: the kernel's image has torn lists, ours has whole ones."""
    taken = take_over(lab, variant_named("torn-lists"), folder, resume_stock=True)
    if taken.stock_resumed is None:
        raise Failed(f"the kernel made no image of its own: {taken.stock.outcome} {taken.stock.reason}")
    if not died_of_a_list(taken.stock_resumed):
        raise Failed(f"the kernel's own image was to come back with torn lists: {taken.stock_resumed.reason}")
    _must_be_whole(taken)
    return f"its own: {taken.stock_resumed.reason}; ours: {taken.resumed.reason}"


CASES = (
    Case("read, against the kernel's own words", "every fact agrees", _own_words),
    Case("own image rewritten, each compressor", "resumes", _rewrite),
    Case("one marker changed in the image", "the guest sees the change", _changed_marker),
    Case("saved from a dump: 4 levels", "resumes", partial(_from_dump, "lzo")),
    Case("saved from a dump: KASLR", "resumes", partial(_from_dump, "kaslr")),
    Case("saved from a dump: 5 levels, KASLR", "resumes", partial(_from_dump, "la57")),
    Case("2 MiB not present, table above", "own image: garbage, map says so; ours: intact", _lost_table),
    Case("2 MiB not present, allocation fails", "stock kernel dies; ours resumes", _failing_allocation),
    Case(
        "saved by the model's Remap",
        "direct map garbage, as by the kernel itself",
        partial(_flawed_way, Remap(), "hole-2m", "direct map garbage"),
    ),
    Case(
        "saved through a fixmap that is not flushed",
        "the guest finds pages damaged",
        partial(_flawed_way, FixmapNoFlush(), "hole-2m-below", "511 pages damaged"),
    ),
    Case(
        "explored: an allocation fails",
        "a warning, then a page fault in the copy",
        partial(_as_explored, RegionKind.BLOCK, Side.ABOVE, (1,)),
    ),
    Case(
        "explored: an entry that is zero",
        "a page fault in the copy, no warning",
        partial(_as_explored, RegionKind.NONE, Side.BELOW, ()),
    ),
    Case(
        "explored: nothing fails, table above",
        "no sign, an image without a table, garbage",
        partial(_as_explored, RegionKind.BLOCK, Side.ABOVE, ()),
    ),
    Case(
        "explored: struct pages below, CPU lists above",
        "no sign, every table saved, the resumed kernel dies of its free lists",
        partial(_allocator_as_explored, Side.BELOW, Side.ABOVE),
    ),
    Case(
        "explored: struct pages above, CPU lists below",
        "no sign, every table saved, the resumed kernel lives",
        partial(_allocator_as_explored, Side.ABOVE, Side.BELOW),
    ),
    Case(
        "explored: struct pages and CPU lists below",
        "no sign, every table saved, the resumed kernel lives",
        partial(_allocator_as_explored, Side.BELOW, Side.BELOW),
    ),
    Case(
        "struct pages below, CPU lists above: saved from a dump",
        "own image: torn free lists; ours: intact",
        _torn_lists,
    ),
    Case(
        f"random regions, seed {COPY_SEED}: the copy against the model's",
        "page tables, map, splits entry by entry the same",
        partial(_as_modelled, compare_copy, random_variant(COPY_SEED)),
    ),
    Case(
        f"random regions, seed {LA57_SEED}, 5 levels, KASLR: the same",
        "page tables, map, splits entry by entry the same",
        partial(_as_modelled, compare_copy, random_variant(LA57_SEED, levels=5, kaslr=True)),
    ),
    Case(
        f"random regions, seed {DEATH_SEED}, allocation fails: the kernel's last words",
        "the model's, word for word; ours resumes",
        partial(_as_modelled, compare_death, random_variant(DEATH_SEED, fail_allocations=1)),
    ),
    Case(
        "an entry that is zero: the kernel's last words",
        "no warning, the model's word for word; ours resumes",
        partial(_as_modelled, compare_death, variant_named("none-entry")),
    ),
    Case("swap partition at an offset", "resumes", partial(_swap_place, Swap.PARTITION)),
    Case("swap file on ext4", "resumes", partial(_swap_place, Swap.FILE)),
    Case("damaged and foreign images", "refused, as inspect foretold", _refusals),
    Case("writer killed 20 times", "old image, none, or the new one", _killed),
)

QUICK = (
    "read, against the kernel's own words",
    "own image rewritten, each compressor",
    "2 MiB not present, allocation fails",
    f"random regions, seed {COPY_SEED}:",
)
"""The subset for every day: reading, rewriting, a takeover where the stock kernel dies, a copy against the model's."""


def cases_of(names: Iterable[str] | None = None) -> list[Case]:
    """The cases whose names contain one of these texts; all without any. Raises HibernautError if one fits none."""
    if names is None:
        return list(CASES)
    wanted = list(names)
    for name in wanted:
        if not any(name in case.name for case in CASES):
            raise HibernautError(f"no case is named like {name!r} (cases: {'; '.join(case.name for case in CASES)})")
    return [case for case in CASES if any(name in case.name for name in wanted)]


def prove(labs: Sequence[Lab], cases: Sequence[Case], jobs: int = 1, keep: Path | None = None) -> Iterator[Result]:
    """Run every case on every kernel, several guests at once; gives each result when it is there, in order.

    Args:
        labs: one for each kernel.
        cases: see `cases_of`.
        jobs: how many guests at a time.
        keep: a folder to keep all disks, dumps and records in; by default they are deleted.
    """
    pool = ThreadPoolExecutor(jobs)
    try:
        yield from pool.map(lambda pair: _run(pair[0], pair[1], keep), [(lab, case) for lab in labs for case in cases])
    finally:
        pool.shutdown(cancel_futures=True)


def _run(lab: Lab, case: Case, keep: Path | None) -> Result:
    kernel: Kernel = lab.kernel
    started = time.monotonic()
    name = re.sub(r"\W+", "-", f"{kernel.name}-{case.name}")
    folder = Path(tempfile.mkdtemp(prefix=f"hibernaut-{name}-")) if keep is None else keep / name
    folder.mkdir(parents=True, exist_ok=True)
    passed: bool | None
    try:
        seen, passed = case.run(lab, folder), True
    except LabUnavailable as error:
        seen, passed = str(error), None
    except (Failed, HibernautError, OSError) as error:
        seen, passed = str(error), False
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return Result(kernel.name, kernel.release, case.name, case.must, passed, seen, time.monotonic() - started)
