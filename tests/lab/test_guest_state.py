# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of guests and messages of their kernels."""

from __future__ import annotations

from hibernaut.lab.guest_state import image_messages, region_problems

BEFORE = {"block": "0x400", "pmd": "0x800fffffffbff062", "damaged": "0"}


def test_differences_of_a_region() -> None:
    """The same entry is fine; wrong frames are garbage; a split that stays is a change; data is looked at as well."""
    garbage = {"block": "0x400", "pmd": "0x0000000006827063", "wrong": "500", "none": "12", "damaged": "0"}
    split = {"block": "0x400", "pmd": "0x0000000006827063", "wrong": "0", "none": "0", "damaged": "0"}
    assert list(region_problems(BEFORE, BEFORE)) == []
    (told,) = region_problems(BEFORE, garbage)
    assert told.startswith("direct map garbage")
    assert "512 of 512 entries wrong" in told
    (told,) = region_problems(BEFORE, split)
    assert told.startswith("direct map changed")
    (told,) = region_problems({**BEFORE, "wrong": "0"}, {**BEFORE, "wrong": "5"})
    assert "5 of 512 entries wrong" in told
    (told,) = region_problems(BEFORE, {**BEFORE, "damaged": "3"})
    assert "3 pages damaged" in told
    one_none = {**BEFORE, "level": "4k", "none": "1", "wrong": "0"}
    assert list(region_problems(one_none, one_none)) == []
    (told,) = region_problems(one_none, {**one_none, "none": "0"})
    assert told.startswith("direct map changed")
    (told,) = region_problems(one_none, {**one_none, "none": "13", "wrong": "499"})
    assert "511 of 512 entries wrong" in told


def test_messages_of_a_kernel_about_an_image() -> None:
    """The kernel's messages on its refusal, without progress and greetings."""
    log = (
        "[    3.1] PM: Image signature found, resuming\n[    3.2] PM: Image loading progress:  10%\n"
        "[    3.3] virtio_blk virtio0: something\n[    3.4] PM: hibernation: Image mismatch: memory size\n"
    )
    assert image_messages(log) == "PM: hibernation: Image mismatch: memory size"
    assert image_messages("") == "no message about an image"
