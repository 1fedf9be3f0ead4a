# SPDX-License-Identifier: GPL-2.0-or-later
"""The model against a running kernel: they agree, and the comparison notices a model that is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hibernaut.errors import LabUnavailable
from hibernaut.hibernation import Fixmap
from hibernaut.hibernation.ways import FixmapNoFlush
from hibernaut.hibernation.ways.mutants import RemapNoUnmap
from hibernaut.lab import conformance
from hibernaut.lab.cases.table import COPY_SEED, QUICK, cases_of
from hibernaut.lab.conformance import compare_copy, compare_dumps
from hibernaut.lab.guest.region import region_module
from hibernaut.lab.laboratory import Hibernated, Lab
from hibernaut.lab.record import GuestRecord
from hibernaut.lab.variants import MAX_REGIONS, REGIONS, random_variant
from hibernaut.linux.environment import ChooseFrames
from hibernaut.linux.rules import rules_for_release
from tests.lab.conftest import unavailable


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
    return Hibernated("hibernated", "", folder, GuestRecord.load(folder), "", 0)


def again(guest: Hibernated) -> tuple[str, ...]:
    """The guest's dumps compared once more."""
    return compare_dumps(guest.folder / "before.elf", guest.folder / "after.elf", guest).differences


def test_kernel_and_model_agree(guest: Hibernated) -> None:
    """On every page table, before and after, in the image and in memory; and a second look says the same."""
    assert [case.name for case in cases_of(QUICK[3:])] == [f"random regions, seed {COPY_SEED}: copy and model"]
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
        ("Remap", Fixmap, "direct map: 512 frames differ"),
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
        assert 2 <= len(variant.regions) <= MAX_REGIONS
    assert len({random_variant(seed).regions for seed in range(100)}) > 50
