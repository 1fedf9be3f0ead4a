# SPDX-License-Identifier: GPL-2.0-or-later
"""Each rule of the kernel cites its source in one sentence form, and each version its commit."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

import hibernaut
from hibernaut.linux.rules import PROBES, RULES, KernelRules, rules_named
from hibernaut.swsusp.rules import ImageRules

COMMIT = r'[0-9a-f]{12} \("[^\n]+?"\)'
VERSION = r"\(in v\d+\.\d+(?:-rc\d)?\)"
SENTENCE = re.compile(rf"Since Linux kernel commit {COMMIT} {VERSION}, \S")
READ = re.compile(r"Read in (?:linux-source-\d+\.\d+ \d+\.\d+\.\d+-\S+|[a-z_/]+\.py)")
PROPOSED = re.compile(r"Proposed in (?:Message-ID \d{8}\S*@\S+|the mm tree, 20\d\d:? )")
"""Behaviour of no released kernel: where it was posted."""
CLAIM = re.compile(r"(?i)\bsince (?:linux |kernel )?v?[2-9]\.\d+|\b(?:before|until|after) v[2-9]\.\d+")
"""A version without a commit: "since v6.6", "before v4.11"."""


def attributes(rules: type) -> dict[str, str]:
    """Return the description of each attribute in a class's docstring, each on one line."""
    text = inspect.cleandoc(rules.__doc__ or "").split("Attributes:\n", 1)[1].split("\n\n", 1)[0]
    found = re.split(r"^    (\w+): ", text, flags=re.MULTILINE)
    return {name: " ".join(told.split()) for name, told in zip(found[1::2], found[2::2], strict=True)}


@pytest.mark.parametrize("rules", [KernelRules, ImageRules])
def test_every_rule_has_its_commit_or_what_was_read(rules: type) -> None:
    """`Since Linux kernel commit HASH ("title") (in vX.Y), ...`, or `Read in PACKAGE VERSION`, or `Proposed in ...`."""
    told = attributes(rules)
    assert list(told) == [field.name for field in fields(rules)]
    for name, text in told.items():
        assert SENTENCE.search(text) or READ.search(text) or PROPOSED.search(text), f"{name}: {text}"


@pytest.mark.parametrize("rules", [KernelRules, ImageRules])
def test_every_commit_in_a_rule_is_written_in_full(rules: type) -> None:
    """Twelve digits and the title; the first of a rule also the version that it came with."""
    for name, text in attributes(rules).items():
        hashes = re.findall(r"\b[0-9a-f]{12}\b(?!@)", text)
        assert len(hashes) == len(re.findall(rf"\b{COMMIT}", text)), name


def test_every_probe_is_a_rules() -> None:
    """A probe of a rule that does not exist would never be noticed."""
    assert set(PROBES) <= {field.name for field in fields(KernelRules)}


def test_no_version_without_a_commit() -> None:
    """In code and docs: a claim that something holds since a version has its commit, or is not made."""
    package = Path(hibernaut.__file__).parent
    documents = package.parents[1]
    paths = [*package.rglob("*.py"), *documents.glob("docs/**/*.md"), *documents.glob("*.md")]
    claims = [
        f"{path.name}: {match[0]}" for path in paths for match in CLAIM.finditer(" ".join(path.read_text().split()))
    ]
    assert claims == []


def test_no_line_has_what_is_only_proposed() -> None:
    """A rule that is proposed is false of every line: a kernel has it by name alone."""
    proposed = [name for name, text in attributes(KernelRules).items() if PROPOSED.search(text)]
    assert proposed == ["set_direct_map_takes_pages", "resets_huge_vmalloc", "has_unmapped_pageblocks"]
    assert not any(getattr(RULES[line], name) for line in RULES for name in proposed)
    named = rules_named(f"7.3 with {', '.join(proposed)}")
    assert all(getattr(named, name) for name in proposed)
    assert named.line == f"7.3 with {', '.join(proposed)}"
