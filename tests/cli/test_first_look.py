# SPDX-License-Identifier: GPL-2.0-or-later
"""A first look at the machine in an image decompresses a small part of it, mounted or in place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hibernaut.kernel.drgn_plugin import drgn_prog_set
from tests.cli.test_mount import _fuse, mounted, needs_fuse, small  # noqa: F401 - fixtures
from tests.conftest import Golden

drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")

COUNTED = Path(__file__).with_name("counted.py")
TASKS = {"swap-6.1-lzo.img": 45, "swap-6.1-low2m.img": 46, "swap-6.12-lz4.img": 50}
A_TENTH = 0.1
TOO_FEW = 0.03
"""A smaller part of the units is a count that misses some: the list of frames and the symbols alone take more."""
IN_PLACE = """
from drgn.helpers.linux.pid import for_each_task
print(len([(task.pid.value_(), task.comm.string_()) for task in for_each_task(prog)]))
"""


USER_MEMORY = """
from drgn import FaultError
from drgn.helpers.linux.mm import access_remote_vm
from drgn.helpers.linux.pid import find_task
task = find_task(prog, 1)
for _ in range(2):
    try:
        access_remote_vm(task.mm, task.mm.start_code, 4)
    except FaultError as error:
        print("is not given" in str(error))
"""


def first_task(program: Any) -> None:
    """Look a symbol up, and read the first task."""
    place = program.symbol("init_task")
    assert b"swapper/0" in program.read(place.address, place.size)


def with_drgns_own_symbols(program: Any) -> None:
    """Do so after drgn itself has read all of kallsyms."""
    from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

    program.register_symbol_finder("kallsyms", load_vmlinux_kallsyms(program), enable_index=0)
    first_task(program)


def all_tasks(program: Any) -> None:
    """Read PID and name of every task, with the types by the plug-in."""
    from drgn.helpers.linux.pid import for_each_task

    tasks = [(task.pid.value_(), task.comm.string_()) for task in for_each_task(program)]
    assert (1, b"init") in tasks
    assert len(tasks) in TASKS.values()


def share(counts: Path) -> float:
    """Return the part of the units that are read."""
    units, total = json.loads(counts.read_text())
    return float(units / total)


@needs_fuse
@pytest.mark.golden
@pytest.mark.parametrize(
    ("image", "look", "most"),
    [
        *((image, look, A_TENTH) for image in TASKS for look in (first_task, with_drgns_own_symbols)),
        ("swap-6.1-lzo.img", all_tasks, A_TENTH),
        ("swap-6.1-low2m.img", all_tasks, A_TENTH),
        ("swap-6.12-lz4.img", all_tasks, 0.12),  # of 454 units only; docs/performance.md has the causes
    ],
)
def test_drgn_looks_at_a_mounted_image(
    golden: Golden, tmp_path: Path, image: str, look: Callable[[Any], None], most: float
) -> None:
    """From the mount to the answer, the list of the image's frames included: less than a tenth of the units."""
    counts = tmp_path / "counts"
    with mounted(golden(image), tmp_path / "folder", program=(COUNTED, counts)) as found:
        program = drgn.Program()
        program.set_core_dump(str(found.folder / "vmcore"))
        drgn_prog_set(program)
        look(program)
        del program
        assert found.end() == 0
    assert TOO_FEW < share(counts) < most


@pytest.mark.golden
@pytest.mark.parametrize("image", TASKS)
def test_a_list_of_processes_in_place(golden: Golden, tmp_path: Path, image: str) -> None:
    """`hibernaut drgn` decompresses less than a tenth of the units for PID and name of every task."""
    script, counts = tmp_path / "tasks.py", tmp_path / "counts"
    script.write_text(IN_PLACE)
    done = subprocess.run(
        [sys.executable, COUNTED, counts, "drgn", golden(image), script], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{TASKS[image]}\n"
    assert TOO_FEW < share(counts) < A_TENTH


@pytest.mark.golden
def test_swap_areas_are_found_when_a_swapped_page_is_asked_for(golden: Golden, tmp_path: Path) -> None:
    """The remark on one that is not given comes then; a wrong file in --swap is refused before the script runs."""
    dump, script = golden("ram-6.1-lzo.elf"), tmp_path / "script.py"
    remark = "swap area 0 (/dev/vda) holds 1097 pages; give it with --swap 0=PATH"

    def run(*options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hibernaut", "drgn", dump, script, *options]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)

    script.write_text(IN_PLACE)
    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "45\n", "")
    script.write_text(USER_MEMORY)
    done = run()
    assert (done.returncode, done.stdout) == (0, "True\nTrue\n")
    assert done.stderr.count(remark) == 1
    done = run("--swap", script)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.golden
def test_the_measure_counts_every_unit(golden: Golden, tmp_path: Path) -> None:
    """A conversion decompresses them all."""
    counts = tmp_path / "counts"
    image = golden("swap-6.12-lz4.img")
    subprocess.run([sys.executable, COUNTED, counts, "convert", image, tmp_path / "raw", "--to", "raw"], check=True)
    assert share(counts) == 1
