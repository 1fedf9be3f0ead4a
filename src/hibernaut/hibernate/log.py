"""What kernel/power/snapshot.c prints (its pr_fmt is "PM: hibernation: "), word for word."""

from __future__ import annotations

from hibernaut.linux.printk import MODEL_MARK, Event, EventLog

__all__ = [
    "CREATING_IMAGE",
    "FAILED_TO_REMAP",
    "MODEL_MARK",
    "Event",
    "EventLog",
    "image_created",
    "need_to_copy",
]

PREFIX = "PM: hibernation: "

CREATING_IMAGE = PREFIX + "Creating image:"
"""`swsusp_save`, first of all."""

FAILED_TO_REMAP = PREFIX + "Failed to remap page"
"""`hibernate_map_page` and `hibernate_unmap_page`, once since boot."""


def need_to_copy(pages: int) -> str:
    """`swsusp_save`, when the saveable pages are counted."""
    return f"{PREFIX}Need to copy {pages} pages"


def image_created(pages: int) -> str:
    """`swsusp_save`, when all are copied."""
    return f"{PREFIX}Image created ({pages} pages copied)"
