# SPDX-License-Identifier: GPL-2.0-or-later
"""Images inside volumes: the rate at which one is read and its CRC checked, as a ratio against a plain file.

    python benchmarks/volumes.py [IMAGE]

IMAGE is an image, by default the golden one `swap-6.1-lzo.img`. It is put into each container by qemu-img and
cryptsetup, in a temporary folder. Every ratio is measured in this run, best of several on both sides, on all cores.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from hibernaut.swsusp import open_image
from hibernaut.volumes.copying import copy_sparse
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.layers import open_volume

ROUNDS = 5
PASSPHRASE = b"correct horse"
GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "swap-6.1-lzo.img.zst"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", type=Path, nargs="?", default=GOLDEN)
    given = parser.parse_args().image
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / "image"
        with open_plain(given) as file, image.open("wb") as copy:
            copy_sparse(file, copy.fileno())
        plain = _best(image, "")
        print(f"{'plain file':28} {plain:.2f} s")
        for kind, spec, path in _disks(image, folder):
            seconds = _best(path, spec)
            print(f"{kind:28} {seconds:.2f} s  ratio {plain / seconds:.2f}")


def _best(path: Path, spec: str) -> float:
    """Return the seconds of the fastest reading of a whole image."""
    times = []
    for _ in range(ROUNDS):
        with open_image(open_volume(path, spec, [PASSPHRASE])) as image:
            started = time.perf_counter()
            image.for_each(lambda _pfns, _pages: None)
            times.append(time.perf_counter() - started)
    return min(times)


def _disks(image: Path, folder: Path) -> list[tuple[str, str, Path]]:
    """Return name, specification and path of each disk with the image."""
    disks = []
    for kind in ("qcow2", "vmdk", "vdi", "vhdx", "vpc"):
        path = folder / f"image.{kind}"
        subprocess.run(["qemu-img", "convert", "-O", kind, image, path], check=True)
        disks.append((kind, "", path))
    for sector_bytes in (512, 4096):
        path = folder / f"luks-{sector_bytes}"
        shutil.copy(image, path)
        with path.open("r+b") as file:
            file.truncate(image.stat().st_size + (32 << 20))
        words = ["--encrypt", "--type", "luks2", "--sector-size", str(sector_bytes), "--reduce-device-size", "32M"]
        words += ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-", str(path)]
        subprocess.run(["cryptsetup", "reencrypt", "-q", *words], input=PASSPHRASE, check=True)
        disks.append((f"LUKS2, sectors of {sector_bytes}", "luks", path))
    return disks


if __name__ == "__main__":
    main()
