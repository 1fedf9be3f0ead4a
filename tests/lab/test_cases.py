# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of cases and their results as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from hibernaut.cli.lab import prove as prove_module
from hibernaut.cli.lab.options import LabOptions
from hibernaut.errors import HibernautError, LabUnavailable
from hibernaut.lab.cases.case import CaseResult, LabCase
from hibernaut.lab.cases.table import CASES, cases_of
from hibernaut.lab.host.kernels import ALL_LINES, KERNEL_LINES, line_named
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.variants import variant_named
from hibernaut.report.documents import CaseDocument, ProveDocument
from hibernaut.report.support import support_page
from hibernaut.report.text import support_text
from tests.cli.run import hibernaut, refused

NAMES = [case.name for case in CASES]


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    """An unknown kernel line or variant is refused with the names that exist."""
    with pytest.raises(LabUnavailable, match=r"no kernel line '5\.4'; expected 5\.10, 6\.1, 6\.12,"):
        line_named("5.4")
    with pytest.raises(LabUnavailable, match=r"no guest variant 'x'; `hibernaut lab variants` lists them"):
        variant_named("x")
    with pytest.raises(HibernautError, match="no case matches 'x y'"):
        cases_of(["x y"])


def test_the_page_of_results_uses_the_names_of_the_table() -> None:
    """Each row of docs/support.md is a case of the table, with its requirement, for each of the kernels."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "support.md").read_text()
    rows = re.findall(r"^\| ([\d.]+) \| (.*) \| (.*) \| \w+ \| \d+ \|$", page, re.MULTILINE)
    kernels = list(dict.fromkeys(kernel for kernel, _, _ in rows))
    assert len(kernels) > 1
    assert kernels == list(ALL_LINES)
    expected = [(line, case) for line in ALL_LINES for case in CASES if line in KERNEL_LINES or case.every_line]
    assert rows == [(kernel, case.name, case.must) for kernel, case in expected]
    for kernel, name, _ in rows:
        assert f"\n- {kernel}, {name}: " in page


def test_the_table_of_proofs() -> None:
    """Cases that did not pass are listed with their reasons; text of a guest is not taken for markup."""
    fine: CaseDocument = {
        "kernel": "6.1",
        "release": "6.1.0",
        "case": "c",
        "must": "m",
        "passed": True,
        "seen": "fine",
        "seconds": 3,
        "result": "PASS",
    }
    failed: CaseDocument = {**fine, "case": "d", "passed": False, "result": "FAIL", "seen": "a|b `c` <d>"}
    document: ProveDocument = {"passed": False, "results": [fine, failed]}
    text = support_text(document)
    assert "1 of 2 pass" in text
    assert "6.1, d: a|b `c` <d>" in text
    assert "fine" not in text
    page = support_page(document, NAMES)
    assert "| 6.1 | d | m | FAIL | 3 |" in page
    assert r"a\|b \`c\` \<d\>" in page


def test_a_run_keeps_the_results_of_other_kernels_on_the_page() -> None:
    """Results for the same kernel and case are replaced; the page that a run does not touch stays the same."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "support.md").read_text()
    assert support_page({"passed": True, "results": []}, NAMES, page) == page
    first = CASES[0]
    anew: CaseDocument = {
        "kernel": "6.1",
        "release": "6.1.999-amd64",
        "case": first.name,
        "must": first.must,
        "passed": False,
        "seen": "something else",
        "seconds": 7,
        "result": "FAIL",
    }
    written = support_page({"passed": False, "results": [anew]}, NAMES, page)
    changed = set(written.splitlines()) - set(page.splitlines())
    assert f"| 6.1 | {first.name} | {first.must} | FAIL | 7 |" in changed
    assert f"- 6.1, {first.name}: something else" in changed
    assert len(changed) == 3  # and the line of the kernels
    assert "6.1 is Debian's 6.1.999-amd64, " in written
    assert len(written.splitlines()) == len(page.splitlines())


def test_a_line_that_cannot_be_had_is_skipped_only_if_it_was_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, it is an error; of the others, each case is a row with the reason, and the run passes without it."""

    def lab(options: LabOptions) -> Lab:
        if options.kernel != "6.1":
            raise LabUnavailable(f"no kernel {options.kernel}")
        return cast(Lab, object())

    def proved(_labs: object, cases: Sequence[LabCase], *_: object) -> Iterator[CaseResult]:
        return iter([CaseResult("6.1", "6.1.0", case.name, case.must, True, "fine", 1.0) for case in cases])

    monkeypatch.setattr(LabOptions, "lab", lab)
    monkeypatch.setattr(prove_module, "prove", proved)
    monkeypatch.setattr(prove_module, "KERNEL_LINES", {"6.1": None})
    assert "no kernel 7.2" in refused("lab", "prove", "--kernel", "6.1", "--kernel", "7.2", "--case", "damaged and")
    result = hibernaut("lab", "prove", "--case", "damaged and", "--json")
    words = {row["kernel"]: row["result"] for row in result.document["results"]}
    assert (result.status, words.pop("6.1")) == (0, "PASS")
    assert set(words) == set(ALL_LINES) - {"6.1"}
    assert set(words.values()) == {"SKIP"}
