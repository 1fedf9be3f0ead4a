# SPDX-License-Identifier: GPL-2.0-or-later
"""Releases and lines: what is parsed, in which order, and which line a release belongs to."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hibernaut
from hibernaut.errors import FormatError
from hibernaut.kernel_line import (
    LINES_BY_NAME,
    KernelVersion,
    LineTable,
    line_named,
    newest_not_newer,
    parse_release,
)
from hibernaut.lab.host.kernels import KERNEL_LINES
from hibernaut.linux.rules import RULES
from hibernaut.swsusp.rules import IMAGE_RULES

VERSIONS = st.builds(KernelVersion, st.integers(3, 99), st.integers(0, 99), final=st.booleans()) | st.builds(
    KernelVersion, st.just(2), st.just(6), st.integers(1, 39), st.booleans()
)


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("6.1", "6.1"),
        ("6.1.0-56-amd64", "6.1"),
        ("6.12.118+deb13-amd64", "6.12"),
        ("6.5.0-14-generic", "6.5"),
        ("6.6.87.2-microsoft-standard-WSL2", "6.6"),
        ("5.14.0-427.13.1.el9_4.x86_64", "5.14"),
        ("6.13-rc", "6.13-rc"),
        ("6.13-rc5", "6.13-rc"),
        ("6.13.0-rc5-next-20241206", "6.13-rc"),
        ("6.8.0-rc1.fc40.x86_64", "6.8-rc"),
        ("7.3~rc1-1~exp1", "7.3-rc"),
        ("6.13.0-rcu", "6.13"),
        ("2.6.32-754.el6.x86_64", "2.6.32"),
        ("2.6.18", "2.6.18"),
        ("2.6.24-rc5", "2.6.24-rc"),
    ],
)
def test_a_release_is_parsed(release: str, name: str) -> None:
    """Distributions add suffixes to a version; a candidate has its own right after the numbers."""
    assert str(parse_release(release)) == name


@pytest.mark.parametrize("wrong", ["", "6", "6.x", "v6.1", "linux-6.1", "6.1 ", "6.1\n", "99999.1", "6.1!"])
def test_texts_that_are_not_a_release_have_one_error(wrong: str) -> None:
    """One error, whatever table is asked."""
    for asked in (parse_release, RULES.for_release, IMAGE_RULES.for_release, KERNEL_LINES.for_release):
        with pytest.raises(FormatError, match=r"is not a kernel release; expected 6\.1, or in full"):
            asked(wrong)


@given(VERSIONS, VERSIONS)
def test_versions_are_ordered_as_numbers_and_candidates_precede(one: KernelVersion, other: KernelVersion) -> None:
    """6.9 < 6.12-rc < 6.12 < 6.13."""
    assert parse_release(str(one)) == one
    numbers = [(version.major, version.minor, version.sublevel) for version in (one, other)]
    if numbers[0] != numbers[1]:
        assert (one < other) == (numbers[0] < numbers[1])
    else:
        assert (one < other) == (not one.final and other.final)


@given(st.sets(VERSIONS, min_size=1), VERSIONS)
def test_the_newest_line_that_is_not_newer(lines: set[KernelVersion], wanted: KernelVersion) -> None:
    """Against a naive search; a candidate without a line of its own counts as its version."""
    if not wanted.final and wanted not in lines:
        wanted = replace(wanted, final=True)
    best = None
    for line in lines:
        if line <= wanted and (line.final or line == wanted) and (best is None or line > best):
            best = line
    assert newest_not_newer(str(wanted), lines) == best


def test_a_release_candidate_has_its_own_line_or_its_versions() -> None:
    """6.13-rc is a line of its own and nothing but candidates get it; the candidates of 6.12 have 6.12's."""
    lines = [line_named(name) for name in ("6.6", "6.12", "6.13-rc", "6.13")]
    found = {
        release: str(newest_not_newer(release, lines))
        for release in ("6.12.0-rc1", "6.13.0-rc7", "6.13.0", "6.14-rc2", "6.7-rc1", "6.6-rc1")
    }
    assert found == {
        "6.12.0-rc1": "6.12",
        "6.13.0-rc7": "6.13-rc",
        "6.13.0": "6.13",
        "6.14-rc2": "6.13",
        "6.7-rc1": "6.6",
        "6.6-rc1": "6.6",
    }
    assert newest_not_newer("6.1", lines) is None


def test_tables_are_kept_in_order_and_know_their_lines_only() -> None:
    """A table iterates oldest first, whatever order it was written in; a line that does not exist is refused."""
    table = LineTable({"6.12": "b", "6.9": "a", "6.13-rc": "c"})
    assert list(table) == ["6.9", "6.12", "6.13-rc"]
    assert (table["6.12"], len(table), table.oldest) == ("b", 3, "a")
    assert (table.for_release("6.11"), table.for_release("6.20"), table.for_release("6.1")) == ("a", "b", None)
    assert "6.1" not in table
    with pytest.raises(FormatError, match=r"no kernel line is named '6\.3'"):
        LineTable({"6.3": None})


def test_every_line_is_used_and_named_by_its_key() -> None:
    """The tables agree with their keys; a line that no table knows is not in the list of lines."""
    assert all(rules.line == name for name, rules in RULES.items())
    assert all(rules.line == name for name, rules in IMAGE_RULES.items())
    assert all(line.name == name for name, line in KERNEL_LINES.items())
    assert {*RULES, *IMAGE_RULES, *KERNEL_LINES} == set(LINES_BY_NAME)
    assert list(LINES_BY_NAME.values()) == sorted(LINES_BY_NAME.values())


def test_nothing_else_parses_a_release() -> None:
    """The pattern of two numbers with a dot between is in one module."""
    package = Path(hibernaut.__file__).parent
    pattern = re.compile(r"\\d\S*\\\.\S*\\d")
    parsers = {path.name for path in package.rglob("*.py") if pattern.search(path.read_text())}
    assert parsers == {"kernel_line.py"}
