# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict of a kernel on an image: each check with the message from the kernel's source."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.kernel_line import parse_release
from hibernaut.swsusp import inspect_image
from hibernaut.swsusp.e820 import E820Sums
from hibernaut.swsusp.rules import IMAGE_RULES, image_rules_for_release
from hibernaut.swsusp.verdict import Answer, ResumingMachine, Verdict, verdict_on
from hibernaut.volumes.files import open_plain
from tests.conftest import Golden
from tests.strategies import image_layouts, saved_pages
from tests.swsusp import naive

GUEST = ResumingMachine("the guest", e820=E820Sums(crc32=0xBA571FD2), physical_pages=65403, hw_sig=0)
FAILED = "PM: hibernation: Failed to load image, recovering."
ORDER = ["signature", "hw_sig", "compressor", "swap_map", "magic", "e820_checksum", "physical_pages"]


def judge(path: Path, kernel: str, machine: ResumingMachine = GUEST, offset: int = 0) -> Verdict:
    """Return the verdict of a kernel on an image."""
    with open_plain(path) as file:
        return verdict_on(inspect_image(file, offset=offset), image_rules_for_release(kernel), machine)


def refusals(verdict: Verdict) -> dict[str, str | None]:
    """Return the checks that refuse, with the kernel's message."""
    return {check.check: check.message for check in verdict.checks if check.answer is Answer.REFUSES}


def unknowns(verdict: Verdict) -> list[str]:
    """Return the checks whose answer is not known."""
    return [check.check for check in verdict.checks if check.answer is Answer.UNKNOWN]


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("swap-6.1-lzo.img", ["5.10", "6.1", "6.6", "6.9", "6.12", "7.3"]),
        ("swap-6.1-low2m.img", ["5.10", "6.1", "6.12", "7.3"]),
        ("swap-6.12-lz4.img", ["6.9", "6.12", "7.3"]),
    ],
)
def test_golden_images_resume_on_their_machine(golden: Golden, name: str, kernels: list[str]) -> None:
    """Every check is ok: these images were resumed by the kernels that wrote them."""
    with open_plain(golden(name)) as file:
        found = inspect_image(file)
        for kernel in kernels:
            verdict = verdict_on(found, image_rules_for_release(kernel), GUEST)
            assert verdict.resumes is True, verdict
            assert [check.check for check in verdict.checks] == [*ORDER, "frames", "units", "crc32"]


def test_a_newer_image_for_6_1(golden: Golden) -> None:
    """6.1 takes LZ4 units for LZO, and stops at the first; it would not know zero pages either."""
    verdict = judge(golden("swap-6.12-lz4.img"), "6.1")
    assert verdict.resumes is False
    assert refusals(verdict) == {"units": "PM: LZO decompression failed", "frames": FAILED}
    assert [check.check for check in verdict.checks] == [*ORDER, "units", "frames", "crc32"]
    assert unknowns(verdict) == ["crc32"]
    compressor = verdict.checks[2]
    assert compressor.answer is Answer.OK
    assert "flag 16" in str(compressor.remark)


def test_another_machine(golden: Golden) -> None:
    """Changed firmware map, more memory, another signature: each has its message; what is not known stays so."""
    path = golden("swap-6.1-lzo.img")
    verdict = judge(path, "6.1", replace(GUEST, e820=E820Sums(crc32=1)))
    assert refusals(verdict) == {"e820_checksum": "Hibernate inconsistent memory map detected!"}
    assert unknowns(verdict) == ["frames"]
    verdict = judge(path, "6.1", replace(GUEST, physical_pages=65404))
    assert refusals(verdict) == {"physical_pages": "PM: hibernation: Image mismatch: memory size"}
    verdict = judge(path, "6.1", ResumingMachine("somewhere"))
    assert (verdict.resumes, unknowns(verdict)) == (None, ["e820_checksum", "physical_pages", "frames"])


def test_hardware_signature(tmp_path: Path) -> None:
    """Compared under flag 8, with 0 where the machine has none; 5.10 does not look; the numbers are in the message."""
    path = tmp_path / "image"
    device = bytearray(naive.build(PAGES, naive.Layout(extra_flags=8)))
    struct.pack_into("<I", device, 4056, 0xABCD)
    path.write_bytes(device)
    message = "PM: Suspend image hardware signature mismatch (0000abcd now {:08x}); aborting resume."
    for now in (0, 0x1234):
        verdict = judge(path, "6.1", replace(GUEST, hw_sig=now))
        assert refusals(verdict) == {"hw_sig": message.format(now)}
        assert judge(path, "5.10", replace(GUEST, hw_sig=now)).resumes is True
    assert judge(path, "7.3", replace(GUEST, hw_sig=0xABCD)).resumes is True
    assert unknowns(judge(path, "7.3", replace(GUEST, hw_sig=None))) == ["hw_sig"]
    path.write_bytes(naive.build(PAGES, naive.Layout()))
    assert judge(path, "7.3", replace(GUEST, hw_sig=5)).resumes is True


PAGES: dict[int, bytes | None] = {
    pfn: np.random.default_rng(pfn).bytes(2048) + bytes(2048) for pfn in range(16, 16 + 600)
}


def image(folder: Path, layout: naive.Layout, change: Callable[[bytearray], None] | None = None) -> Path:
    """An image of 602 pages: map pages at blocks 1 and maybe 2, then the info page and the rest."""
    device = bytearray(naive.build(PAGES, layout))
    if change:
        change(device)
    path = folder / "image"
    path.write_bytes(device)
    return path


def units_of(device: bytes | bytearray) -> list[int]:
    """Return the first byte of each compressed unit."""
    entries = entries_of(device)
    places, entry = [], 1
    while entry < len(entries):
        places.append(entries[entry] * 4096)
        entry += -(-(8 + struct.unpack_from("<Q", device, places[-1])[0]) // 4096)
    return places


def entries_of(device: bytes | bytearray) -> list[int]:
    """Return the entries of a device's swap map."""
    (block,) = struct.unpack_from("<Q", device, 4064)
    entries: list[int] = []
    while block:
        *some, block = struct.unpack_from("<512Q", device, block * 4096)
        entries += [entry for entry in some if entry]
    return entries


@pytest.mark.parametrize(
    ("kernel", "compressor", "label"), [("6.1", "lzo", "LZO"), ("6.12", "lzo", "lzo"), ("7.3", "lz4", "lz4")]
)
def test_damaged_units(tmp_path: Path, kernel: str, compressor: str, label: str) -> None:
    """A length out of range, data that does not decompress and a wrong CRC have different messages; all are fatal."""
    layout = naive.Layout(compressor=compressor)

    def invalid_length(device: bytearray) -> None:
        struct.pack_into("<Q", device, units_of(device)[9], 131072 + 131072 // 16 + 64 + 3 + 2 + 1)

    def garbage(device: bytearray) -> None:
        at = units_of(device)[9]
        device[at + 8 : at + 4096] = b"\xff" * 4088

    def flipped(device: bytearray) -> None:
        at = units_of(device)[9]
        device[at + 8 + 1000] ^= 1  # in a run of literals

    verdict = judge(image(tmp_path, layout, invalid_length), kernel)
    assert refusals(verdict) == {"units": f"PM: Invalid {label} compressed length"}
    verdict = judge(image(tmp_path, layout, garbage), kernel)
    assert refusals(verdict) == {"units": f"PM: {label} decompression failed"}
    assert verdict.resumes is False
    verdict = judge(image(tmp_path, layout, flipped), kernel)
    assert refusals(verdict) == {"crc32": "PM: Invalid image CRC32!"}


def test_a_unit_of_odd_length(tmp_path: Path) -> None:
    """Data that does not decompress to whole pages has a message of its own."""

    def odd(device: bytearray) -> None:
        at = units_of(device)[3]
        packed = naive.compress("lzo", b"x" * 5000)
        struct.pack_into("<Q", device, at, len(packed))
        device[at + 8 : at + 8 + len(packed)] = packed

    assert refusals(judge(image(tmp_path, naive.Layout(), odd), "6.1")) == {
        "units": "PM: Invalid LZO uncompressed length"
    }


def test_not_compressed(tmp_path: Path) -> None:
    """Nothing checks the data: a flipped bit is resumed from."""

    def flipped(device: bytearray) -> None:
        device[entries_of(device)[300] * 4096 + 7] ^= 1

    assert judge(image(tmp_path, naive.Layout(compressor="none"), flipped), "6.1").resumes is True


def test_zero_pages_for_kernels_before_6_6(tmp_path: Path) -> None:
    """Bit 63 makes a frame that no memory has; 6.1 only prints that it failed."""
    path = tmp_path / "image"
    path.write_bytes(naive.build({**PAGES, 1000: None}, naive.Layout()))
    for kernel in ("5.10", "6.1.0-56-amd64", "6.5"):
        assert refusals(judge(path, kernel)) == {"frames": FAILED}
    for kernel in ("6.6", "6.12", "7.3"):
        assert judge(path, kernel).resumes is True


@pytest.mark.parametrize("compressor", ["lzo", "none"])
def test_a_cut_device(tmp_path: Path, compressor: str) -> None:
    """Blocks beyond the end: of data, the read error names the sector; of a map page, the chain cannot be followed."""
    path = image(tmp_path, naive.Layout(compressor=compressor))
    entries = entries_of(path.read_bytes())
    last = max(entries)
    for end in (last * 4096, last * 4096 + 4095):
        cut = tmp_path / "cut"
        cut.write_bytes(path.read_bytes()[:end])
        verdict = judge(cut, "6.12")
        assert refusals(verdict) == {"units": f"PM: Read-error on swap-device (?:?:{last * 8})"}
        assert [check.answer for check in verdict.checks[:7]] == [Answer.OK] * 7
    cut.write_bytes(path.read_bytes()[:4096])
    verdict = judge(cut, "6.12")
    assert refusals(verdict) == {"swap_map": FAILED}
    never_read = ["magic", "e820_checksum", "physical_pages", "frames", "units"]
    assert unknowns(verdict) == [*never_read, *(["crc32"] if compressor == "lzo" else [])]


def test_maps_that_lead_nowhere(tmp_path: Path) -> None:
    """No first page, an entry of zero, a loop; problems that no kernel checks do not count."""

    def first_page(block: int) -> Callable[[bytearray], None]:
        return lambda device: struct.pack_into("<Q", device, 4064, block)

    def entry(number: int, block: int) -> Callable[[bytearray], None]:
        return lambda device: struct.pack_into("<Q", device, 4096 + 8 * number, block)

    layout = naive.Layout()
    assert refusals(judge(image(tmp_path, layout, first_page(0)), "6.1")) == {"swap_map": FAILED}
    assert refusals(judge(image(tmp_path, layout, entry(40, 0)), "6.1")) == {"units": FAILED}
    assert refusals(judge(image(tmp_path, layout, entry(40, 1 << 40)), "6.1")) == {
        "units": f"PM: Read-error on swap-device (?:?:{8 << 40})"
    }
    for change in (first_page(1 + (1 << 61)), entry(0, 2 + (1 << 61)), entry(40, 42 + (3 << 62))):
        assert refusals(judge(image(tmp_path, layout, change), "6.1")) == {}
    assert refusals(judge(image(tmp_path, layout, first_page(1 + (1 << 60))), "6.1")) == {"swap_map": FAILED}
    for block in (0, 1 << 40):
        assert refusals(judge(image(tmp_path, layout, entry(0, block)), "6.1"))["swap_map"] == FAILED
    # Guests of 6.12 and 7.3 read until they were out of memory, and refused.
    assert refusals(judge(image(tmp_path, layout, entry(511, 1)), "6.1")) == {"swap_map": FAILED}


@pytest.mark.parametrize(("at", "high"), [(416, 1 << 32), (424, 1 << 45), (416, 3 << 60)])
def test_counts_that_the_kernel_cuts_are_not_refused(tmp_path: Path, at: int, high: int) -> None:
    """A kernel that was given an image with such a bit in `image_pages` or `pages` resumed; a low bit it refuses."""

    def higher(bits: int) -> Callable[[bytearray], None]:
        def change(device: bytearray) -> None:
            entry = struct.unpack_from("<Q", device, 4096)[0]
            (count,) = struct.unpack_from("<Q", device, entry * 4096 + at)
            struct.pack_into("<Q", device, entry * 4096 + at, (count + bits) & (1 << 64) - 1)

        return change

    assert refusals(judge(image(tmp_path, naive.Layout(), higher(high)), "6.1")) == {}
    if at == 424:
        assert "frames" in refusals(judge(image(tmp_path, naive.Layout(), higher(1 << 20)), "6.1"))


@pytest.mark.parametrize(("magic", "asked"), [(0x0123456789ABCDEF, "6.1"), (5, "7.3")])
def test_magic(tmp_path: Path, magic: int, asked: str) -> None:
    """Images of kernels before v5.10, and things that are none, have the wrong format."""
    verdict = judge(image(tmp_path, naive.Layout(magic=magic)), asked)
    assert refusals(verdict) == {"magic": "Unrecognized hibernate image header format!"}


def test_releases() -> None:
    """Any release goes to the newest line that is not newer; what is too old is refused by its name."""
    lines = {"6.1": "6.1", "6.1.0-56-amd64": "6.1", "6.5.3": "6.1", "6.8": "6.6", "6.11.2-arch1": "6.9",
             "6.12.107": "6.12", "6.18.44+deb13": "6.12", "7.3": "7.3", "8.0-rc1": "7.4", "5.15.0": "5.13",
             "5.17": "5.17", "5.16.20": "5.13", "5.12.19": "5.11", "5.10.0-46-amd64": "5.10", "5.4.0-150": "4.19",
             "4.18.0-553.el8": "4.18", "4.9": "4.8", "4.7.10": "3.11", "3.10.0-1160.el7": "3.10", "3.1": "2.6.37",
             "2.6.37": "2.6.37", "2.6.36.4": "2.6.24", "2.6.24-rc3": "2.6.24"}  # fmt: skip
    for release, line in lines.items():
        found = image_rules_for_release(release)
        assert found == replace(IMAGE_RULES[line], line=str(parse_release(release)))
    for release in ("2.6.23", "2.4.37", "6", "", "new", "6.x", "6.1 "):
        with pytest.raises(FormatError, match="kernel"):
            image_rules_for_release(release)
    versions = [parse_release(rules.line) for rules in IMAGE_RULES.values()]
    assert versions == sorted(versions)


@given(data=st.data(), pages=saved_pages(), layout=image_layouts())
def test_any_damage_has_a_verdict(
    tmp_path: Path, data: st.DataObject, pages: dict[int, bytes | None], layout: naive.Layout
) -> None:
    """Whatever is flipped or cut: an answer to every check; and an image that is whole is never refused by 7.3."""
    device = bytearray(naive.build(pages, layout))
    whole = data.draw(st.booleans())
    if not whole:
        for _ in range(data.draw(st.integers(1, 3))):
            device[data.draw(st.integers(0, len(device) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        device = device[: data.draw(st.just(len(device)) | st.integers(4096 * (layout.header_block + 1), len(device)))]
    path = tmp_path / "image"
    path.write_bytes(device)
    for kernel in ("6.1", "7.3"):
        try:
            verdict = judge(path, kernel, offset=layout.header_block)
        except (FormatError, CorruptImage):
            assert not whole
            continue
        assert len(verdict.checks) == 10
        if whole and kernel == "7.3" and any(page is not None for page in pages.values()):
            assert verdict.resumes is True, verdict


def test_a_flipped_bit_in_a_golden_image(golden: Golden, tmp_path: Path) -> None:
    """One bit of one unit of 6.1's image: the kernel refuses it by LZO or by the CRC."""
    path = tmp_path / "image"
    shutil.copyfile(golden("swap-6.1-lzo.img"), path)
    at = units_of_golden(path)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x10]))
    verdict = judge(path, "6.1")
    assert verdict.resumes is False
    assert set(refusals(verdict).values()) <= {"PM: LZO decompression failed", "PM: Invalid image CRC32!"}


def units_of_golden(path: Path) -> int:
    """Return the position of a byte in the middle of the compressed data."""
    with open_plain(path) as file:
        found = inspect_image(file)
        assert found.swap_map is not None
        return int(found.swap_map.entries[3000]) * 4096 + 2000
