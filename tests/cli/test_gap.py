# SPDX-License-Identifier: GPL-2.0-or-later
"""`--gap`, and raw memory without its gap, in every command that reads memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from hibernaut.errors import HibernautError
from hibernaut.report import page_tables
from hibernaut.sources import open_memory
from tests.cli.run import NEXT, hibernaut
from tests.conftest import Golden
from tests.linux.gap_files import BASE, FOUR_GIB_PFN, Pc

PC = Pc(high_end=0x108000, tables=0x107F00, mark_every=0x800)
UNSURE = Pc(tables=0x3000, top_unmapped=0x8000)
FOUND = [{"start": "0xc0000000", "size_bytes": 1 << 30}]
ABOVE = BASE[4] + (FOUR_GIB_PFN << 12)


@pytest.fixture(scope="module")
def vmem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file without its gap, whose tables prove it."""
    return PC.write(tmp_path_factory.mktemp("vmem") / "vmem")


@pytest.fixture(scope="module")
def unsure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that two gaps fit."""
    return UNSURE.write(tmp_path_factory.mktemp("unsure") / "unsure")


@pytest.mark.parametrize("command", [("map",), ("audit",), ("walk", hex(ABOVE))], ids=lambda command: command[0])
def test_a_gap_is_put_back_and_named(vmem: Path, command: tuple[str, ...]) -> None:
    """By itself: the document has the gap, standard error a remark, and the text of map and audit a line."""
    result = hibernaut(command[0], vmem, *command[1:], "--json")
    assert (result.document["gaps"], result.document["gaps_from"]) == (FOUND, "the page tables")
    assert "put back as by --gap 0xc0000000+0x40000000" in result.err
    text = hibernaut(command[0], vmem, *command[1:])
    assert text.status == result.status
    if command[0] != "walk":
        assert "0xc0000000+0x40000000, which the file leaves out, by the page tables" in text.out
    else:
        assert result.document["pfn"] == hex(FOUR_GIB_PFN)


def test_a_converted_file_has_its_gap(tmp_path: Path) -> None:
    """LiME states where its ranges belong: so it does for a file that did not."""
    pc = PC.but(low_end=0x40000)
    vmem = pc.write(tmp_path / "vmem")
    result = hibernaut("convert", vmem, tmp_path / "out", "--to", "lime", "--json")
    assert result.status == 0
    assert result.document["gaps"] == [{"start": "0x40000000", "size_bytes": 3 << 30}]
    with open_memory(tmp_path / "out") as source:
        assert list(source.memory.ranges) == [(0, 0x40000), (FOUR_GIB_PFN, 0x8000)]
    again = hibernaut("map", tmp_path / "out", "--json").document
    assert (again["gaps"], again["gaps_from"]) == ([], None)
    assert again["present_bytes"] == hibernaut("map", vmem, "--json").document["present_bytes"]


@pytest.mark.parametrize("value", ["0xc0000000+0x40000000", "3G+1G", "3GiB+1024M", "3221225472+1048576k"])
def test_a_gap_that_is_given(unsure: Path, value: str) -> None:
    """Hexadecimal, decimal, with units of 1024."""
    result = hibernaut("map", unsure, "--gap", value, "--json")
    assert result.status == 0
    assert (result.document["gaps"], result.document["gaps_from"]) == (FOUND, "--gap")
    assert result.document["remarks"] == []


@pytest.mark.parametrize(
    "command",
    [("map",), ("audit",), ("walk", hex(ABOVE)), ("convert", "OUT", "--to", "lime"), ("save", "OUT", "--via", "remap"),
     ("explore",)],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_contradiction_is_an_answer(unsure: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    """One line, exit status 1, nothing written; the advice names the option that settles it."""
    out = tmp_path / "out"
    result = hibernaut(command[0], unsure, *(str(out) if word == "OUT" else word for word in command[1:]))
    assert (result.status, result.out) == (1, "")
    assert "beyond the end of the file" in result.err
    assert NEXT.search(result.err.strip())
    assert "give the gap as --gap START+SIZE, or --gap none" in result.err
    assert not out.exists()


def test_no_gap_by_order(unsure: Path) -> None:
    """`--gap none`: the file is read as it is; the pages that it lacks are reported."""
    result = hibernaut("map", unsure, "--gap", "none", "--json")
    assert result.status == 0
    assert (result.document["gaps"], result.document["gaps_from"]) == ([], "--gap")
    assert "lacks 229376 pages" in result.document["remarks"][0]


@pytest.mark.parametrize("value", ["3G", "3G-1G", "+1G", "3G+0", "0x+1", "3G+1Q", "1e9+1", "8192T+1", "none+1"])
def test_values_that_are_not_gaps(vmem: Path, value: str) -> None:
    """A usage error that names the option and what it takes."""
    result = hibernaut("map", vmem, "--gap", value)
    assert result.status == 2
    assert "--gap" in result.err
    assert NEXT.search(result.err.strip())


def test_a_gap_is_for_raw_memory(golden: Golden) -> None:
    """Other formats say where their pages belong: `--gap` is refused, also for the machine of a verdict."""
    for arguments in (
        ("map", golden("ram-6.1-lzo.elf"), "--gap", "3G+1G"),
        ("audit", golden("swap-6.1-lzo.img"), "--gap", "none"),
        ("inspect", golden("swap-6.1-lzo.img"), "--on-machine", golden("swap-6.1-lzo.img"),
         "--for-kernel", "6.1", "--on-machine-gap", "3G+1G"),
    ):  # fmt: skip
        result = hibernaut(*arguments)
        assert result.status == 2
        assert "says where its pages belong" in result.err
        assert "leave out --gap" in result.err


def test_the_machine_of_a_verdict(golden: Golden, unsure: Path) -> None:
    """A raw dump given as --on-machine is looked at in the same way."""
    image = golden("swap-6.1-lzo.img")
    result = hibernaut("inspect", image, "--for-kernel", "6.1", "--on-machine", unsure)
    assert result.status == 1
    assert "beyond the end of the file" in result.err


def test_a_gap_behind_the_end(vmem: Path) -> None:
    """A gap that the file's memory does not reach."""
    result = hibernaut("map", vmem, "--gap", "5G+1G")
    assert result.status == 2
    assert "begins behind the end of the file's memory" in result.err


def test_the_library(unsure: Path) -> None:
    """`open_memory(..., gaps=...)` and the exported names."""
    import hibernaut as package

    with package.open_memory(unsure, gaps=[package.MemoryGap(3 << 30, 1 << 30)]) as source:
        assert package.direct_map_of(source).end_pfn == 0x140000
    with package.open_memory(unsure) as source, pytest.raises(package.ContradictoryMemory) as caught:
        package.direct_map_of(source)
    assert isinstance(caught.value, HibernautError)


def test_many_holes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`map` lists the first holes, and the number of the others."""
    monkeypatch.setattr(page_tables, "LISTED", 1)
    path = PC.write(tmp_path / "padded", gaps=())
    result = hibernaut("map", path, "--json")
    assert (len(result.document["holes"]), result.document["more_holes"]) == (1, 1)
    assert result.document["more_mismatches"] == 0
    assert "2 holes, of which the first 1 follow:" in hibernaut("map", path).out
