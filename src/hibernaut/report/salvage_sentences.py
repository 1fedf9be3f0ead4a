# SPDX-License-Identifier: GPL-2.0-or-later
"""A damaged or used-up image in plain sentences: the evidence for what is left of it, and everything that is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from hibernaut.report.salvage import salvage_state
from hibernaut.report.text import counted, size_text

if TYPE_CHECKING:
    from hibernaut.swsusp.salvage import SalvagedImage

__all__ = ["Told", "pages_of_salvaged", "salvage_headline", "salvage_sentences"]

SHOWN_PROBLEMS = 6
"""Problems with sentences of their own; the others are counted."""


class Told(NamedTuple):
    """A sentence, and the state that it tells of."""

    state: Literal["ok", "warning", "bad", "unknown", "fact"]
    text: str


def salvage_headline(image: SalvagedImage) -> Told:
    """Return what is left of an image, in one sentence."""
    text = f"The image is {salvage_state(image)}."
    if image.whole:
        return Told("warning" if image.used_up else "ok", text)
    is_bad = not image.complete or bool(image.problems) or image.crc_ok is False
    return Told("bad" if is_bad else "unknown", text)


def salvage_sentences(image: SalvagedImage) -> Iterator[Told]:
    """Yield the sentences on the integrity of an image, the evidence first."""
    if image.used_up:
        yield Told(
            "warning",
            "The image is used up: the signature of plain swap was put back, by a boot that resumed from it or refused"
            " it, or by a rewrite that did not end. No kernel resumes from it, and the system that runs since then may"
            " have written over it.",
        )
    if image.units is not None:
        yield _units(image, image.units.total)
    yield _checksum(image)
    yield from _lost(image)
    yield from _problems(image)


def pages_of_salvaged(image: SalvagedImage, zero_pages: int) -> str:
    """Return the pages of the list in sentences: those that can be read, and those that are lost.

    Args:
        image: the image.
        zero_pages: of those that can be read, the ones that are all zeroes.
    """
    readable, missing = len(image.pfns), image.missing.total_pages
    parts = [f"{counted(readable, 'page')} ({size_text(4096 * readable)}) can be read"]
    if zero_pages:
        parts.append(f"{zero_pages} of them all zeroes")
    if missing:
        parts.append(f"{missing} {'is' if missing == 1 else 'are'} lost")
    if image.listed is None:
        return f"{', '.join(parts)}. The number of pages that were saved is not known."
    verb = "was" if image.listed == 1 else "were"
    return f"{counted(image.listed, 'page')} ({size_text(4096 * image.listed)}) {verb} saved: {', '.join(parts)}."


def _units(image: SalvagedImage, total: int | None) -> Told:
    """Return how many units are whole."""
    begin = "Its pages are compressed in units of 32"
    if total is None:
        units = counted(image.whole_units, "unit")
        return Told("unknown", f"{begin}. {units} can be read; the number of all of them is not known.")
    if image.whole_units == total:
        return Told("ok", f"{begin}: all {counted(total, 'unit')} can be read.")
    return Told("bad", f"{begin}: {image.whole_units} of {total} units can be read.")


def _checksum(image: SalvagedImage) -> Told:
    """Return what the checksum of all pages proves."""
    if image.units is None:
        return Told(
            "unknown",
            "Its pages are not compressed, and have no checksum that is checked here: a page that was overwritten since"
            " then goes unnoticed.",
        )
    if image.crc_ok:
        return Told("ok", "The checksum of all its pages is right: each page is as it was written.")
    if image.crc_ok is False:
        return Told(
            "bad",
            "The checksum of its pages is wrong: at least one page has other bytes than were written. No unit has a"
            " checksum of its own, so it is not known which.",
        )
    why = "The checksum of all its pages cannot be compared, since not all of them are left"
    if image.header.crc32 is None:
        why = "It has no checksum of its pages"
    return Told(
        "unknown",
        f"{why}. A unit that decompresses to exactly its length is shown as it is; bytes in it that do not compress can"
        " have been overwritten.",
    )


def _lost(image: SalvagedImage) -> Iterator[Told]:
    """Yield the frames and the data that are lost, or belong nowhere."""
    missing, unplaced = image.missing.total_pages, image.unplaced_pages
    if missing:
        verb, rest = ("is", "It does not exist") if missing == 1 else ("are", "They do not exist")
        pages = f"{counted(missing, 'page')} ({size_text(4096 * missing)}) on the list of the image"
        yield Told("bad", f"{pages} {verb} lost. {rest} in this memory, and the map shows where.")
    if image.listed is None:
        yield Told("bad", "The end of the list of its pages is lost: which pages were on it is not known.")
    elif unlisted := image.listed - len(image.pfns) - missing:
        pages = counted(unlisted, "more page")
        yield Told("bad", f"Of {pages} even the frames are not known, since that part of the list is lost.")
    if unplaced:
        frames = "the frame that it belongs to is" if unplaced == 1 else "the frames that they belong to are"
        yield Told("bad", f"{counted(unplaced, 'page')} of data can be read, but {frames} not known.")


def _problems(image: SalvagedImage) -> Iterator[Told]:
    """Yield everything that is wrong with the header, the swap map, the info page and the list."""
    for problem in image.problems[:SHOWN_PROBLEMS]:
        yield Told("bad", f"{problem.what[:1].upper()}{problem.what[1:]}.")
    others = len(image.problems) - SHOWN_PROBLEMS
    if others > 0:
        yield Told("bad", f"{counted(others, 'more problem')} of the header, the swap map or the list of pages.")
