# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that kernels were given by `hibernaut lab fuzz-resume`, as text and as a page."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from hibernaut.errors import FormatError
from hibernaut.kernel_line import parse_release
from hibernaut.report.documents import ParserDocument, TriedImageDocument
from hibernaut.report.text import columns, counted, markdown
from hibernaut.volumes.output import make_folder, write_file

__all__ = ["add_to_parser", "has_findings", "kept_images", "parser_page", "parser_text", "tried_text"]

OUTCOMES = {
    "refused": "refused",
    "whole": "whole",
    "wrong": "wrong",
    "crashed while reading": "crashed reading",
    "crashed after": "crashed after",
    "hung while reading": "hung reading",
    "hung after": "hung after",
}
"""Outcomes, and their headings."""
NOT_PREDICTED = ("unknown", "unread")
IN_THE_PARSER = frozenset({"crashed while reading", "hung while reading"})
ADVICE = "move it away, or give another --write"


@dataclass(frozen=True)
class _Kind:
    """A kind of images, which are counted together.

    Attributes:
        title: noun phrase for headings.
        is_compressed: whether the images are compressed.
        has_several: whether they have several changes.
    """

    title: str
    is_compressed: bool
    has_several: bool

    def has(self, tried: TriedImageDocument) -> bool:
        """Return whether an image is of this kind; that without a change is of none."""
        compressed, several = tried["compressor"] != "none", len(tried["changes"]) > 1
        return bool(tried["changes"]) and (compressed, several) == (self.is_compressed, self.has_several)


KINDS = (
    _Kind("one change", is_compressed=True, has_several=False),
    _Kind("several changes", is_compressed=True, has_several=True),
    _Kind("not compressed, one change", is_compressed=False, has_several=False),
    _Kind("not compressed, several changes", is_compressed=False, has_several=True),
)


def tried_text(tried: TriedImageDocument) -> str:
    """Return an image that was tried as a line."""
    agrees = {True: "as predicted", False: f"predicted: {_prediction(tried)}", None: tried["predicted"]}
    return f"{tried['change']}: {_ending(tried)}; {agrees[tried['as_predicted']]}"


def _ending(tried: TriedImageDocument) -> str:
    reported = f", reported: {' / '.join(tried['reports'])}" if tried["reports"] else ""
    return f"{tried['outcome']} ({tried['says']}){reported}"


def _prediction(tried: TriedImageDocument) -> str:
    why = tried["words"] or tried["reason"]
    return f"{tried['predicted']}: {why}" if why else tried["predicted"]


def has_findings(document: ParserDocument) -> bool:
    """Return whether an image did not end as predicted, or the kernel crashed, hung or reported while it read."""
    return any(
        one["as_predicted"] is False or one["outcome"] in IN_THE_PARSER or one["reports"] for one in document["images"]
    )


def parser_text(document: ParserDocument) -> str:
    """Return the counts as tables, and what did not go as predicted."""
    lines = []
    for kind in KINDS:
        if images := list(filter(kind.has, document["images"])):
            lines += [f"Linux {document['release']}, {kind.title}: {counted(len(images), 'changed image')}"]
            lines += [*columns(_rows(images)), ""]
    for title, found in _lists(document):
        lines += [f"{title}: none" if not found else f"{title}:"]
        lines += [*(f"  {_finding(one)}" for one in found), ""]
    return "\n".join(lines[:-1])


def _changed(document: ParserDocument) -> list[TriedImageDocument]:
    return [one for one in document["images"] if one["changes"]]


def _row_name(tried: TriedImageDocument) -> str:
    """Return the row of an image: the part that is changed, or the number of changes."""
    changes = tried["changes"]
    return changes[0]["part"] if len(changes) == 1 else counted(len(changes), "change")


def _rows(images: Sequence[TriedImageDocument]) -> list[list[str]]:
    """Return a table: for each part the images by outcome, and how many ended as predicted."""
    rows = [["changed", "images", *OUTCOMES.values(), "reported", "as predicted", "otherwise", "not predicted"]]
    names = dict.fromkeys(map(_row_name, images))
    if any(len(one["changes"]) > 1 for one in images):
        names = dict.fromkeys(sorted(names))
    for name in [*names, "all"]:
        tried = [one for one in images if name in (_row_name(one), "all")]
        outcomes = Counter(one["outcome"] for one in tried)
        agree = Counter(one["as_predicted"] for one in tried)
        counts = [outcomes[outcome] for outcome in OUTCOMES]
        counts += [sum(bool(one["reports"]) for one in tried), agree[True], agree[False], agree[None]]
        rows.append([name, str(len(tried)), *(str(count or "") for count in counts)])
    return rows


def _lists(document: ParserDocument) -> list[tuple[str, list[TriedImageDocument]]]:
    """Return the images that are worth a line, one of each kind; of several changes, those with the fewest."""
    changed = [one for one in _changed(document) if one["is_case"] or len(one["changes"]) == 1]
    return [
        ("Crashed or hung in the kernel's parser", _kinds(one for one in changed if one["outcome"] in IN_THE_PARSER)),
        ("Reported by a sanitizer", _kinds(one for one in changed if one["reports"])),
        ("Not as predicted", _kinds(one for one in changed if one["as_predicted"] is False)),
        ("Not predicted", _kinds(one for one in _changed(document) if one["predicted"] in NOT_PREDICTED)),
        ("Resumed, and something differs", _kinds(one for one in changed if one["outcome"] == "wrong")),
    ]


def _kinds(tried: Iterable[TriedImageDocument]) -> list[TriedImageDocument]:
    """Return the first image of each kind: images of one kind end alike, numbers aside."""
    first: dict[tuple[object, ...], TriedImageDocument] = {}
    for one in tried:
        parts = tuple(change["part"] for change in one["changes"])
        words = re.sub(r"0x[0-9a-f]+|[\d.]+", "N", f"{one['says']} {one['reports']}")
        first.setdefault((one["compressor"] == "none", parts, one["outcome"], words), one)
    return list(first.values())


def _finding(tried: TriedImageDocument) -> str:
    plain = ", not compressed" if tried["compressor"] == "none" else ""
    return f"{tried['change']}{plain}: {_ending(tried)}; predicted: {_prediction(tried)}"


def add_to_parser(page: Path, document: ParserDocument) -> None:
    """Add the images that a kernel was given to those in the folder beside a page, and write the page anew.

    Args:
        page: the page; its folder has the same name without the suffix, and a file of lines for each kernel.
        document: the images; one that is there already is replaced.

    Raises:
        FormatError: a file in the folder holds something else.
        OSError: a file cannot be read or written.
    """
    folder = page.with_suffix("")
    make_folder(folder)
    path = folder / f"{document['release']}.jsonl"
    earlier = _kept(path)["images"] if path.exists() else []
    known = {_identity(one): one for one in earlier} | {_identity(one): one for one in document["images"]}
    write_file(path, "".join(f"{json.dumps(one)}\n" for one in known.values()).encode(), public=True)
    write_file(page, parser_page(kept_images(page)).encode(), public=True)


def _identity(tried: TriedImageDocument) -> tuple[object, ...]:
    """Return what makes a changed image another one, as far as the image of another hibernation allows."""
    changes = ((one["part"], one["index"], one["value"], one["mends_crc"]) for one in tried["changes"])
    return tried["compressor"], *changes


def kept_images(page: Path) -> list[ParserDocument]:
    """Return the images in the folder beside a page, of each kernel. Raises FormatError, OSError."""
    found = [_kept(path) for path in page.with_suffix("").glob("*.jsonl")]
    return sorted(found, key=lambda one: parse_release(one["release"]))


def _kept(path: Path) -> ParserDocument:
    images = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found = json.loads(line)
            if not isinstance(found, dict) or found.keys() != TriedImageDocument.__annotations__.keys():
                raise ValueError("it is not an image that a kernel was given")
        except (ValueError, RecursionError) as error:
            raise FormatError(f"line {number}: {error}", source=str(path), advice=ADVICE) from None
        images.append(cast(TriedImageDocument, found))
    return {"release": path.stem, "images": images}


def parser_page(documents: Sequence[ParserDocument]) -> str:
    """Return the page of all kernels."""
    lines = [
        "# The kernel's parser of images",
        "",
        "`hibernaut lab fuzz-resume --write docs/parser.md` writes this page; it is not edited by hand. The images "
        "that each kernel was given are in `docs/parser/`, a line each, with what was changed. Each run has the image "
        "of another hibernation: the same number can name another block, and a change that is there already is "
        "replaced.",
        "",
        "A kernel that resumes reads its image without a check of its writer. Here images of a real guest are "
        "changed, one field, entry, length or byte at a time, or two to four of them, and given to the same kernel: "
        "QEMU starts a machine from a state that was saved right before the kernel reads, so that hundreds of images "
        "can be tried in an hour. Changes inside compressed data are made with and without the CRC made right. Beside "
        "each outcome is the one that `hibernaut inspect --for-kernel` predicts; *resumes or refuses* if that depends "
        "on the resuming machine, and never a crash. *Wrong*: resumed, and something differs. *Reading*: before the "
        "kernel has loaded the image. *Reported*: a sanitizer of the kernel (KASAN, UBSAN, DEBUG_LIST) printed a "
        "report before the image was put in its place; before a run with such a kernel, LKDTM provokes a fault for "
        "each of them, and the run ends if it is not reported.",
        "",
        "The writer of an image decides what the machine runs after the resume: a changed `jump_address`, `cr3` or "
        "page is executed, so that a crash after the image was put in place says nothing new. A crash or a hang "
        "*while reading* is one of the parser. Such a one is listed by its field; report a new one as the kernel's "
        "[security-bugs](https://docs.kernel.org/process/security-bugs.html) says. An image of several changes that "
        "ends so, or otherwise than predicted, or wrong, is reduced to the fewest changes that still end so, which "
        "are listed; the images on the way are counted, too.",
    ]
    for document in documents:
        lines += ["", f"## Linux {document['release']}"]
        for kind in KINDS:
            if images := list(filter(kind.has, document["images"])):
                heading, *rows = _rows(images)
                lines += ["", f"{kind.title.capitalize()}: {counted(len(images), 'changed image')}.", ""]
                lines += [_row(heading), _row(["---"] * len(heading)), *map(_row, rows)]
        for title, found in _lists(document):
            lines += ["", f"{title}: none." if not found else f"{title}:"]
            lines += ["", *(f"- {markdown(_finding(one))}" for one in found)] if found else []
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
