# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels of the laboratory: the lines it packages, and kernels of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from hibernaut.errors import FormatError, LabUnavailable
from hibernaut.lab.host.kernels import KERNEL_LINES, kernel_of_files
from hibernaut.lab.variants import VARIANTS, Swap, variant_named
from hibernaut.swsusp.rules import image_rules_for_release


def test_every_kernel_line_has_rules_and_every_variant_a_kernel() -> None:
    """Each kernel of the laboratory has image rules, and each compressor of a guest is supported by some kernel."""
    known = {name for line in KERNEL_LINES for name in (*image_rules_for_release(line).compressors, "none")}
    assert {variant.compressor for variant in VARIANTS} <= known
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)
    assert all(variant_named(swap.value).swap is swap for swap in (Swap.PARTITION, Swap.FILE))


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
