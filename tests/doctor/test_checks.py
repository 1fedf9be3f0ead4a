# SPDX-License-Identifier: GPL-2.0-or-later
"""Each check on the files of real guests: silent on a healthy machine, and named for each change that breaks it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from hibernaut.doctor.checks.table import CHECKS
from hibernaut.doctor.facts import Facts
from hibernaut.doctor.finding import CheckOutcome
from tests.doctor.machines import (
    COMMAND_LINE,
    LINES,
    SWAPS,
    by_outcome,
    facts_of,
    findings,
    guest,
    log_file,
    root_folder,
    whole_log,
)

NO_IMAGE = {"direct-map", "image", "hardware-signature", "boot-files"}
"""Checks that are not known without an image or a dump."""
KFENCE_ON = "/sys/module/kfence/parameters/sample_interval"


def line(name: str, kind: str = "partition", size: int = 393212, used: int = 0, priority: int = -2) -> str:
    """Return a line of /proc/swaps; sizes in KiB."""
    return f"{name}\t\t\t\t{kind}\t{size}\t\t{used}\t\t{priority}\n"


@pytest.mark.parametrize("kernel", LINES)
def test_a_healthy_machine_is_silent(tmp_path: Path, kernel: str) -> None:
    """No check of a healthy guest warns or fails, with the logs of this boot and of the one before."""
    earlier, now = (log_file(tmp_path / name, kernel) for name in ("earlier", "now"))
    facts = facts_of(root_folder(tmp_path / "root", line=kernel), earlier, now)
    assert by_outcome(facts, "would fail") | by_outcome(facts, "warning") == set()
    assert by_outcome(facts, "not known") == NO_IMAGE | {"last-hibernation"}


class Situation(NamedTuple):
    """A change that breaks a healthy machine.

    Attributes:
        name: a name for it.
        changes: files that differ.
        failing: checks that would fail.
        warning: checks that warn.
        words: words of the kernel that the first of them prints.
    """

    name: str
    changes: Mapping[str, str | None]
    failing: set[str]
    warning: set[str] = set()
    words: str = ""


SITUATIONS = [
    Situation("no hibernation built in", {"/sys/power/state": "freeze mem\n", "/sys/power/disk": None,
              "/boot/config-6.12.118+deb13-amd64": "# CONFIG_HIBERNATION is not set\nCONFIG_KFENCE=y\n"},
              {"available", "configuration"}, words='Sleep verb "hibernate" not supported'),
    Situation("nohibernate", {"/proc/cmdline": f"{COMMAND_LINE} nohibernate\n"}, {"nohibernate"},
              words="write error: Operation not permitted"),
    Situation("hibernate=no", {"/proc/cmdline": f"{COMMAND_LINE} hibernate=no\n"}, {"nohibernate"}),
    Situation("noresume", {"/proc/cmdline": f"{COMMAND_LINE} noresume\n"}, {"nohibernate"}),
    Situation("AllowHibernation=no", {"/etc/systemd/sleep.conf.d/x.conf": "[Sleep]\nAllowHibernation=no\n"},
              {"sleep-settings"}),
    Situation("a newer kernel is installed", {"/boot/vmlinuz-6.12.200+deb13-amd64": "x"}, set(), {"kernel"}),
    Situation("the running kernel is gone", {"/usr/lib/modules/6.11.1/modules.dep": "x"}, set(), {"kernel"}),
    Situation("lockdown", {"/sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
              "/sys/power/state": "freeze mem\n", "/sys/power/disk": "[disabled]\n"}, {"lockdown", "available"},
              words="hibernation is restricted; see man kernel_lockdown.7"),
    Situation("secret memory", {"/proc/1/maps": "7f0000000000-7f0000001 rw-s 00000000 00:0e 1 /secretmem (deleted)\n",
              "/sys/power/state": "freeze mem\n", "/sys/power/disk": "[disabled]\n"}, {"secret-memory", "available"}),
    Situation("CXL", {"/sys/bus/cxl/devices/mem0/uevent": "\n"}, {"cxl"}),
    Situation("KFENCE on at run time", {KFENCE_ON: "100\n"}, {"kfence"}, words="RIP: 0010:__kfence_alloc"),
    Situation("no swap", {"/proc/swaps": SWAPS}, {"swap", "resume-device"},
              words="PM: Cannot find swap device, try swapon -a"),
    Situation("zram only", {"/proc/swaps": SWAPS + line("/dev/zram0"), "/sys/class/block/zram0/dev": "252:0\n"},
              {"zram", "resume-device"},
              words="Not enough suitable swap space"),
    Situation("zram first, no resume device", {"/proc/swaps": SWAPS + line("/dev/zram0", priority=100)
              + line("/dev/vda"), "/sys/class/block/zram0/dev": "252:0\n", "/sys/power/resume": "0:0\n"},
              {"zram", "resume-device"}),
    Situation("random key", {"/proc/swaps": SWAPS + line("/dev/mapper/swap"), "/sys/power/resume": "253:0\n",
              "/proc/cmdline": "resume=/dev/mapper/swap\n", "/sys/class/block/dm-0/dev": "253:0\n",
              "/sys/class/block/dm-0/dm/name": "swap\n", "/etc/initramfs-tools/conf.d/resume": None,
              "/etc/crypttab": "swap /dev/vda /dev/urandom swap,cipher=aes-xts-plain64\n"}, {"swap-key"}),
    Situation("a mapping that is formatted", {"/proc/swaps": SWAPS + line("/dev/dm-0"), "/sys/power/resume": "253:0\n",
              "/proc/cmdline": "resume=/dev/vg-0/lv\n", "/sys/class/block/dm-0/dev": "253:0\n",
              "/sys/class/block/dm-0/dm/name": "vg--0-lv\n", "/etc/initramfs-tools/conf.d/resume": None,
              "/etc/crypttab": "vg--0-lv /dev/vda /etc/key swap\n"}, {"swap-key"}),
    Situation("too much locked memory", {"/proc/vmstat": "nr_slab_reclaimable 1\nnr_active_anon 10\nnr_inactive_anon 1"
              "\nnr_active_file 1\nnr_inactive_file 1\n", "/proc/zoneinfo": "Node 0, zone DMA32\n  pages free 20000\n"
              "        present  65400\n              count:    0\n"}, {"free-memory"},
              words="PM: hibernation: Image allocation is ? pages short"),
    Situation("swap too small without compression", {"/proc/swaps": SWAPS + line("/dev/vda", size=70000),
              "/proc/cmdline": f"{COMMAND_LINE} hibernate=nocompress\n"}, {"swap-space"},
              words="PM: Not enough free swap"),
    Situation("swap too small unless compressed", {"/proc/swaps": SWAPS + line("/dev/vda", size=40000)}, set(),
              {"swap-space"}),
    Situation("systemd refuses", {"/proc/swaps": SWAPS + line("/dev/vda", size=393212, used=385000),
              "/usr/lib/systemd/system/x": "", "/proc/meminfo": "MemTotal: 256000 kB\nActive(anon): 10000 kB\n"},
              {"systemd-threshold"}, {"swap-space"}, words="Not enough suitable swap space"),
    Situation("another device", {"/proc/cmdline": "resume=/dev/vdb\n"}, {"resume-device"}),
    Situation("a device that is gone", {"/proc/cmdline": "resume=/dev/sda2\n"}, {"resume-device"},
              words="Specified resume device is missing"),
    Situation("resume device without swap", {"/sys/power/resume": "254:16\n"}, {"resume-device"},
              words="PM: Cannot find swap device, try swapon -a"),
    Situation("nothing names the area", {"/proc/cmdline": "quiet\n", "/sys/power/resume": "0:0\n",
              "/etc/initramfs-tools/conf.d/resume": None, "/etc/initramfs-tools/initramfs.conf": None},
              {"resume-device"}),
    Situation("an offset for a partition", {"/proc/cmdline": f"{COMMAND_LINE} resume_offset=34816\n"},
              {"resume-offset"}),
    Situation("a file without an offset", {"/proc/swaps": SWAPS + line("/swapfile", "file"),
              "/sys/power/resume": "0:0\n"}, {"resume-offset"}),
    Situation("RESUME=none", {"/etc/initramfs-tools/conf.d/resume": "RESUME=none\n"}, {"initramfs"}),
    Situation("dracut omits resume", {"/etc/dracut.conf.d/x.conf": 'omit_dracutmodules+=" resume "\n'}, {"initramfs"}),
    Situation("mkinitcpio without its hook", {"/etc/mkinitcpio.conf": "HOOKS=(base udev block filesystems)\n"},
              {"initramfs"}),
    Situation("groups that cannot swap", {"/sys/fs/cgroup/user.slice/memory.swap.max": "0\n",
              "/sys/fs/cgroup/user.slice/memory.current": "200000000\n"}, set(), {"control-groups"}),
]  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda one: one.name)
def test_each_situation_is_named(tmp_path: Path, situation: Situation) -> None:
    """The checks that see a change fail or warn, with what was read and what to do, and no other check does."""
    facts = facts_of(root_folder(tmp_path / "root", situation.changes), log_file(tmp_path / "now"))
    found = findings(facts)
    assert {name for name, one in found.items() if one.outcome is CheckOutcome.WOULD_FAIL} == situation.failing
    assert {name for name, one in found.items() if one.outcome is CheckOutcome.WARNING} == situation.warning
    for name in situation.failing | situation.warning:
        assert found[name].read, name
        assert found[name].advice, name
    if situation.words:
        assert any(situation.words in word for name in situation.failing for word in found[name].words)


def test_without_facts_nothing_is_known() -> None:
    """No check guesses: without any fact each is not known, and each says what would tell."""
    for name, finding in findings(Facts()).items():
        assert finding.outcome is CheckOutcome.NOT_KNOWN, name
        assert finding.summary, name
        assert finding.advice, name


LOG_SITUATIONS = [
    ("moved memory", "0x000000000ffd9fff", "0x000000000ffc9fff", {"memory-map"}),
    ("more memory", "261600K available", "327136K available", {"memory-size"}),
]


@pytest.mark.parametrize(("name", "old", "new", "failing"), LOG_SITUATIONS, ids=lambda one: str(one)[:20])
def test_two_boots_are_compared(tmp_path: Path, name: str, old: str, new: str, failing: set[str]) -> None:
    """A difference between the logs of two boots is named, with the words that the kernel would print."""
    text = log_file(tmp_path / "now").read_text()
    (tmp_path / "now").write_text(text.replace(old, new).replace("0x000000000ffda000", "0x000000000ffca000")
                                  if name == "moved memory" else text.replace(old, new))  # fmt: skip
    facts = facts_of(
        root_folder(tmp_path / "root", dict.fromkeys(guest()["files"])), whole_log(tmp_path / "old"), tmp_path / "now"
    )
    found = findings(facts)
    assert {one for one in failing if found[one].outcome is CheckOutcome.WOULD_FAIL} == failing
    assert any("Image mismatch" in word for one in failing for word in found[one].words)


def test_the_moved_ranges_are_side_by_side(tmp_path: Path) -> None:
    """The finding on the memory map has both maps, where they differ, and that RAM differs and by how much."""
    text = log_file(tmp_path / "now").read_text().replace("0ffd9fff", "0ffc9fff").replace("0ffda000", "0ffca000")
    (tmp_path / "now").write_text(text)
    facts = facts_of(root_folder(tmp_path / "root", dict.fromkeys(guest()["files"])), whole_log(tmp_path / "old"),
                     tmp_path / "now")  # fmt: skip
    finding = findings(facts)["memory-map"]
    assert finding.maps is not None
    assert "65536 bytes in 1 range; the first difference is at 0xffca000; RAM differs by -65536 bytes" in (
        finding.summary
    )


@pytest.mark.parametrize(
    ("line_of_log", "check"),
    [
        ("PM: hibernation: Image mismatch: memory size", "last-resume"),
        ("PM: hibernation: Image mismatch: architecture specific data", "last-resume"),
        ("PM: Invalid image CRC32!", "last-resume"),
        ("PM: Suspend image hardware signature mismatch (12345678 now 87654321); aborting resume.", "last-resume"),
        ("PM: Image not found (code -22)", "last-resume"),
    ],
)
def test_a_refused_resume_is_named(tmp_path: Path, line_of_log: str, check: str) -> None:
    """A boot that hibernated, and one whose kernel refused the image: the reason is in one sentence."""
    more = f"[    2.000000] {line_of_log}\n[    2.1] PM: hibernation: Failed to load image, recovering.\n"
    text = log_file(tmp_path / "now").read_text().replace("PM: Image not found (code -16)", "nothing")
    (tmp_path / "now").write_text(text + (more if "not found" not in line_of_log else more.splitlines()[0] + "\n"))
    facts = facts_of(root_folder(tmp_path / "root"), whole_log(tmp_path / "old"), tmp_path / "now")
    assert findings(facts)["last-hibernation"].outcome is CheckOutcome.OK
    finding = findings(facts)[check]
    assert finding.outcome is CheckOutcome.WOULD_FAIL
    assert any(line_of_log in word for word in finding.words)


@pytest.mark.parametrize(
    "line_of_log",
    [
        "PM: Not enough free swap",
        "PM: Image saving failed: -28",
        "PM: Cannot find swap device, try swapon -a",
        "PM: hibernation: Image allocation is 5000 pages short",
        "Freezing of tasks failed after 20.005 seconds (1 tasks refusing to freeze, wq_busy=0):",
        "BUG: unable to handle page fault for address: ffff888003f78088",
    ],
)
def test_a_failed_hibernation_is_named(tmp_path: Path, line_of_log: str) -> None:
    """A hibernation that the kernel gave up or that crashed: the line that explains it."""
    more = f"[   20.0] PM: hibernation: hibernation entry\n[   21.0] {line_of_log}\n"
    now = log_file(tmp_path / "now", more=more + "[   22.0] PM: hibernation: hibernation exit\n")
    finding = findings(facts_of(root_folder(tmp_path / "root"), now))["last-hibernation"]
    assert finding.outcome is CheckOutcome.WOULD_FAIL
    assert line_of_log in finding.words


def test_a_resumed_machine_is_recognized(tmp_path: Path) -> None:
    """Entry and exit in one boot, without a message of failure: the machine came back."""
    now = log_file(
        tmp_path / "now",
        more="[   20.0] PM: hibernation: hibernation entry\n[   22.0] PM: hibernation: hibernation exit\n",
    )
    found = findings(facts_of(root_folder(tmp_path / "root"), now))
    assert found["last-hibernation"].outcome is CheckOutcome.OK
    assert found["last-resume"].summary == "the machine resumed"


def test_a_pool_that_is_off_again_is_a_warning(tmp_path: Path) -> None:
    """Off now, KFENCE writes to no page, until it is switched on again."""
    said = "[    30.0] kfence: initialized - using 2097152 bytes for 255 objects at 0x(____ptrval____)\n"
    facts = facts_of(root_folder(tmp_path / "root"), log_file(tmp_path / "late", more=said))
    assert findings(facts)["kfence"].outcome is CheckOutcome.WARNING


def test_one_log_does_not_tell_whether_the_boot_before_hibernated(tmp_path: Path) -> None:
    """Without the log of the boot before, nothing is said of the last resume."""
    facts = facts_of(root_folder(tmp_path / "root"), log_file(tmp_path / "now"))
    assert findings(facts)["last-resume"].outcome is CheckOutcome.NOT_KNOWN


def test_late_kfence_in_the_log(tmp_path: Path) -> None:
    """A pool that is made after the first process was started is ordinary memory; one made before is reserved."""
    said = (
        "[    {}] kfence: initialized - using 2097152 bytes for 255 objects at 0x(____ptrval____)-0x(____ptrval____)\n"
    )
    root = root_folder(tmp_path / "root", {KFENCE_ON: None})
    late = log_file(tmp_path / "late", more=said.format("30.0"))
    assert findings(facts_of(root, late))["kfence"].outcome is CheckOutcome.WOULD_FAIL
    early = tmp_path / "early"
    early.write_text(log_file(tmp_path / "now").read_text().replace("[    0.000000] Command", said.format("0.0")
                                                                    + "[    0.000000] Command", 1))  # fmt: skip
    assert findings(facts_of(root, early))["kfence"].outcome is CheckOutcome.OK


def test_the_predicted_pages_are_those_that_the_kernel_copied(tmp_path: Path) -> None:
    """6.12's guest has room for all of its pages: those in use are those of "Need to copy", within 2 %."""
    facts = facts_of(root_folder(tmp_path / "root"))
    said = int(guest()["log"].split("Need to copy ")[1].split()[0])
    predicted = int(findings(facts)["image-size"].summary.split("about ")[1].split()[0])
    assert abs(predicted - said) < said * 0.02


def test_every_name_is_there_once() -> None:
    """The names of the checks differ."""
    assert len({check.name for check in CHECKS}) == len(CHECKS)
