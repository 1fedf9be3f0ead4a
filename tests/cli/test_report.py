# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut report`: the page is private, self-contained and escaped, and its numbers are those of --json."""

from __future__ import annotations

import importlib.util
import json
import re
import stat
from pathlib import Path
from unittest import mock

import pytest

from hibernaut.hibernation import Fixmap
from hibernaut.linux.layout import hole_2m
from tests.cli.run import hibernaut, refused
from tests.conftest import Golden
from tests.report.machine_files import HOSTILE, image_by

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra report)")
pytest.importorskip("jinja2", reason="jinja2 is not installed (the extra report)")

LOST = hole_2m(0x1000)


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that names a page table that it lacks, by mainline's way."""
    return image_by(tmp_path_factory.mktemp("torn") / "torn.img", None, LOST)


def test_a_lost_table_is_the_verdict(torn: Path, tmp_path: Path) -> None:
    """The verdict, the region with its steps, and exit status 1; the page has the sentences."""
    page = tmp_path / "page.html"
    result = hibernaut("report", torn, "-o", page, "--json")
    assert result.status == 1
    source = result.document["source"]
    assert source["verdict"]["state"] == "bad"
    assert source["verdict"]["text"].startswith("A page table is lost: after a resume, 2 MiB of memory")
    (region,) = source["regions"]
    assert (region["start_pfn"], region["order"], region["torn"]) == ("0x1000", "above", True)
    assert region["lost_pfn"] is not None
    assert len(region["steps"]) == 4
    text = page.read_text()
    assert source["verdict"]["text"] in text
    assert region["lost_pfn"] in text
    assert {one["key"]: one["pages"] for one in source["mapped"]}["table-missing"] == 512
    assert {one["key"]: one["pages"] for one in source["fate"]}["lost"] == 1


@pytest.mark.parametrize(("way", "tables"), [("fixmap", "high"), (None, "low")])
def test_a_consistent_image_is_fine(tmp_path: Path, way: str | None, tables: str) -> None:
    """The entry is as it was, saved by a fixmap slot or before the split: the image is consistent."""
    path = image_by(tmp_path / "image", Fixmap() if way else None, LOST, tables=tables)
    result = hibernaut("report", path, "-o", tmp_path / "page.html", "--json")
    assert result.status == 0
    source = result.document["source"]
    assert "lost" not in {one["key"] for one in source["fate"]}
    assert source["verdict"] == {
        "about": "verdict",
        "state": "ok",
        "text": "The image names no page table that it lacks.",
    }
    (region,) = source["regions"]
    assert (region["order"], region["torn"]) == ("above" if tables == "high" else "below", False)
    assert len(region["steps"]) == 1
    (told,) = (one for one in source["sentences"] if one["about"] == "regions")
    assert told["state"] == "ok"
    assert "it is consistent" in told["text"]


def test_a_dump_shows_its_image_to_be(golden: Golden, tmp_path: Path) -> None:
    """The dump of the machine before its copy: one region would be torn."""
    result = hibernaut("report", golden("ram-6.1-low2m.elf"), "-o", tmp_path / "page.html", "--json")
    assert result.status == 1
    source = result.document["source"]
    assert source["verdict"]["text"] == "Hibernation would tear the mapping of 1 region of memory."
    assert [one["torn"] for one in source["regions"]] == [True]
    healthy = hibernaut("report", golden("ram-6.1-lzo.elf"), "-o", tmp_path / "page.html", "--json")
    assert (healthy.status, healthy.document["source"]["verdict"]["text"]) == (0, "Every page would be saved.")


def test_the_page_is_private_and_whole(torn: Path, tmp_path: Path) -> None:
    """Mode 0600; no address of a network, no style or script of its own but those that its policy names."""
    page = tmp_path / "page.html"
    hibernaut("report", torn, "-o", page, "--quiet")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [page]
    text = page.read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    links = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert links <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names of XML, never requested
    assert not re.findall(r"\b(?:src|href)=\"(?!#)", text)
    assert len(set(re.findall(r'\bid="([^"]+)"', text))) == len(re.findall(r'\bid="([^"]+)"', text))


def test_text_of_files_is_escaped(tmp_path: Path) -> None:
    """A name with markup and control characters is text, on the page and in a terminal."""
    folder = tmp_path / "files"
    folder.mkdir()
    path = image_by(folder / HOSTILE.replace("/", ""), None)
    page = tmp_path / "page.html"
    result = hibernaut("report", path, "-o", page)
    text = page.read_text()
    assert "<img" not in text
    assert "\x1b" not in text + result.out
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;amp;" in text


def test_redacted_pages_have_no_names(golden: Golden, tmp_path: Path) -> None:
    """Neither file names nor the command line of the kernel; numbers stay."""
    page = tmp_path / "page.html"
    source = golden("swap-6.1-lzo.img")
    result = hibernaut("report", source, "-o", page, "--redact", "--json")
    plain = hibernaut("report", source, "-o", page.with_name("plain.html"), "--json").document
    text = page.read_text() + result.out
    assert source.name not in text
    assert str(tmp_path) not in text
    assert "console=ttyS0" not in text
    assert "console=ttyS0" in page.with_name("plain.html").read_text()
    assert result.document["source"]["facts"]["command line"] == "[left out]"
    for key in ("mapped", "fate", "use", "contents", "area"):
        assert result.document["source"][key] == plain["source"][key]


def test_two_sources_are_compared(golden: Golden, tmp_path: Path) -> None:
    """The dump before the copy and the image after it: the split entry, by frame and owner."""
    page = tmp_path / "page.html"
    sources = golden("ram-6.1-low2m.elf"), golden("swap-6.1-low2m.img")
    found = hibernaut("report", *sources, "-o", page, "--json").document["difference"]
    assert found["entries"] == [
        {"table_pfn": "0x4402", "index": 2, "first": "0x800fffffffbff062", "second": "0xaac8063"}
    ]
    assert {one["owner"]: one["different"] for one in found["owners"]}["page table"] == 1
    for key in ("different", "only_first", "only_second"):
        assert sum(one[key] for one in found["owners"]) == found[key]
    assert sum(one["pages"] for one in found["runs"]) == found["different"]
    assert "What differs" in page.read_text()


def test_the_same_file_twice_is_equal(torn: Path, tmp_path: Path) -> None:
    """No frame differs from itself."""
    found = hibernaut("report", torn, torn, "-o", tmp_path / "page.html", "--json").document["difference"]
    assert (found["different"], found["only_first"], found["only_second"], found["runs"]) == (0, 0, 0, [])


def test_the_page_never_replaces_its_source(torn: Path, tmp_path: Path) -> None:
    """Neither SOURCE nor OTHER; a missing library is one line that installs it."""
    before = torn.read_bytes()
    assert "is the source itself" in refused("report", torn, "-o", torn)
    assert "is the source itself" in refused("report", torn, torn, "-o", torn)
    assert torn.read_bytes() == before
    found = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> object:
        return None if name == "matplotlib" else found(name, package)

    with mock.patch.object(importlib.util, "find_spec", without):
        line = refused("report", torn, "-o", tmp_path / "page.html")
    assert "matplotlib is not installed" in line
    assert not (tmp_path / "page.html").exists()


def test_the_map_on_the_page_is_that_of_the_document(torn: Path, tmp_path: Path) -> None:
    """The packed runs, unpacked, have the totals of the document."""
    from hibernaut.report.frame_runs import PackedRuns, unpack_runs

    page = tmp_path / "page.html"
    document = hibernaut("report", torn, "-o", page, "--json").document["source"]
    script = re.search(r'<script type="application/json" id="source-runs">(.*?)</script>', page.read_text())
    assert script is not None
    data = json.loads(script[1])
    pages, codes = unpack_runs(PackedRuns(tuple(map(tuple, data["classes"])), data["runs"], data["text"]))
    assert int(pages.sum()) == document["frames"]
    for layer, some in zip(data["layers"], codes, strict=True):
        totals = {word["key"]: int(pages[some == code].sum()) for code, word in enumerate(layer["words"])}
        expected = {one["key"]: one["pages"] for one in document[layer["key"]]}
        assert {key: total for key, total in totals.items() if total} == expected


def test_an_image_that_is_damaged_has_a_page(torn: Path, tmp_path: Path) -> None:
    """The verdict is the damage; what can be read is shown."""
    copy = tmp_path / "damaged.img"
    content = bytearray(torn.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = b"\xff" * 64
    copy.write_bytes(content)
    result = hibernaut("report", copy, "-o", tmp_path / "page.html", "--json")
    assert result.status == 1
    assert result.document["source"]["verdict"]["text"] == "The image is damaged."


def test_memory_of_no_kernel_has_a_page(tmp_path: Path) -> None:
    """A file of zeroes as raw memory: no page tables, no machine, and the page says that."""
    path = tmp_path / "zeroes.raw"
    path.write_bytes(bytes(1 << 20))
    result = hibernaut("report", path, "-o", tmp_path / "page.html", "--json")
    assert result.status == 0
    source = result.document["source"]
    assert source["verdict"]["state"] == "unknown"
    assert [one["key"] for one in source["mapped"]] == ["mapped-unknown"]
    assert source["page_tables"] is None
