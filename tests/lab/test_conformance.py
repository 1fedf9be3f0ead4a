# SPDX-License-Identifier: GPL-2.0-or-later
"""The model against a kernel that runs: they agree, and the comparison notices a model that is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hibernaut.errors import LabUnavailable
from hibernaut.hibernation import Fixmap
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.hibernation.ways import FixmapNoFlush
from hibernaut.hibernation.ways.mutants import RemapNoUnmap
from hibernaut.lab import conformance
from hibernaut.lab.cases.table import COPY_SEED, QUICK, cases_of
from hibernaut.lab.conformance import Access, compare_copy, compare_dumps, faulting_access, random_variant
from hibernaut.lab.guest.region import region_module
from hibernaut.lab.scenario import Hibernated, Lab, Record
from hibernaut.lab.variants import MOST_REGIONS, REGIONS
from hibernaut.linux.environment import ChooseFrames
from hibernaut.linux.rules import rules_for_release
from tests.lab.conftest import unavailable

OOPS = """\
[    9.42] RIP: 0010:swsusp_save+0x27b/0x31a
[    9.42] Code: 0c 48 03 15 75 ea a0 00 <48> 8b 4c 42 10 49 89
[    9.42] RSP: 0018:ffffc9000059b9d8 EFLAGS: 00000086
[    9.42] RAX: 0000000000000008 RBX: ffffea0000018000 RCX: c0000000ffffefff
[    9.42] RDX: ffff888000600000 RSI: 00000000ffffefff RDI: 0000000000000001
[    9.42] Call Trace:
[    9.43] RIP: 0033:0x4c5f44
[    9.43] RAX: ffffffffffffffda RBX: 0000000000000005 RCX: 00000000004c5f44
[    9.43] RDX: 0000000000000005 RSI: 00000000400ba7b0 RDI: 0000000000000001
"""
"""As kernels print it; the numbers are made up."""


@pytest.fixture(scope="module")
def guest(lab_61: Lab, tmp_path_factory: pytest.TempPathFactory) -> Hibernated:
    """The guest of the quick case, whose kernel and model agree on everything: that case, as in docs/support.md."""
    try:
        region_module(lab_61.cache, lab_61.kernel)
    except LabUnavailable as error:
        unavailable(str(error))
    folder = tmp_path_factory.mktemp("guest")
    compared = compare_copy(lab_61, random_variant(COPY_SEED), folder)
    assert compared.differences == ()
    assert "in neither image, the others equal" in compared.seen
    return Hibernated("hibernated", "", folder, Record.load(folder), "", 0)


def again(guest: Hibernated) -> tuple[str, ...]:
    """The guest's dumps compared once more."""
    return compare_dumps(guest.folder / "before.elf", guest.folder / "after.elf", guest).differences


def test_kernel_and_model_agree(guest: Hibernated) -> None:
    """On every page table, before and after, in the image and in memory; and a second look says the same."""
    assert [case.name for case in cases_of(QUICK[3:])] == [
        f"random regions, seed {COPY_SEED}: the copy against the model's"
    ]
    assert again(guest) == ()


def test_another_kernels_rules_are_noticed(guest: Hibernated) -> None:
    """Whether set_direct_map_invalid_noflush clears DIRTY is one bit in the entries of every split."""
    rules = rules_for_release(guest.record.release)
    other = replace(rules, invalid_clears_dirty=not rules.invalid_clears_dirty)
    before, after = guest.folder / "before.elf", guest.folder / "after.elf"
    assert any(
        "memory after the copy: table" in line for line in compare_dumps(before, after, guest, other).differences
    )


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("ChooseFrames", lambda *frames: ChooseFrames(*reversed(frames)), "the model's splits got"),
        ("Remap", RemapNoUnmap, "memory after the copy: table"),
        ("Remap", Fixmap, "image: tables only one of the two has: "),
        ("Remap", Fixmap, "direct map: 512 frames are otherwise"),
        ("Fixmap", FixmapNoFlush, "Fixmap: "),
    ],
)
def test_a_wrong_model_is_noticed(
    guest: Hibernated, monkeypatch: pytest.MonkeyPatch, name: str, wrong: object, told: str
) -> None:
    """Tables in another order, pages that stay mapped, no split at all, a slot that is not flushed."""
    monkeypatch.setattr(conformance, name, wrong)
    assert any(line.startswith(told) for line in again(guest))


def test_regions_drawn_by_chance() -> None:
    """The same seed, the same wishes; all of them possible, one of them below its table for certain."""
    for seed in range(1, 100):
        variant = random_variant(seed)
        assert variant == random_variant(seed)
        assert set(variant.regions) <= set(REGIONS)
        assert "2m:above" in variant.regions
        assert 2 <= len(variant.regions) <= MOST_REGIONS
    assert len({random_variant(seed).regions for seed in range(100)}) > 50


def test_the_access_of_which_a_kernel_died() -> None:
    """A load from [rdx + 2*rax + 0x10], by the registers of the oops, not by those of the system call below it."""
    assert faulting_access(OOPS) == Access(
        "swsusp_save", "mov rcx, qword ptr [rdx + rax*2 + 0x10]", 0xFFFF888000600000 + 2 * 8 + 0x10
    )
    assert faulting_access(OOPS.replace("RDX: ", "XXX: ")) == Access(
        "swsusp_save", "mov rcx, qword ptr [rdx + rax*2 + 0x10]", None
    )
    assert faulting_access(OOPS.replace("Code", "Node")) is None


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("RIP: 0010:swsusp_save+", "died in another_place"),
        ("RDX: ffff888000600000", "the model read 0xffff888000600020"),
    ],
)
def test_a_death_elsewhere_is_noticed(line: str, told: str) -> None:
    """Another function, or another address."""
    wrong = (
        OOPS.replace("swsusp_save", "another_place") if "RIP" in line else OOPS.replace(line, line.replace("6", "8"))
    )
    (found,) = conformance._place(0xFFFF888000600020, wrong)
    assert told in found
    assert list(conformance._place(0xFFFF888000600020, OOPS)) == []


def test_other_last_words_are_noticed() -> None:
    """A line that the kernel did not say, one too early, lines of the fault with something between, a warning more."""
    words = ["warning", "a", "b", "c", "d"]
    log = "".join(f"[ 1.2] {line} \n" for line in words)
    assert list(conformance._words(words, log)) == []
    assert list(conformance._words([*words[:4], "e"], log)) != []
    assert list(conformance._words([words[1], words[0], *words[2:]], log)) != []
    assert list(conformance._words(words, log.replace("c", "x \n[ 1.2] c"))) == [
        "the lines of the fault do not follow one another"
    ]
    (told,) = conformance._words(words, f"[ 1.1] {FAILED_TO_REMAP}\n{log}")
    assert told == f"the kernel says {FAILED_TO_REMAP!r}, the model does not"
    assert list(conformance._words([FAILED_TO_REMAP, *words], f"[ 1.1] {FAILED_TO_REMAP}\n{log}")) == []
