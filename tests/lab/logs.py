# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs of kernels and outcomes of guests, made up for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.lab.judgement import TornImage
from hibernaut.lab.laboratory import Hibernated, Resumed
from hibernaut.lab.prediction import Prediction
from hibernaut.lab.record import GuestRecord
from hibernaut.lab.variants import Variant

FAULT = (
    "BUG: unable to handle page fault for address: ffff888000200000",
    "#PF: supervisor read access in kernel mode",
    "#PF: error_code(0x0000) - not-present page",
)
ZERO = Prediction(("none:below",), 0, "died", (*FAULT, "PGD 1067 P4D 1067 PUD 2067 PMD 3067 PTE 0"), ("no-fault",))
"""The model's page without an entry."""
FAILS = Prediction(
    ("2m:above",),
    1,
    "died",
    ("PM: hibernation: Creating image:", FAILED_TO_REMAP, *FAULT, "PGD 1067 P4D 1067 PUD 2067 PMD 800fffffffdff062"),
    ("no-fault",),
)
"""The model's block whose split gets no page."""
TORN = Prediction(("2m:above",), 0, "saved", ("PM: hibernation: Need to copy 77 pages",), ("tables-closed",))
"""The model's block whose table is copied after it was split."""
CLEAN = Prediction(("2m:below",), 0, "saved", (), ())
BEFORE = """\
[    1.10] WARNING: CPU: 0 PID: 1 at boot, long ago
[    8.10] PM: hibernation: hibernation entry
[    8.80] PM: hibernation: Need to copy 21441 pages
"""
OOPS = """\
[    8.82] BUG: unable to handle page fault for address: ffff888006a07000
[    8.82] #PF: supervisor read access in kernel mode
[    8.82] #PF: error_code(0x0000) - not-present page
[    8.82] PGD 4401067 P4D 4401067 PUD 4402067 PMD 5fae063 PTE 0\x20
[    8.83] Oops: 0000 [#1] PREEMPT SMP NOPTI
[    8.83] RIP: 0010:swsusp_save+0x27b/0x31a
[    8.84] BUG: kernel NULL pointer dereference, address: 0000000000000000
"""
"""As kernels print it; the numbers are made up. What comes after the first fault is not looked at."""
WARNED = f"[    8.81] {FAILED_TO_REMAP}\n"
RECORD = GuestRecord("aa", "6.1.0-56-amd64", "6.1", Variant("x", ""), None, 0, (), (), {})
CAME_BACK = {"pages": 2048}
WHOLE = Resumed(True, "resumed, 2048 pages and 1 region of the direct map as they were", "", 1, CAME_BACK)
GARBAGE = Resumed(False, "direct map garbage: block 0x400: PMD entry 0x1, 512 of 512 entries wrong", "", 1, CAME_BACK)
CHANGED = Resumed(False, "direct map changed: block 0x400: PMD entry 0x1 is now 0x2", "", 1, CAME_BACK)
DAMAGED = Resumed(False, "data: block 0x400: 3 pages damaged", "", 1, CAME_BACK)
LACKS = TornImage((0x64FB,), (0x400,))
NULL_LINK = "kernel NULL pointer dereference, allocating a page (__rmqueue_pcplist)"
LISTS = replace(CLEAN, violated=("lists-whole", "no-fault"), pages="below", allocates=True, resumed_crash=NULL_LINK)
"""The model's machine that has every table and a list of pages whose links are none."""
CORRUPTION = "list_add corruption. next->prev should be prev (ffff88801f6388d8), but was dead000000000122. (next=ff)."
TORN_LISTS = f"""\
[    5.1] PM: early restore of devices complete after 1.057 msecs
[    5.2] {CORRUPTION}
[    5.3] kernel BUG at lib/list_debug.c:27!
[    5.4] RIP: 0010:__list_add_valid.cold+0x4b/0x5b
[    5.5]  free_unref_page_commit+0x76/0x180
[    5.6]  swsusp_free+0x205/0x270
[    5.7] ---[ end trace 0000000000000000 ]---
[    5.8]  __rmqueue_pcplist+0x1/0x2
"""
CRASHED_LATER = Resumed(False, f"crashed: {CORRUPTION}", TORN_LISTS, 1)


def crashed(log: str) -> Hibernated:
    """Return a hibernation that crashed, with this log."""
    return Hibernated("died", "last log lines", Path(), RECORD, log, 1)


def saved(log: str = BEFORE) -> Hibernated:
    """Return a hibernation that wrote an image, with this log."""
    return Hibernated("hibernated", "", Path(), RECORD, log, 1)
