# SPDX-License-Identifier: GPL-2.0-or-later
"""The reads of a resuming kernel, as its source has them: a read that no seal covers would be one more in this list.

The witnesses are kernel/power/swap.c of the laboratory's kernels; QEMU's trace of the blocks is in tests/lab.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hibernaut.lab.host.cache import Cache

READ = re.compile(r"\b(?:hib_submit_io\w*\(REQ_OP_READ|swap_read_page\()")
FUNCTION = re.compile(r"^(?!\s)[\w *]*?\b(\w+)\((?:.*,|.*\))$", re.MULTILINE)
COVERED = {
    "swsusp_check": "the header block",
    "get_swap_reader": "all map pages",
    "swap_read_page": "the block of an entry",
    "swsusp_read": "entry 0, by swap_read_page",
    "load_image": "the other entries, by swap_read_page",
    "load_image_lzo": "the same, before 6.9",
    "load_compressed_image": "the same, from 6.9 on",
}
WRITING = {"mark_swapfiles": "a kernel that hibernates", "swsusp_unmark": "a kernel that takes an image back"}
"""Functions that read the header block before they write it, and are not part of a resume."""


def reading_functions(source: str) -> Iterator[str]:
    """Yield the function of each read, in the order of the file."""
    for read in READ.finditer(source):
        *_, last = FUNCTION.finditer(source, 0, source.rfind("\n", 0, read.start()) + 1)
        line = source[source.rfind("\n", 0, read.start()) + 1 : read.start()]
        if line.startswith("static int "):  # the function itself
            continue
        yield last[1]


def swap_c(line: str) -> str:
    """Return kernel/power/swap.c of a line, or skip."""
    path = Path(Cache().root) / f"sources/{line}/kernel/power/swap.c"
    if not path.is_file():
        pytest.skip(f"no source of {line} in the laboratory's cache: `hibernaut lab build --source {line}`")
    return path.read_text()


@pytest.mark.parametrize("line", ["6.1", "7.3"])
def test_every_read_is_one_that_a_seal_covers(line: str) -> None:
    """By function: each is one of reading_order's, or belongs to a kernel that writes; none is missing."""
    found = list(reading_functions(swap_c(line)))
    assert set(found) <= COVERED.keys() | WRITING.keys()
    assert {"swsusp_check", "get_swap_reader", "swap_read_page", "swsusp_read", "load_image"} <= set(found)
    assert len({"load_image_lzo", "load_compressed_image"} & set(found)) == 1
    assert found.count("swsusp_check") == found.count("get_swap_reader") == 1


@pytest.mark.parametrize("line", ["6.1", "7.3"])
def test_one_more_read_is_seen(line: str) -> None:
    """A function of a later kernel that reads a second header would be noticed."""
    more = "static int swsusp_check_second(void)\n{\n\treturn hib_submit_io(REQ_OP_READ, 1, p, NULL);\n}\n"
    assert "swsusp_check_second" in set(reading_functions(swap_c(line) + more))


@pytest.mark.parametrize("line", ["6.1", "7.3"])
def test_all_blocks_come_from_one_device_at_one_offset(line: str) -> None:
    """There is one device, the one that is named to the kernel, and one header, at `swsusp_resume_block`."""
    source = swap_c(line)
    check = source[source.index("int swsusp_check(") :]
    assert re.search(r"REQ_OP_READ, swsusp_resume_block", check[: check.index("\n}\n")])
    opened = set(re.findall(r"(?:blkdev_get_by_dev|bdev_file_open_by_dev)\((\w+)", source))
    assert opened == {"swsusp_resume_device"}
