# SPDX-License-Identifier: GPL-2.0-or-later
"""The last hibernation and the last resume, as the logs of two boots and the swap area report them.

A resumed machine continues the log of the boot that hibernated: "hibernation entry" and "hibernation exit" are in one
boot. A refused image leaves the log of a fresh boot, whose reason is in its own lines, and a boot before it that ends
with the hibernation.
"""

from __future__ import annotations

from dataclasses import dataclass

from hibernaut.doctor.facts import Facts
from hibernaut.doctor.finding import CheckFinding, CheckOutcome, FactRead, failing, ok, unknown_for_lack_of, warning
from hibernaut.doctor.log import SLEEP_START, BootLog, LogLine
from hibernaut.doctor.messages import MESSAGES, Message, Phase, message_in

__all__ = ["last_hibernation", "last_resume"]

ENTRY = "hibernation entry"
EXIT = "hibernation exit"
SLEEPS = ("hibernate", "hybrid-sleep", "suspend-then-hibernate", "suspend-after-failed-hibernate")
SAVED = ("Image saving done", "PM: S|", "Wrote ")
LOOKED = (
    "Hibernation image partition",
    "Looking for hibernation image",
    "resume from hibernation",
    "Image signature found",
    "Image not found",
    "Loading hibernation image",
    "resume from disk to",
)
"""Lines of a kernel that was given a device to resume from."""
CRASHES = ("BUG: unable to handle", "Oops:", "Kernel panic", "general protection fault")


@dataclass(frozen=True)
class Attempt:
    """A hibernation in a log.

    Attributes:
        boot: the log.
        lines: its lines from the entry on, up to the exit.
        ended: whether the machine came back, resumed or not hibernated at all.
    """

    boot: BootLog
    lines: tuple[LogLine, ...]
    ended: bool

    @property
    def entry(self) -> FactRead:
        """Its first line."""
        return FactRead.of_line(self.boot, self.lines[0])


def last_attempt(facts: Facts) -> Attempt | None:
    """Return the last hibernation that the logs have; None if they have none."""
    for boot in reversed(facts.boots.value or ()):
        found = _attempt(boot)
        if found is not None:
            return found
    return None


def _attempt(boot: BootLog) -> Attempt | None:
    starts = [at for at, line in enumerate(boot.lines) if _begins(line)]
    if not starts:
        return None
    first = starts[-1]
    # systemd's message comes right before the kernel's: both are of one attempt.
    lines = boot.lines[first:]
    for at, line in enumerate(lines):
        if line.program == "kernel" and EXIT in line.text:
            return Attempt(boot, lines[: at + 1], ended=True)
    return Attempt(boot, lines, ended=False)


def _begins(line: LogLine) -> bool:
    return (line.program == "kernel" and line.text.endswith(ENTRY)) or (
        line.message_id == SLEEP_START and line.sleep in SLEEPS
    )


def _worst(boot: BootLog, lines: tuple[LogLine, ...], phase: Phase) -> tuple[Message, FactRead] | None:
    """Return the message that explains a failure best: by the order of `MESSAGES`."""
    found: list[tuple[int, Message, FactRead]] = []
    for line in lines:
        message = message_in(line.text, phase)
        if message is not None and message.ends:
            found.append((MESSAGES.index(message), message, FactRead.of_line(boot, line)))
    if not found:
        return None
    _, message, reading = min(found, key=lambda one: one[0])
    return message, reading


def last_hibernation(facts: Facts) -> CheckFinding:
    """Return how the last hibernation ended on the side that saves."""
    if not facts.boots.known:
        return unknown_for_lack_of(facts.boots, advice="give the logs of the last two boots as --dmesg or --journal")
    attempt = last_attempt(facts)
    if attempt is None:
        return CheckFinding(
            CheckOutcome.NOT_KNOWN,
            "the logs have no hibernation",
            (FactRead(facts.boots.origin, "no line `hibernation entry`"),),
            advice="give the log of the boot that hibernated as --dmesg or --journal",
        )
    cause = _worst(attempt.boot, attempt.lines, Phase.SAVING)
    if cause is not None:
        message, reading = cause
        return failing(
            f"the machine did not hibernate: {message.meaning}",
            attempt.entry,
            reading,
            words=(reading.value,),
            advice=message.advice,
        )
    crash = _crash(attempt)
    if crash is not None:
        return failing(
            "the kernel crashed while it hibernated",
            attempt.entry,
            crash,
            words=(crash.value,),
            advice="see the checks kfence and direct-map, and report the lines of the crash",
        )
    if attempt.ended:
        return ok(
            "the machine hibernated and came back", attempt.entry, FactRead.of_line(attempt.boot, attempt.lines[-1])
        )
    saved = next((line for line in attempt.lines if any(word in line.text for word in SAVED)), None)
    if saved is not None:
        return ok("the machine wrote its image", attempt.entry, FactRead.of_line(attempt.boot, saved))
    source = facts.source.value
    if source and source.state in ("image", "used up"):
        return ok("the machine wrote its image", attempt.entry, FactRead(source.name, source.detail))
    return CheckFinding(
        CheckOutcome.NOT_KNOWN,
        "the log ends with the hibernation, as it does whether the image was written or not: the disks are frozen then",
        (attempt.entry, FactRead.of_line(attempt.boot, attempt.lines[-1])),
        advice="give the swap area as --image: it shows whether an image was written",
    )


def _crash(attempt: Attempt) -> FactRead | None:
    for line in attempt.lines:
        if line.program == "kernel" and any(word in line.text for word in CRASHES):
            return FactRead.of_line(attempt.boot, line)
    return None


def last_resume(facts: Facts) -> CheckFinding:
    """Return why the last resume failed, or that it did not."""
    boot = facts.this_boot
    if boot is None:
        return unknown_for_lack_of(facts.boots, advice="give the log of this boot as --dmesg or --journal")
    own = _attempt(boot)
    if own is not None and own.ended and _worst(boot, own.lines, Phase.SAVING) is None:
        return ok("the machine resumed", FactRead.of_line(boot, own.lines[-1]))
    before = boot.lines[: boot.lines.index(own.lines[0])] if own else boot.lines
    cause = _worst(boot, before, Phase.RESUMING)
    if cause is not None:
        message, reading = cause
        return failing(
            f"the kernel refused the image: {message.meaning}", reading, words=(reading.value,), advice=message.advice
        )
    earlier = facts.earlier_boot
    attempt = _attempt(earlier) if earlier else None
    left = attempt is not None and not attempt.ended and _worst(attempt.boot, attempt.lines, Phase.SAVING) is None
    if not left and earlier is None:
        return CheckFinding(
            CheckOutcome.NOT_KNOWN,
            "this boot refused no image; whether the boot before it hibernated is not known",
            (FactRead(boot.origin, "no message about an image that is refused"),),
            advice="give the log of the boot before as --dmesg or --journal",
        )
    if not left:
        return ok(
            "the boot before did not hibernate, and this one refused no image", FactRead(boot.origin, "no message")
        )
    looked = next((line for line in before if any(word in line.text for word in LOOKED)), None)
    if looked is not None:
        return failing(
            "the machine hibernated, and the next boot looked for the image and found none",
            *((attempt.entry,) if attempt else ()),
            FactRead.of_line(boot, looked),
            words=(looked.text,),
            advice="see the checks resume-device and resume-offset, and give the swap area as --image",
        )
    if not boot.is_whole:
        return unknown_for_lack_of(facts.whole_log, advice="give the whole log of this boot as --dmesg")
    return warning(
        "the machine began to hibernate, and the log of the next boot has no line about an image: the kernel was not"
        " given a device to resume from, or prints no such lines (pm_debug_messages)",
        *((attempt.entry,) if attempt else ()),
        advice="see the checks resume-device and initramfs",
    )
