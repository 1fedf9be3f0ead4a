# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that kernels were given by `hibernaut lab fuzz-resume`, as text and as a page."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
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
IN_THE_PARSER = frozenset({"crashed while reading", "hung while reading"})
ADVICE = "move it away, or give another --write"


def tried_text(tried: TriedImageDocument) -> str:
    """Return an image that was tried as a line."""
    agrees = {True: "as predicted", False: f"predicted: {_prediction(tried)}", None: tried["predicted"]}
    return f"{tried['change']}: {tried['outcome']} ({tried['says']}); {agrees[tried['as_predicted']]}"


def _prediction(tried: TriedImageDocument) -> str:
    return f"{tried['predicted']}: {tried['words']}" if tried["words"] else tried["predicted"]


def has_findings(document: ParserDocument) -> bool:
    """Return whether an image did not end as predicted, or crashed or hung the kernel while it read."""
    return any(one["as_predicted"] is False or one["outcome"] in IN_THE_PARSER for one in document["images"])


def parser_text(document: ParserDocument) -> str:
    """Return the counts as a table, and what did not go as predicted."""
    lines = [f"Linux {document['release']}: {counted(len(_changed(document)), 'changed image')}"]
    lines += columns(_rows(document))
    for title, found in _lists(document):
        lines += ["", f"{title}: none" if not found else f"{title}:"]
        lines += [f"  {_finding(one)}" for one in found]
    return "\n".join(lines)


def _changed(document: ParserDocument) -> list[TriedImageDocument]:
    return [one for one in document["images"] if one["part"] != "nothing"]


def _rows(document: ParserDocument) -> list[list[str]]:
    """Return a table: for each part the images by outcome, and how many ended as predicted."""
    rows = [["changed", "images", *OUTCOMES.values(), "as predicted", "otherwise", "not predicted"]]
    changed = _changed(document)
    for part in [*dict.fromkeys(one["part"] for one in changed), "all"]:
        tried = [one for one in changed if part in (one["part"], "all")]
        outcomes = Counter(one["outcome"] for one in tried)
        agree = Counter(one["as_predicted"] for one in tried)
        counts = [outcomes[name] for name in OUTCOMES] + [agree[True], agree[False], agree[None]]
        rows.append([part, str(len(tried)), *(str(count or "") for count in counts)])
    return rows


def _lists(document: ParserDocument) -> list[tuple[str, list[TriedImageDocument]]]:
    """Return the images that are worth a line, one of each kind."""
    changed = _changed(document)
    return [
        ("Crashed or hung in the kernel's parser", _kinds(one for one in changed if one["outcome"] in IN_THE_PARSER)),
        ("Not as predicted", _kinds(one for one in changed if one["as_predicted"] is False)),
        ("Not read by hibernaut", _kinds(one for one in changed if one["predicted"] == "unread")),
        ("Resumed, and something differs", _kinds(one for one in changed if one["outcome"] == "wrong")),
    ]


def _kinds(tried: Iterable[TriedImageDocument]) -> list[TriedImageDocument]:
    """Return the first image of each kind: images of one kind end alike, numbers aside."""
    first: dict[tuple[str, str, str], TriedImageDocument] = {}
    for one in tried:
        first.setdefault((one["part"], one["outcome"], re.sub(r"0x[0-9a-f]+|[\d.]+", "N", one["says"])), one)
    return list(first.values())


def _finding(tried: TriedImageDocument) -> str:
    return f"{tried['change']}: {tried['outcome']} ({tried['says']}); predicted: {_prediction(tried)}"


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
    known = {(one["part"], one["index"], one["value"], one["mends_crc"]): one for one in earlier}
    known |= {(one["part"], one["index"], one["value"], one["mends_crc"]): one for one in document["images"]}
    write_file(path, "".join(f"{json.dumps(one)}\n" for one in known.values()).encode(), public=True)
    write_file(page, parser_page(kept_images(page)).encode(), public=True)


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
        "changed, one field, entry, length or byte at a time, and given to the same kernel: QEMU starts a machine "
        "from a state that was saved right before the kernel reads, so that hundreds of images can be tried in an "
        "hour. Changes inside compressed data are made with and without the CRC made right. Beside each outcome is "
        "the one that `hibernaut inspect --for-kernel` predicts. *Wrong*: resumed, and something differs. "
        "*Reading*: before the kernel has read the image to its end.",
        "",
        "The writer of an image decides what the machine runs after the resume: a changed `jump_address`, `cr3` or "
        "page is executed, so that a crash after the image was put in place says nothing new. A crash or a hang "
        "*while reading* is one of the parser. Such a one is listed by its field; report a new one as the kernel's "
        "[security-bugs](https://docs.kernel.org/process/security-bugs.html) says.",
    ]
    for document in documents:
        images = counted(len(_changed(document)), "changed image")
        lines += ["", f"## Linux {document['release']}", "", f"{images}.", ""]
        heading, *rows = _rows(document)
        lines += [_row(heading), _row(["---"] * len(heading)), *map(_row, rows)]
        for title, found in _lists(document):
            lines += ["", f"{title}: none." if not found else f"{title}:"]
            lines += ["", *(f"- {markdown(_finding(one))}" for one in found)] if found else []
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
