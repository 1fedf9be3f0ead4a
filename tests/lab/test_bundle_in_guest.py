# SPDX-License-Identifier: GPL-2.0-or-later
"""The bundle in a guest that has Python and nothing else, as a rescue system has it, with an image on a disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hibernaut.lab.doctored import guest_variant, with_resume
from hibernaut.lab.guest.python_disk import BUNDLE_COMMAND, PYTHON_MOUNT, make_python_disk
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.vm.port import unescaped
from hibernaut.lab.vm.qemu import Disk
from tests.bundling import whole_bundle
from tests.cli.run import hibernaut
from tests.conftest import Golden

MEMORY_MIB = 1024
"""Half of it is the largest /tmp, into which the bundle unpacks."""


@pytest.mark.skipif(
    "HIBERNAUT_BUNDLE" not in os.environ, reason="takes wheels from a package index; HIBERNAUT_BUNDLE=1"
)
def test_the_bundle_reads_an_image_in_a_guest(lab_61: Lab, golden: Golden, tmp_path: Path) -> None:
    """`inspect --json` there prints the document that it prints here, but for the name of the file."""
    bundle, image = whole_bundle(tmp_path), golden("swap-6.1-lzo.img")
    make_python_disk(tmp_path / "python.img", bundle)
    disks = [Disk(image, False), Disk(tmp_path / "python.img", False)]
    with lab_61.boot(guest_variant(MEMORY_MIB), tmp_path, disks, adapt=with_resume) as guest:
        guest.port.run(PYTHON_MOUNT.format(device="/dev/vdb"))
        reply = guest.port.ask(f"{BUNDLE_COMMAND} inspect /dev/vda --no-machine --json", 600)
        lines = [unescaped(line) for line in reply.lines]
        assert reply.status == 0, lines[-5:]
    here = hibernaut("inspect", image, "--no-machine", "--json").document
    assert json.loads("\n".join(lines).replace("/dev/vda", str(image))) == here
