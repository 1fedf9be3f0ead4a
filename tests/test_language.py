# SPDX-License-Identifier: GPL-2.0-or-later
"""The tone of all texts: phrases that must not return to code, tests and documentation.

Names, docstrings, comments, messages and documentation read like the kernel's own: present tense, active voice, the
kernel, the function or the file as the subject. Each phrase here once was in these texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TREES = ("src/**/*.py", "src/**/*.md", "src/**/*.c", "tests/**/*.py", "docs/**/*.md", "docs/**/*.py", "benchmarks/*.py")
TOP = ("*.md", "Makefile", "pyproject.toml", ".ci/*", ".github/**/*.md", ".github/**/*.yml")


@dataclass(frozen=True)
class Phrase:
    """A phrase that must not return.

    Attributes:
        pattern: regular expression, case-sensitive.
        instead: its replacement.
        example: a text that the pattern matches.
        only: suffix of the files that are searched; all if empty.
    """

    pattern: str
    instead: str
    example: str
    only: str = ""


PHRASES = (
    Phrase(r"\b[Ff]oret(?:old|ells?)\b", "predicted, expect_resume", "refused, as inspect foretold"),
    Phrase(r"\b[Ww]hat (?:came|comes|came out|comes out|became|becomes) of\b", "outcome", "what came of it"),
    Phrase(r"\bgone on with\b", "resumed if it exists", "one that exists is gone on with"),
    Phrase(r"\b(?:go|goes|went|going) on\b(?! (?:the|a|an|its|that|this) )", "continue", "the machine goes on"),
    Phrase(r"\b[Ww]hose rules\b", "kernel line to model", "Whose rules hold"),
    Phrase(r"\bif not to be found\b", "if it cannot be detected", "levels, if not to be found"),
    Phrase(r"\b(?:is|are|was|were) to be\b", "must, or the infinitive alone", "pages that are to be saved"),
    Phrase(r"\b[Ss]tranger(?:'s|s)?\b", "foreign, without a lab record", "resume_stranger"),
    Phrase(r"\blast words\b|LastWords|LAST WORDS", "last log lines, log of the crash", "the kernel's last words"),
    Phrase(
        r"\b(?:dies|die|dying)\b|\bDIED\b|\b(?:machine|kernel|guest) died\b|\bdied of\b",
        "crash, with the message",
        "the machine dies of it",
    ),
    Phrase(r"\blives? on\b", "continues", "the machine lives on"),
    Phrase(
        r"(?<!there )(?<!There )\b(?:is|are) no (?!longer\b|more\b|less\b)[a-z]",
        "is not a, has no",
        "the file is no saved run",
    ),
    Phrase(r"\bare not negative\b", "must not be negative", "bounds are not negative: -1"),
    Phrase(r"\bit is for reading\b|, for reading only\b", "not resumable (for analysis only)", "it is for reading"),
    Phrase(r"\b[Nn]othing says\b", "has neither A nor B", "nothing says which pages"),
    Phrase(r"\b(?:[Ss]ome|[Nn]o|[Aa]ny|[Ee]very)body\b", "the caller, the kernel, no code", "that nobody asks for"),
    Phrase(r"\b[Ww]ho(?:m|ever|mever)?\b", "the function, the thread, the caller", "who allocates", ".py"),
    Phrase(r"[Gg]uest's day|[Ww]hole story", "guest lifecycle, all steps", "The whole story"),
    Phrase(r"\bas it (?:is|was) told\b", "fails or times out", "the guest does not do as it is told"),
    Phrase(r"\b(?:is|are|was|were|be) told\b(?! apart)", "reported", "the missing number is told"),
    Phrase(r"\b0 or 1 or\b", "0-3", "0 or 1 or 2 or 3 regions"),
    Phrase(
        r"(?<![\w.,-])(?<!of )1 (?:page|allocation|region|machine|run|byte|block|hole|unit|frame|table|CPU)s\b",
        "1 page, 2 pages",
        "1 pages for tables",
    ),
    Phrase(
        r"\b(?:asks null|says progress|names zero pages|finds wx|takes blocks)\b",
        "checks_null_pte, prints_progress, prints_zero_count, detects_wx, execmem_unmaps_2m",
        "finds_wx",
    ),
    Phrase(r"\bstands? (?:in|there|on)\b|\bstood\b", "is in, is on", "the results stand in the table"),
    Phrase(r"\bwrong on purpose\b", "with a deliberate defect", "a way that is wrong on purpose"),
    Phrase(r"\bspeaks? of\b", "covers, maps", "frames that the direct map speaks of"),
    Phrase(r"\bwithout (?:a|any) word\b|\bnot a word\b", "without a message", "torn without a word"),
    Phrase(r"\bsays? so\b|\bsaid so\b", "reports it", "it ends and says so"),
    Phrase(
        r"\bmended\b|\bworth nothing\b|\bworth the name\b|\bbad news\b", "fixed, negative result", "faults are mended"
    ),
    Phrase(r"\bif need be\b|\bno matter\b", "if necessary", "across pages if need be"),
    Phrase(r'"""(?:What|Who|Whose|How|Why|Where) ', "a verb or a noun phrase", '"""What is read."""', ".py"),
    Phrase(
        r"\bdef test (?:what(?:ever)?|who(?:ever)?|where)\b",
        "a noun phrase",
        "def test_what_is_no_run_is_refused",
        ".py",
    ),
    Phrase(r"(?m)^#+ (?:What|Who|Whose) ", "a noun phrase", "## What was seen", ".md"),
)


@dataclass(frozen=True)
class Kept:
    """A text with such a phrase that must stay.

    Attributes:
        text: the text, which is not searched.
        reason: why it stays.
        files: the files in which it stays.
    """

    text: str
    reason: str
    files: tuple[str, ...]


SAVED = "a sentence of saved runs, whose replay compares byte for byte"
KEY = "a published key of a JSON document"

EXCEPTIONS = (
    Kept("1 pages from frame", SAVED, ("docs/reference/formats.md",)),
    Kept('"1 pages', SAVED, ("tests/exploration/test_replay.py",)),
    Kept('PURPOSE = "somebody"', SAVED, ("src/hibernaut/exploration/operations.py",)),
    Kept(
        "last_words",
        KEY,
        (
            "src/hibernaut/report/documents.py",
            "src/hibernaut/report/machines.py",
            "src/hibernaut/report/text.py",
            "tests/cli/test_demo.py",
            "tests/report/test_schema.py",
        ),
    ),
    Kept(
        "dies_of",
        KEY,
        (
            "src/hibernaut/cli/lab/confirm.py",
            "src/hibernaut/report/documents.py",
            "src/hibernaut/report/explore.py",
        ),
    ),
)


def files() -> list[Path]:
    """Return every file with text, except this one."""
    found = {path for pattern in (*TREES, *TOP) for path in REPOSITORY.glob(pattern) if path.is_file()}
    return sorted(found - {Path(__file__).resolve()})


def searched(path: Path) -> str:
    """Return the text of a file without the texts that stay. A name is a phrase, too: `_` becomes a blank."""
    text = path.read_text()
    for kept in EXCEPTIONS:
        if str(path.relative_to(REPOSITORY)) in kept.files:
            text = text.replace(kept.text, " ")
    return text.replace("_", " ")


@pytest.mark.parametrize("phrase", PHRASES, ids=lambda phrase: phrase.example)
def test_every_phrase_is_detected(phrase: Phrase) -> None:
    """The pattern of each phrase matches its example, and not its replacement."""
    assert re.search(phrase.pattern, phrase.example.replace("_", " "))
    assert not re.search(phrase.pattern, phrase.instead.replace("_", " "))


def test_no_phrase_returns() -> None:
    """Every text is free of these phrases, apart from the exceptions."""
    found = []
    for path in files():
        text = searched(path)
        for phrase in PHRASES:
            if path.name.endswith(phrase.only):
                for match in re.finditer(phrase.pattern, text):
                    line = text.count("\n", 0, match.start()) + 1
                    found.append(f"{path.relative_to(REPOSITORY)}:{line}: {match[0]!r}; write: {phrase.instead}")
    assert found == []


def test_the_files_are_searched() -> None:
    """Sources, tests and documents of every kind are among the files."""
    names = {str(path.relative_to(REPOSITORY)) for path in files()}
    assert names >= {"README.md", "Makefile", ".ci/run", "docs/howto/laptop.md", "src/hibernaut/lab/guest/guest.c"}
    assert names >= {"src/hibernaut/cli/app.py", "tests/cli/test_demo.py", "src/hibernaut/lab/README.md"}
    assert len(names) > 400


@pytest.mark.parametrize(("kept", "name"), [(kept, name) for kept in EXCEPTIONS for name in kept.files])
def test_every_exception_is_needed(kept: Kept, name: str) -> None:
    """Each exception has a reason and a phrase in it, and its file still contains the text."""
    assert kept.reason
    assert any(re.search(phrase.pattern, kept.text.replace("_", " ")) for phrase in PHRASES)
    assert kept.text in (REPOSITORY / name).read_text()
