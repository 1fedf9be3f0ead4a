# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of real kernels, probed: those in golden dumps and images have the rules of their line."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from hibernaut.hibernation.real_kernel import image_rules_of_vmlinuz, rules_of_source, rules_of_vmlinuz
from hibernaut.kernel.symbol_names import names_in_memory
from hibernaut.linux.rules import PROBES, RULE_NAMES, RULES, rules_named, rules_probed
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo
from hibernaut.sources import open_memory
from hibernaut.swsusp.rules import IMAGE_RULES, image_rules_probed
from tests.conftest import Golden
from tests.kernel.vmlinux import bzimage, kernel_image

GOLDEN = {
    "ram-6.1-lzo.elf": "6.1",
    "ram-6.1-secretmem.elf": "6.1",
    "swap-6.1-low2m.img": "6.1",
    "swap-6.12-lz4.img": "6.12",
}
NOT_TOLD = {"collapses_large_pages"}
"""Probed only where the answer is yes: a static function may be inlined."""


@pytest.mark.parametrize(("name", "line"), GOLDEN.items())
def test_golden_kernels_have_the_rules_of_their_line(golden: Golden, name: str, line: str) -> None:
    """Each probe answers, in dumps and in images, and what it answers is what the line says."""
    with open_memory(golden(name)) as source:
        found = rules_of_source(source)
        names = names_in_memory(source.memory, source.vmcoreinfo or find_vmcoreinfo(source.memory))
        images = image_rules_probed(names, line)
    assert found.rules is rules_named(line)
    assert found.rules_from == "probed"
    assert found.reason is None
    assert set(found.probed) == set(PROBES) - NOT_TOLD
    assert set(found.probed) | set(found.line) == set(RULE_NAMES)
    assert images.rules == IMAGE_RULES[line]
    assert set(images.line) == {"magic", "other_magics", "checks_crc32", "read"}


@pytest.mark.parametrize("line", ["6.1", "6.12"])
def test_the_kernel_decides_whatever_its_release_says(golden: Golden, line: str) -> None:
    """A golden kernel with the release of another line keeps its probed rules, like a kernel with a backport."""
    name = {"6.1": "ram-6.1-lzo.elf", "6.12": "swap-6.12-lz4.img"}[line]
    with open_memory(golden(name)) as source:
        names = names_in_memory(source.memory, source.vmcoreinfo or find_vmcoreinfo(source.memory))
    for other in RULES.values():
        found = rules_probed(names, other.line)
        for field in RULE_NAMES:
            expected = RULES[line] if field in found.probed else other
            assert getattr(found.rules, field) == getattr(expected, field), (other.line, field)
        assert rules_named(found.rules.line) == found.rules


def test_a_source_without_a_kernel_has_the_oldest_lines_rules(golden: Golden) -> None:
    """The reason is reported; with VMCOREINFO, but without kallsyms, the rules are those of the line."""
    with open_memory(golden("ram-6.1-lzo.elf")) as source:
        text = find_vmcoreinfo(source.memory)
        assert text is not None
        newer = text.replace(b"OSRELEASE=6.1.0", b"OSRELEASE=6.6.0").replace(b"kallsyms_names", b"kallsyms_none")
        for vmcoreinfo, line in ((newer, "6.6"), (b"OSRELEASE=mine\n", "6.1")):
            found = rules_of_source(replace(source, vmcoreinfo=vmcoreinfo))
            assert (found.rules.line, found.rules_from, found.probed) == (line, "line", ())
            assert found.reason is not None
            assert "VMCOREINFO" in found.reason


def test_a_kernel_on_a_disk(tmp_path: Path) -> None:
    """By its symbols; by its line, with the reason, where they cannot be found."""
    path = tmp_path / "vmlinuz"
    symbols = [b"Tset_memory_rox", b"Tpfn_modify_allowed", b"Tset_direct_map_valid_noflush", b"dvariable"]
    symbols += [b"tfunction_%d" % number for number in range(1100)]
    path.write_bytes(bzimage(gzip.compress(kernel_image(symbols))))
    found = rules_of_vmlinuz(path)
    assert found.rules.line == (
        "6.6 with has_set_direct_map_valid_noflush without ro_clears_dirty, checks_secretmem, skips_zero_pages, "
        "prints_zero_count"
    )
    assert rules_named(found.rules.line) == found.rules
    assert found.reason is None
    assert image_rules_of_vmlinuz(path).rules == replace(IMAGE_RULES["5.13"], line="6.7")
    path.write_bytes(bzimage(b"\x89LZO"))
    by_release = replace(IMAGE_RULES["6.6"], line="6.7")
    for asked, expected in ((rules_of_vmlinuz, RULES["6.6"]), (image_rules_of_vmlinuz, by_release)):
        by_line = asked(path)
        assert (by_line.rules, by_line.rules_from) == (expected, "line")
        assert by_line.reason is not None
        assert "payload cannot be unpacked" in by_line.reason
