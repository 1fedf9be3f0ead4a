# SPDX-License-Identifier: GPL-2.0-or-later
"""The CRC of an image without isal, as in a distribution that has no package of it."""

from __future__ import annotations

import subprocess
import sys
import zlib

from hypothesis import given
from hypothesis import strategies as st
from isal import isal_zlib

from hibernaut.swsusp.crc32 import combine_by_powers
from tests.conftest import Golden

WITHOUT = """
import sys
for name in ("isal", "cramjam", "lzallright"):
    sys.modules[name] = None
from hibernaut.cli import main
main()
"""
"""hibernaut without the libraries that Debian 12 does not have."""


@given(first=st.binary(max_size=80), second=st.binary(max_size=80), blocks=st.integers(0, 1 << 40))
def test_two_parts_are_combined(first: bytes, second: bytes, blocks: int) -> None:
    """The CRC of the whole; as isal has it also for lengths that no test could hold in memory."""
    assert combine_by_powers(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)
    one, other = zlib.crc32(first), zlib.crc32(second)
    assert combine_by_powers(one, other, blocks) == isal_zlib.crc32_combine(one, other, blocks)


def test_an_image_is_read_without_them(golden: Golden) -> None:
    """LZ4 and CRC give the same report; a source that needs one of them ends with one line."""
    path = str(golden("swap-6.12-lz4.img"))
    arguments = ["inspect", path, "--digests"]
    without = subprocess.run([sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, check=True)
    known = subprocess.run([sys.executable, "-m", "hibernaut", *arguments], capture_output=True, text=True, check=True)
    assert without.stdout == known.stdout
    assert "CRC32" in known.stdout
