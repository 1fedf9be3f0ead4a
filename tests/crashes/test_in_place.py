# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewriting in place: whenever it ends early, the area holds the old image, none, or the new one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.errors import FormatError, HibernautError
from hibernaut.sealing.in_area import write_into_area
from hibernaut.sealing.in_window import manifest_in_area
from hibernaut.sealing.making import make_manifest
from hibernaut.sealing.manifest import SealManifest
from hibernaut.swsusp import open_image, rewrite_image
from hibernaut.swsusp import rewrite as rewriting
from tests.conftest import copy_sparse
from tests.crashes.calls import Call, Recorder
from tests.crashes.disk import lose_power
from tests.sealing.sealed import Memory, keys
from tests.swsusp import naive
from tests.swsusp.images import LAYOUT, WRITES, image_file, state_of

PADDR = 0x100000
"""Address that the golden image saves, where the rewrite writes."""


def recorded(path: Path, before: Callable[[int], None] = lambda _number: None) -> list[Call]:
    """Return every call of a rewrite in place, with as many writes as there are blocks."""
    recorder = Recorder(path.parent, before)
    with (
        open_image(path, offset=LAYOUT.header_block) as image,
        mock.patch.object(rewriting, "PIECE_BYTES", 4096),
        recorder.watching(),
    ):
        rewrite_image(image, writes=WRITES)
    return [call for call in recorder.calls if call.what != "size"]


def after(device: bytes, calls: list[Call]) -> bytes:
    """Return the device after these calls."""
    changed = bytearray(device)
    for call in calls:
        if call.what == "write":
            changed[call.offset : call.offset + len(call.data)] = call.data
    return bytes(changed)


def test_a_process_that_ends_early_leaves_old_none_or_new(tmp_path: Path) -> None:
    """After each single write or sync, in order: first the old image, then none, then the new one."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    calls = recorded(path)
    states = [state_of(after(device, calls[:stop])) for stop in range(len(calls) + 1)]
    assert [state for state, _ in itertools.groupby(states)] == ["old", "none", "new"]
    assert state_of(path.read_bytes()) == "new"
    assert len(calls) > 30


def test_an_error_at_any_call_says_what_the_area_holds(tmp_path: Path) -> None:
    """The disk fails at the n-th write or sync, for every n: the message is true, and never surer than the disk."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    calls = recorded(path)
    sizes = 0

    def fail(number: int, at: int) -> None:
        if number == at:
            raise OSError(5, os.strerror(5))

    for stop in range(len(calls) + 9):
        path.write_bytes(device)
        try:
            recorded(path, lambda number, at=stop: fail(number, at))  # type: ignore[misc]
        except OSError:  # an allocation, before anything is written
            sizes += 1
            assert path.read_bytes() == device
        except HibernautError as error:
            state, done = state_of(path.read_bytes()), stop - sizes
            told = str(error).partition("the area now holds ")[2].partition(";")[0]
            if done < 2:
                assert (told, state) == ("the old image or none", "old" if done == 0 else "none")
            elif done < len(calls) - 2:
                assert (told, state) == ("no image", "none")
            else:
                assert (told, state) == ("the new image or none", "none" if done == len(calls) - 2 else "new")
        else:
            assert stop >= len(calls) + sizes
    assert sizes


def test_the_real_code_without_its_second_step_is_caught(tmp_path: Path) -> None:
    """The library itself, made to leave the old signature where it is."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    with mock.patch("hibernaut.swsusp.header.SwapHeader.without_image", lambda header: header):
        calls = recorded(path)
    states = {state_of(after(device, calls[:stop])) for stop in range(len(calls) + 1)}
    assert any(state.startswith("half") for state in states)


@given(data=st.data())
def test_a_loss_of_power_leaves_old_none_or_new(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever subset of the sectors since the last sync reached the disk; each block is moved."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    calls = recorded(path)
    stop = data.draw(st.integers(0, len(calls)))
    seed, share = data.draw(st.integers(0, 1 << 30)), data.draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    with path.open("r+b") as file:
        file.write(device)
        lose_power(file.fileno(), calls[:stop], seed, share)
    assert state_of(path.read_bytes()) in ("old", "none", "new")


SEALED = naive.build(
    {pfn: np.random.default_rng(pfn).bytes(4096) for pfn in range(8, 1300)},
    naive.Layout("none", spare_blocks=9),
)
"""An area whose manifest takes more than one block."""


def manifest_of(device: bytes) -> SealManifest | None:
    """Return the manifest that a verifier finds in an area; None if it finds none with a right seal."""
    try:
        return manifest_in_area(Memory(device), keys().public)[0]
    except FormatError:
        return None


def test_a_loss_of_power_leaves_a_whole_manifest_in_the_area_or_none(tmp_path: Path) -> None:
    """After each call of `seal`, and with any share of the sectors since the last sync; the image is never touched."""
    path = tmp_path / "area"
    path.write_bytes(SEALED)
    recorder = Recorder(tmp_path)
    with open_image(path) as image, recorder.watching():
        free = np.ones(image.area.blocks, dtype=np.bool_)
        data, manifest, _, _ = make_manifest(Memory(SEALED), keys())
        first = write_into_area(image, free, data)
    calls = [call for call in recorder.calls if call.what in ("write", "sync")]
    assert [call.what for call in calls] == ["write", "sync", "write", "sync"]
    assert len(data) > 4096
    assert manifest_of(path.read_bytes()) == manifest
    seen = set()
    for stop in range(len(calls) + 1):
        for seed in range(20):
            with path.open("r+b") as file:
                file.write(SEALED)
                lose_power(file.fileno(), calls[:stop], seed, (0, 0.5, 0.9, 1)[seed % 4])
            device = path.read_bytes()
            assert device[: first * 4096] == SEALED[: first * 4096]
            found = manifest_of(device)
            assert found in (None, manifest)
            seen.add((stop, found is not None))
    assert {(0, False), (2, False), (3, False), (3, True), (4, True)} <= seen
    assert (4, False) not in seen


@pytest.fixture(scope="module")
def golden_calls(golden: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """The writes and syncs of a rewrite in place of a real kernel's image."""
    path = tmp_path_factory.mktemp("golden") / "image"
    with golden("swap-6.1-lzo.img").open("rb") as source:
        copy_sparse(source, path)
    recorder = Recorder(path.parent, contents=False)
    with open_image(path) as image, recorder.watching():
        rewrite_image(image, writes=[(PADDR, b"changed")])
    path.unlink()
    return [call for call in recorder.calls if call.what != "size"]


def golden_state(path: Path) -> str:
    """Return which image a reader finds in a copy of the golden one; its CRC is checked."""
    with path.open("rb") as file:
        file.seek(4086)
        if file.read(10) != b"S1SUSPEND\0":
            return "none"
    try:
        with open_image(path) as image:
            crc, expected = image.computed_crc(), image.header.crc32
            word = image.memory().read(PADDR, 7)
    except HibernautError as error:
        return f"half: {error}"
    if crc != expected:
        return "half: wrong CRC"
    return "new" if word == b"changed" else "old"


@settings(max_examples=12)
@given(data=st.data())
def test_a_loss_of_power_during_a_rewrite_of_a_real_image(
    golden: Callable[[str], Path], golden_calls: list[Call], tmp_path: Path, data: st.DataObject
) -> None:
    """The image of a real kernel: sampled instants, sampled sectors, read with its CRC."""
    path = tmp_path / "image"
    with golden("swap-6.1-lzo.img").open("rb") as source:
        copy_sparse(source, path)
    end = len(golden_calls)
    stop = data.draw(st.one_of(st.sampled_from([0, 1, 2, end - 3, end - 2, end - 1, end]), st.integers(0, end)))
    seed, share = data.draw(st.integers(0, 1 << 30)), data.draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    fd = os.open(path, os.O_WRONLY)
    try:
        lose_power(fd, golden_calls[:stop], seed, share)
    finally:
        os.close(fd)
    assert golden_state(path) in ("old", "none", "new")
    if stop == end:
        assert golden_state(path) == "new"


def test_a_missing_sync_on_a_real_image_is_caught(
    golden: Callable[[str], Path], golden_calls: list[Call], tmp_path: Path
) -> None:
    """The header before its blocks: the reader finds a half image."""
    path = tmp_path / "image"
    with golden("swap-6.1-lzo.img").open("rb") as source:
        copy_sparse(source, path)
    broken = [*golden_calls[:2], *golden_calls[-2:], *golden_calls[2:-2]]
    fd = os.open(path, os.O_WRONLY)
    try:
        lose_power(fd, broken[:-1], 1, 0.5)
    finally:
        os.close(fd)
    assert golden_state(path).startswith("half")
