# SPDX-License-Identifier: GPL-2.0-or-later
"""The access of an oops, and comparisons of messages, from made-up logs."""

from __future__ import annotations

import pytest

from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.lab.conformance import access_differences, message_differences
from hibernaut.lab.kernel_log import FaultingAccess, faulting_access

OOPS = """\
[    9.42] RIP: 0010:swsusp_save+0x27b/0x31a
[    9.42] Code: 0c 48 03 15 75 ea a0 00 <48> 8b 4c 42 10 49 89
[    9.42] RSP: 0018:ffffc9000059b9d8 EFLAGS: 00000086
[    9.42] RAX: 0000000000000008 RBX: ffffea0000018000 RCX: c0000000ffffefff
[    9.42] RDX: ffff888000600000 RSI: 00000000ffffefff RDI: 0000000000000001
[    9.42] Call Trace:
[    9.43] RIP: 0033:0x4c5f44
[    9.43] RAX: ffffffffffffffda RBX: 0000000000000005 RCX: 00000000004c5f44
[    9.43] RDX: 0000000000000005 RSI: 00000000400ba7b0 RDI: 0000000000000001
"""
"""As kernels print it; the numbers are made up."""


def test_the_access_that_crashed_a_kernel() -> None:
    """A load from [rdx + 2*rax + 0x10], by the registers of the oops, not by those of the system call below it."""
    assert faulting_access(OOPS) == FaultingAccess(
        "swsusp_save", "mov rcx, qword ptr [rdx + rax*2 + 0x10]", 0xFFFF888000600000 + 2 * 8 + 0x10
    )
    assert faulting_access(OOPS.replace("RDX: ", "XXX: ")) == FaultingAccess(
        "swsusp_save", "mov rcx, qword ptr [rdx + rax*2 + 0x10]", None
    )
    assert faulting_access(OOPS.replace("Code", "Node")) is None


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("RIP: 0010:swsusp_save+", "crashed in another_place"),
        ("RDX: ffff888000600000", "the model read 0xffff888000600020"),
    ],
)
def test_a_crash_elsewhere_is_noticed(line: str, told: str) -> None:
    """Another function, or another address."""
    wrong = (
        OOPS.replace("swsusp_save", "another_place") if "RIP" in line else OOPS.replace(line, line.replace("6", "8"))
    )
    (found,) = access_differences(0xFFFF888000600020, wrong)
    assert told in found
    assert list(access_differences(0xFFFF888000600020, OOPS)) == []


def test_other_messages_are_noticed() -> None:
    """A line that the kernel did not print, one too early, lines of the fault with a gap, an additional warning."""
    words = ["warning", "a", "b", "c", "d"]
    log = "".join(f"[ 1.2] {line} \n" for line in words)
    assert list(message_differences(words, log)) == []
    assert list(message_differences([*words[:4], "e"], log)) != []
    assert list(message_differences([words[1], words[0], *words[2:]], log)) != []
    assert list(message_differences(words, log.replace("c", "x \n[ 1.2] c"))) == [
        "the lines of the fault do not follow one another"
    ]
    (told,) = message_differences(words, f"[ 1.1] {FAILED_TO_REMAP}\n{log}")
    assert told == f"the kernel prints {FAILED_TO_REMAP!r}, the model does not"
    assert list(message_differences([FAILED_TO_REMAP, *words], f"[ 1.1] {FAILED_TO_REMAP}\n{log}")) == []
