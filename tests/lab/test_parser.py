# SPDX-License-Identifier: GPL-2.0-or-later
"""Changed images and a real kernel's parser: outcomes beside predictions, and the page that keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from hibernaut.errors import FormatError, LabError
from hibernaut.lab.parser.campaign import NOT_PREDICTED, PredictedResume, TriedImage, try_images
from hibernaut.lab.parser.mutations import PARTS, Mutation, Mutator
from hibernaut.lab.parser.waiting import ACCEPTED, OUTCOMES, ResumeOutcome
from hibernaut.lab.variants import variant_named
from hibernaut.memory.ranges import FrameRanges
from hibernaut.report import parser as report
from hibernaut.report.documents import ParserDocument, TriedImageDocument
from hibernaut.report.parser import add_to_parser, has_findings, kept_images, parser_page, parser_text
from hibernaut.swsusp.rules import image_rules_for_release
from tests.swsusp import naive

if TYPE_CHECKING:
    from hibernaut.lab.laboratory import Lab

REPOSITORY = Path(__file__).resolve().parents[2]
COUNTS_HEAD = (
    "| kernel | images | refused | whole | wrong | crashed or hung reading | crashed or hung after | reported "
    "| as predicted | otherwise | not predicted |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
)
CHOSEN = (
    Mutation("header: hw_sig", 0, 7),
    Mutation("header: sig", 0, 0x53553153),
    Mutation("info: pages", 0, 1 << 20),
    Mutation("unit length", 3, 1 << 40),
)
"""A change that no kernel looks at; none that it reads at all; two that it refuses, in its own words."""


def tried(outcome: str, predicted: str, *, has_words: bool = True, reports: tuple[str, ...] = ()) -> TriedImage:
    """Return an image that was tried."""
    changes = (Mutation("info: pages", 0, 1),)
    return TriedImage("6.1.0", "lzo", changes, outcome, "said", PredictedResume(predicted), has_words, reports)


def test_a_prediction_is_met_or_not() -> None:
    """An accepted image must have been predicted so, a refused one as well, in the words predicted, and a crash."""
    for outcome in OUTCOMES:
        accepted, refused = outcome in ACCEPTED, outcome == "refused"
        assert tried(outcome, "resumes").agrees == accepted
        assert tried(outcome, "refuses").agrees == refused
        assert tried(outcome, "crashes").agrees == (outcome == "crashed while reading")
        assert tried(outcome, "resumes or refuses").agrees == (accepted or refused)
        assert tried(outcome, "refuses", has_words=False).agrees is False
        assert tried(outcome, "resumes or refuses", has_words=False).agrees is accepted
        assert tried(outcome, "unknown").agrees is tried(outcome, "unread").agrees is None


def test_findings_have_kinds() -> None:
    """Otherwise than predicted, crashed or hung while reading, wrong, reported; of the rest, none."""
    assert tried("whole", "refuses").finding == "otherwise: whole"
    assert tried("crashed while reading", "crashes").finding == "crashed while reading"
    assert tried("hung while reading", "unknown").finding == "hung while reading"
    assert tried("wrong", "resumes").finding == "wrong"
    assert tried("refused", "refuses", reports=("BUG: KASAN: x",)).finding == "reported"
    for outcome, predicted in (("refused", "refuses"), ("whole", "resumes"), ("crashed after", "resumes")):
        assert tried(outcome, predicted).finding == ""


@dataclass
class Saved:
    """A guest that was saved, by a laboratory without guests.

    Attributes:
        folder: folder with its image.
        outcome: outcome of its hibernation.
    """

    folder: Path
    outcome: str = "hibernated"
    summary: str = "refused: for a test"
    record: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(offset=0, partition=None))

    @property
    def image(self) -> Path:
        """The disk."""
        return self.folder / "swap.img"


class Answers:
    """In place of a waiting machine: it refuses a disk whose header has another CRC, as a kernel would.

    Attributes:
        seen: the content of each disk that it was given.
        outcome: outcome for any other disk.
        reports: what its sanitizers report of any other disk.
        frames: the frames of its zones.
    """

    reports: tuple[str, ...] = ()
    frames = FrameRanges.of([(1, 4096)])

    def __init__(self, outcome: str = "whole") -> None:
        self.seen: list[bytes] = []
        self.outcome = outcome

    def resume(self, disk: Path) -> ResumeOutcome:
        """See `WaitingMachine`."""
        self.seen.append(disk.read_bytes())
        if self.seen[-1][4060:4064] != self.seen[0][4060:4064]:
            return ResumeOutcome("refused", "said", "PM: Invalid image CRC32!", 0.0)
        return ResumeOutcome(self.outcome, "said", "", 0.0, self.reports)


@pytest.fixture
def without_guests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[SimpleNamespace, Saved, Answers]:
    """Return a laboratory without guests, the guest that it saves, and the machine that resumes."""
    saved, answers = Saved(tmp_path), Answers()
    saved.image.write_bytes(naive.build({pfn: bytes([pfn]) * 4096 for pfn in range(1, 200)}, naive.Layout()))
    monkeypatch.setattr("hibernaut.lab.parser.campaign.WaitingMachine", lambda *_: answers)
    monkeypatch.setattr(
        "hibernaut.lab.parser.campaign.image_rules_of", lambda kernel: image_rules_for_release(kernel.release)
    )
    kernel = SimpleNamespace(release="6.1.0-56-amd64", tree=None)
    return SimpleNamespace(kernel=kernel, hibernate=lambda _variant, _folder: saved), saved, answers


def test_each_image_is_the_saved_one_with_one_change(
    without_guests: tuple[Lab, Saved, Answers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk is changed back after each image, the saved one is never written; outcomes stand beside predictions."""
    lab, saved, answers = without_guests
    before = saved.image.read_bytes()
    crcs = tuple(Mutation("header: crc32", 0, value) for value in (1, 2, 3))
    monkeypatch.setattr(Mutator, "__iter__", lambda _mutator: iter((*crcs, CHOSEN[0])))
    found = list(try_images(lab, variant_named("lzo"), tmp_path, images=4, seed=0, jobs=1))
    assert [one.outcome for one in found] == ["whole", "refused", "refused", "refused", "whole"]
    assert [one.agrees for one in found] == [True] * 5
    assert found[1].predicted.words == "PM: Invalid image CRC32!"
    assert saved.image.read_bytes() == answers.seen[0] == before
    for one, disk in zip(crcs, answers.seen[1:], strict=False):
        assert disk == before[:4060] + one.value.to_bytes(4, "little") + before[4064:]


def test_without_a_guest_that_comes_back_nothing_is_tried(
    without_guests: tuple[Lab, Saved, Answers], tmp_path: Path
) -> None:
    """A guest that does not hibernate, and one whose unchanged image does not resume, end it in one line."""
    lab, saved, answers = without_guests
    answers.reports = ("BUG: KASAN: x",)
    with pytest.raises(LabError, match="the unchanged image resumes, and the kernel reports: BUG: KASAN: x"):
        list(try_images(lab, variant_named("lzo"), tmp_path, images=5, seed=0))
    answers.seen.clear()
    answers.outcome = "wrong"
    with pytest.raises(LabError, match="the unchanged image does not resume: wrong: said"):
        list(try_images(lab, variant_named("lzo"), tmp_path, images=5, seed=0))
    assert len(answers.seen) == 1
    saved.outcome = "refused"
    with pytest.raises(LabError, match="the guest did not hibernate: refused: for a test"):
        list(try_images(lab, variant_named("lzo"), tmp_path, images=5, seed=0))


def documented(
    parts: str | Sequence[str],
    outcome: str,
    as_predicted: bool | None,
    says: str = "said 5",
    *,
    compressor: str = "lzo",
    reports: Sequence[str] = (),
    is_case: bool = False,
) -> TriedImageDocument:
    """Return an image as it is kept."""
    parts = [parts] if isinstance(parts, str) else parts
    return {
        "compressor": compressor,
        "changes": [
            {"part": part, "index": 0, "value": f"{len(says):#x}", "was": None, "mends_crc": False} for part in parts
        ],
        "change": "; ".join(f"{part} = 0x1" for part in parts),
        "outcome": outcome,
        "says": says,
        "reports": list(reports),
        "predicted": "resumes" if outcome in ACCEPTED else "refuses",
        "words": "",
        "reason": "",
        "as_predicted": as_predicted,
        "is_case": is_case,
    }


def of(images: Sequence[TriedImageDocument]) -> ParserDocument:
    """Return the images of one kernel."""
    return {"release": "6.1.0", "images": [documented([], "whole", True), *images]}


def test_findings_are_reported(tmp_path: Path) -> None:
    """An image that ends otherwise, or crashes the parser, is a finding and has a line; one of each kind."""
    good = of([documented("map link", "refused", True), documented("info: cr3", "crashed after", True)])
    assert not has_findings(good)
    assert "Not as predicted: none" in parser_text(good)
    assert has_findings(of([documented("map link", "whole", False)]))
    crashed = of([documented("map link", "crashed while reading", None, says) for says in ("at 1", "at 22", "in a")])
    assert has_findings(crashed)
    page = parser_page([crashed])
    assert page.count("crashed while reading (at") == 1
    assert page.count("crashed while reading (in") == 1
    assert "| map link | 3 |" in page
    add_to_parser(tmp_path / "page.md", good)
    add_to_parser(tmp_path / "page.md", good)
    add_to_parser(tmp_path / "page.md", of([documented("map link", "whole", False, "another")]))
    (kept,) = kept_images(tmp_path / "page.md")
    assert len(kept["images"]) == 4
    assert (tmp_path / "page.md").read_text() == parser_page([kept])


def test_images_are_counted_by_kind() -> None:
    """Several changes by their number, images that are not compressed apart; the fewest changes are listed."""
    both = ["map link", "info: cpus"]
    document = of(
        [
            documented("map link", "refused", True),
            documented(both, "crashed while reading", None, "by both", is_case=True),
            documented([*both, "info: cr3"], "crashed while reading", None, "by three"),
            documented("map link", "whole", True, compressor="none"),
            documented(both, "refused", True, compressor="none", reports=["BUG: KASAN: x"], is_case=True),
        ]
    )
    page = parser_page([document])
    for title, rows in (
        ("One change: 1 changed image.", ["| map link | 1 | 1 |"]),
        ("Several changes: 2 changed images.", ["| 2 changes | 1 |", "| 3 changes | 1 |"]),
        ("Not compressed, one change: 1 changed image.", ["| map link | 1 |  | 1 |"]),
        ("Not compressed, several changes: 1 changed image.", ["| 2 changes | 1 | 1 |"]),
    ):
        assert title in page
        table = page[page.index(title) :]
        assert all(row in table for row in rows), title
    assert "crashed while reading (by both)" in page
    assert "crashed while reading (by three)" not in page
    assert "not compressed: refused (said 5), reported: BUG: KASAN: x; predicted" in page
    assert has_findings(of([documented("map link", "refused", True, reports=["UBSAN: y"])]))
    assert "reported: UBSAN: y" in parser_text(of([documented("map link", "refused", True, reports=["UBSAN: y"])]))


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"part": 1}', "[" * 100_000, '"\ud800"', "\x00"])
def test_lines_that_are_something_else(tmp_path: Path, line: str) -> None:
    """One line of ours, with the number of theirs; nothing is overwritten."""
    folder = tmp_path / "page"
    folder.mkdir()
    bad = (line + "\n").encode("utf-8", "surrogatepass")
    (folder / "6.1.0.jsonl").write_bytes(json.dumps(documented("map link", "refused", True)).encode() + b"\n" + bad)
    with pytest.raises(FormatError, match="line 2: "):
        add_to_parser(tmp_path / "page.md", of([]))
    assert (folder / "6.1.0.jsonl").read_bytes().endswith(bad)
    assert not (tmp_path / "page.md").exists()


def test_the_page_is_that_of_its_images() -> None:
    """It was not edited, each kernel of the laboratory is on it, and each part was changed on each of them."""
    page = REPOSITORY / "docs/parser.md"
    documents = kept_images(page)
    assert page.read_text() == parser_page(documents)
    stock = [one for one in documents if "sanitized" not in one["release"]]
    assert [one["release"].split(".")[:2] for one in stock] == [["6", "1"], ["6", "12"], ["7", "3"]]
    for document in documents:
        assert {one["outcome"] for one in document["images"]} <= set(report.OUTCOMES) == set(OUTCOMES)
        for one in document["images"]:
            assert one["outcome"] in OUTCOMES
            assert (one["as_predicted"] is None) == (one["predicted"] in NOT_PREDICTED)
            assert one["predicted"] != "unread"
    for document in stock:
        single = [one for one in document["images"] if one["compressor"] != "none" and len(one["changes"]) < 2]
        assert {change["part"] for one in single for change in one["changes"]} == set(PARTS)


def counted_rows(document: ParserDocument) -> str:
    """Return the rows of a kernel on docs/reliability.md, one for each kind of images, counted here anew."""
    rows = ""
    for plain in (False, True):
        for several in (False, True):
            changed = [
                one
                for one in document["images"]
                if one["changes"] and (one["compressor"] == "none") is plain and (len(one["changes"]) > 1) is several
            ]
            endings = [
                ("refused",),
                ("whole",),
                ("wrong",),
                ("crashed while reading", "hung while reading"),
                ("crashed after", "hung after"),
            ]
            counts = [sum(one["outcome"] in some for one in changed) for some in endings]
            counts.append(sum(bool(one["reports"]) for one in changed))
            counts += [sum(one["as_predicted"] is answer for one in changed) for answer in (True, False, None)]
            name = document["release"] + ", not compressed" * plain + ", several changes" * several
            rows += f"| {name} | {len(changed)} | {' | '.join(map(str, counts))} |\n" * bool(changed)
    return rows


def test_the_counts_on_the_page_of_reliability_are_true() -> None:
    """Rows for each kernel, one after another; HIBERNAUT_UPDATE_DOCS=1 writes them."""
    page = REPOSITORY / "docs/reliability.md"
    rows = "".join(map(counted_rows, kept_images(REPOSITORY / "docs/parser.md")))
    before, head, rest = page.read_text().partition(COUNTS_HEAD)
    assert head
    if os.environ.get("HIBERNAUT_UPDATE_DOCS"):
        page.write_text(before + head + rows + rest[rest.index("\n\n") + 1 :])
    assert f"{COUNTS_HEAD}{rows}\n" in page.read_text()


def test_a_real_kernel_is_given_changed_images(lab_61: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends as predicted, in the words predicted; a predictor that knows nothing of lengths is caught."""
    monkeypatch.setattr(Mutator, "__iter__", lambda _mutator: iter(CHOSEN))
    found = list(try_images(lab_61, variant_named("lzo"), tmp_path, images=len(CHOSEN), seed=0))
    assert [one.changes for one in found] == [(), *((one,) for one in CHOSEN)]
    assert [one.outcome for one in found] == ["whole", "whole", "refused", "refused", "refused"]
    assert all(one.agrees for one in found), found
    length = found[-1]
    assert "compressed length" in length.predicted.words
    assert replace(length, predicted=PredictedResume("resumes")).agrees is False
