# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands on a real kernel report the rules that they model, and whether these were probed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hibernaut.memory.vmcoreinfo import find_vmcoreinfo
from hibernaut.sources import open_memory
from tests.cli.run import hibernaut
from tests.conftest import Golden

DUMP = "ram-6.1-lzo.elf"


@pytest.fixture(scope="module")
def without_kallsyms(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump whose VMCOREINFO does not say where kallsyms is, in either copy."""
    path = tmp_path_factory.mktemp("dump") / DUMP
    content = golden(DUMP).read_bytes()
    with open_memory(golden(DUMP)) as source:
        assert find_vmcoreinfo(source.memory) is not None
    changed = content.replace(b"SYMBOL(kallsyms_names)", b"SYMBOL(kallsyms_nomes)")
    assert changed != content
    path.write_bytes(changed)
    return path


def test_audit_asks_the_kernel_in_a_dump_or_an_image(golden: Golden) -> None:
    """Unless --rules is given."""
    for name, line in ((DUMP, "6.1"), ("swap-6.12-lz4.img", "6.12")):
        document = hibernaut("audit", golden(name), "--json").document
        assert (document["rules"], document["rules_from"]) == (line, "probed")
    document = hibernaut("audit", golden(DUMP), "--rules", "7.3", "--json").document
    assert (document["rules"], document["rules_from"]) == ("7.3", "line")


def test_a_probed_kernel_that_differs_from_its_line_is_named_and_can_be_asked_for(golden: Golden) -> None:
    """The name that `rules` has is one that --rules takes."""
    name = "6.1 with has_set_memory_rox, collapses_large_pages without prints_progress"
    document = hibernaut("audit", golden(DUMP), "--rules", name, "--json").document
    assert document["rules"] == name


def test_a_kernel_that_cannot_be_probed_has_the_rules_of_its_line_with_a_remark(without_kallsyms: Path) -> None:
    """On standard error, with the reason, once for rules and list of pages; not with --quiet."""
    found = hibernaut("audit", without_kallsyms, "--json")
    assert (found.document["rules"], found.document["rules_from"]) == ("6.1", "line")
    assert found.err.count("VMCOREINFO has no SYMBOL(kallsyms_names)") == 1
    assert hibernaut("audit", without_kallsyms, "--json", "--quiet").err == ""


def test_save_reports_its_rules(golden: Golden, tmp_path: Path) -> None:
    """Of a copy that succeeds and of one that does not."""
    saved = hibernaut(
        "save", golden(DUMP), tmp_path / "out", "--via", "fixmap", "--like", golden("swap-6.1-lzo.img"), "--json"
    ).document
    assert (saved["outcome"], saved["rules"], saved["rules_from"]) == ("saved", "6.1", "probed")
    died = hibernaut(
        "save", golden("ram-6.1-low2m.elf"), tmp_path / "none", "--via", "remap", "--fail-allocation", 1,
        "--like", golden("swap-6.1-low2m.img"), "--rules", "6.12", "--json",
    ).document  # fmt: skip
    assert (died["outcome"], died["rules"], died["rules_from"]) == ("died", "6.12", "line")


def test_explore_reports_the_rules_of_sources_and_of_families(golden: Golden, tmp_path: Path) -> None:
    """A saved run has the name of the rules, and replays by them."""
    explored = hibernaut("explore", golden("ram-6.1-low2m.elf"), "--via", "remap", "--json", "--save", tmp_path)
    assert explored.document["rules_from"] == "probed"
    saved = sorted(tmp_path.glob("*.json"))
    assert json.loads(saved[0].read_text())["rules"] == "6.1"
    family = hibernaut("explore", "--layout", "regions=1", "--layout", "kinds=4k", "--via", "fixmap", "--json")
    assert family.document["rules_from"] == "line"


def test_inspect_asks_the_kernel_that_would_resume(golden: Golden) -> None:
    """The one in a RAM dump; a given release is taken unchanged."""
    image, dump = golden("swap-6.1-lzo.img"), golden(DUMP)
    asked = hibernaut("inspect", image, "--on-machine", dump, "--json").document["verdict"]
    assert (asked["kernel"], asked["rules_from"], asked["resumes"]) == ("6.1", "probed", True)
    told = hibernaut("inspect", image, "--on-machine", dump, "--for-kernel", "6.12", "--json").document["verdict"]
    assert (told["kernel"], told["rules_from"]) == ("6.12", "line")
