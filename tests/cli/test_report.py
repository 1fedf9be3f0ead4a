# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut report`: the page is private, self-contained and escaped, and its numbers are those of --json."""

from __future__ import annotations

import importlib.util
import json
import re
import stat
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from hibernaut.hibernation import Fixmap, Remap
from hibernaut.hibernation.trace import Trace, write_trace
from hibernaut.linux.layout import hole_2m, hole_4k
from tests.cli.run import hibernaut, refused
from tests.conftest import Golden
from tests.hibernation.test_trace import traced
from tests.report.machine_files import HOSTILE, image_by, trace_by

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


def traced_file(folder: Path, trace: Trace, name: str = "trace.json") -> Path:
    """Write a trace to a file."""
    write_trace(folder / name, trace)
    return folder / name


def test_a_recorded_copy_has_a_timeline(torn: Path, tmp_path: Path) -> None:
    """The calls of the trace of the image's own copy: steps and tables, in the document, on the page, as text."""
    trace = traced_file(tmp_path, trace_by(Remap(), LOST))
    page = tmp_path / "page.html"
    result = hibernaut("report", torn, "--trace", trace, "-o", page, "--json")
    assert result.status == 1
    found, source = result.document["trace"], result.document["source"]
    (region,) = source["regions"]
    assert found["calls"]["set_direct_map_default_noflush"] == region["listed_pages"]
    assert found["pages"] == found["listed_pages"]
    (bad,) = (one["text"] for one in found["sentences"] if one["state"] == "bad")
    assert f"names the new table in frame {region['lost_pfn']}" in bad
    (new,) = (one for one in found["tables"] if one["allocated_by"])
    assert (new["pfn"], new["listed"], new["copied_by"]) == (region["lost_pfn"], False, None)
    assert [one["state"] for one in found["sentences"]][-1] == "unknown"  # a simulated machine has no kernel to read
    assert found["same_machine"] is False
    text = page.read_text()
    assert text.count('<h2 id="timeline">') == 1
    assert "The recorded copy loop, step by step</title>" in text
    rows = re.search(r'data-numbers="steps">(.*?)</table>', text, re.DOTALL)
    assert rows is not None
    assert rows[1].count('<th scope="row"') == len(found["steps"]) < 20
    assert "<td>copy, map back, unmap, flush</td>" in rows[1]
    told = hibernaut("report", torn, "--trace", trace, "-o", page).out
    assert f"{trace}: the recorded copy\n" in told
    assert f"PROBLEM  {bad}" in told


def test_a_page_without_a_trace_has_no_timeline(torn: Path, tmp_path: Path) -> None:
    """Neither in the document nor on the page."""
    page = tmp_path / "page.html"
    assert hibernaut("report", torn, "-o", page, "--json").document["trace"] is None
    assert "timeline" not in page.read_text()


def test_a_trace_of_another_machine_is_refused(golden: Golden, torn: Path, tmp_path: Path) -> None:
    """Another kernel, another hibernation, another machine: one line each, and no page."""
    page = tmp_path / "page.html"
    sources = {
        "another kernel": (golden("ram-6.1-low2m.elf"), traced("7.3-hole-2m")),
        "another hibernation": (golden("swap-6.1-low2m.img"), traced("6.1-hole-2m")),
        "another machine": (torn, replace(trace_by(Remap(), LOST), levels=5)),
    }
    for what, (source, trace) in sources.items():
        path = traced_file(tmp_path, trace)
        line = refused("report", source, "--trace", path, "-o", page)
        assert f"trace of {what} than SOURCE's: {path}; expected " in line
    assert not page.exists()


def test_a_trace_that_cannot_be_decided_is_said(golden: Golden, tmp_path: Path) -> None:
    """A dump of a kernel that does not hibernate: the timeline is drawn, and its machine is called not known."""
    trace = traced_file(tmp_path, traced("6.1-hole-2m"))
    found = hibernaut(
        "report", golden("ram-6.1-secretmem.elf"), "--trace", trace, "-o", tmp_path / "page.html", "--json"
    ).document["trace"]
    assert found["same_machine"] is False
    assert "Whether the trace is of this machine is not known" in found["sentences"][-1]["text"]
    assert "Whether the trace is of this machine is not known" in (tmp_path / "page.html").read_text()


def test_a_file_that_is_not_a_trace_is_refused(torn: Path, tmp_path: Path) -> None:
    """An image, a folder, a damaged trace; and a trace is never replaced by the page."""
    trace = traced_file(tmp_path, trace_by(Remap(), LOST))
    before = trace.read_bytes()
    assert "is the source itself" in refused("report", torn, "--trace", trace, "-o", trace)
    assert trace.read_bytes() == before
    page = tmp_path / "page.html"
    assert "not a trace" in refused("report", torn, "--trace", torn, "-o", page)
    refused("report", torn, "--trace", tmp_path, "-o", page)
    document = json.loads(before)
    document["events"][0]["pfn"] = "sneeze"
    trace.write_text(json.dumps(document))
    assert "damaged trace: the facts of event 1 are not those of copy" in refused(
        "report", torn, "--trace", trace, "-o", page
    )
    assert not page.exists()


def test_texts_of_a_trace_are_escaped_and_redacted(torn: Path, tmp_path: Path) -> None:
    """Release, guest and outcome with markup and control characters; --redact leaves out the name of the file."""
    hostile = replace(trace_by(Remap(), LOST), release=HOSTILE, guest=HOSTILE * 99999, outcome=HOSTILE)
    trace = traced_file(tmp_path, hostile, HOSTILE.replace("/", "") + ".json")
    page = tmp_path / "page.html"
    result = hibernaut("report", torn, "--trace", trace, "-o", page)
    text = page.read_text()
    assert "<img" not in text
    assert "\x1b" not in text + result.out
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert len(text) < 1 << 20
    quiet = hibernaut(
        "report", torn, "--trace", traced_file(tmp_path, trace_by(Remap(), LOST), "secret-name"), "-o", page, "--redact"
    )
    assert "secret-name" not in page.read_text() + quiet.out
    assert "TRACE: the recorded copy" in quiet.out


def test_a_long_timeline_is_bounded(tmp_path: Path) -> None:
    """Hundreds of single pages that are not present: the first steps are listed, the others counted and drawn."""
    holes = [hole_4k(0x1000 + 2 * number, 1) for number in range(300)]
    image = image_by(tmp_path / "image", Remap(), *holes)
    trace = traced_file(tmp_path, trace_by(Remap(), *holes))
    page = tmp_path / "page.html"
    found = hibernaut("report", image, "--trace", trace, "-o", page, "--json").document["trace"]
    assert len(found["steps"]) == 200
    assert found["more_steps"] > 350
    assert f"200 of {200 + found['more_steps']} steps" in page.read_text()
    assert page.stat().st_size < 1 << 20
