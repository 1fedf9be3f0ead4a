# SPDX-License-Identifier: GPL-2.0-or-later
"""`--consumed` and `--salvage` of inspect, convert and map: exit statuses, lists of frames, one line for a mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.run import hibernaut, refused
from tests.conftest import Golden
from tests.damaged_images import damage

NAME = "swap-6.1-lzo.img"
B = 4096


def write(path: Path, at: int, data: bytes) -> None:
    """Write into a file."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.fixture
def used_up(golden_copy: Callable[[str], Path]) -> Path:
    """A real image whose signature was put back."""
    path = golden_copy(NAME)
    write(path, 4086, b"SWAPSPACE2")
    return path


@pytest.fixture
def overwritten(used_up: Path) -> Path:
    """And of which 100 blocks were overwritten, a map page among them."""
    write(used_up, 3100 * B, np.random.default_rng(1).bytes(100 * B))
    return used_up


def test_a_used_up_image_is_named_and_the_option_for_it(used_up: Path) -> None:
    """It is not known whether a resume, a refusal or an unfinished rewrite put the signature back."""
    line = refused("inspect", used_up)
    assert "a resume consumed it or the kernel refused it, or a rewrite in place did not end" in line
    assert line.endswith("see `hibernaut inspect --consumed` for how much of it is left")
    assert refused("map", used_up, "--salvage").endswith("for how much of it is left")


def test_inspect_of_a_whole_used_up_image(used_up: Path) -> None:
    """Exit status 0: its CRC proves that it was not overwritten."""
    result = hibernaut("inspect", used_up, "--consumed", "--json")
    salvage = result.document["salvage"]
    assert (result.status, salvage["whole"], salvage["used_up"]) == (0, True, True)
    assert (salvage["units"], salvage["whole_units"], salvage["lost"], salvage["missing"]) == (625, 625, [], [])
    text = hibernaut("inspect", used_up, "--consumed").out
    assert text.splitlines()[-1] == "image is used up, and whole"


def test_inspect_of_an_overwritten_image(overwritten: Path) -> None:
    """Exit status 1, with the units that are lost and the frames that are missing."""
    result = hibernaut("inspect", overwritten, "--consumed", "--json")
    salvage = result.document["salvage"]
    assert (result.status, salvage["whole"]) == (1, False)
    assert [(part["first_unit"], part["units"]) for part in salvage["lost"]] == [(120, 1), (121, 9)]
    assert salvage["missing_pages"] == sum(run["pages"] for run in salvage["missing"]) == 320
    assert salvage["readable_pages"] == 19951 - 320
    result = hibernaut("inspect", overwritten, "--consumed")
    assert result.out.splitlines()[-1] == "image is used up; 19631 of 19951 frames can be read"
    assert "LOST  units 121 to 129 at block 3101: the first has no valid length" in result.out.splitlines()


@pytest.mark.parametrize("form", ["raw", "elf", "lime"])
def test_convert_of_an_overwritten_image(golden: Golden, overwritten: Path, tmp_path: Path, form: str) -> None:
    """The frames that are whole are those of the intact image; the others are listed, and the status is 1."""
    out, intact = tmp_path / "out", tmp_path / "intact"
    result = hibernaut("convert", overwritten, out, "--to", form, "--consumed", "--json")
    assert (result.status, result.document["pages"]) == (1, 19631)
    if form == "raw":
        assert hibernaut("convert", golden(NAME), intact, "--to", "raw").status == 0
        got, want = (np.fromfile(path, dtype=np.uint8).reshape(-1, B) for path in (out, intact))
        missing = np.zeros(len(want), dtype=np.bool_)
        for run in result.document["salvage"]["missing"]:
            first = int(run["start_pfn"], 16)
            missing[first : first + run["pages"]] = True
        assert np.array_equal(got[~missing[: len(got)]], want[: len(got)][~missing[: len(got)]])
        text = hibernaut("convert", overwritten, out, "--to", form, "--consumed").out
        assert "MISSING  frames 0x1e1f to 0x1eaa" in text.splitlines()


def test_map_of_an_overwritten_image(overwritten: Path) -> None:
    """The direct map of what is left; status 1, and 0 for a whole image."""
    result = hibernaut("map", overwritten, "--consumed", "--json")
    assert (result.status, result.document["levels"]) == (1, 4)
    assert "320 frames of the list cannot be read and do not exist in this memory" in result.document["remarks"]
    write(overwritten, 3100 * B, bytes(B))
    assert hibernaut("map", overwritten, "--consumed", "--quiet").status == 1


def test_walk_and_audit_of_an_overwritten_image(golden: Golden, overwritten: Path) -> None:
    """Entries and classes of pages that are left equal those of the image; status 1."""
    image, address = golden(NAME), "0xffff88800a000000"
    whole = hibernaut("walk", image, address, "--json").document
    result = hibernaut("walk", overwritten, address, "--consumed", "--json")
    assert (result.status, result.document) == (1, whole)
    before = hibernaut("audit", image, "--json").document
    result = hibernaut("audit", overwritten, "--consumed", "--json")
    assert result.status == 1
    assert before["saveable_pages"] - result.document["saveable_pages"] == 320
    assert sum(one["pages"] for one in result.document["classes"]) == result.document["saveable_pages"]
    assert hibernaut("audit", overwritten, "--salvage", "--quiet").status == 2


def test_exploration_of_a_used_up_image(golden: Golden, used_up: Path) -> None:
    """The machine in it is explored as that of the image; without a SOURCE, the option is refused."""
    result = hibernaut("explore", used_up, "--consumed", "--via", "remap", "--json")
    whole = hibernaut("explore", golden(NAME), "--via", "remap", "--json")
    assert result.status == whole.status
    assert result.document["ways"] == whole.document["ways"]
    assert "are for a SOURCE" in refused("explore", "--consumed")


def test_a_run_on_what_is_left_is_replayed_on_it(
    golden: Golden, golden_copy: Callable[[str], Path], tmp_path: Path
) -> None:
    """A run that was saved of a used-up image plays again on that, and not on the image before it was overwritten."""
    name, runs = "swap-6.1-low2m.img", tmp_path / "runs"
    path = damage(golden_copy(name), "used up", "map")
    found = hibernaut("explore", path, "--consumed", "--via", "remap", "--save", runs, "--json")
    assert found.status == 1
    (run,) = runs.iterdir()
    result = hibernaut("replay", run, "--source", path, "--consumed", "--json")
    assert (result.status, result.document["same"]) == (0, True)
    assert "another machine" in refused("replay", run, "--source", golden(name))
    assert "for an image that --source names" in refused("replay", run, "--consumed")


@pytest.mark.parametrize("form", ["elf", "lime"])
@pytest.mark.parametrize("name", [NAME, "swap-6.12-lz4.img"])
def test_convert_of_a_whole_used_up_image(
    golden: Golden, golden_copy: Callable[[str], Path], tmp_path: Path, name: str, form: str
) -> None:
    """The file is that of the image, byte for byte: with the CPU's registers in a core, and its zero pages counted."""
    path, out, whole = golden_copy(name), tmp_path / "out", tmp_path / "whole"
    write(path, 4086, b"SWAPSPACE2")
    after = hibernaut("convert", path, out, "--to", form, "--consumed", "--json")
    before = hibernaut("convert", golden(name), whole, "--to", form, "--json")
    assert after.status == before.status == 0
    assert out.read_bytes() == whole.read_bytes()
    apart = {"salvage", "source", "remarks"}
    assert {key: after.document[key] for key in after.document.keys() - apart} == {
        key: before.document[key] for key in before.document.keys() - apart
    }


def test_salvage_of_an_intact_image(golden: Golden) -> None:
    """It has no fault: exit status 0, for plain data as well."""
    for name in (NAME, "swap-6.1-low2m.img"):
        result = hibernaut("inspect", golden(name), "--salvage")
        assert (result.status, result.out.splitlines()[-1]) == (0, "image is intact")


def test_salvage_of_a_damaged_image(golden_copy: Callable[[str], Path]) -> None:
    """A flipped byte in the length of unit 100 costs that unit."""
    path = golden_copy(NAME)
    write(path, 3059 * B, b"\xff")
    assert hibernaut("inspect", path).status == 1
    result = hibernaut("inspect", path, "--salvage", "--json")
    assert (result.status, result.document["salvage"]["missing_pages"]) == (1, 32)


def test_mistakes(golden: Golden, used_up: Path) -> None:
    """Options that exclude each other, and an image that is not used up."""
    assert "exclude" in refused("inspect", used_up, "--consumed", "--digests")
    assert "is not used up" in refused("inspect", golden(NAME), "--consumed")
    assert "--scan excludes" in refused("inspect", used_up, "--consumed", "--scan")
    assert "block 5 does not hold a page of a swap map" in refused("inspect", used_up, "--map-block", 5)


def test_find_shows_the_option_for_a_used_up_image(used_up: Path) -> None:
    """It holds no image: the exit status stays 1."""
    result = hibernaut("find", used_up)
    assert result.status == 1
    assert f"  left of it: {used_up} --consumed" in result.out.splitlines()


def test_scan_of_a_device_without_a_header(overwritten: Path) -> None:
    """The parts of the swap map that links prove, and the units between; the option that opens the image."""
    write(overwritten, 0, bytes(B))
    result = hibernaut("inspect", overwritten, "--scan", "--json")
    assert result.status == 0
    maps = [(one["first_block"], one["map_pages"], one["ended"], one["named"]) for one in result.document["maps"]]
    assert maps == [(1098, 4, False, False), (3658, 6, True, False)]
    assert [one["info_block"] for one in result.document["maps"]] == [1099, None]
    assert (
        sum(one["whole_units"] for one in result.document["maps"])
        + sum(run["units"] for run in result.document["runs"])
        == 615
    )
    text = hibernaut("inspect", overwritten, "--scan").out.splitlines()
    assert "             open with: --map-block 1098" in text
    result = hibernaut("inspect", overwritten, "--map-block", 1098, "--json")
    assert (result.status, result.document["salvage"]["missing_pages"]) == (1, 320)


def test_scan_of_nothing(tmp_path: Path) -> None:
    """Exit status 1, whatever the device holds."""
    path = tmp_path / "disk"
    path.write_bytes(np.random.default_rng(2).bytes(64 * B))
    result = hibernaut("inspect", path, "--scan")
    assert (result.status, result.out.splitlines()[-1]) == (1, "no remains of an image")


def test_scan_names_the_map_of_the_header(golden: Golden) -> None:
    """Of an intact image, and of one that is not compressed: all lies in its map."""
    for name, entries in ((NAME, 5443), ("swap-6.1-low2m.img", 20205)):
        found = hibernaut("inspect", golden(name), "--scan", "--json").document
        assert [(one["named"], one["ended"], one["entries"]) for one in found["maps"]] == [(True, True, entries)]
        assert (found["info_pages"], found["runs"]) == ([], [])


def test_a_used_up_image_inside_a_disk(overwritten: Path, tmp_path: Path) -> None:
    """Position options hold for these images, too."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.seek(1 << 20)
        file.write(overwritten.read_bytes()[: 8000 * B])
    result = hibernaut("inspect", disk, "--consumed", "--base", 1 << 20, "--json")
    assert result.document["salvage"]["missing_pages"] == 320
