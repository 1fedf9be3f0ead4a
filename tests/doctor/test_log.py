# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs in every form that users attach, divided into boots."""

from __future__ import annotations

import json

import pytest

from hibernaut.doctor.kernel_buffer import parse_record
from hibernaut.doctor.log import SLEEP_START, boots_in
from hibernaut.doctor.messages import MESSAGES, Phase, message_in
from hibernaut.errors import FormatError

BANNER = "Linux version 6.12.118+deb13-amd64 (build) #1 SMP"
FORMS = {
    "dmesg": f"[    0.000000] {BANNER}\n[    1.5] PM: hibernation: hibernation entry\n",
    "dmesg -x": f"<5>[    0.000000] {BANNER}\n<6>[    1.5] PM: hibernation: hibernation entry\n",
    "dmesg with tasks": f"[    0.000000][    T0] {BANNER}\n[    1.5][  T612] PM: hibernation: hibernation entry\n",
    "dmesg -T": f"[Fri Nov 27 10:00:00 2026] {BANNER}\n[Fri Nov 27 10:00:02 2026] PM: hibernation: hibernation entry\n",
    "kern.log": f"Nov 27 10:00:00 host kernel: [    0.000000] {BANNER}\n"
    "Nov 27 10:00:02 host kernel: [    1.5] PM: hibernation: hibernation entry\n",
    "journalctl": f"Nov 27 10:00:00 host kernel: {BANNER}\nNov 27 10:00:02 host kernel: PM: hibernation: hibernation"
    " entry\n",
    "kern.log with dates": f"2026-11-27T10:00:00.1+00:00 host kernel: {BANNER}\n"
    "2026-11-27T10:00:02.1+00:00 host kernel: PM: hibernation: hibernation entry\n",
    "journalctl -o json": "".join(
        json.dumps({"_TRANSPORT": "kernel", "_BOOT_ID": "a", "MESSAGE": text}) + "\n"
        for text in (BANNER, "PM: hibernation: hibernation entry")
    ),
    "journalctl -o export": "".join(
        f"__CURSOR=s={number}\n_TRANSPORT=kernel\n_BOOT_ID=a\nMESSAGE={text}\n\n"
        for number, text in enumerate((BANNER, "PM: hibernation: hibernation entry"))
    ),
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_every_form_is_read(text: str) -> None:
    """The same two lines, in each form."""
    (boot,) = boots_in(text, "log")
    assert boot.kernel_texts == (BANNER, "PM: hibernation: hibernation entry")
    assert boot.release == "6.12.118+deb13-amd64"
    assert boot.is_whole


@pytest.mark.parametrize("form", ["dmesg", "kern.log", "journalctl"])
def test_a_second_boot_begins_with_its_banner(form: str) -> None:
    """Two boots in one file."""
    assert len(boots_in(FORMS[form] * 2, "log")) == 2


def test_the_journal_names_its_boots() -> None:
    """_BOOT_ID divides a journal, in both of its forms."""
    for form in ("journalctl -o json", "journalctl -o export"):
        other = FORMS[form].replace('"_BOOT_ID": "a"', '"_BOOT_ID": "b"').replace("_BOOT_ID=a", "_BOOT_ID=b")
        assert len(boots_in(FORMS[form] + other, "log")) == 2


def test_fields_of_the_journal() -> None:
    """MESSAGE_ID and SLEEP of systemd's sleep, and a message of bytes."""
    fields = {"MESSAGE_ID": SLEEP_START, "SLEEP": "hibernate", "SYSLOG_IDENTIFIER": "systemd-sleep",
              "MESSAGE": list(b"caf\xc3\xa9"), "__MONOTONIC_TIMESTAMP": "2500000"}  # fmt: skip
    (boot,) = boots_in(json.dumps(fields) + "\n", "log")
    (line,) = boot.lines
    assert (line.text, line.sleep, line.message_id, line.seconds) == ("café", "hibernate", SLEEP_START, 2.5)
    assert boot.kernel_texts == ()


@pytest.mark.parametrize("text", ["root:x:0:0:root:/root:/bin/bash\n", "hello\n", '{"broken": \n', "[]\n"])
def test_another_file_is_refused(text: str) -> None:
    """A file without a line of a log."""
    with pytest.raises(FormatError):
        boots_in(text, "log")


def test_records_of_the_kernel_buffer() -> None:
    """/dev/kmsg: the kernel's record, one of a process, and a damaged one."""
    kernel = parse_record(b"6,339,5140900,-;NET: Registered PF_INET\n SUBSYSTEM=net\n", 1)
    assert kernel is not None
    assert (kernel.text, kernel.seconds, kernel.program) == ("NET: Registered PF_INET", 5.1409, "kernel")
    process = parse_record(b"30,340,5140900,-;systemd[1]: Hostname set\n", 2)
    assert process is not None
    assert (process.text, process.program) == ("Hostname set", "systemd")
    assert parse_record(b"nonsense", 3) is None


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: one.text[:40])
def test_each_message_finds_itself(message) -> None:  # type: ignore[no-untyped-def]
    """A line with the text of a message, numbers filled in, is recognized as that message or as one before it."""
    line = message.text.replace("?", "7")
    found = message_in(line, message.phase)
    assert found is not None
    assert MESSAGES.index(found) <= MESSAGES.index(message)
    assert message_in("usb 1-1: new high-speed USB device", Phase.SAVING) is None
