# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that write, each on small files, and what may be in its files at any instant.

A verdict on a state is a word: "old" (nothing of the command is there), "none" (the area holds no image), "some" (some
of several files, or records, are there, each whole), "new"; or "half" with the reason, which must never be.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from unittest import mock

from hibernaut import Fixmap, build_machine, hibernate
from hibernaut.errors import FormatError
from hibernaut.exploration import Sweep, explore_sweep
from hibernaut.exploration import results as results_module
from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind
from hibernaut.exploration.records import MachineRecord
from hibernaut.exploration.results import ResultsFile
from hibernaut.lab.host.build import _keep
from hibernaut.lab.host.cache import Cache
from hibernaut.linux.layout import Layout
from hibernaut.report import judge as judge_report
from hibernaut.report.judge import kept_verdicts
from hibernaut.report.parser import add_to_parser, kept_images
from hibernaut.report.survey import add_to_survey, kept_surveys
from hibernaut.studies.answers import Answers
from hibernaut.studies.claims import CLAIMS
from hibernaut.studies.judge import Judged, Shown
from hibernaut.studies.questions import STUDIES
from hibernaut.swsusp import open_image, rewrite_image
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.writer import NewArea, write_image
from tests.cli.run import hibernaut
from tests.conftest import REPOSITORY
from tests.crashes.calls import Call, Recorder, Tree
from tests.crashes.disk import Disk, State, all_states
from tests.exploration.sweeps import SMALL
from tests.swsusp.images import LAYOUT, PAGES, WRITES, state_of
from tests.swsusp.naive import Layout as ImageLayout
from tests.swsusp.naive import build

__all__ = ["SCENARIOS", "Recording", "Scenario", "Tally", "record", "small_image", "tally"]

Judge = Callable[[State, State, State], str]
"""Verdict on a state, from the state before the command, the state after it, and the state."""
HIDDEN = re.compile(r"(^|/)\.[^/]+\.[0-9a-f]{8}\.partial$")
"""Hidden files of `replacing`, which the next run removes."""
BY_CONTENT = re.compile(rb"\.[0-9a-f]{16}\.json")
"""End of the names of runs that `answers --write` gives them by their content, until their own names are theirs."""
MACHINE = Layout(ram=((0, 0x60),))
"""The smallest machine that hibernates."""


@dataclass(frozen=True)
class Scenario:
    """A command, run on a folder.

    Attributes:
        name: its name in the table.
        words: its command line, for those of the command line; `IMAGE` and `FOLDER` are replaced.
        prepare: makes the content of an empty folder.
        act: does what the command does; None: runs `words`.
        judge: see `Judge`.
        lasting: whether the result is on the disk once the command has ended.
        status: its exit status.
        around: a block that it runs in.
        constant: the part of a file, by its path and content, that is the same in each run.
    """

    name: str
    words: tuple[str, ...] = ()
    prepare: Callable[[Path], object] = lambda folder: (folder / "out").write_bytes(b"old")
    act: Callable[[Path], None] | None = None
    judge: Judge = field(default=lambda before, after, state: files_verdict(before, after, state))
    lasting: bool = True
    status: int = 0
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    constant: Callable[[str, bytes], bytes] = lambda _path, content: content

    @property
    def title(self) -> str:
        """Its name, with the options as code."""
        what, comma, more = self.name.partition(", ")
        return what if what in ("lab cache", "lab build") else f"`{what}`{comma}{more}"

    def command(self, folder: Path, image: Path) -> list[str]:
        """Return the words of its command line."""
        places = {"IMAGE": str(image), "FOLDER": str(folder)}
        return [re.sub("IMAGE|FOLDER", lambda match: places[match[0]], word) for word in self.words]

    def run(self, folder: Path, image: Path) -> None:
        """Run it. Raises AssertionError if it fails."""
        if self.act is not None:
            self.act(folder)
            return
        with self.around():
            result = hibernaut(*self.command(folder, image))
        assert result.status == self.status, result.err


def small_image(folder: Path) -> Path:
    """Write the image of a machine of 96 frames into a folder."""
    machine = build_machine(MACHINE)
    snapshot = hibernate(machine, Fixmap())
    info = ImageInfo.blank(cr3=snapshot.cr3, physical_pages=machine.memory.ranges.total_pages)
    path = folder / "image"
    write_image(path, snapshot.memory, snapshot.pfns, info, NewArea(), compressor="none", zero_pages=False)
    return path


# ---- verdicts ----


def visible(state: State) -> dict[str, bytes | None]:
    """Return a state without the hidden files that the next run removes."""
    return {path: content for path, content in state.items() if not HIDDEN.search(path)}


def files_verdict(before: State, after: State, state: State) -> str:
    """Each file is the old one or the new one; none that was there is missing."""
    old, new, found = visible(before), visible(after), visible(state)
    if found == old:
        return "old"
    if found == new:
        return "new"
    absent = object()
    for path in sorted({*old, *new, *found}):
        if found.get(path, absent) not in (old.get(path, absent), new.get(path, absent)):
            return f"half: {path} is neither the old file nor the new one"
    return "some"


def in_order(*paths: str) -> Judge:
    """Return the verdict on files that depend on each other: a new one only with all before it new."""

    def judge(before: State, after: State, state: State) -> str:
        verdict = files_verdict(before, after, state)
        if verdict == "some":
            new = [state.get(path) == after[path] for path in paths]
            if new != sorted(new, reverse=True):
                return f"half: {paths[new.index(True, new.index(False))]} is new and {paths[new.index(False)]} is not"
        return verdict

    return judge


def page_verdict(before: State, after: State, state: State) -> str:
    """The old page with the old runs that it links, or a new one with new runs, under their names or by content."""
    page = state.get("page.md")
    if page is None:
        return "old" if before.get("page.md") is None else "half: the page is gone"
    old = page == before.get("page.md")
    if not old and BY_CONTENT.sub(b".json", page) != after["page.md"]:
        return "half: the page is neither the old one nor a new one"
    for link in linked(page):
        run = BY_CONTENT.sub(b".json", link.encode()).decode()
        if state.get(link) != (before[link] if old else after[run]):
            return f"half: the {'old' if old else 'new'} page links {link}, which is not its own run"
    return "old" if old else "new" if page == after["page.md"] else "some"


def linked(page: bytes) -> list[str]:
    """Return the files that a page links."""
    return re.findall(r"\((page/[^)]+)\)", page.decode())


def image_verdict(_before: State, _after: State, state: State) -> str:
    """The old image, none, or the new one, as a reader written from the format's description has it."""
    image = state["image"]
    assert image is not None
    return state_of(image)


def without_uuid(path: str, content: bytes) -> bytes:
    """Return a new swap area without its UUID (`union swap_header`, include/linux/swap.h)."""
    return content[:1036] + content[1052:] if path == "out" and len(content) > 4096 else content


def without_time(path: str, content: bytes) -> bytes:
    """Return the digest of the output in a manifest."""
    return str(json.loads(content)["output"]["sha256"]).encode() if path == "manifest" else content


# ---- in place ----

CANONICAL = ImageLayout(compressor="none", header_block=LAYOUT.header_block)
"""An image whose blocks a rewrite keeps in place: only sectors with changed bytes differ."""


def _canonical(folder: Path) -> None:
    path = folder / "image"
    path.write_bytes(build(PAGES, CANONICAL))
    with open_image(path, offset=LAYOUT.header_block) as image:
        rewrite_image(image)


def _shuffled(folder: Path) -> None:
    (folder / "image").write_bytes(build(PAGES, LAYOUT))


IN_PLACE = (
    "rewrite", "FOLDER/image", "--in-place", "--offset", str(LAYOUT.header_block), "--quiet",
    *(word for paddr, data in WRITES for word in ("--write", f"{paddr:#x}={data.hex()}")),
)  # fmt: skip


# ---- results of a sweep ----

RECORDS = 5
EACH = 2
"""Records between two syncs here."""


def _line(number: int) -> bytes:
    """Return a record of two sectors or so, which names itself wherever it is cut."""
    record = MachineRecord((number,), (f"region {number}",) * 50, (), {})
    return f"{record.line()}\n".encode()


def _records() -> list[MachineRecord]:
    return [MachineRecord.from_line(_line(number).decode()) for number in range(RECORDS)]


def _results(folder: Path) -> None:
    """Append records, as a sweep does, with a sync after each two."""
    before = results_module.SYNC_RECORDS
    results_module.SYNC_RECORDS = EACH
    try:
        with ResultsFile(SMALL, folder / "results.jsonl") as file:
            for record in _records():
                file.write(record)
    finally:
        results_module.SYNC_RECORDS = before


TORN = (8, 9, 10)
"""Records of the end that a loss of power left."""


def _torn(folder: Path) -> None:
    """Results of a sweep whose end was left by a loss of power: a whole record, one with zeroes, one that is cut."""
    with ResultsFile(SMALL, folder / "results.jsonl") as file:
        file.write(MachineRecord.from_line(_line(7).decode()))
    with (folder / "results.jsonl").open("ab") as end:
        tail = bytearray(b"".join(map(_line, TORN)))
        tail[len(_line(8)) + 100 : len(_line(8)) + 200] = bytes(100)
        end.write(tail[:-300])


def results_verdict(_before: State, after: State, state: State) -> str:
    """Compare the records that a resume takes with those that were written; `test_lost_records` counts them."""
    content = state.get("results.jsonl")
    if content is None:
        return "old"
    written = after["results.jsonl"]
    assert written is not None
    head, *records = written.splitlines(keepends=True)
    resumed = resumed_records(content, head, records)
    if isinstance(resumed, str):
        return f"half: {resumed}"
    unknown = [line for line in resumed if line not in (*records, *map(_line, TORN))]
    if unknown:
        return f"half: a record that was never written: {unknown[0][:60]!r}"
    return "new" if set(records) <= set(resumed) else "some"


def resumed_records(content: bytes, head: bytes, records: Sequence[bytes]) -> list[bytes] | str:
    """Return the lines of the records that a resume takes from a file of results; why it refuses it.

    Args:
        content: the file.
        head: its first line, as it was written.
        records: records of the same sweep.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.jsonl"
        path.write_bytes(content)
        file = ResultsFile(SMALL, path)
        file._head = head.decode().rstrip("\n")
        file._ways = set(MachineRecord.from_line(records[0].decode()).ways)
        try:
            with file:
                return [f"{record.line()}\n".encode() for record in file.earlier()]
        except FormatError as error:
            return str(error)


# ---- the laboratory's cache ----


def _cached(folder: Path) -> None:
    def make(part: Path) -> None:
        (part / "boot").mkdir()
        (part / "boot" / "vmlinuz").write_bytes(b"kernel" * 300)
        (part / "modules").write_bytes(b"modules" * 100)

    cache = Cache(folder)
    with cache.locked():
        cache.folder("kernels/6.1", make)


def cache_verdict(_before: State, after: State, state: State) -> str:
    """The part is absent, or has all that was put into it."""
    part = {path: content for path, content in state.items() if path.startswith("kernels/6.1")}
    if not part:
        return "none"
    whole = {path: content for path, content in after.items() if path.startswith("kernels/6.1")}
    return "new" if part == whole else "half: a part of the cache without all of its content"


def _built_before(folder: Path) -> None:
    for version in (b"old", b"new"):
        build_folder = folder / "work" / "build"
        (build_folder / "include" / "config").mkdir(parents=True, exist_ok=True)
        (build_folder / "include" / "config" / "kernel.release").write_bytes(version)
        (build_folder / ".config").write_bytes(b"# " + version)
        if version == b"old":
            _keep(build_folder, folder / "stock", {"cure": "old"})


def _built(folder: Path) -> None:
    _keep(folder / "work" / "build", folder / "stock", {"cure": "new"})


def built_verdict(before: State, after: State, state: State) -> str:
    """The result is the old one, absent, or the new one; a stamp, by which it is taken, only with all its files."""
    old, new, found = ({path: one[path] for path in one if path.startswith("stock")} for one in (before, after, state))
    if found == old:
        return "old"
    if found == new:
        return "new"
    return "half: a stamp without its kernel" if "stock/hibernaut.json" in found else "none"


def _nothing(_folder: Path) -> None:
    pass


# ---- pages of the laboratory: the record of each kernel beside a page that is made of all records ----

DOCS = REPOSITORY / "docs"


def _judge(folder: Path, at: int) -> None:
    name, verdict = sorted(kept_verdicts(DOCS / "judged.md").items())[at][1]
    judge_report.add_to_page(folder / "page.md", name, verdict)


def _survey(folder: Path, at: int) -> None:
    add_to_survey(folder / "page.md", {"kernels": [kept_surveys(DOCS / "survey.md")[at]]})


def _fuzz_resume(folder: Path, at: int) -> None:
    found = kept_images(DOCS / "parser.md")[at]
    add_to_parser(folder / "page.md", {"release": found["release"], "images": found["images"][:2]})


def records_first(before: State, after: State, state: State) -> str:
    """A page is the new one only if the records that it is made of are."""
    return in_order(*sorted(path for path in after.keys() - before.keys()), "page.md")(before, after, state)


PAGES_OF_RECORDS = {"lab judge --write": _judge, "lab survey --write": _survey, "lab fuzz-resume --write": _fuzz_resume}


# ---- answers ----

LISTED = ("remap-tears-the-image", "fixmap-is-safe")


@cache
def _judged() -> Answers:
    """Return answers with two runs; the runs are those of a small exploration."""
    found = explore_sweep(Sweep(Family(regions=(1,), kinds=(RegionKind.NONE,)), ("remap",)), processes=1)
    endings = found.ways[0].endings
    claims = {claim.name: claim for claim in CLAIMS}
    shown = [Shown(STUDIES[0], one.shortest, one.played) for one in (endings[0], endings[-1])]
    judged = (Judged(claims[name], 1, 1, 0, None, one) for name, one in zip(LISTED, shown, strict=True))
    return Answers((), tuple(judged), {}, ())


def _page_of_another_run(folder: Path) -> None:
    """A page, and its runs."""
    (folder / "page.md").write_text("old " + _page(_judged(), "page"))
    (folder / "page").mkdir()
    for name in LISTED:
        (folder / "page" / f"{name}.json").write_text(f"old run of {name}")


def _page(answers: Answers, folder: str, files: Mapping[str, str] | None = None) -> str:
    """Return the links of a page of answers."""
    names = [(files or {}).get(name, f"{name}.json") for name in answers.runs]
    return f"page: {' '.join(f'[{name}]({folder}/{name})' for name in names)}"


@contextmanager
def _answered() -> Iterator[None]:
    """Take the answers from `_judged`: all studies take minutes."""
    answers = _judged()
    with (
        mock.patch("hibernaut.cli.answers.answer", return_value=answers),
        mock.patch("hibernaut.report.answers.answers_page", side_effect=_page),
    ):
        yield


ANSWERS = ("answers", "--write", "FOLDER/page.md", "--quiet")
CONVERTED = ("raw", "lime", "kdump", "elf")
SCENARIOS: tuple[Scenario, ...] = (
    Scenario("save", ("save", "IMAGE", "FOLDER/out", "--via", "fixmap", "--quiet"), constant=without_uuid),
    Scenario("save --like", ("save", "IMAGE", "FOLDER/out", "--via", "fixmap", "--like", "IMAGE", "--quiet")),
    Scenario("rewrite", ("rewrite", "IMAGE", "FOLDER/out", "--compressor", "lz4", "--quiet")),
    Scenario("rewrite --in-place", IN_PLACE, _canonical, judge=image_verdict),
    Scenario("rewrite --in-place, all blocks", IN_PLACE, _shuffled, judge=image_verdict),
    *(Scenario(f"convert --to {to}", ("convert", "IMAGE", "FOLDER/out", "--to", to, "--quiet")) for to in CONVERTED),
    Scenario(
        "convert --manifest",
        ("convert", "IMAGE", "FOLDER/out", "--to", "lime", "--manifest", "FOLDER/manifest", "--quiet"),
        judge=in_order("out", "manifest"),
        constant=without_time,
    ),
    Scenario("--index", ("map", "IMAGE", "--index", "FOLDER/out"), prepare=_nothing),
    Scenario(
        "explore --results, command",
        (
            "explore",
            "--layout",
            "regions=1",
            "--layout",
            "kinds=none",
            "--via",
            "remap,fixmap",
            "--processes",
            "1",
            "--results",
            "FOLDER/results.jsonl",
            "--quiet",
        ),
        prepare=_nothing,
        judge=results_verdict,
        status=1,
    ),
    Scenario("explore --results", prepare=_nothing, act=_results, judge=results_verdict),
    Scenario("explore --results, resumed", prepare=_torn, act=_results, judge=results_verdict),
    Scenario(
        "explore --save",
        (
            "explore",
            "--layout",
            "regions=1",
            "--layout",
            "kinds=none",
            "--via",
            "remap",
            "--processes",
            "1",
            "--save",
            "FOLDER/runs",
            "--quiet",
        ),
        prepare=_nothing,
        status=1,
    ),
    Scenario("answers --write", ANSWERS, _page_of_another_run, judge=page_verdict, around=_answered),
    Scenario("answers --write, first", ANSWERS, _nothing, judge=page_verdict, around=_answered),
    Scenario(
        "seal-key",
        ("seal-key", "FOLDER/key"),
        _nothing,
        judge=in_order("key.pub", "key"),
        constant=lambda _path, content: content[:24] + bytes(len(content)),
    ),
    *(
        Scenario(name, prepare=partial(add, at=0), act=partial(add, at=1), judge=records_first)
        for name, add in PAGES_OF_RECORDS.items()
    ),
    Scenario("lab cache", prepare=_nothing, act=_cached, judge=cache_verdict, lasting=False),
    Scenario("lab build", prepare=_built_before, act=_built, judge=built_verdict, lasting=False),
)


# ---- recording and judging ----


@dataclass(frozen=True)
class Recording:
    """The calls of a command.

    Attributes:
        scenario: the command.
        tree: the folder before.
        calls: what it did.
    """

    scenario: Scenario
    tree: Tree
    calls: tuple[Call, ...]

    @property
    def syncs(self) -> int:
        """The number of syncs."""
        return sum(call.what in ("sync", "sync all") for call in self.calls)


@dataclass(frozen=True)
class Tally:
    """The states of the disk at every instant of a command.

    Attributes:
        states: number of different states, all prefixes and reorderings.
        whole: whether these are all.
        verdicts: number of states with each verdict.
        last: verdicts on the states after the last call.
    """

    states: int
    whole: bool
    verdicts: Counter[str]
    last: frozenset[str]

    def faults(self, lasting: bool) -> list[str]:
        """Return what must never be."""
        found = [verdict for verdict in self.verdicts if verdict.startswith("half")]
        return [*found, *(f"not lasting: {one}" for one in self.last if lasting and one != "new")]


def record(scenario: Scenario, folder: Path, image: Path) -> Recording:
    """Run a command in an empty folder, and record its calls."""
    scenario.prepare(folder)
    recorder = Recorder(folder)
    with recorder.watching():
        scenario.run(folder, image)
    return Recording(scenario, recorder.tree, tuple(recorder.calls))


def tally(scenario: Scenario, tree: Tree, calls: Sequence[Call], seed: int = 0, *, first: bool = False) -> Tally:
    """Judge every state that a loss of power may leave.

    Args:
        scenario: the command.
        tree: the folder before.
        calls: its calls.
        seed: of the states that are sampled where they are too many.
        first: stop at the first state that must not be.
    """
    before = next(state for _, state, _ in all_states(tree, ()))
    after = before
    disk = Disk(tree)
    for call in calls:
        disk.do(call)
    after = disk.now()
    known: dict[bytes, str] = {}
    whole, last = True, set()
    for stop, state, every in all_states(tree, calls, seed):
        whole = whole and every
        digest = hashlib.sha256()
        for path in sorted(state):
            content = state[path]
            digest.update(f"{path}\0{-1 if content is None else len(content)}\0".encode() + (content or b""))
        key = digest.digest()
        if key not in known:
            known[key] = scenario.judge(before, after, state)
        if stop == len(calls):
            last.add(known[key])
        if first and (
            known[key].startswith("half") or (stop == len(calls) and scenario.lasting and known[key] != "new")
        ):
            break
    return Tally(len(known), whole, Counter(known.values()), frozenset(last))
