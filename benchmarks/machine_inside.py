# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine inside an image: the first answer in place, as a ratio against converting it and opening the core.

    python benchmarks/machine_inside.py [IMAGE] [--debug VMLINUX]

IMAGE is an image, by default the golden one `swap-6.1-lzo.img`; VMLINUX its kernel with debug information, of the
debug package, for the same answer by drgn with DWARF in place of BTF. The answer is the list of processes. Each way
runs in processes of its own, from nothing to the answer: `hibernaut drgn` on the image; `hibernaut convert --to elf`
and drgn's own command on the core, where the types come from the same BTF by the plug-in. Every ratio is measured in
this run.
Needs drgn.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hibernaut import Kernel, open_memory
from hibernaut.kernel.btf import Btf
from hibernaut.volumes.copying import copy_sparse
from hibernaut.volumes.files import open_plain

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "swap-6.1-lzo.img.zst"
COMMAND = [sys.executable, "-m", "hibernaut"]
DRGN = Path(sys.executable).parent / "drgn"
SCRIPT = """from drgn.helpers.linux.pid import for_each_task
print(len(list(for_each_task(prog))))
"""
TIMES = 3
WITHOUT_PLUGINS = {"DRGN_DISABLE_PLUGINS": "*"}
"""drgn(1)."""


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", type=Path, nargs="?", default=GOLDEN)
    parser.add_argument("--debug", type=Path)
    arguments = parser.parse_args()
    given = arguments.image
    with tempfile.TemporaryDirectory() as name:
        image, core, script = Path(name, "image"), Path(name, "core"), Path(name, "tasks.py")
        script.write_text(SCRIPT)
        with open_plain(given) as file, image.open("wb") as copy:
            copy_sparse(file, copy.fileno())
        nothing = _best([*COMMAND, "drgn", "--help"])
        place = _best([*COMMAND, "drgn", image, script])
        convert = _best([*COMMAND, "convert", image, core, "--to", "elf", "--quiet"])
        opened = _best([DRGN, "-q", "-c", core, script])
        print(
            f"first answer: in place {place:.2f} s ({nothing:.2f} s of it to start), converted {convert:.2f} s "
            f"and opened {opened:.2f} s; ratio {place / (convert + opened):.2f}"
        )
        if arguments.debug is not None:
            dwarf = _best([DRGN, "-q", "-c", core, "-s", arguments.debug, script], WITHOUT_PLUGINS)
            print(f"the core, opened with DWARF: {dwarf:.2f} s; ratio of BTF to it {opened / dwarf:.2f}")
        _print_types(image)


def _print_types(image: Path) -> None:
    """Print how long BTF takes, to the decompression of its pages alone."""
    with open_memory(image) as source:
        kernel = Kernel.of(source)
        start, stop = (kernel.symbols[name].address for name in ("__start_BTF", "__stop_BTF"))
        began = time.perf_counter()
        content = kernel.read(start, stop - start, "BTF")
        read = time.perf_counter() - began
    began = time.perf_counter()
    types = Btf(content)
    located = time.perf_counter() - began
    print(f"{len(types)} types of {len(content) >> 10} KiB: located in {located:.3f} s, read in {read:.3f} s")


def _best(command: list[str | Path], environment: dict[str, str] | None = None) -> float:
    """Return the shortest time of some runs of a command."""
    times = []
    for _ in range(TIMES):
        began = time.perf_counter()
        subprocess.run(
            command,
            check=True,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
