# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels of the laboratory: the lines it packages, and kernels of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from hibernaut.errors import FormatError, LabUnavailable
from hibernaut.kernel_line import parse_release
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.debian import Archive
from hibernaut.lab.host.kernels import ALL_LINES, KERNEL_LINES, kernel_of_files, line_named
from hibernaut.lab.variants import VARIANTS, Swap, variant_named
from hibernaut.swsusp.rules import image_rules_for_release


def test_every_kernel_line_has_rules_and_every_variant_a_kernel() -> None:
    """Each kernel of the laboratory has image rules, and each compressor of a guest is supported by some kernel."""
    known = {name for line in ALL_LINES for name in (*image_rules_for_release(line).compressors, "none")}
    assert {variant.compressor for variant in VARIANTS} <= known
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)
    assert all(variant_named(swap.value).swap is swap for swap in (Swap.PARTITION, Swap.FILE))


def test_lines_beyond_those_that_are_proved() -> None:
    """Every line has its own name, oldest first; the error lists all of them."""
    assert list(ALL_LINES) == sorted(ALL_LINES, key=parse_release)
    assert all(line.name == name for name, line in ALL_LINES.items())
    assert set(KERNEL_LINES) < set(ALL_LINES)
    assert line_named("6.18") is ALL_LINES["6.18"]
    with pytest.raises(LabUnavailable, match=r"no kernel line '6\.5'; expected 5\.10, 6\.1, 6\.12, .*7\.2, 7\.3"):
        line_named("6.5")


ARCHIVE = """
linux-image-6.17.8+deb13-amd64 linux-image-6.17.13+deb13-amd64 linux-image-6.17.13+deb13-cloud-amd64
linux-binary-7.1.3+deb13-amd64 linux-base-7.1.3+deb13-amd64 linux-modules-7.1.3+deb13-amd64
linux-binary-7.1.13+deb13-amd64 linux-base-7.1.13+deb13-amd64
linux-binary-7.0.9+deb13-amd64 linux-binary-7.0.13+deb13-amd64 linux-base-7.0.13+deb13-amd64
linux-modules-7.2.9+deb13-amd64
"""


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """An archive with some packages of some releases."""
    monkeypatch.setattr(Archive, "_apt", lambda *_words, **_options: ARCHIVE)
    return Archive(Cache(tmp_path), "trixie-backports")


@pytest.mark.parametrize(("name", "release"), [("6.17", "6.17.13+deb13-amd64"), ("7.1", "7.1.3+deb13-amd64")])
def test_the_newest_release_that_is_complete(archive: Archive, name: str, release: str) -> None:
    """Numbers are compared as numbers; a release without its modules gives way to an older one with them."""
    line = ALL_LINES[name]
    assert archive.newest_release(line.packages, line.release) == release


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("7.0", r"has no linux-modules-7\.0\.13\+deb13-amd64, and no older release is complete"),
        ("7.2", r"has no linux-binary-7\.2\.9\+deb13-amd64"),
        ("6.16", "no package in trixie-backports matches linux-image-6"),
    ],
)
def test_a_line_that_is_gone_from_the_archive(archive: Archive, name: str, missing: str) -> None:
    """The reason names the first package that the newest release lacks."""
    line = ALL_LINES[name]
    with pytest.raises(LabUnavailable, match=missing):
        archive.newest_release(line.packages, line.release)


def bzimage(path: Path, release: bytes = b"6.7.8-mine (me@here) #1") -> Path:
    """Write the setup header of a bzImage with a release."""
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x300).to_bytes(2, "little")
    head[0x500 : 0x500 + len(release)] = release
    path.write_bytes(head)
    return path


@pytest.mark.parametrize("given", [".", "lib/modules/6.7.8-mine"])
def test_a_kernel_of_the_users_own(tmp_path: Path, given: str) -> None:
    """The bzImage says its release; the modules are found from the root or directly."""
    (tmp_path / "lib" / "modules" / "6.7.8-mine" / "kernel").mkdir(parents=True)
    kernel = kernel_of_files(bzimage(tmp_path / "vmlinuz"), tmp_path / given)
    assert kernel.release == "6.7.8-mine"
    assert kernel.modules == tmp_path / "lib/modules/6.7.8-mine"


def test_files_that_are_not_a_kernel(tmp_path: Path) -> None:
    """A file without the signature of a bzImage is refused with the byte."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"MZ")
    with pytest.raises(FormatError, match=r"not a bzImage: .*vmlinuz, byte 514; expected HdrS"):
        kernel_of_files(path, tmp_path)
    with pytest.raises(FormatError, match="has no release"):
        kernel_of_files(bzimage(path, b"\0"), tmp_path)
    with pytest.raises(LabUnavailable, match=r"has no modules of 6\.7\.8-mine"):
        kernel_of_files(bzimage(path), tmp_path)
