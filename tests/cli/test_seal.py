# SPDX-License-Identifier: GPL-2.0-or-later
"""`seal`, `verify` and `seal-key`: in a file, in the area itself, and what each refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hibernaut.errors import FormatError
from hibernaut.kernel.free_slots import free_blocks
from hibernaut.kernel.kernel import Kernel
from hibernaut.sealing.in_area import place_for
from hibernaut.sealing.in_window import WINDOW_BLOCKS
from hibernaut.sources import open_memory
from hibernaut.swsusp import open_image
from tests.cli.run import hibernaut, refused
from tests.conftest import Golden
from tests.sealing.sealed import LAYOUT, PAGES, blocks_of, changed
from tests.swsusp import naive

IMAGE = "swap-6.1-lzo.img"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key, its public one beside it."""
    assert hibernaut("seal-key", tmp_path / "key").status == 0
    return tmp_path / "key"


def public(key: Path) -> Path:
    """Return the public key of a pair."""
    return key.with_name(f"{key.name}.pub")


def naive_image(folder: Path, layout: naive.Layout = LAYOUT) -> Path:
    """Write a small image, its header at block 2."""
    path = folder / "image"
    path.write_bytes(naive.build(PAGES, layout))
    return path


def test_keys_are_made_once(tmp_path: Path) -> None:
    """One line, or a document; the private file is private; the second time it is refused."""
    done = hibernaut("seal-key", tmp_path / "key", "--json")
    assert done.document["private"] == str(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "key").read_bytes()
    assert "File exists" in refused("seal-key", tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before


def test_a_seal_in_a_file_is_verified(tmp_path: Path, key: Path) -> None:
    """Whole, then touched at the byte that was changed, then moved; the manifest is private."""
    image, manifest = naive_image(tmp_path), tmp_path / "manifest"
    before = image.read_bytes()
    sealed = hibernaut("seal", image, "--offset", 2, "--key", key, "--manifest", manifest, "--counter", 9, "--json")
    chain, entries = blocks_of(before)
    assert sealed.document["covered_blocks"] == 1 + len(chain) + len(entries)
    assert sealed.document["counter"] == 9
    assert image.read_bytes() == before
    assert manifest.stat().st_mode & 0o777 == 0o600
    asked = ("verify", image, "--offset", 2, "--key", public(key), "--manifest", manifest)
    whole = hibernaut(*asked)
    assert whole.status == 0
    assert whole.out.count("\n") == 1
    assert "whole: a kernel reads" in whole.out
    image.write_bytes(changed(before, entries[6] * 4096, b"\1\2\3\4"))
    touched = hibernaut(*asked, "--json")
    assert (touched.status, touched.document["state"], touched.document["block"]) == (1, "touched", entries[6])
    image.write_bytes(naive.build(PAGES, naive.Layout("lzo", header_block=2, spare_blocks=9)))
    assert hibernaut(*asked, "--json").document["state"] == "moved"
    assert hibernaut(*asked, "-q").out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("seal",), "give either --key or --secret"),
        (("verify",), "give either --key or --secret"),
        (("seal", "--key", "key", "--secret", "key"), "give either --key or --secret"),
        (("seal", "--key", "key.pub"), "not an Ed25519 private key"),
        (("verify", "--key", "key"), "this is a private key"),
        (("seal", "--key", "key", "--manifest", "image"), "is the source itself"),
        (("seal", "--key", "key", "--manifest", "key"), "is the source itself"),
        (("seal", "--key", "key", "--counter", "-1"), "does not fit"),
        (("seal", "--key", "key", "--manifest", "nowhere/m"), "No such file"),
        (("verify", "--key", "key.pub", "--manifest", "m"), "No such file"),
        (("verify", "--key", "key.pub", "--manifest", "image"), "not the manifest of a seal"),
        (("verify", "--key", "key.pub"), "no manifest in the last"),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    """Of wrong keys, missing files, outputs that are sources; image and keys stay as they are."""
    image = naive_image(tmp_path)
    kept = [path.read_bytes() for path in (image, key, public(key))]
    monkeypatch.chdir(tmp_path)
    command, *rest = arguments
    assert words in refused(command, "image", "--offset", 2, *rest)
    assert [path.read_bytes() for path in (image, key, public(key))] == kept


def test_plain_swap_and_other_machines_are_refused(tmp_path: Path, key: Path) -> None:
    """No image to seal or verify; pages of 64 KiB are not those of x86-64."""
    image = naive_image(tmp_path)
    image.write_bytes(changed(image.read_bytes(), 2 * 4096 + 4086, b"SWAPSPACE2"))
    for command, given in (("seal", key), ("verify", public(key))):
        assert "not an image" in refused(command, image, "--offset", 2, "--key", given)
    large = bytearray(1 << 20)
    large[1024], large[65516:65536] = 1, b"SWAPSPACE2S1SUSPEND\0"
    (tmp_path / "large").write_bytes(large)
    assert "not one of x86-64" in refused("seal", tmp_path / "large", "--key", key, "--manifest", tmp_path / "m")


@pytest.mark.golden
@pytest.mark.parametrize("name", [IMAGE, "swap-6.12-lz4.img"])
def test_the_area_itself_takes_the_manifest(
    golden: Golden, golden_copy: Callable[[str], Path], key: Path, name: str
) -> None:
    """Every other byte stays: the image and the pages that the machine swapped out; the image is whole all the same."""
    before, image = golden(name), golden_copy(name)
    document = hibernaut("seal", image, "--key", key, "--json").document
    first, size_bytes = document["manifest_block"], document["manifest_bytes"]
    place = range(first * 4096, first * 4096 + size_bytes)
    old, new = np.memmap(before, mode="r"), np.memmap(image, mode="r")
    assert not old[place.start : place.stop].any()
    differing = np.flatnonzero(old != new)
    assert differing.min() == place.start
    assert differing.max() < place.stop
    done = hibernaut("verify", image, "--key", public(key), "--json")
    assert (done.status, done.document["manifest_block"]) == (0, first)
    assert hibernaut("inspect", image, "--no-machine", "-q").status == 0
    again = hibernaut("seal", image, "--key", key, "--counter", 1, "--json")
    assert again.document["manifest_block"] == first
    assert hibernaut("verify", image, "--key", public(key), "--least", 1).status == 0


@pytest.mark.golden
def test_slots_in_use_are_not_free(golden: Golden) -> None:
    """The guest's own marker pages in its swap slots: the blocks that hold them are none of the free ones."""
    path = golden(IMAGE)
    device = np.memmap(path, mode="r")
    pages = device.reshape(-1, 4096)[:, :16]
    marked = np.flatnonzero((pages == np.frombuffer(b"HLAB-MARKER-PAGE", dtype=np.uint8)).all(axis=1))
    with open_memory(path) as source:
        free = free_blocks(Kernel.of(source), source)
        assert source.image is not None
        swapped = np.setdiff1d(marked, source.image.swap_map.blocks)
    assert len(swapped) >= 400
    assert not free[swapped].any()
    assert np.count_nonzero(free) > 50000
    assert not free[0]


def test_the_place_is_the_last_one_that_is_free(tmp_path: Path) -> None:
    """No block of the image, none in use; and a run outside of the verifier's window is refused."""
    blocks = WINDOW_BLOCKS + 3000
    path = naive_image(tmp_path)
    with path.open("r+b") as file:
        file.truncate(blocks * 4096)
    with open_image(path, offset=2) as image:
        free = np.ones(blocks, dtype=np.bool_)
        assert place_for(image, free, 4) == blocks - 4
        free[blocks - 3] = False
        assert place_for(image, free, 2) == blocks - 2
        assert place_for(image, free, 3) == blocks - 6
        free[3000:] = False
        with pytest.raises(FormatError, match=r"neighbouring free blocks.*--manifest FILE"):
            place_for(image, free, 1)
        used = image.swap_map.blocks
        near_end = np.zeros(blocks, dtype=np.bool_)
        near_end[-5:] = True
        assert place_for(image, near_end, 5) == blocks - 5
        assert not np.isin(place_for(image, near_end, 5), used)


def test_an_image_in_the_window_is_not_overwritten(tmp_path: Path) -> None:
    """With all blocks said to be free, the place still avoids the image and its header."""
    device = naive.build(PAGES, naive.Layout("lzo", shuffle_seed=1, spare_blocks=6))
    (tmp_path / "image").write_bytes(device)
    chain, entries = blocks_of(device, 0)
    with open_image(tmp_path / "image") as image:
        free = np.ones(len(device) // 4096, dtype=np.bool_)
        assert place_for(image, free, 1) not in {0, *chain, *entries}
        free[[*chain, *entries]] = True
        free[np.setdiff1d(np.arange(1, len(free)), [*chain, *entries])] = False
        with pytest.raises(FormatError):
            place_for(image, free, 1)


@pytest.mark.golden
def test_an_area_that_cannot_be_written_in_place_takes_a_file(golden: Golden, tmp_path: Path, key: Path) -> None:
    """No kernel in the image, whose record of slots would tell what is free; or a compressed file."""
    image = naive_image(tmp_path, naive.Layout("lzo"))
    assert refused("seal", image, "--key", key)
    line = refused("seal", f"{golden.folder}/{IMAGE}.zst", "--key", key)
    assert line.endswith("unpack it first, or give a file for the manifest: --manifest FILE")
