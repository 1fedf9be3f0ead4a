# SPDX-License-Identifier: GPL-2.0-or-later
"""Wrong input on purpose: one line, exit status 1 or 2, nothing written, nothing lost."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.run import hibernaut, refused
from tests.swsusp import naive

PAGES: dict[int, bytes | None] = {pfn: bytes([pfn % 256]) * 4096 for pfn in range(1, 100)}

READERS = ("inspect", "map", "convert", "save", "rewrite")


def arguments(command: str, source: Path, out: Path) -> tuple[object, ...]:
    """A command that reads `source` and would write `out` if it writes at all."""
    more = {"convert": (out, "--to", "elf"), "save": (out, "--via", "fixmap"), "rewrite": (out,)}
    return (command, source, *more.get(command, ()))


def hopeless_files(folder: Path) -> dict[str, Path]:
    """Files that no command can use."""
    contents = {
        "empty": b"",
        "text": b"this is not what you think it is\n" * 100,
        "odd size": bytes(4095),
        "plain swap": bytes(4086) + b"SWAPSPACE2" + bytes(36864),
        "hiberfil": b"HIBR" + bytes(40956),
        "qcow2": b"QFI\xfb\0\0\0\3" + bytes(40952),
        "cut zstd": b"\x28\xb5\x2f\xfd\x04\x58",
        "program": b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, 62, 1) + bytes(4072),
        "uswsusp": bytes(4086) + b"S2SUSPEND\0" + bytes(36864),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    return {name: folder / name for name in [*contents, "folder", "missing"]}


@pytest.mark.parametrize("command", READERS)
def test_hopeless_files_are_refused_in_one_line(tmp_path: Path, command: str) -> None:
    """Each is named in the line, the exit status is 2, and no output file appears."""
    for name, path in hopeless_files(tmp_path).items():
        before = sorted(tmp_path.iterdir())
        line = refused(*arguments(command, path, tmp_path / "out"))
        assert str(path) in line, name
        assert sorted(tmp_path.iterdir()) == before


def test_each_refusal_says_what_it_found(tmp_path: Path) -> None:
    """The known wrong kinds are called by their names."""
    files = hopeless_files(tmp_path)
    for command in ("inspect", "map"):
        assert "no image: signature is SWAPSPACE2" in refused(command, files["plain swap"])
        assert "directory" in refused(command, files["folder"])
        assert "empty" in refused(command, files["empty"])
    assert "hiberfil" in refused("map", files["hiberfil"]).lower()
    assert "qcow2" in refused("map", files["qcow2"])


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """An image with one bit flipped in its data; it still decompresses or not, the CRC is wrong either way."""
    device = bytearray(naive.build(PAGES, naive.Layout()))
    device[-3 * 4096 - 2000] ^= 1
    for at in range(3 * 4096, len(device) - 3 * 4096, 4096):
        device[at + 700] ^= 4
    path = tmp_path / "damaged"
    path.write_bytes(device)
    return path


def test_a_damaged_image_keeps_the_output_as_it_was(damaged: Path, tmp_path: Path) -> None:
    """The file that was there before stays; no partial file is left beside it."""
    out = tmp_path / "out"
    out.write_text("precious")
    assert hibernaut("convert", damaged, out, "--to", "raw").status in (1, 2)
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "out"]


def test_inspect_tells_the_damage_and_exits_1(tmp_path: Path) -> None:
    """A wrong CRC is in the text and in the document."""
    path = tmp_path / "image"
    path.write_bytes(naive.build(PAGES, naive.Layout(crc_error=5)))
    result = hibernaut("inspect", path)
    assert result.status == 1
    assert "WRONG" in result.out
    assert "image is damaged" in result.out
    document = hibernaut("inspect", path, "--json").document
    assert document["crc32"]["ok"] is False
    assert [set(problem) for problem in document["problems"]] == [{"what", "where"}]


def test_the_source_is_never_the_output(tmp_path: Path) -> None:
    """Converting a file onto itself, by another name too, is refused and the file stays."""
    path = tmp_path / "image"
    path.write_bytes(naive.build(PAGES, naive.Layout()))
    (tmp_path / "link").symlink_to(path)
    before = path.read_bytes()
    for out in (path, tmp_path / "link"):
        result = hibernaut("convert", path, out, "--to", "raw")
        assert result.status == 2
        assert path.read_bytes() == before


def test_outputs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    """A folder that does not exist, a directory, a device."""
    path = tmp_path / "image"
    path.write_bytes(naive.build(PAGES, naive.Layout()))
    for out in (tmp_path / "no" / "where", tmp_path, Path(os.devnull)):
        refused("convert", path, out, "--to", "raw")


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        ("nonsense",),
        ("inspect",),
        ("map", "x", "--cr3", "zzz"),
        ("walk", "x", "here"),
        ("convert", "a", "b", "--to", "png"),
        ("save", "a", "b", "--via", "magic"),
        ("save", "a", "b", "--via", "remap", "--fail-allocation", "0"),
        ("inspect", "a", "--for-kernel", "4.19"),
        ("inspect", "a", "--for-kernel", "new"),
        ("inspect", "a", "--on-machine", "nowhere"),
        ("rewrite", "a"),
        ("rewrite", "a", "b", "--in-place"),
        ("rewrite", "a", "b", "--write", "0x1000"),
        ("rewrite", "a", "b", "--write", "0x1000="),
        ("rewrite", "a", "b", "--write", "0x1000=123"),
        ("rewrite", "a", "b", "--write", "x=00"),
        ("rewrite", "a", "b", "--write-file", "0x1000="),
        ("rewrite", "a", "b", "--compressor", "zstd"),
    ],
    ids=str,
)
def test_wrong_usage_is_status_2(wrong: tuple[str, ...]) -> None:
    """No traceback, exit status 2 (no arguments at all: help)."""
    result = hibernaut(*wrong)
    assert result.status == 2
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "facts", ["{", "{}x", '{"e820": 1}', '{"e820_checksum": "red"}', '{"physical_pages": -1}', '{"hw_sig": true}',
              '{"hw_sig": 1.5}', '{"release": 6.1}', '{"release": "2.6.18"}', "{}", " {" * 40_000, "[1]", "\0{"]
)  # fmt: skip
def test_facts_of_a_machine_that_are_none_are_refused(tmp_path: Path, facts: str) -> None:
    """A JSON file for --on-machine that is not what it should be, or does not say which kernel: status 2."""
    image = tmp_path / "image"
    image.write_bytes(naive.build(PAGES, naive.Layout()))
    (tmp_path / "facts").write_text(facts)
    result = hibernaut("inspect", image, "--on-machine", tmp_path / "facts")
    assert result.status == 2
    assert result.out == ""
    assert "Traceback" not in result.err


@given(data=st.data())
def test_no_damage_gives_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    """Any flipped bits or cut, any command: exit status 0, 1 or 2, at most one line of error."""
    device = bytearray(naive.build(PAGES, naive.Layout(compressor=data.draw(st.sampled_from(["lzo", "lz4", "none"])))))
    for _ in range(data.draw(st.integers(0, 3))):
        device[data.draw(st.integers(0, len(device) - 1) | st.integers(4056, 4095))] ^= 1 << data.draw(
            st.integers(0, 7)
        )
    path, out = tmp_path / "image", tmp_path / "out"
    path.write_bytes(device[: data.draw(st.just(len(device)) | st.integers(1, len(device)))])
    command = data.draw(st.sampled_from(READERS))
    more = ("--for-kernel", data.draw(st.sampled_from(["6.1", "7.3"]))) if command == "inspect" else ()
    result = hibernaut(*arguments(command, path, out), "--quiet", *more)
    assert result.status in (0, 1, 2)
    assert len(result.err.splitlines()) <= 1
    assert "Traceback" not in result.err
    assert out.exists() == (command in ("convert", "save", "rewrite") and result.status == 0)
    out.unlink(missing_ok=True)
