# SPDX-License-Identifier: GPL-2.0-or-later
"""Root folders and logs of real guests, and changes to them.

tests/data/doctor has what guests of the laboratory (Debian's kernels, 256 MiB, a swap disk at vda) said right before
they hibernated: files of /proc and /sys, and the lines of their kernel's log that matter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hibernaut.doctor.checks.table import examine_facts
from hibernaut.doctor.evidence import RootFolder
from hibernaut.doctor.facts import Facts
from hibernaut.doctor.finding import CheckFinding
from hibernaut.doctor.gather import AttachedFiles, facts_of_files, facts_of_root, joined_facts, with_facts_of_log

DATA = Path(__file__).resolve().parent.parent / "data" / "doctor"
LINES = ("6.1", "6.12", "7.3")
COMMAND_LINE = "console=ttyS0 resume=/dev/vda"
HEALTHY: Mapping[str, str | None] = {
    "/proc/cmdline": f"{COMMAND_LINE}\n",
    "/etc/crypttab": "# none\n",
    "/etc/initramfs-tools/initramfs.conf": "MODULES=most\n",
    "/etc/initramfs-tools/conf.d/resume": "RESUME=/dev/vda\n",
    "/sys/bus/cxl/devices/root0/uevent": "\n",
    "/sys/fs/cgroup/cgroup.controllers": "memory\n",
    "/sys/fs/cgroup/user.slice/memory.swap.max": "max\n",
    "/sys/firmware/acpi/tables/DSDT": "x",
    "/proc/1/maps": "00400000-00401000 r-xp 00000000 00:02 5 /init\n",
    "/proc/1/comm": "init\n",
}
"""Files of a machine that hibernates, besides those of the guest."""
CONFIG = "CONFIG_HIBERNATION=y\nCONFIG_KFENCE=y\nCONFIG_KFENCE_SAMPLE_INTERVAL=0\n"
"""As Debian's 6.12 has it."""
SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def guest(line: str = "6.12") -> dict[str, Any]:
    """Return what a guest said: its files by path, and its log."""
    found: dict[str, Any] = json.loads((DATA / f"guest-{line}.json").read_text())
    return found


def root_folder(folder: Path, changes: Mapping[str, str | None] | None = None, line: str = "6.12") -> Path:
    """Write the root of a guest that hibernates into a folder, with some files changed, or None for those left out."""
    said = guest(line)["files"]
    config = f"/boot/config-{said['/proc/sys/kernel/osrelease']}"
    for name, text in {**said, **HEALTHY, config: CONFIG, **(changes or {})}.items():
        path = folder / name.lstrip("/")
        if text is None:
            path.unlink(missing_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def log_file(path: Path, line: str = "6.12", *, until: str = "hibernation entry", more: str = "", old: str = "",
             new: str = "") -> Path:  # fmt: skip
    """Write the log of a guest up to a line with some words, then other lines; some text may be replaced."""
    text: str = guest(line)["log"]
    if until:
        text = text.split(until)[0].rpartition("\n")[0] + "\n"
    assert old in text
    path.write_text(text.replace(old, new) + more)
    return path


def whole_log(path: Path, line: str = "6.12") -> Path:
    """Write the whole log of a guest, to the end of its hibernation."""
    path.write_text(guest(line)["log"])
    return path


def facts_of(root: Path, *logs: Path) -> Facts:
    """Return the facts of a root folder and of logs."""
    return with_facts_of_log(joined_facts(facts_of_files(AttachedFiles(logs=logs)), facts_of_root(RootFolder(root))))


def findings(facts: Facts) -> dict[str, CheckFinding]:
    """Return the finding of each check, by its name."""
    return {check.name: finding for check, finding in examine_facts(facts)}


def by_outcome(facts: Facts, outcome: str) -> set[str]:
    """Return the names of the checks with an outcome."""
    return {name for name, finding in findings(facts).items() if finding.outcome == outcome}
