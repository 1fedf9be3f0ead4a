# SPDX-License-Identifier: GPL-2.0-or-later
"""The processes of a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hibernaut.errors import FormatError
from hibernaut.kernel.address_space import AddressSpace
from hibernaut.kernel.reading import FactReader, list_objects, text_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from hibernaut.kernel.clock import KernelClock
    from hibernaut.kernel.kernel import Kernel
    from hibernaut.kernel.swapped_pages import SwappedPages

__all__ = [
    "MAX_PROCESSES",
    "Process",
    "full_name",
    "is_kernel_thread",
    "process_of",
    "processes",
    "read_processes",
    "read_user",
]

MAX_PROCESSES = 1 << 17
MAX_ARGUMENT_BYTES = 4096
MAX_NAME_BYTES = 128
PF_KTHREAD = 0x00200000
"""include/linux/sched.h."""


@dataclass(frozen=True)
class Process:
    """A process, a group of threads.

    Attributes:
        pid: number, in the initial namespace (`tgid`).
        ppid: that of its parent; 0 for the two that the kernel starts itself.
        started_ns: time of its start, in nanoseconds since 1970 UTC; None if the clock is not known.
        uid: effective user; None if it is not in the memory.
        name: its command (`comm`); the full name of a kernel thread that has a longer one.
        is_kernel: whether it is a kernel thread.
        threads: number of its threads; None if it is not in the memory.
        arguments: its arguments; None for a kernel thread, and if they are neither in memory nor in a
            swap area that is read.
        arguments_cut: whether there are more, beyond 4096 bytes.
        resident_pages: pages that it has in memory, by the kernel's counters; None likewise.
        swapped_pages: pages that it has in swap, by the kernel's counters; None likewise.
        lost_pages: pages of its mappings whose frame or page table is not in the memory; None likewise.
    """

    pid: int
    ppid: int | None
    started_ns: int | None
    uid: int | None
    name: str
    is_kernel: bool
    threads: int | None
    arguments: tuple[str, ...] | None
    arguments_cut: bool
    resident_pages: int | None
    swapped_pages: int | None
    lost_pages: int | None


def processes(kernel: Kernel) -> Iterator[Any]:
    """Yield the `struct task_struct *` of each process, in the order of their start."""
    return list_objects(kernel["init_task"].tasks, "struct task_struct", "tasks")


def read_processes(
    reader: FactReader, clock: KernelClock | None, swapped: SwappedPages | None = None
) -> tuple[Process, ...] | None:
    """Return the processes of a kernel by number; None, with a remark, if there is not even their list.

    Args:
        reader: reads the kernel.
        clock: its clock; None if unknown.
        swapped: reads pages that are swapped out; None to read those in memory only.
    """
    kernel = reader.kernel
    found = reader.items(
        "processes", lambda: processes(kernel), lambda task: process_of(kernel, task, clock, swapped), MAX_PROCESSES
    )
    return None if found is None else tuple(sorted(found, key=lambda one: one.pid))


def process_of(kernel: Kernel, task: Any, clock: KernelClock | None, swapped: SwappedPages | None = None) -> Process:
    """Return the process of a task, the leader of its group; what of it is not in the memory is None."""

    def known(read: Any) -> Any:
        try:
            return read()
        except Exception:  # drgn's errors share no narrower base
            return None

    started = known(lambda: task.start_boottime.value_())
    arguments = known(lambda: _arguments(kernel, task, swapped)) or (None, False)
    resident, swapped_out = known(lambda: _counted_pages(kernel, task.mm)) or (None, None)
    return Process(
        pid=task.tgid.value_(),
        ppid=known(lambda: task.real_parent.tgid.value_()),
        started_ns=None if clock is None or started is None else clock.booted_ns + started,
        uid=known(lambda: task.real_cred.euid.val.value_()),
        name=known(lambda: full_name(kernel, task)) or task.comm.string_().decode("utf-8", "backslashreplace"),
        is_kernel=is_kernel_thread(task),
        threads=known(lambda: task.signal.nr_threads.value_()),
        arguments=arguments[0],
        arguments_cut=arguments[1],
        resident_pages=resident,
        swapped_pages=swapped_out,
        lost_pages=known(lambda: _lost_pages(kernel, task)),
    )


def is_kernel_thread(task: Any) -> bool:
    """Return whether a task is a kernel thread."""
    return bool(task.flags.value_() & PF_KTHREAD)


def full_name(kernel: Kernel, task: Any) -> str | None:
    """Return the full name of a kernel thread whose name does not fit in `comm`; None if it has none.

    As `get_kthread_comm` (kernel/kthread.c), which older kernels do not have.
    """
    if not is_kernel_thread(task) or not task.worker_private.value_():
        return None
    name = kernel.object("struct kthread", task.worker_private.value_()).full_name.value_()
    return text_at(kernel, name, MAX_NAME_BYTES) if name else None


def read_user(
    kernel: Kernel, task: Any, address: int, size_bytes: int, swapped: SwappedPages | None = None
) -> bytes | None:
    """Return bytes of a process's own memory; None if a page of them is nowhere.

    Args:
        kernel: the kernel.
        task: a task of the process.
        address: first virtual address.
        size_bytes: number of bytes.
        swapped: reads pages that are swapped out; None to read those in memory only.
    """
    import drgn
    from drgn.helpers.linux.mm import access_remote_vm

    try:
        return bytes(access_remote_vm(task.mm, address, size_bytes))
    except drgn.FaultError:  # in swap, or nowhere; mappings take longer to read
        pass
    try:
        return AddressSpace(kernel, task.mm, swapped).read(address, size_bytes)
    except FormatError:
        return None


def _arguments(kernel: Kernel, task: Any, swapped: SwappedPages | None) -> tuple[tuple[str, ...] | None, bool]:
    """Return the arguments of a process as far as 4096 bytes, and whether there are more."""
    memory = task.mm
    if not memory.value_() or is_kernel_thread(task):
        return None, False
    start, size_bytes = memory.arg_start.value_(), memory.arg_end.value_() - memory.arg_start.value_()
    if size_bytes <= 0:
        return (), False
    found = read_user(kernel, task, start, min(size_bytes, MAX_ARGUMENT_BYTES), swapped)
    if found is None:
        return None, False
    parts = found.removesuffix(b"\0").split(b"\0")
    return tuple(part.decode("utf-8", "backslashreplace") for part in parts), size_bytes > MAX_ARGUMENT_BYTES


def _counted_pages(kernel: Kernel, memory: Any) -> tuple[int, int] | tuple[None, None]:
    """Return resident and swapped pages of a `struct mm_struct *` (`get_mm_rss`, MM_SWAPENTS)."""
    if not memory.value_():
        return None, None
    counts = {name: _counter(memory.rss_stat, kernel[name].value_()) for name in ("MM_SWAPENTS", *RESIDENT)}
    return sum(counts[name] for name in RESIDENT), counts["MM_SWAPENTS"]


def _lost_pages(kernel: Kernel, task: Any) -> int | None:
    """Return how many pages of a process are in page frames that the memory lacks, by its page tables."""
    if not task.mm.value_() or is_kernel_thread(task):
        return None
    space = AddressSpace(kernel, task.mm)
    return sum(space.counts(mapping).lost for mapping in space.mappings)


RESIDENT = ("MM_FILEPAGES", "MM_ANONPAGES", "MM_SHMEMPAGES")


def _counter(counters: Any, number: int) -> int:
    """Return a counter of an address space.

    An array of per-CPU counters since Linux kernel commit f1a7941243c1 ("mm: convert mm's rss stats into
    percpu_counter") (in v6.2), before a structure with an array of atomic ones.
    """
    from drgn.helpers.linux.percpu import percpu_counter_sum

    try:
        found = counters.count[number].counter.value_()
    except AttributeError:
        found = percpu_counter_sum(counters[number].address_of_())
    return max(0, int(found))
