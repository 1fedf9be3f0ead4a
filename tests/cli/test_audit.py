# SPDX-License-Identifier: GPL-2.0-or-later
"""`audit`, `explain` and the ways of `save` on the command line, on real machines' memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hibernaut.hibernation import WAYS
from tests.cli.run import hibernaut
from tests.conftest import Golden


def test_audit_of_the_machine_that_the_kernel_tore(golden: Golden) -> None:
    """One split, its PMD table copied after it; with the image's list the same as with the kernel's own."""
    dump, image = golden("ram-6.1-low2m.elf"), golden("swap-6.1-low2m.img")
    for more in ((), ("--pages-from", image)):
        result = hibernaut("audit", dump, "--json", *more)
        assert result.status == 1
        document = result.document
        assert (document["rules"], document["saveable_pages"], document["allocations"]) == ("6.1", 20164, 1)
        split = document["splits"][0]
        assert (split["start_pfn"], split["table_pfn"], split["order"]) == ("0x400", "0x4402", "above")
        assert (document["safe_today"], document["safe_by_fixmap"], document["refused"]) == (False, True, None)


def test_audit_of_secret_memory_says_that_the_kernel_refuses(golden: Golden) -> None:
    """secretmem_users is read from the dump: nothing is wrong with any page, and still nothing would be saved."""
    result = hibernaut("audit", golden("ram-6.1-secretmem.elf"), "--json")
    assert result.status == 1
    assert result.document["refused"].startswith("secret memory is in use")
    assert {row["name"]: row["pages"] for row in result.document["classes"]}["not present, 4K"] == 1292


def test_audit_of_an_ordinary_machine_is_good_news(golden: Golden) -> None:
    """Every page present: exit status 0; the rules are those of the kernel in the image."""
    result = hibernaut("audit", golden("swap-6.12-lz4.img"), "--json")
    assert (result.status, result.document["rules"], result.document["safe_today"]) == (0, "6.12", True)


def test_audit_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    """One line, exit status 2."""
    junk = tmp_path / "junk"
    junk.write_bytes(bytes(5000))
    result = hibernaut("audit", junk)
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err


@pytest.mark.parametrize("rules", ["6.1", "6.12", "7.3", "6.13-rc"])
def test_explain_runs_every_branch(rules: str) -> None:
    """Three branches save and five crash by any rules, KFENCE's as its entries have it; the slot saves in all."""
    result = hibernaut("explain", "--json", "--rules", rules)
    assert result.status == 0
    outcomes = [branch["today"]["outcome"] for branch in result.document["branches"]]
    assert outcomes == ["saved", "died", "saved", "saved", "died", "died", "died", "died"]
    warned = [
        any("Failed to remap page" in line for line in branch["today"]["kernel_lines"])
        for branch in result.document["branches"]
    ]
    assert warned == [False, False, False, False, True, True, False, False]
    assert all(branch["fixmap"]["failed_checks"] == [] for branch in result.document["branches"])
    assert {branch["fixmap"]["outcome"] for branch in result.document["branches"]} == {"saved"}


@pytest.mark.parametrize("way", sorted(WAYS.keys() - {"fixmap-no-map", "mermap-other-cpu"}))
def test_every_way_saves_a_real_machine(golden: Golden, tmp_path: Path, way: str) -> None:
    """6.1 with a 2 MiB block out, nothing failing: every way makes an image, the mutants' as good as they can."""
    out = tmp_path / "image"
    result = hibernaut("save", golden("ram-6.1-low2m.elf"), out, "--via", way, "--json", "--compressor", "none")
    assert (result.status, result.document["outcome"], result.document["via"]) == (0, "saved", way)
    allocations = 512 if way == "fixmap-bounce" else 0 if way.startswith(("fixmap", "mermap", "remap-whole")) else 1
    assert len(result.document["allocations"]) == allocations
    assert hibernaut("inspect", out, "--quiet").status == 0


def test_a_way_that_gives_up_writes_nothing(golden: Golden, tmp_path: Path) -> None:
    """remap-generic-abort with a failing allocation: refused, status 1, no file; remap-generic skips and reports it."""
    dump, out = golden("ram-6.1-low2m.elf"), tmp_path / "image"
    refused = hibernaut("save", dump, out, "--via", "remap-generic-abort", "--fail-allocation", 1, "--json")
    assert (refused.status, refused.document["outcome"]) == (1, "refused")
    assert refused.document["refused"]["errno"] == "ENOMEM"
    assert not out.exists()
    skipped = hibernaut("save", dump, out, "--via", "remap-generic", "--fail-allocation", 1)
    assert skipped.status == 0
    assert "SKIPPED: 1 page could not be mapped" in skipped.out
    wrong = hibernaut("save", dump, out, "--via", "teleport")
    assert wrong.status == 2
    assert "remap-whole" in wrong.err


def test_audit_tells_how_many_splits_find_a_page(golden: Golden) -> None:
    """At the copy of a dump that was stopped there, and of an image; a prediction for a kernel that only runs."""
    pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")
    for name in ("ram-6.1-low2m.elf", "swap-6.12-lz4.img"):
        found = hibernaut("audit", golden(name), "--json").document["depletion"]
        assert found["when"] == "copy"
        assert found["floor_pages"] is None
        assert 20_000 < found["least"] <= found["most"] < found["free_pages"]
        assert found["suffices"] is True
    running = golden("ram-6.1-secretmem.elf")
    found = hibernaut("audit", running, "--json").document["depletion"]
    assert found["when"] == "before"
    assert found["floor_pages"] > 2000
    less = hibernaut("audit", running, "--json", "--driver-pages", 20_000).document["depletion"]
    assert less["drivers_pages"] == 20_000
    assert found["free_pages"] - 40_000 <= less["free_pages"] <= found["free_pages"] - 20_000
    text = hibernaut("audit", running, "--driver-pages", 20_000).out
    assert "pages for tables, if it hibernates now, with 20000 pages for drivers: " in text
    assert "a split beyond that reclaims memory in the copy" in text


def test_audit_says_why_the_pages_are_not_known(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without drgn the reason is in the document, and everything else is answered."""
    monkeypatch.setitem(sys.modules, "drgn", None)
    document = hibernaut("audit", golden("swap-6.12-lz4.img"), "--json").document
    assert document["depletion"] is None
    assert "drgn" in document["no_depletion"]
    assert document["safe_today"] is True
