# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of the checks, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from hibernaut.doctor.checks import accepted, fits, found, last_time, possible
from hibernaut.doctor.facts import Facts
from hibernaut.doctor.finding import CheckFinding

__all__ = ["CHECKS", "DoctorCheck", "DoctorQuestion", "examine_facts"]


class DoctorQuestion(StrEnum):
    """The question that a check helps to answer."""

    POSSIBLE = "can it hibernate"
    FITS = "will it fit"
    FOUND = "will it be found"
    ACCEPTED = "will it be accepted"
    LAST_TIME = "last time"


@dataclass(frozen=True)
class DoctorCheck:
    """A check.

    Attributes:
        name: its name, which documents, tests and docs/troubleshooting.md use.
        question: the question that it belongs to.
        examine: the function that answers it.
    """

    name: str
    question: DoctorQuestion
    examine: Callable[[Facts], CheckFinding]


CHECKS = (
    DoctorCheck("available", DoctorQuestion.POSSIBLE, possible.available),
    DoctorCheck("configuration", DoctorQuestion.POSSIBLE, possible.configuration),
    DoctorCheck("nohibernate", DoctorQuestion.POSSIBLE, possible.nohibernate),
    DoctorCheck("sleep-settings", DoctorQuestion.POSSIBLE, possible.sleep_settings),
    DoctorCheck("lockdown", DoctorQuestion.POSSIBLE, possible.lockdown),
    DoctorCheck("secret-memory", DoctorQuestion.POSSIBLE, possible.secret_memory),
    DoctorCheck("cxl", DoctorQuestion.POSSIBLE, possible.cxl_memory),
    DoctorCheck("tdx", DoctorQuestion.POSSIBLE, possible.tdx),
    DoctorCheck("kfence", DoctorQuestion.POSSIBLE, possible.kfence),
    DoctorCheck("direct-map", DoctorQuestion.POSSIBLE, possible.direct_map),
    DoctorCheck("control-groups", DoctorQuestion.POSSIBLE, possible.control_groups),
    DoctorCheck("swap", DoctorQuestion.FITS, found.swap),
    DoctorCheck("zram", DoctorQuestion.FITS, found.zram),
    DoctorCheck("swap-key", DoctorQuestion.FITS, found.swap_key),
    DoctorCheck("image-size", DoctorQuestion.FITS, fits.image_size),
    DoctorCheck("free-memory", DoctorQuestion.FITS, fits.free_memory),
    DoctorCheck("swap-space", DoctorQuestion.FITS, fits.swap_space),
    DoctorCheck("systemd-threshold", DoctorQuestion.FITS, fits.systemd_threshold),
    DoctorCheck("resume-device", DoctorQuestion.FOUND, found.resume_device),
    DoctorCheck("resume-offset", DoctorQuestion.FOUND, found.resume_offset),
    DoctorCheck("swap-file", DoctorQuestion.FOUND, found.swap_file),
    DoctorCheck("initramfs", DoctorQuestion.FOUND, found.initramfs_resume),
    DoctorCheck("image", DoctorQuestion.ACCEPTED, accepted.image),
    DoctorCheck("memory-map", DoctorQuestion.ACCEPTED, accepted.memory_map),
    DoctorCheck("memory-size", DoctorQuestion.ACCEPTED, accepted.memory_size),
    DoctorCheck("hardware-signature", DoctorQuestion.ACCEPTED, accepted.hardware_signature),
    DoctorCheck("kernel", DoctorQuestion.ACCEPTED, accepted.kernel),
    DoctorCheck("boot-files", DoctorQuestion.ACCEPTED, accepted.boot_files),
    DoctorCheck("last-hibernation", DoctorQuestion.LAST_TIME, last_time.last_hibernation),
    DoctorCheck("last-resume", DoctorQuestion.LAST_TIME, last_time.last_resume),
)


def examine_facts(facts: Facts, checks: Iterable[DoctorCheck] = CHECKS) -> list[tuple[DoctorCheck, CheckFinding]]:
    """Return the finding of each check."""
    return [(check, check.examine(facts)) for check in checks]
