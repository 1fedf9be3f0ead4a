# SPDX-License-Identifier: GPL-2.0-or-later
"""The time of a kernel: wall clock, boot and clock source, as its timekeeper has them.

`timekeeping_suspend` (kernel/time/timekeeping.c) brings the timekeeper forward and stops it before hibernation copies
memory, so that an image has the time of the copy. In a dump of a running machine it is that of the last tick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hibernaut.errors import FormatError
from hibernaut.kernel.reading import text_at

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel

__all__ = ["NS", "KernelClock", "read_clock"]

NS = 10**9
MAX_SECONDS = 253_402_300_800
"""The year 10000, which no date shows."""
MAX_NAME_BYTES = 64


@dataclass(frozen=True)
class KernelClock:
    """The time of a kernel.

    Attributes:
        now_ns: wall clock, in nanoseconds since 1970 UTC.
        booted_ns: time of boot, likewise (`getboottime64`); it moves with the wall clock when that is set.
        source: name of the clock source.
    """

    now_ns: int
    booted_ns: int
    source: str | None

    @property
    def uptime_ns(self) -> int:
        """Time since boot, time of suspend included, as /proc/uptime counts."""
        return self.now_ns - self.booted_ns


def read_clock(kernel: Kernel) -> KernelClock:
    """Return the time of a kernel.

    Raises:
        FormatError: the timekeeper is not set up, or has an impossible time.
        LookupError: the kernel's timekeeper is unknown.
        drgn.FaultError: it is not in the memory.
    """
    timekeeper = _timekeeper(kernel)
    mono = timekeeper.tkr_mono
    clock, shift = mono.clock.value_(), mono.shift.value_()
    if not clock:
        raise FormatError("the timekeeper has no clock source: it is not set up")
    if shift > 32:
        raise FormatError(f"the timekeeper has a shift of {shift}", expected="0 to 32")
    now_ns = timekeeper.xtime_sec.value_() * NS + (mono.xtime_nsec.value_() >> shift)
    booted_ns = _ns(timekeeper.offs_real) - _ns(timekeeper.offs_boot)
    # A clock set back to 1970 puts boot before it.
    if not (0 <= now_ns < MAX_SECONDS * NS and -MAX_SECONDS * NS < booted_ns <= now_ns):
        raise FormatError(f"the timekeeper has the impossible time {now_ns} ns, booted at {booted_ns} ns")
    return KernelClock(now_ns, booted_ns, text_at(kernel, mono.clock.name.value_(), MAX_NAME_BYTES))


def _timekeeper(kernel: Kernel) -> Any:
    """Return the timekeeper of the wall clock.

    Kernels of 7.3 have an array of them, `timekeeper_data`, whose first is `tk_core`.
    """
    return (kernel["timekeeper_data"][0] if "timekeeper_data" in kernel else kernel["tk_core"]).timekeeper


def _ns(time: Any) -> int:
    """Return a ktime_t in nanoseconds."""
    return int(time.value_())
