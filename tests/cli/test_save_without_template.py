# SPDX-License-Identifier: GPL-2.0-or-later
"""`save` of a dump without `--like`: by the kernel's own list, or for reading only, and it says which."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hibernaut.sources import open_memory
from hibernaut.swsusp import open_image
from tests.cli.run import hibernaut
from tests.conftest import Golden

PAIRS = [("ram-6.1-lzo.elf", "swap-6.1-lzo.img"), ("ram-6.1-low2m.elf", "swap-6.1-low2m.img")]


@pytest.mark.parametrize(("dump", "image"), PAIRS)
def test_an_image_as_the_kernel_would_write_it(golden: Golden, tmp_path: Path, dump: str, image: str) -> None:
    """The list, the info page and, but for what the copy itself changes, the pages are those of the kernel's image."""
    pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn capstone")
    out = tmp_path / "saved.img"
    result = hibernaut("save", golden(dump), out, "--via", "fixmap", "--json")
    document = result.document
    assert document["pages_from"] == "kernel"
    assert document["allocations"] == []
    assert f"that of the kernel in {golden(dump)}, 6.1.0-56-amd64" in result.err
    assert len(result.err.splitlines()) == 1
    with open_image(out) as made, open_image(golden(image)) as theirs, open_memory(golden(dump)) as source:
        assert made.info.page == theirs.info.page
        assert np.array_equal(made.pfns, theirs.pfns)
        assert made.compressor == "lzo"
        assert not made.zero.any()
        saved, _ = made.memory().gather(made.pfns)
        held, _ = source.memory.gather(made.pfns)
        assert np.array_equal(saved, held)
    assert hibernaut("inspect", out, "--json").document["problems"] == []


def test_a_kernel_that_does_not_hibernate(golden: Golden, tmp_path: Path) -> None:
    """Every page of the direct map is saved, for analysis only: the remarks say that, and why."""
    pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn capstone")
    dump = golden("ram-6.1-secretmem.elf")
    result = hibernaut("save", dump, tmp_path / "saved.img", "--via", "fixmap", "--compressor", "none", "--json")
    assert result.document["pages_from"] == "direct-map"
    assert result.document["saved_pages"] > 60000
    reason, consequence = result.err.splitlines()
    assert reason.endswith("is not in the middle of swsusp_save: its list of pages is empty)")
    assert "image is not resumable (for analysis only)" in consequence


def test_without_drgn(golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own list and info page are read without drgn."""
    monkeypatch.setitem(sys.modules, "drgn", None)
    out = tmp_path / "saved.img"
    result = hibernaut("save", golden("ram-6.1-lzo.elf"), out, "--via", "fixmap", "--compressor", "none", "--json")
    assert result.document["pages_from"] == "kernel"
    with open_image(out) as image, open_image(golden("swap-6.1-lzo.img")) as own:
        assert image.info.jump_address == own.info.jump_address


def test_with_a_template_the_kernel_is_not_asked(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --like the list is the template's, drgn or not, and nothing is remarked."""
    monkeypatch.setitem(sys.modules, "drgn", None)
    arguments = ["save", golden("ram-6.1-lzo.elf"), tmp_path / "saved.img", "--via", "fixmap"]
    result = hibernaut(*arguments, "--like", golden("swap-6.1-lzo.img"), "--json")
    assert result.document["pages_from"] == "image"
    assert result.err == ""


def test_an_image_brings_its_own(golden: Golden, tmp_path: Path) -> None:
    """An image as SOURCE has a list of its own."""
    result = hibernaut("save", golden("swap-6.1-lzo.img"), tmp_path / "saved.img", "--via", "fixmap", "--json")
    assert result.document["pages_from"] == "image"
    assert result.err == ""
