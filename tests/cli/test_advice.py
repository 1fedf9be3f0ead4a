# SPDX-License-Identifier: GPL-2.0-or-later
"""Each class of user error: the line says what is wrong, where, what was expected, and what to do next."""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard

from hibernaut.cli import failure
from hibernaut.errors import FormatError, HibernationRefused, HibernautError, LabError, LabUnavailable, OutOfMemory
from hibernaut.exploration import cluster
from hibernaut.memory.declarations import FOREIGN, Foreign
from hibernaut.swsusp.header import INSIDE
from hibernaut.volumes.containers import CHECK
from tests.cli.run import NEXT, refused
from tests.conftest import REPOSITORY
from tests.lab.records import RECORD
from tests.swsusp import naive

PAGES: dict[int, bytes | None] = {pfn: bytes([pfn % 256]) * 4096 for pfn in range(1, 100)}
FACTS = 'give facts such as {"e820_checksum": "0xba571fd2", "physical_pages": 65403}'
PLACE = INSIDE
NO_SWAP = "no swap area: signature is "
RUN = "docs/answers/remap-tears-the-image.json"


class Mistake(NamedTuple):
    """A class of user error.

    Attributes:
        name: a name for it.
        make: the function that makes its files in a folder, and returns the words of the command.
        what: text of the line's beginning: what is wrong, and what was expected.
        advice: the line's end: what to do next.
        status: exit status.
    """

    name: str
    make: Callable[[Path], tuple[object, ...]]
    what: str
    advice: str
    status: int = 2


def file(name: str, content: bytes, *words: object) -> Callable[[Path], tuple[object, ...]]:
    """Return a function that writes a file and returns words, in which None stands for the file."""

    def make(folder: Path) -> tuple[object, ...]:
        (folder / name).write_bytes(content)
        return tuple(folder / name if word is None else word for word in words)

    return make


def words(*given: object) -> Callable[[Path], tuple[object, ...]]:
    """Return a function that needs no file."""
    return lambda _: given


def image(*given: object, **layout: object) -> Callable[[Path], tuple[object, ...]]:
    """Return a function that writes a small image, None in the words."""
    return lambda folder: file("swap.img", naive.build(PAGES, naive.Layout(**layout)), *given)(folder)  # type: ignore[arg-type]


def consumed() -> bytes:
    """Return an area whose image a resume has used up."""
    device = bytearray(naive.build(PAGES, naive.Layout()))
    device[4086:4096] = device[4076:4086]
    return bytes(device)


def folder_with(name: str) -> Callable[[Path], tuple[object, ...]]:
    """Return a function that makes a folder, for `map`."""

    def make(folder: Path) -> tuple[object, ...]:
        (folder / name).mkdir()
        return ("map", folder / name)

    return make


def pipe(folder: Path) -> tuple[object, ...]:
    """Make a named pipe."""
    os.mkfifo(folder / "pipe")
    return ("map", folder / "pipe")


def gpt(folder: Path) -> tuple[object, ...]:
    """Make a disk with a protective MBR and no GPT."""
    sector = bytearray(4096 * 4)
    sector[446:462] = struct.pack("<B3sB3sII", 0, b"", 0xEE, b"", 1, 31)
    sector[510:512] = b"\x55\xaa"
    (folder / "disk").write_bytes(sector)
    return ("inspect", folder / "disk", "--partition", 1)


def record(folder: Path) -> tuple[object, ...]:
    """Make a folder whose guest record is damaged."""
    RECORD.save(folder)
    (folder / "machine.json").write_text("{}")
    return ("lab", "resume", folder, "--dry-run")


def other_results(folder: Path) -> tuple[object, ...]:
    """Make a file without results."""
    (folder / "notes").write_text("buy milk\n")
    return ("explore", "--layout", "regions=0", "--via", "fixmap", "--results", folder / "notes")


def changed_version(folder: Path) -> tuple[object, ...]:
    """Make a saved run of a format that is still to come."""
    found = json.loads((REPOSITORY / RUN).read_text())
    (folder / "run").write_text(json.dumps({**found, "version": 99}))
    return ("replay", folder / "run")


def elf(*, machine: int = 62, cut: bool = False) -> bytes:
    """Return an ELF core with one segment of a page."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 4, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 4096, 0, 0, 4096, 4096, 0)
    return (header + segment).ljust(4096, b"\0") + (b"" if cut else bytes(4096))


MISTAKES = (
    # files
    Mistake("missing", words("map", "nowhere"), "No such file or directory: nowhere", "check the path"),
    Mistake("folder", folder_with("d"), "this is a directory: ", "give a file in it"),
    Mistake("pipe", pipe, "neither a regular file nor a block device", "copy it to a file first: readers need to seek"),
    Mistake("empty", file("f", b"", "map", None), "the file is empty: ", "copy or dump it again"),
    Mistake(
        "empty gzip", file("f.gz", gzip.compress(b""), "map", None), "empty when unpacked", "copy or dump it again"
    ),
    Mistake(
        "cut zstd",
        file("f.zst", zstandard.compress(bytes(range(256)) * 64)[:-3], "map", None),
        "ends in the middle of",
        "copy or compress it again",
    ),
    Mistake(
        "text",
        file("f", b"hello", "map", None),
        "no memory that can be read: ",
        "give a dump or an image, with --offset, --partition or --base if it lies inside the file",
    ),
    Mistake("cut elf", file("f", elf(cut=True), "map", None), "runs past the end of the file", failure.CHECK_FILE),
    Mistake(
        "arm elf",
        file("f", elf(machine=183), "map", None),
        "no memory that can be read",
        "give an ELF core of an x86-64 machine's physical memory",
    ),
    Mistake(
        "write to nowhere", image("convert", None, "no/where/out", "--to", "raw"), "No such file", "check the path"
    ),
    Mistake("write to a folder", image("convert", None, "/", "--to", "raw"), "Is a directory", "give a file in it"),
    Mistake(
        "onto itself",
        lambda folder: (*image("convert", None)(folder), folder / "swap.img", "--to", "raw"),
        "is the source itself; expected another file",
        "see `hibernaut convert --help`",
    ),
    # images and where they lie
    Mistake("no swap", file("f", bytes(8192), "inspect", None), NO_SWAP, PLACE),
    Mistake(
        "plain swap",
        file("f", bytes(4086) + b"SWAPSPACE2" + bytes(4096), "inspect", None),
        "no image: signature is SWAPSPACE2",
        "a kernel that reads an image uses it up",
    ),
    Mistake(
        "consumed",
        file("f", consumed(), "inspect", None),
        "a resume consumed it or the kernel refused it, or a rewrite in place did not end",
        "see `hibernaut inspect --consumed` for how much of it is left",
    ),
    Mistake(
        "uswsusp",
        file("f", bytes(4086) + b"S2SUSPEND\0" + bytes(4096), "inspect", None),
        "this is an image of suspend-utils (uswsusp), which is not read",
        "use suspend-utils for it: no kernel reads it",
    ),
    Mistake("offset beyond", image("inspect", None, "--offset", 10**6), "outside the device", "as --offset"),
    Mistake(
        "base beyond",
        image("inspect", None, "--base", 10**9),
        "the swap area begins at",
        "give another --base or --partition",
    ),
    Mistake(
        "base and partition",
        image("inspect", None, "--base", 0, "--partition", 1),
        "exclude each other",
        "give one of them",
    ),
    Mistake("no table", image("inspect", None, "--partition", 1), "no partition table", "else give --base"),
    Mistake("no gpt", gpt, "no GPT header", "give --base"),
    Mistake(
        "crc",
        image("convert", None, "out", "--to", "raw", crc_error=5),
        "CRC of the data is wrong",
        failure.INSPECT,
        status=1,
    ),
    Mistake(
        "unlisted",
        image("rewrite", None, "out", "--write", "0x7000000=00"),
        "is not in the image",
        "give an address within pages that the image saves",
    ),
    Mistake(
        "no fit",
        image("rewrite", None, "out", "--compressor", "none"),
        "does not fit",
        "or write a new area: `hibernaut save` without --like",
    ),
    # machines
    Mistake(
        "no root",
        file("f", bytes(1 << 20), "map", None),
        "no page-table root found",
        "give the physical address of the root as --cr3, or --gap START+SIZE if the file leaves out a gap in memory",
    ),
    Mistake(
        "wrong root",
        file("f", bytes(1 << 20), "map", None, "--cr3", "0x1000"),
        "no direct map under CR3 0x1000",
        "or leave that out to search for it",
    ),
    Mistake(
        "old kernel",
        image("inspect", None, "--for-kernel", "2.6.18"),
        "older than any known line",
        "no verdict is possible for it",
    ),
    Mistake(
        "no release",
        image("inspect", None, "--for-kernel", "new"),
        "is not a kernel release",
        "give it as `uname -r` prints it",
    ),
    Mistake(
        "no kernel",
        lambda folder: image("inspect", None, "--on-machine", folder / "swap.img")(folder),
        "the kernel that runs there is not known",
        "give its release as --for-kernel",
    ),
    Mistake(
        "no json",
        lambda folder: (*image("inspect", None, "--on-machine")(folder), *file("m", b"{", None)(folder)),
        "not valid JSON",
        FACTS,
    ),
    Mistake(
        "unknown fact",
        lambda folder: (*image("inspect", None, "--on-machine")(folder), *file("m", b'{"ram": 1}', None)(folder)),
        "unknown fact 'ram'",
        FACTS,
    ),
    Mistake(
        "wrong fact",
        lambda folder: (
            *image("inspect", None, "--on-machine")(folder),
            *file("m", b'{"hw_sig": "red"}', None)(folder),
        ),
        "hw_sig is 'red'",
        FACTS,
    ),
    # words
    Mistake("no command", words("fly"), "no such command", "see `hibernaut --help`"),
    Mistake("no option", words("map", "--fly"), "no such option", "see `hibernaut map --help`"),
    Mistake("no argument", words("map"), "missing argument", "see `hibernaut map --help`"),
    Mistake(
        "no number",
        words("map", "x", "--cr3", "red"),
        "expected decimal, or hexadecimal with 0x",
        "see `hibernaut map --help`",
    ),
    Mistake(
        "no way",
        words("save", "a", "b", "--via", "magic"),
        "no way 'magic'; expected remap",
        "see `hibernaut save --help`",
    ),
    Mistake(
        "no layout", words("explore", "--layout", "colour=red"), "expected regions=", "see `hibernaut explore --help`"
    ),
    Mistake(
        "layout twice",
        words("explore", "--layout", "cpus=1", "--layout", "cpus=2"),
        "cpus is given twice",
        "give all values at once: cpus=A,B",
    ),
    Mistake(
        "no study", words("answers", "--study", "x"), "no study 'x'; expected regions", "see `hibernaut answers --help`"
    ),
    Mistake("no schema", words("schema", "fly"), "expected answers, audit", "`hibernaut schema` lists them"),
    # runs and results
    Mistake(
        "no run",
        file("f", b"hello", "replay", None),
        "not a saved run",
        "give a file that `hibernaut explore --save DIR` wrote",
    ),
    Mistake("newer run", changed_version, "expected version 1; found 99", "replay it with the hibernaut that saved it"),
    Mistake("other results", other_results, "expected a new or empty file", "give another --results"),
    Mistake(
        "no scheduler",
        words("explore", "--layout", "regions=0", "--via", "fixmap", "--scheduler", "tcp://127.0.0.1:9"),
        "no Dask scheduler answers",
        "or leave out --scheduler",
    ),
    # the laboratory
    Mistake(
        "no line",
        words("lab", "boot", "--kernel", "5.4"),
        "no kernel line '5.4'; expected",
        "give any other kernel as --tree BUILD-DIR, or as --kernel VMLINUZ --modules DIR",
    ),
    Mistake(
        "no variant",
        words("lab", "boot", "--variant", "x"),
        "no guest variant 'x'",
        "`hibernaut lab variants` lists them",
    ),
    Mistake(
        "no case",
        words("lab", "prove", "--case", "x y z"),
        "no case matches",
        "`hibernaut lab prove --list` lists them",
    ),
    Mistake("damaged record", record, "not a record of a laboratory guest", "as --record"),
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_each_mistake_says_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Mistake) -> None:
    """The line begins with what is wrong and ends with the advice, which is the last thing that it says."""
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    line = refused(*mistake.make(tmp_path), status=mistake.status)
    assert mistake.what in line
    assert line.endswith(mistake.advice)
    assert line.index(mistake.what) < line.rindex(mistake.advice)


READER_SAYS = {
    "an ELF file": ("ELF core: not 64-bit little-endian", "give an ELF core of an x86-64 machine's physical memory"),
    "a swap area": ("no image: signature is SWAPSPACE2", "a kernel that reads an image uses it up"),
    "a qcow disk image": ("the qcow2 is damaged", CHECK),
    "a VMDK disk image": ("the vmdk is damaged", CHECK),
    "a VDI disk image": ("the vdi is damaged", CHECK),
    "a VHD disk image": ("the vhd holds a disk of 0 bytes", CHECK),
    "an EWF disk image": ("the e01 is damaged", CHECK),
}
"""Words and advice where the reader of the format refuses a file that has its magic and nothing else."""


@pytest.mark.parametrize("known", FOREIGN, ids=lambda known: known.what)
def test_each_foreign_format_has_its_own_advice(tmp_path: Path, known: Foreign) -> None:
    """A file of a format that is not read: its name, and how its content can be read."""
    (tmp_path / "f").write_bytes((bytes(known.offset) + known.magics[0]).ljust(40960, b"\0"))
    line = refused("map", tmp_path / "f")
    what, advice = READER_SAYS.get(known.what, (f"raw memory: this is {known.what}: ", known.advice))
    assert what in line
    assert line.endswith(advice)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (FormatError("bad", source="f"), failure.CHECK_FILE),
        (FormatError("bad"), "see `hibernaut lab boot --help`"),
        (HibernautError("bad"), "see `hibernaut lab boot --help`"),
        (LabError("the guest crashed"), failure.LAB),
        (LabUnavailable("no QEMU", cure="apt-get install it"), "try: apt-get install it"),
        (OutOfMemory(1, injected=True), failure.OTHER_WAY),
        (HibernationRefused("secret memory", errno="EPERM"), failure.OTHER_WAY),
        (OSError(5, "Input/output error", "f"), "look into the kernel log for errors of the device"),
        (OSError(99999, "Odd", "f"), failure.CHECK_PLACE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_without_advice_gets_that_of_its_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, advice: str
) -> None:
    """No line ends without something to do next, whatever raised the error."""
    monkeypatch.setattr(sys, "argv", ["hibernaut", "lab", "boot", "--kernel", "x"])
    failure.report_failure(error)
    line = capsys.readouterr().err.rstrip("\n")
    assert line.endswith(f"; {advice}")
    assert NEXT.search(line)


@pytest.mark.parametrize("line", ["hibernaut: bad file: f", "hibernaut: bad; expected good", "hibernaut: bad; sorry"])
def test_a_line_without_advice_is_caught(line: str) -> None:
    """The pattern that every refusal is held to finds nothing to do next in these."""
    assert not NEXT.search(line)
    assert re.search(NEXT, f"{line}; give another file")
