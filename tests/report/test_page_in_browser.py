# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of a report in a browser: no error, no request, the numbers of --json, keys, colours, and accessibility."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hibernaut.hibernation import Fixmap, Remap
from hibernaut.hibernation.trace import write_trace
from hibernaut.linux.layout import hole_2m, hole_4k
from tests.browser import Visitor, started_browser
from tests.cli.run import hibernaut
from tests.damaged_images import damage
from tests.report.machine_files import HOSTILE, image_by, trace_by

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra report)")
pytest.importorskip("jinja2", reason="jinja2 is not installed (the extra report)")

WIDTHS = (1280, 768, 390)
READY = ".memory-map[data-ready=yes]"
PALE = 245


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """See `started_browser`."""
    with started_browser() as started:
        yield started


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page of two images, one with a lost table and with a hostile name, and its document."""
    folder = tmp_path_factory.mktemp("report")
    torn = image_by(folder / HOSTILE.replace("/", ""), None, hole_2m(0x1000), hole_4k(0x805, 2))
    other = image_by(folder / "other.img", None, hole_4k(0x805, 2))
    result = hibernaut("report", torn, other, "-o", folder / "page.html", "--json")
    assert result.status == 1
    return folder / "page.html", result.document


def visited(browser: Any, page: Path, width: int = 1280, scheme: str = "light") -> Visitor:
    """Return a visitor on the page, whose maps are drawn."""
    visitor = Visitor(browser, width, scheme)
    assert visitor.visit(page) == []
    visitor.page.wait_for_selector(READY)
    return visitor


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_is_silent(
    browser: Any, made: tuple[Path, dict[str, Any]], tmp_path: Path, width: int, scheme: str
) -> None:
    """At three widths, light and dark: nothing sticks out, no error, no request, also while the map is used."""
    visitor = visited(browser, made[0], width, scheme)
    page = visitor.page
    page.locator(".frames").first.focus()
    for key in (
        "End",
        "PageUp",
        "ArrowLeft",
        "+",
        "+",
        "+",
        "+",
        "+",
        "+",
        "+",
        "+",
        "+",
        "-",
        "0",
        "Home",
        "ArrowDown",
    ):
        page.keyboard.press(key)
    page.locator(".frames").first.hover(position={"x": 30, "y": 30})
    page.mouse.wheel(0, -300)
    for choice in page.locator("input[type=radio]").all():
        choice.check()
    visitor.screenshot(tmp_path / f"{width}-{scheme}.png")
    assert visitor.problems == []


def test_numbers_on_the_page_are_those_of_the_document(browser: Any, made: tuple[Path, dict[str, Any]]) -> None:
    """Tables, legends of the map and paragraphs, of both sources and of their difference."""
    path, document = made
    page = visited(browser, path).page
    for name in ("source", "other"):
        for key in ("mapped", "fate", "use"):
            expected = {one["key"]: one["pages"] for one in document[name][key]}
            rows = page.eval_on_selector_all(
                f"#{name} [data-numbers={key}] td[data-key]",
                "all => all.map(one => [one.dataset.key, one.textContent])",
            )
            assert {found: int(text) for found, text in rows} == expected
            layer = ("mapped", "fate", "use").index(key)
            page.locator(f"#{name} input[type=radio]").nth(layer).check()
            keys = page.eval_on_selector_all(
                f"#{name} .keys button", "all => all.map(one => [one.dataset.key, Number(one.dataset.pages)])"
            )
            assert dict(keys) == expected
        for key in ("pages", "zero_pages", "repeated_pages"):
            assert int(page.text_content(f"#{name} [data-number={key}]")) == document[name]["contents"][key]
        assert int(page.text_content(f"#{name} [data-number=page_tables]")) == document[name]["page_tables"]
    for key in ("equal", "different", "only_first", "only_second"):
        assert int(page.text_content(f"#difference [data-number={key}]")) == document["difference"][key]
    assert page.text_content("h1") == document["source"]["verdict"]["text"]
    assert page.evaluate("document.title").startswith(document["source"]["verdict"]["text"])


def test_the_map_begins_at_the_first_alarm_and_tells_it(browser: Any, made: tuple[Path, dict[str, Any]]) -> None:
    """The frames whose table is lost, in words, in a live region; then by number, by the legend, by keys."""
    page = visited(browser, made[0]).page
    told = page.locator("#source .told")
    assert told.get_attribute("aria-live") == "polite"
    (lost,) = (one for one in made[1]["source"]["regions"] if one["lost_pfn"])
    page.fill("#source form input[name=frame]", lost["lost_pfn"])
    page.locator("#source .frames").focus()
    for _ in range(12):
        page.keyboard.press("+")
    page.click("#source form button:has-text('Go')")
    assert told.text_content().startswith(f"Frame {lost['lost_pfn']} (address ")
    assert "lost: page tables name it as one of them" in told.text_content()
    page.click("#source .keys button[data-key=table-missing]")
    assert told.text_content().startswith(
        "Frame 0x1000 (address 0x1000000, 4 KiB): the page table that decides is not in"
    )
    assert "All of frames 0x1000 to 0x11ff are alike (2 MiB)" in told.text_content()
    page.locator("#source .frames").focus()
    page.keyboard.press("ArrowLeft")
    assert told.text_content().startswith("Frame 0xfff ")
    page.fill("#source form input[name=frame]", "0x99999999")
    page.click("#source form button:has-text('Go')")
    assert told.text_content() == "No such frame: expected a number from 0 to 0x3fff."


def test_one_frame_of_a_million_is_seen(browser: Any, made: tuple[Path, dict[str, Any]]) -> None:
    """Zoomed out, the cell with the one lost frame has the colour of lost frames."""
    page = visited(browser, made[0], 390).page
    page.locator("#source input[type=radio]").nth(1).check()
    page.locator("#source .frames").focus()
    page.keyboard.press("0")
    colour = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--alarm').trim()")
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    seen = page.evaluate(
        """([red, green, blue]) => {
          const canvas = document.querySelector("#source .frames");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0;
          for (let at = 0; at < data.length; at += 4)
            if (data[at] === red && data[at + 1] === green && data[at + 2] === blue) count++;
          return count;
        }""",
        wanted,
    )
    assert seen > 0


def test_a_printed_page_is_light_and_unfolded(browser: Any, made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Before printing, dark colours become light, and all that is folded opens; a PDF has several pages' content."""
    visitor = visited(browser, made[0], 1280, "dark")
    page = visitor.page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert min(int(one) for one in paper[4:-1].split(",")) > PALE
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") > 0
    page.pdf(path=str(tmp_path / "page.pdf"))
    assert (tmp_path / "page.pdf").stat().st_size > 10_000
    assert visitor.problems == []


def test_nothing_moves_where_motion_is_unwanted(browser: Any, made: tuple[Path, dict[str, Any]]) -> None:
    """No transition and no animation with reduced motion."""
    page = browser.new_page(reduced_motion="reduce")
    page.goto(made[0].as_uri())
    page.wait_for_selector(READY)
    durations = page.eval_on_selector_all(
        "*", "all => all.map(one => getComputedStyle(one)).map(one => [one.transitionDuration, one.animationName])"
    )
    assert {tuple(one) for one in durations} == {("0s", "none")}


def test_the_policy_refuses_requests_and_foreign_scripts(
    browser: Any, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """A script or an image that came into the page all the same is refused by the browser, not by luck."""
    page = made[0].read_text()
    mutant = tmp_path / "mutant.html"
    added = '<script>document.title = "ran"</script><img src="http://127.0.0.1:9/x.png">'
    mutant.write_text(page.replace("</main>", f"</main>{added}"))
    visitor = Visitor(browser, 1280)
    failures: list[str] = []
    visitor.page.on("requestfailed", lambda request: failures.append(request.failure))
    problems = "\n".join(visitor.visit(mutant))
    assert visitor.page.evaluate("document.title") != "ran"
    assert failures == ["csp"]
    assert problems.count("Content Security Policy") == 2


@pytest.fixture(scope="module")
def salvaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page of an image that is used up and has lost a unit, and its document."""
    folder = tmp_path_factory.mktemp("salvaged")
    path = damage(image_by(folder / "image", Fixmap(), hole_4k(0x805, 2)), "used up", "unit")
    result = hibernaut("report", path, "--consumed", "-o", folder / "page.html", "--json")
    assert result.status == 1
    return folder / "page.html", result.document["source"]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_a_damaged_image_fits_and_is_silent(
    browser: Any, salvaged: tuple[Path, dict[str, Any]], tmp_path: Path, width: int
) -> None:
    """Its numbers are those of the document; the words on a lost page are right, and nothing is wrong with the page."""
    path, document = salvaged
    visitor = visited(browser, path, width, "dark" if width == WIDTHS[1] else "light")
    page, salvage = visitor.page, document["salvage"]
    for key, expected in (
        ("readable_pages", salvage["readable_pages"]),
        ("missing_pages", salvage["missing_pages"]),
        ("whole_units", salvage["whole_units"]),
        ("salvaged_units", salvage["units"]),
    ):
        assert int(page.text_content(f"[data-number={key}]")) == expected
    page.locator("#source input[type=radio]").nth(1).check()
    keys = page.eval_on_selector_all(
        "#source .keys button", "all => all.map(one => [one.dataset.key, Number(one.dataset.pages)])"
    )
    assert dict(keys) == {one["key"]: one["pages"] for one in document["fate"]}
    assert dict(keys)["lost-page"] == salvage["missing_pages"] > 0
    page.click("#source .keys button[data-key=lost-page]")
    told = page.locator("#source .told").text_content()
    assert told.startswith(f"Frames {salvage['missing'][0]['start_pfn']} to ")
    assert "lost: it is on the list of the image, and its data cannot be read any more" in told
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    visitor.screenshot(tmp_path / f"{width}.png")
    assert visitor.problems == []


def test_axe_finds_no_serious_fault_in_the_page_of_a_damaged_image(
    browser: Any, salvaged: tuple[Path, dict[str, Any]], axe: str
) -> None:
    """All parts unfolded, the tables of lost parts and frames among them."""
    page = visited(browser, salvaged[0]).page
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert [one["id"] for one in found["violations"] if one["impact"] in ("serious", "critical")] == []


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of an exploration with two strips."""
    page = tmp_path_factory.mktemp("explored") / "page.html"
    hibernaut("explore", "--layout", "kinds=2m", "--layout", "tables=above", "--via", "remap", "--report", page, "-q")
    return page


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_an_exploration_fits_and_is_silent(
    browser: Any, explored: Path, axe: str, tmp_path: Path, width: int
) -> None:
    """At three widths: nothing sticks out, no error, no request, nothing serious by axe-core."""
    visitor = Visitor(browser, width, "dark" if width == WIDTHS[1] else "light")
    assert visitor.visit(explored) == []
    visitor.screenshot(tmp_path / f"{width}.png")
    visitor.page.evaluate(axe)
    found = visitor.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert [one["id"] for one in found["violations"] if one["impact"] in ("serious", "critical")] == []


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with the timeline of a recorded copy, from a trace with a hostile name."""
    folder = tmp_path_factory.mktemp("timed")
    holes = hole_2m(0x1000), *(hole_4k(0x1400 + 2 * number, 1) for number in range(20))
    trace = folder / f"{HOSTILE.replace('/', '')}.json"
    write_trace(trace, replace(trace_by(Remap(), *holes), guest=HOSTILE))
    image = image_by(folder / "image", Remap(), *holes)
    assert hibernaut("report", image, "--trace", trace, "-o", folder / "page.html", "-q").status == 1
    return folder / "page.html"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_a_recorded_copy_fits_and_is_silent(
    browser: Any, timed: Path, axe: str, tmp_path: Path, width: int
) -> None:
    """At three widths: nothing sticks out, no error, no request, nothing serious by axe-core; the chart is named."""
    visitor = visited(browser, timed, width, "dark" if width == WIDTHS[1] else "light")
    assert visitor.problems == []
    page = visitor.page
    page.locator("#timeline").scroll_into_view_if_needed()
    visitor.screenshot(tmp_path / f"{width}.png")
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert [one["id"] for one in found["violations"] if one["impact"] in ("serious", "critical")] == []
    chart = page.locator("svg[aria-labelledby^=timeline]")
    assert chart.get_attribute("role") == "img"
    assert chart.locator("title").first.text_content() == "The recorded copy loop, step by step"
    steps = page.locator("table[data-numbers=steps] tbody tr").count()
    assert chart.locator("desc").first.text_content().startswith(f"{steps} steps of ")
    assert chart.bounding_box()["width"] <= width
    assert visitor.problems == []


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from npm, or a skip with the reason."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: axe-core comes from it")
    folder = tmp_path_factory.mktemp("axe")
    packed = subprocess.run(
        [npm, "pack", "axe-core", "--silent"], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    files = list(folder.glob("axe-core-*.tgz"))
    if packed.returncode or not files:
        pytest.skip(f"npm cannot get axe-core: {packed.stderr.strip()[-200:]}")
    with tarfile.open(files[0]) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Any, made: tuple[Path, dict[str, Any]], axe: str, scheme: str) -> None:
    """Contrast, names, roles, order of headings: nothing serious or critical, all parts unfolded."""
    page = visited(browser, made[0], 1280, scheme).page
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    faults = [
        (one["id"], one["impact"], [node["html"][:160] for node in one["nodes"][:3]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert faults == [], json.dumps(faults, indent=1)
    assert len(found["passes"]) > 20


def test_axe_finds_a_fault_that_is_put_in(browser: Any, made: tuple[Path, dict[str, Any]], axe: str) -> None:
    """A button without a name and grey text on grey."""
    page = visited(browser, made[0]).page
    page.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<button></button>')")
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert "button-name" in {one["id"] for one in found["violations"]}
