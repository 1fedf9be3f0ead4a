# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap devices in use, and the one that a kernel hibernates to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hibernaut.kernel.mounts import path_of

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel

__all__ = ["SwapDevice", "device_number", "read_swap_devices"]

MAX_SWAPFILES = 32
"""Types of a swap entry have 5 bits."""
SWP_USED, SWP_WRITEOK = 1, 2
"""`enum` of flags in include/linux/swap.h."""


@dataclass(frozen=True)
class SwapDevice:
    """A swap device or file in use.

    Attributes:
        number: its type in swap entries.
        path: path of the device or file; None if it is not in the memory.
        device: major and minor number of the block device that it is on.
        pages: usable pages.
        used_pages: of them, pages in use.
        priority: its priority.
        is_for_image: whether this kernel writes its image there (`swap_type_of`); None if that is not known.
    """

    number: int
    path: str | None
    device: str
    pages: int
    used_pages: int
    priority: int
    is_for_image: bool | None


def device_number(number: int) -> str:
    """Return a dev_t as `MAJOR:MINOR`."""
    return f"{number >> 20}:{number & (1 << 20) - 1}"


def read_swap_devices(kernel: Kernel) -> list[SwapDevice]:
    """Return the swap devices in use.

    Raises:
        LookupError: the kernel's declarations are unknown.
        drgn.FaultError: they are not in the memory.
    """
    table = kernel["swap_info"]
    count = min(kernel["nr_swapfiles"].value_(), MAX_SWAPFILES)
    present = [(number, table[number]) for number in range(count) if table[number].value_()]
    used = [(number, one) for number, one in present if _flags(one) & SWP_USED]
    chosen = _for_image(kernel, used)
    return [
        SwapDevice(
            number=number,
            path=_path(kernel, one),
            device=device_number(one.bdev.bd_dev.value_()),
            pages=one.pages.value_(),
            used_pages=_count(one.inuse_pages),
            priority=one.prio.value_(),
            is_for_image=None if chosen is None else number == chosen,
        )
        for number, one in used
    ]


def _flags(one: Any) -> int:
    return int(one.flags.value_())


def _count(pages: Any) -> int:
    """Return a count that became an atomic_long_t in newer kernels."""
    found = pages.value_()
    return int(found["counter"] if isinstance(found, dict) else found)


def _path(kernel: Kernel, one: Any) -> str | None:
    try:
        return path_of(kernel, one.swap_file.f_path.mnt, one.swap_file.f_path.dentry)
    except Exception:  # drgn's errors share no narrower base
        return None


def _for_image(kernel: Kernel, used: list[tuple[int, Any]]) -> int | None:
    """Return the type that `swsusp_swap_check` takes; None if it finds none, or it is not known."""
    try:
        device = kernel["swsusp_resume_device"].value_()
        block = kernel["swsusp_resume_block"].value_()
        for number, one in used:
            is_writable = bool(_flags(one) & SWP_WRITEOK)
            if is_writable and (not device or (one.bdev.bd_dev.value_(), _first_block(one)) == (device, block)):
                return number
    except Exception:  # drgn's errors share no narrower base
        return None
    return None


def _first_block(one: Any) -> int:
    """Return the block at which a swap area begins on its device, in pages."""
    from drgn import container_of

    node = one.swap_extent_root.rb_node
    for _ in range(64):
        if not node.rb_left.value_():
            break
        node = node.rb_left
    return int(container_of(node, "struct swap_extent", "rb_node").start_block.value_())
