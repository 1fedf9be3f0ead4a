# SPDX-License-Identifier: GPL-2.0-or-later
"""Differences between kernels: the rules of a release, and the effect of each rule on the functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import HibernautError
from hibernaut.linux.build import build_machine
from hibernaut.linux.change_page_attr import AttributeChangeError
from hibernaut.linux.layout import Layout
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import pfn_entry
from hibernaut.linux.rules import (
    LINES,
    PROBES,
    RULE_NAMES,
    RULES,
    KernelRules,
    rules_for_release,
    rules_named,
    rules_probed,
)
from hibernaut.linux.set_memory import (
    set_direct_map_invalid_noflush,
    set_direct_map_valid_noflush,
    set_memory_4k,
    set_memory_np_noalias,
    set_memory_ro,
    set_memory_rox,
    set_memory_x,
)
from hibernaut.paging.entries import Entry, Level

READ = ("6.1", "6.12", "7.3")
"""The lines whose source was read."""
NX = int(Entry.NX)


def machine(line: str | KernelRules) -> Machine:
    """Return a small machine by the rules of a line."""
    rules = rules_named(line) if isinstance(line, str) else line
    return build_machine(Layout(((0, 0xA0), (0x100, 0x3F00))), rules=rules)


def entry_of(of: Machine, pfn: int) -> tuple[Level, int]:
    """Return level and entry of a frame in the direct map."""
    found = of.lookup_address(of.vaddr(pfn))
    assert found is not None
    return found.level, found.entry


@pytest.mark.parametrize(
    ("release", "line"),
    [
        ("5.10.0-30-amd64", "6.1"),
        ("6.1", "6.1"),
        ("6.1.0-56-amd64", "6.1"),
        ("6.2.16", "6.2"),
        ("6.5.0-14-generic", "6.2"),
        ("6.6.1", "6.6"),
        ("6.11.2", "6.6"),
        ("6.12.118+deb13-amd64", "6.12"),
        ("6.13.0", "6.13"),
        ("6.14.11", "6.13"),
        ("6.15.0", "6.15"),
        ("6.18.15", "6.15"),
        ("6.19.2", "6.19"),
        ("7.2.0-rc1", "6.19"),
        ("6.13.0-rc5", "6.13-rc"),
        ("7.3.0-rc3", "7.3"),
        ("7.3.4", "7.3"),
        ("8.0", "7.3"),
    ],
)
def test_a_release_has_the_rules_of_the_newest_line_that_is_not_newer(release: str, line: str) -> None:
    """Versions compare as numbers; the part after the second one is ignored."""
    assert rules_for_release(release).line == line


def test_lines_are_found_by_name_and_by_release() -> None:
    """Every line is itself by its name and as a release."""
    for rules in RULES.values():
        assert rules_named(rules.line) is rules
        assert rules_for_release(rules.line) is rules
    assert set(LINES) <= set(RULES.values())
    for wrong in ("", "6", "linux-6.1", "6.x"):
        with pytest.raises(HibernautError):
            rules_for_release(wrong)
    with pytest.raises(HibernautError, match=r"6\.13-rc, 6\.15"):
        rules_named("6.14")


def test_blocks_were_taken_by_release_candidates_only() -> None:
    """execmem_unmaps_2m is true of 6.13-rc and of nothing that was released."""
    assert [rules.line for rules in LINES if rules.execmem_unmaps_2m] == ["6.13-rc"]
    assert not rules_for_release("6.13.2").execmem_unmaps_2m


def test_no_kernel_asks_whether_the_lookup_found_anything() -> None:
    """kernel_page_present reads through NULL in every kernel read; every one inverts and refuses secret memory."""
    assert not any(rules.checks_null_pte for rules in LINES)
    assert all(rules.inverts_not_present and rules.checks_secretmem for rules in LINES)


@pytest.mark.parametrize(("line", "left"), [("6.1", 0x60), ("6.12", 0x20), ("6.13-rc", 0x60), ("7.3", 0x20)])
def test_set_direct_map_invalid_clears_dirty(line: str, left: int) -> None:
    """invalid_clears: a page taken out of the direct map keeps DIRTY on 6.1 and on the candidates of 6.13."""
    m = machine(line)
    set_direct_map_invalid_noflush(m, 0x1001)
    assert entry_of(m, 0x1001) == (Level.PTE, pfn_entry(0x1001, NX | left))


@pytest.mark.parametrize(("line", "low"), [("6.1", 0x1E1), ("6.12", 0x1A1), ("7.3", 0x1A1)])
def test_set_memory_ro_clears_dirty_since_6_6(line: str, low: int) -> None:
    """ro_clears: a read-only page that is DIRTY would be a shadow stack."""
    m = machine(line)
    set_memory_ro(m, m.vaddr(0x1000), 512)
    assert entry_of(m, 0x1000) == (Level.PMD, NX | 0x1000000 | low)


@pytest.mark.parametrize(("line", "level"), [("6.1", Level.PTE), ("6.12", Level.PTE), ("7.3", Level.PMD)])
def test_a_whole_block_stays_one_entry_where_many_pages_are_one_request(line: str, level: Level) -> None:
    """512 pages out of the direct map are one PMD entry since 6.13, before that a split table."""
    m = machine(line)
    set_direct_map_valid_noflush(m, 0x1000, 512, valid=False)
    dirty = 0 if m.rules.invalid_clears & Entry.DIRTY else 0x40
    prot = NX | 0x20 | dirty
    assert entry_of(m, 0x1000) == (level, pfn_entry(0x1000, prot))
    assert len(m.allocations) == (level == Level.PTE)
    for pfn in (0x1001, 0x11FF):
        found = entry_of(m, pfn)
        assert found == (level, pfn_entry(pfn if level == Level.PTE else 0x1000, prot))
    set_direct_map_valid_noflush(m, 0x1000, 512, valid=True)
    back = NX | 0x23 | dirty | (0x80 if level == Level.PMD else 0)
    assert entry_of(m, 0x1000) == (level, 0x1000000 | back)


def test_set_memory_rox_is_refused_where_there_is_none() -> None:
    """has_set_memory_rox: 6.1 has no set_memory_rox."""
    m = machine("6.1")
    with pytest.raises(HibernautError, match="no set_memory_rox"):
        set_memory_rox(m, m.vaddr(0x1000), 512)
    assert entry_of(m, 0x1000) == (Level.PMD, NX | 0x10001E3)


@pytest.mark.parametrize(("line", "level"), [("6.12", Level.PTE), ("7.3", Level.PMD)])
def test_small_entries_become_a_large_one_where_the_kernel_collapses(line: str, level: Level) -> None:
    """Rox of half a block and then of the other half leaves a split table on 6.12, one PMD entry on 7.3."""
    m = machine(line)
    set_memory_rox(m, m.vaddr(0x1000), 256)
    set_memory_rox(m, m.vaddr(0x1100), 256)
    assert entry_of(m, 0x1000) == (level, 0x1000121 | (Entry.PSE if level == Level.PMD else 0))


@pytest.mark.parametrize(("line", "mark"), [("6.1", 0), ("6.12", 0), ("7.3", int(Entry.SOFTW3))])
def test_set_memory_4k_marks_entries_where_they_could_be_collapsed(line: str, mark: int) -> None:
    """Pages mapped small on purpose carry _PAGE_KERNEL_4K, so that they stay small; only those asked for."""
    m = machine(line)
    set_memory_4k(m, m.vaddr(0x1000), 2)
    assert entry_of(m, 0x1001) == (Level.PTE, NX | 0x1001163 | mark)
    assert entry_of(m, 0x1002) == (Level.PTE, NX | 0x1002163)


@pytest.mark.parametrize(("line", "warns"), [("6.1", False), ("6.12", False), ("7.3", True)])
def test_a_writable_executable_page_is_noticed_by_7_3_alone(line: str, warns: bool) -> None:
    """detects_wx: 6.1 and 6.12 take every address for write-protected by the levels above."""
    m = machine(line)
    set_memory_x(m, m.vaddr(0x1000), 512)
    assert entry_of(m, 0x1000) == (Level.PMD, 0x10001E3)
    start, end = m.vaddr(0x1000), m.vaddr(0x1200) - 1
    warning = (
        "CPA detected W^X violation: 80000000000001e3 -> 00000000000001e3 "
        f"range: 0x{start:016x} - 0x{end:016x} PFN 1000"
    )
    assert m.log.kernel_lines == ((warning,) if warns else ())


@pytest.mark.parametrize(("line", "fails"), [("6.1", False), ("6.12", True), ("7.3", True)])
def test_no_entry_outside_the_direct_map_without_alias_checks(line: str, fails: bool) -> None:
    """noalias_is_primary: on 6.1 a request that checks no aliases succeeds where there is nothing to change."""
    m = machine(line)
    nowhere = m.vaddr(m.end_pfn) + (1 << 40)
    if fails:
        with pytest.raises(AttributeChangeError, match="EFAULT"):
            set_memory_np_noalias(m, nowhere, 1)
        warning = f"CPA: called for zero pte. vaddr = {nowhere:x} cpa->vaddr = {nowhere:x}"
        assert m.log.kernel_lines == (warning,)
    else:
        set_memory_np_noalias(m, nowhere, 1)
        assert m.log.kernel_lines == ()


def test_6_2_to_6_5_have_rox_and_the_old_bits() -> None:
    """set_memory_rox and the untangled aliases came with 6.2, clearing DIRTY with 6.6."""
    rules = rules_for_release("6.2")
    m = machine(rules)
    set_memory_rox(m, m.vaddr(0x1000), 512)
    assert entry_of(m, 0x1000) == (Level.PMD, 0x10001E1)
    assert rules.alias_keeps_nx
    assert rules.noalias_is_primary


@pytest.mark.parametrize("line", READ)
def test_every_release_of_a_line_that_was_read_has_its_rules(line: str) -> None:
    """The Debian releases that were read map to the line of that name."""
    full = {"6.1": "6.1.192", "6.12": "6.12.118", "7.3": "7.3.4"}[line]
    assert rules_for_release(full) is rules_named(line)


class Answers:
    """A kernel with given answers: functions and variables by name, None for the rest."""

    def __init__(self, functions: dict[str, bool], data: dict[str, bool]) -> None:
        self._functions, self._data = functions, data

    def has_function(self, name: str) -> bool | None:
        """Return whether there is a function of this name; None if it is not known."""
        return self._functions.get(name)

    def has_data(self, name: str) -> bool | None:
        """Return whether there is data of this name; None if it is not known."""
        return self._data.get(name)

    def has_member(self, type_name: str, member: str) -> bool | None:  # noqa: ARG002
        """Return None: types are not known."""
        return None


SYMBOLS = (
    "arch_check_zapped_pte",
    "collapse_large_pages",
    "execmem_cache_clean",
    "execmem_restore_rox",
    "pfn_modify_allowed",
    "secretmem_active",
    "set_direct_map_valid_noflush",
    "set_memory_rox",
)


@given(
    functions=st.dictionaries(st.sampled_from(SYMBOLS), st.booleans()),
    data=st.dictionaries(st.just("zero_bm"), st.booleans()),
    release=st.none() | st.sampled_from([*RULES, "6.12.118+deb13-amd64", "custom"]),
)
def test_probed_rules_say_what_the_kernel_answered(
    functions: dict[str, bool], data: dict[str, bool], release: str | None
) -> None:
    """A rule is the kernel's answer if there is one, else its line's; and the name leads back to the same rules."""
    known = release not in (None, "custom")
    line = rules_for_release(release) if release and known else RULES["6.1"]
    found = rules_probed(Answers(functions, data), release)
    assert set(found.probed) <= set(PROBES)
    assert sorted(found.probed + found.line) == sorted(RULE_NAMES)
    for name in found.line:
        assert getattr(found.rules, name) == getattr(line, name)
    if "set_memory_rox" in functions:
        assert found.rules.has_set_memory_rox == functions["set_memory_rox"]
    assert ("skips_zero_pages" in found.probed) == ("zero_bm" in data)
    assert rules_named(found.rules.line) == found.rules
    assert (found.rules is line) == (found.rules.line == line.line)
    assert found.rules_from == ("probed" if found.probed else "line")


def test_execmem_of_the_candidates_differs_from_the_later_one() -> None:
    """6.13-rc has the cache and not `execmem_restore_rox`; 6.13 has neither, 6.15 both."""
    asked = {
        (cache, later): rules_probed(Answers({"execmem_cache_clean": cache, "execmem_restore_rox": later}, {}))
        for cache in (False, True)
        for later in (False, True)
    }
    unmaps = [has for has, found in asked.items() if found.rules.execmem_unmaps_2m]
    assert unmaps == [(True, False)]
    assert "execmem_unmaps_2m" in rules_probed(Answers({"execmem_cache_clean": True}, {})).line


def test_a_kernel_that_cannot_be_asked_has_the_rules_of_its_line() -> None:
    """The fallback, and the oldest line where not even the release is known."""
    assert rules_probed(None, "6.12.1").rules is RULES["6.12"]
    assert rules_probed(None).rules is RULES["6.1"]
    assert rules_probed(None, "6.12.1").rules_from == "line"


@pytest.mark.parametrize(
    "wrong", ["6.12 with nothing", "6.12 without", "6.12 with detects_wx,", "6.3 with detects_wx", "6.12 with line"]
)
def test_a_probed_kernels_name_that_is_none(wrong: str) -> None:
    """A rule that does not exist, a list that ends in a comma, a line that is none."""
    with pytest.raises(HibernautError, match="no rule"):
        rules_named(wrong)
