# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut inspect --for-kernel --on-machine`: options, exit status, the document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.run import hibernaut, refused
from tests.conftest import Golden
from tests.swsusp import naive

PAGES: dict[int, bytes | None] = {pfn: bytes([pfn % 256]) * 4096 for pfn in range(1, 100)}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of `PAGES`, compressed with LZ4."""
    path = tmp_path / "image"
    path.write_bytes(naive.build(PAGES, naive.Layout(compressor="lz4")))
    return path


def facts(folder: Path, **known: object) -> Path:
    """Write a file of facts about a machine, as --on-machine reads it."""
    path = folder / "facts.json"
    path.write_text(json.dumps({"e820_checksum": "0xba571fd2", "physical_pages": 65403, "hw_sig": None, **known}))
    return path


def test_without_the_options_nothing_changes(image: Path) -> None:
    """No verdict in the document, none in the text."""
    assert "verdict" not in hibernaut("inspect", image, "--json").document
    assert "this kernel would" not in hibernaut("inspect", image).out


def test_exit_status_and_document(tmp_path: Path, image: Path) -> None:
    """0 if it would resume or that is not known, 1 if it would refuse; the kernel can come from the machine's facts."""
    machine = facts(tmp_path)
    result = hibernaut("inspect", image, "--for-kernel", "6.12.107", "--on-machine", machine, "--json")
    assert result.status == 0
    verdict = result.document["verdict"]
    assert (verdict["kernel"], verdict["machine"], verdict["resumes"]) == ("6.12", str(machine), True)
    assert {tuple(check) for check in verdict["checks"]} == {
        ("check", "answer", "message", "remark", "where", "source")
    }
    result = hibernaut("inspect", image, "--for-kernel", "7.3", "--json")
    assert (result.status, result.document["verdict"]["resumes"]) == (0, None)
    result = hibernaut("inspect", image, "--on-machine", facts(tmp_path, release="6.1.0-56-amd64"), "--json")
    assert (result.status, result.document["verdict"]["resumes"]) == (1, False)
    refusal = next(check for check in result.document["verdict"]["checks"] if check["answer"] == "would refuse")
    assert (refusal["check"], refusal["message"]) == ("units", "PM: LZO decompression failed")
    result = hibernaut("inspect", image, "--for-kernel", "7.3", "--on-machine", facts(tmp_path, physical_pages=1))
    assert result.status == 1
    assert '"PM: hibernation: Image mismatch: memory size"; the image has 65403, the machine 1\n' in result.out
    assert result.out.endswith("this kernel would not resume from it\n")


def test_this_machine_is_another_one(image: Path) -> None:
    """The machine that the tests run on is asked, and is not a guest of 256 MiB."""
    result = hibernaut("inspect", image, "--for-kernel", "7.3", "--on-machine", "this", "--json")
    checks = {check["check"]: check["answer"] for check in result.document["verdict"]["checks"]}
    assert checks["physical_pages"] in ("would refuse", "not known")


def test_the_kernel_must_be_known(image: Path, golden: Golden) -> None:
    """An image says nothing of the kernel that will resume."""
    assert "the kernel that runs there is not known" in refused(
        "inspect", image, "--on-machine", golden("swap-6.1-lzo.img")
    )
    assert "2.6.18" in refused("inspect", image, "--for-kernel", "2.6.18-419.el5")


def test_a_dump_and_an_image_are_machines(golden: Golden) -> None:
    """The facts of a RAM dump's kernel, release among them, and of another image of the machine."""
    dump, written = golden("ram-6.1-lzo.elf"), golden("swap-6.1-lzo.img")
    result = hibernaut("inspect", written, "--for-kernel", "6.1", "--on-machine", golden("swap-6.1-low2m.img"))
    assert result.status == 0
    assert result.out.endswith("this kernel would resume from it\n")
    pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn capstone")
    result = hibernaut("inspect", written, "--on-machine", dump, "--json")
    assert result.status == 0
    verdict = result.document["verdict"]
    assert (verdict["kernel"], verdict["machine"], verdict["resumes"]) == ("6.1", str(dump), True)
