# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut report` of damaged and used-up images: the numbers of inspect, and nothing that the intact image denies.

The witness is the image before the damage: a page that is shown as readable has its bytes, a frame that is shown as not
saved is not on its list, a table is torn only if it is torn there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from hibernaut.hibernation import Remap, copy_order
from hibernaut.hibernation.trace import write_trace
from hibernaut.linux.layout import hole_2m
from hibernaut.memory.ranges import FrameRanges
from hibernaut.sources import open_memory
from hibernaut.swsusp.salvage import SalvagedImage, SalvagedMemory, loose_list, salvage_image
from tests.cli.run import hibernaut, refused
from tests.conftest import Golden
from tests.damaged_images import Damage, damage, overwrite
from tests.report.machine_files import image_by, trace_by

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra report)")
pytest.importorskip("jinja2", reason="jinja2 is not installed (the extra report)")

GoldenCopy = Callable[[str], Path]
LZO, LZ4, PLAIN = "swap-6.1-lzo.img", "swap-6.12-lz4.img", "swap-6.1-low2m.img"
READABLE = ("saved", "zero")
NOT_SAVED = ("no-memory", "free", "left-out", "lost")
LAYERS = ("mapped", "fate", "use")

Keys = dict[str, NDArray[np.str_]]
"""Key of each frame, by layer."""


def frames_on(page: Path) -> Keys:
    """Return the class of each frame that the map of a page shows."""
    from hibernaut.report.frame_runs import PackedRuns, unpack_runs

    script = re.search(r'<script type="application/json" id="source-runs">(.*?)</script>', page.read_text())
    assert script is not None
    data = json.loads(script[1])
    pages, codes = unpack_runs(PackedRuns(tuple(map(tuple, data["classes"])), data["runs"], data["text"]))
    found = {}
    for layer, some in zip(data["layers"], codes, strict=True):
        keys = np.array([word["key"] for word in layer["words"]])
        found[layer["key"]] = np.repeat(keys[some], pages)
    return found


def numbers_on(page: Path) -> dict[str, int]:
    """Return the numbers of a page by their names."""
    return {name: int(text) for name, text in re.findall(r'data-number="(\w+)">(\d+)<', page.read_text())}


class Intact(NamedTuple):
    """The report of an intact image."""

    path: Path
    document: dict[str, Any]
    frames: Keys


class Reported:
    """The report of a damaged image beside that of the intact one.

    Attributes:
        document: of the damaged image.
        intact: of the intact one.
    """

    def __init__(self, intact: Intact, damaged: Path, option: str, folder: Path) -> None:
        self._paths = (intact.path, damaged)
        self._page = folder / "page.html"
        result = hibernaut("report", damaged, option, "-o", self._page, "--json")
        self.status, self.document = result.status, result.document["source"]
        self.intact, self.intact_frames = intact.document, intact.frames
        self.salvage = hibernaut("inspect", damaged, option, "--json").document["salvage"]
        self.frames = frames_on(self._page)

    def check(self) -> None:
        """Check all that must hold of any damage."""
        self._check_numbers()
        self._check_frames()
        self._check_tables()

    def _check_numbers(self) -> None:
        document, salvage = self.document, self.salvage
        assert document["salvage"] == salvage
        assert self.status == (0 if salvage["whole"] else 1)
        fates = {one["key"]: one["pages"] for one in document["fate"]}
        assert fates.get("lost-page", 0) == salvage["missing_pages"]
        assert fates.get("saved", 0) + fates.get("zero", 0) == salvage["readable_pages"]
        shown = numbers_on(self._page)
        assert shown["readable_pages"] == salvage["readable_pages"]
        assert shown["missing_pages"] == salvage["missing_pages"]
        assert document["compression"]["units"] == (salvage["whole_units"] or 0)
        if salvage["units"] is not None:
            assert (shown["whole_units"], shown["salvaged_units"]) == (salvage["whole_units"], salvage["units"])
        for key in ("image_blocks", "map_blocks"):
            assert document["area"][key] <= self.intact["area"][key]
        assert document["area"]["first_block"] >= self.intact["area"]["first_block"]
        assert document["area"]["last_block"] <= self.intact["area"]["last_block"]

    def _check_frames(self) -> None:
        fate = self.frames["fate"]
        missing = FrameRanges.of([(int(one["start_pfn"], 16), one["pages"]) for one in self.salvage["missing"]])
        assert np.array_equal(np.flatnonzero(fate == "lost-page"), missing.pfns())
        readable = np.flatnonzero(np.isin(fate, READABLE))
        intact, damaged = self._paths
        with open_memory(intact) as whole, salvage_image(damaged, used_up=True) as image:
            assert np.array_equal(readable, image.pfns)
            pages, _ = SalvagedMemory(image).gather(readable)
            original, known = whole.memory.gather(readable)
            assert known.all()
            assert not (pages != original).any()
            listed = np.zeros(len(fate), dtype=np.bool_)
            assert whole.image is not None
            listed[whole.image.pfns] = True
        assert not listed[np.isin(fate, NOT_SAVED)].any()
        assert listed[fate == "lost-page"].all()
        was_zero = self.intact_frames["fate"] == "zero"
        assert was_zero[fate[: len(was_zero)] == "zero"].all()
        for layer in ("mapped", "use"):
            mine, theirs = (one[layer][: len(was_zero)] for one in (self.frames, self.intact_frames))
            told = ~np.isin(mine, ("table-missing", "use-unknown"))
            assert np.array_equal(mine[told], theirs[told])

    def _check_tables(self) -> None:
        torn, before = (
            {one["start_pfn"] for one in of["regions"] if one["torn"]} for of in (self.document, self.intact)
        )
        assert torn <= before
        lost, lost_before = (np.flatnonzero(of["fate"] == "lost") for of in (self.frames, self.intact_frames))
        assert set(lost) <= set(lost_before)
        if not torn:
            assert "after a resume" not in " ".join(one["text"] for one in self.document["sentences"]).lower()


@pytest.fixture(scope="module")
def intact(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Intact]:
    """Report an intact golden image, once."""

    @cache
    def make(name: str) -> Intact:
        page = tmp_path_factory.mktemp("intact") / "page.html"
        document = hibernaut("report", golden(name), "-o", page, "--json").document["source"]
        return Intact(golden(name), document, frames_on(page))

    return make


@pytest.fixture
def reported(intact: Callable[[str], Intact], golden_copy: GoldenCopy, tmp_path: Path) -> Callable[..., Reported]:
    """Report a golden image with some damage: `reported("swap-6.1-lzo.img", "used up", "map")`."""

    def make(name: str, *kinds: Damage) -> Reported:
        option = "--consumed" if "used up" in kinds else "--salvage"
        return Reported(intact(name), damage(golden_copy(name), *kinds), option, tmp_path)

    return make


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        (LZO, ("unit",)),
        (LZO, ("used up", "unit", "map")),
        (LZO, ("list",)),
        (LZ4, ("used up", "map")),
        (LZ4, ("list",)),
        (PLAIN, ("map",)),
        (PLAIN, ("used up", "list")),
    ],
)
def test_the_page_shows_what_is_left(reported: Callable[..., Reported], name: str, kinds: tuple[Damage, ...]) -> None:
    """Its numbers are those of inspect, and the intact image denies nothing that it shows."""
    found = reported(name, *kinds)
    found.check()
    told = {one["about"]: one for one in found.document["sentences"]}
    assert ("is used up" in found.document["verdict"]["text"]) == ("used up" in kinds)
    assert found.document["verdict"]["state"] == "bad"
    assert told["integrity"]["state"] == "bad"


def test_a_whole_used_up_image_is_shown_as_the_image(reported: Callable[..., Reported]) -> None:
    """All but the verdict and the sentences on it is as before the signature was put back; the CRC is the proof."""
    found = reported(LZO, "used up")
    found.check()
    assert found.status == 0
    assert found.document["verdict"] == {
        "about": "verdict",
        "state": "warning",
        "text": "The image is used up, and whole.",
    }
    apart = {"name", "verdict", "sentences", "salvage"}
    assert {key: found.document[key] for key in found.document.keys() - apart} == {
        key: found.intact[key] for key in found.intact.keys() - apart
    }
    assert all((found.frames[layer] == found.intact_frames[layer]).all() for layer in LAYERS)
    (proof,) = (one for one in found.document["sentences"] if "checksum" in one["text"])
    assert proof["state"] == "ok"


def test_a_torn_table_stays_torn_beside_later_losses(reported: Callable[..., Reported]) -> None:
    """The copy tore a table of this image, and later a map page was lost: the table is torn, as before."""
    found = reported(PLAIN, "used up", "map")
    found.check()
    (region,) = found.document["regions"]
    assert region == found.intact["regions"][0]
    assert {one["key"]: one["pages"] for one in found.document["fate"]}["lost"] == 1


def test_lost_later_tables_are_not_torn(reported: Callable[..., Reported], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the list that tells, the same tables would be called torn; the comparison notices."""
    found = reported(LZO, "list")
    assert len(found.document["regions"]) == 3
    assert not any(one["torn"] for one in found.document["regions"])
    monkeypatch.setattr(copy_order, "_is_lost_later", lambda _found, _pfn: False)
    with pytest.raises(AssertionError):
        reported(LZO, "list").check()


def test_frames_on_a_lost_part_of_the_list_are_not_called_not_saved(
    reported: Callable[..., Reported], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutant that knows no uncertain frames shows frames of the list as not saved; the comparison notices."""
    monkeypatch.setattr(loose_list, "_between", lambda *_arguments, **_whole: FrameRanges.of([]))
    with pytest.raises(AssertionError):
        reported(LZ4, "list").check()


def test_pages_that_are_not_compressed_are_not_called_whole(golden_copy: GoldenCopy, tmp_path: Path) -> None:
    """A block of the data was overwritten, which nothing shows: the page says that it would not."""
    path = damage(golden_copy(PLAIN), "used up", "unit")
    result = hibernaut("report", path, "--consumed", "-o", tmp_path / "page.html", "--json")
    source = result.document["source"]
    assert result.status == 1
    assert source["verdict"]["state"] == "unknown"
    assert source["verdict"]["text"] == "The image is used up; all 20164 frames can be read."
    (told,) = (one for one in source["sentences"] if "not compressed" in one["text"])
    assert told["state"] == "unknown"


def test_a_wrong_checksum_is_the_verdict(golden_copy: GoldenCopy, tmp_path: Path) -> None:
    """All units decompress, and the stored CRC is of other bytes: which are wrong is not known."""
    path = golden_copy(LZO)
    with path.open("r+b") as file:
        block = file.read(4096)
        stored = (0xACD59DF4).to_bytes(4, "little")
        assert block.count(stored) == 1
        file.seek(block.index(stored))
        file.write(bytes(4))
    source = hibernaut("report", path, "--salvage", "-o", tmp_path / "page.html", "--json").document["source"]
    assert (source["verdict"]["state"], source["salvage"]["missing_pages"]) == ("bad", 0)
    assert any("it is not known which" in one["text"] for one in source["sentences"] if one["state"] == "bad")


def test_an_image_without_a_frame_that_can_be_read_has_a_page(golden_copy: GoldenCopy, tmp_path: Path) -> None:
    """The first map page is lost, and with it the list: the page reports that, and draws no map."""
    path, page = golden_copy(PLAIN), tmp_path / "page.html"
    with path.open("r+b") as file:
        file.seek(1290 * 4096)
        file.write(np.random.default_rng(1).bytes(4096))
    result = hibernaut("report", path, "--salvage", "-o", page, "--json")
    assert (result.status, result.document["source"]["frames"]) == (1, 0)
    assert "No page frame can be read" in page.read_text()
    assert "canvas" not in page.read_text().split("</style>")[1].split("<script>")[0]


def differences(result: Any) -> tuple[int, int, int]:
    """Return the frames that differ, and those that one source has alone."""
    found = result.document["difference"]
    return found["different"], found["only_first"], found["only_second"]


def test_either_source_may_be_damaged(golden: Golden, golden_copy: GoldenCopy, tmp_path: Path) -> None:
    """The lost frames are in the other source alone, and no frame differs; of OTHER as of SOURCE."""
    whole, page = golden(LZO), tmp_path / "page.html"
    damaged = damage(golden_copy(LZO), "used up", "unit")
    assert differences(hibernaut("report", damaged, whole, "--consumed", "-o", page, "--json")) == (0, 0, 32)
    result = hibernaut("report", damaged, damaged, "--consumed", "-o", page, "--json")
    assert differences(result) == (0, 0, 0)
    assert result.document["other"]["salvage"] == result.document["source"]["salvage"]
    assert "used up" in refused("report", whole, damaged, "--consumed", "-o", page)
    unit = tmp_path / "unit.img"
    unit.write_bytes(damaged.read_bytes())
    with unit.open("r+b") as file:
        file.seek(4086)
        file.write(b"S1SUSPEND\0")
    result = hibernaut("report", whole, unit, "--salvage", "-o", page, "--json")
    assert differences(result) == (0, 32, 0)
    assert (result.status, result.document["other"]["salvage"]["whole"]) == (0, False)


def test_a_dump_beside_a_damaged_image_is_read_as_ever(golden: Golden, golden_copy: GoldenCopy, tmp_path: Path) -> None:
    """RAM before the copy: the frames that are left differ from it as those of the intact image do."""
    dump, page = golden("ram-6.1-lzo.elf"), tmp_path / "page.html"
    damaged = damage(golden_copy(LZO), "unit")
    before = differences(hibernaut("report", golden(LZO), dump, "-o", page, "--json"))
    after = differences(hibernaut("report", damaged, dump, "--salvage", "-o", page, "--json"))
    assert (after[0], after[1]) == (before[0], before[1]) == (2, 0)
    assert after[2] == before[2] + 32


def test_a_trace_is_that_of_a_damaged_image(tmp_path: Path) -> None:
    """Frames on the image's list are compared, lost ones too: its own copy is taken, another one refused."""
    image = image_by(tmp_path / "image", None, hole_2m(0x1000))
    own, other, page = tmp_path / "own.json", tmp_path / "other.json", tmp_path / "page.html"
    trace = trace_by(Remap(), hole_2m(0x1000))
    write_trace(own, trace)
    write_trace(other, replace(trace, frames=trace.frames.without(FrameRanges.of([(0x3000, 1)]))))
    words = ("-o", page, "--json", "--trace", own)
    before = hibernaut("report", image, *words).document["trace"]
    damage(image, "used up", "unit")
    result = hibernaut("report", image, "--consumed", *words)
    assert (result.status, result.document["source"]["salvage"]["missing_pages"]) == (1, 32)
    assert result.document["trace"] == before
    result = hibernaut("report", image, "--consumed", "-o", page, "--trace", other)
    assert result.status == 2
    assert "trace of another hibernation than SOURCE's" in result.err
    with open_image_of(image) as salvaged:
        unit = int(salvaged.swap_map.entries[1])
    overwrite(image, unit * 4096, bytes(4096))
    sentences = hibernaut("report", image, "--consumed", *words).document["trace"]["sentences"]
    assert "what is left of this image's list" in sentences[-1]["text"]


def open_image_of(path: Path) -> SalvagedImage:
    """Return a used-up image."""
    return salvage_image(path, used_up=True)


def test_a_redacted_page_names_no_file(golden_copy: GoldenCopy, tmp_path: Path) -> None:
    """Problems have their place in the file; its name is replaced."""
    path, page = damage(golden_copy(LZO), "used up", "map", "unit"), tmp_path / "page.html"
    result = hibernaut("report", path, "--consumed", "--redact", "-o", page, "--json")
    assert path.name not in page.read_text() + result.out
    assert result.document["source"]["salvage"]["problems"][0]["where"].startswith("SOURCE: byte ")
    plain = hibernaut("report", path, "--consumed", "-o", page, "--json").out
    assert path.name in plain


def test_mistakes(golden: Golden, tmp_path: Path) -> None:
    """A dump, raw memory with a gap, an image that is not used up: one line, and no page."""
    page = tmp_path / "page.html"
    assert "ELF" in refused("report", golden("ram-6.1-lzo.elf"), "--salvage", "-o", page)
    assert "is not used up" in refused("report", golden(LZO), "--consumed", "-o", page)
    assert "--gap" in refused("report", golden(LZO), "--salvage", "--gap", "3G+1G", "-o", page)
    assert not page.exists()
