# SPDX-License-Identifier: GPL-2.0-or-later
"""Edits of a kernel's source at anchors: a definition, or the only match of a pattern; applied whole or not at all.

An edit holds its own new lines and a description of the place, and no line of the kernel's. C is recognized as the
kernel is written (Documentation/process/coding-style.rst): a definition begins in the first column and ends with a
brace there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from hibernaut.errors import FormatError

__all__ = ["Edit", "Place", "apply_edits", "unified_patch"]

Place = Literal["before-definition", "after-definition", "at-end", "before-line", "replace"]
"""Place of the new text: before the definition of `function` and the comment on it, after it, before its closing brace;
before the only line that `pattern` matches; instead of the only match of `pattern`. A pattern is searched for in the
definition of `function`, or in the whole file."""
PLACES: tuple[Place, ...] = get_args(Place)
ADVICE = "give a source of a kernel line that the cure covers, without other changes there"
DEFINITION = r"^(?!\s)[^\n;{{}}#/]*?\b{name}\([^;{{}}]*\)[^;{{}}()]*\{{.*?^\}}\n"


@dataclass(frozen=True)
class Edit:
    r"""One change at one anchor.

    Attributes:
        name: name for messages. Edits of one name are alternatives, for sources that differ: exactly one must fit.
        file: path of the file below the kernel's source.
        place: where the text goes.
        text: the new text; for "replace" a template, with `\1` for groups of the pattern.
        function: function whose definition is the anchor, or holds it; None for a whole file.
        pattern: regular expression (multi-line mode), for places that need one.
        users: for a header that nearly every file includes: regular expression of the names whose meaning the edit
            changes, itself included. A build then compiles only files with such a name again. None: `make` decides.
    """

    name: str
    file: str
    place: Place
    text: str
    function: str | None = None
    pattern: str | None = None
    users: str | None = None

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"edit {self.name}: unknown place {self.place!r}; expected {', '.join(PLACES)}")
        if self.place in ("before-line", "replace") and self.pattern is None:
            raise ValueError(f"edit {self.name}: {self.place} needs a pattern")
        if self.place not in ("before-line", "replace") and self.function is None:
            raise ValueError(f"edit {self.name}: {self.place} needs a function")

    def locate(self, content: str, source: str) -> tuple[int, int, str]:
        """Return the part of a file's content to replace, empty for an insertion, and the new text.

        Args:
            content: the file's content.
            source: name of the file, for the error.

        Raises:
            FormatError: the anchor is not in the file, or more than once.
        """
        start, end = 0, len(content)
        if self.function is not None:
            shape = DEFINITION.format(name=re.escape(self.function))
            start, end = self._only(re.compile(shape, re.M | re.S), content, 0, end, source, "definition").span()
        if self.place == "before-definition":
            at = _comment_before(content, start)
        elif self.place == "after-definition":
            at = end
        elif self.place == "at-end":
            at = end - len("}\n")
        else:
            found = self._only(re.compile(self.pattern or "", re.M), content, start, end, source, "match")
            if self.place == "replace":
                return found.start(), found.end(), found.expand(self.text)
            at = content.rfind("\n", 0, found.start()) + 1
        return at, at, self.text

    def _only(
        self, pattern: re.Pattern[str], content: str, start: int, end: int, source: str, noun: str
    ) -> re.Match[str]:
        matches = list(pattern.finditer(content, start, end))
        if len(matches) == 1:
            return matches[0]
        inside = f" in {self.function}()" if self.function else ""
        wanted = f"of {self.function}()" if noun == "definition" else f"of {self.pattern!r}{inside}"
        raise FormatError(
            f"anchor of the edit {self.name!r} does not fit",
            source=source,
            expected=f"1 {noun} {wanted}",
            found=str(len(matches)),
            advice=ADVICE,
        )


def _comment_before(content: str, at: int) -> int:
    """Return where the block comment begins that ends right before a position; that position if there is none."""
    if not content[:at].endswith("*/\n"):
        return at
    opened = content.rfind("/*", 0, at)
    return opened if content[:opened].endswith("\n") else at


def apply_edits(source: Path, edits: Iterable[Edit]) -> dict[str, tuple[str, str]]:
    """Return the files that edits change: path below the source -> content before, content after. Write nothing.

    Args:
        source: a kernel's source tree.
        edits: edits; all anchors are looked for in the files as they are, and may not overlap.

    Raises:
        FormatError: a file is not there, an anchor is not in it exactly once, or several alternatives fit.
    """
    contents: dict[str, str] = {}
    located: dict[str, list[tuple[int, int, str]]] = {}
    alternatives: dict[str, list[Edit]] = {}
    for edit in edits:
        alternatives.setdefault(edit.name, []).append(edit)
    for group in alternatives.values():
        edit = group[0]
        path = source / edit.file
        if edit.file not in contents:
            if not path.is_file():
                raise FormatError(
                    f"the edit {edit.name!r} has no file",
                    source=str(path),
                    expected="a source tree of the x86-64 kernel",
                    advice="give the folder with the kernel's own Makefile",
                )
            contents[edit.file] = path.read_text(errors="surrogateescape")
        located.setdefault(edit.file, []).append(_located(group, contents[edit.file], str(path)))
    return {name: (content, _replaced(content, located[name])) for name, content in contents.items()}


def _located(group: list[Edit], content: str, source: str) -> tuple[int, int, str]:
    """Return the place and the text of the only alternative that fits. Raises FormatError."""
    found, refused = [], []
    for edit in group:
        try:
            found.append(edit.locate(content, source))
        except FormatError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    if len(found) > 1:
        raise FormatError(
            f"several alternatives of the edit {group[0].name!r} fit",
            source=source,
            expected="1",
            found=str(len(found)),
            advice=ADVICE,
        )
    return found[0]


def _replaced(content: str, parts: list[tuple[int, int, str]]) -> str:
    """Return content with parts of it replaced; insertions at one place stay in order."""
    out, at = [], 0
    for start, end, text in sorted(parts, key=lambda part: part[:2]):
        out += [content[at:start], text]
        at = end
    return "".join([*out, content[at:]])


def unified_patch(changed: Mapping[str, tuple[str, str]], message: str) -> str:
    """Return a patch for `git apply` and patch(1) (with -p1): a commit message, "---", and the differences.

    Args:
        changed: as `apply_edits` returns it.
        message: subject, empty line, text.
    """
    differences = []
    for name, (before, after) in sorted(changed.items()):
        lines = difflib.unified_diff(
            before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{name}", f"b/{name}"
        )
        differences.append("".join(lines))
    return f"Subject: [PATCH] {message.strip()}\n---\n\n{''.join(differences)}"
