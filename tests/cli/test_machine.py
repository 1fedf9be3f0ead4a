# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine in `inspect`, and the commands `ps` and `dmesg`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from hibernaut.errors import how_to_install
from hibernaut.kernel.identity import read_identity
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.reading import FactReader
from hibernaut.report.documents import InspectDocument, MachineIdentityDocument
from hibernaut.report.identity import machine_document, machine_text
from hibernaut.report.redaction import redacted_inspect_document
from hibernaut.sources import open_memory
from tests.cli.run import hibernaut
from tests.conftest import Golden
from tests.swsusp import naive

pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")

PAGES: dict[int, bytes | None] = {pfn: bytes([pfn % 251]) * 4096 for pfn in range(16, 80)}
IMAGE = "swap-6.1-lzo.img"
GOLDEN = (IMAGE, "swap-6.1-low2m.img", "swap-6.12-lz4.img")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small image without a kernel."""
    path = tmp_path / "image"
    path.write_bytes(naive.build(PAGES, naive.Layout(compressor="none")))
    return path


@pytest.mark.parametrize("name", GOLDEN)
def test_the_machine_is_a_block_after_the_image(golden: Golden, name: str) -> None:
    """The lines of the image are those without a machine; the log has the listed pages of the image."""
    plain = hibernaut("inspect", golden(name), "--no-machine")
    found = hibernaut("inspect", golden(name))
    assert (plain.status, found.status, found.err) == (0, 0, "")
    assert found.out.startswith(f"{plain.out}\nmachine       Linux version 6.")
    document = hibernaut("inspect", golden(name), "--json").document
    machine = document.pop("machine")
    assert document == hibernaut("inspect", golden(name), "--no-machine", "--json").document
    assert machine["left_out"] == machine["remarks"] == []
    completeness = machine["completeness"]
    assert completeness["ram_pages"] == document["physical_pages"]
    assert completeness["listed_pages"] == document["saved_pages"]
    assert completeness["not_saved_pages"] == document["physical_pages"] - document["saved_pages"]
    assert f"PM: hibernation: Need to copy {document['saved_pages']} pages" in {one["text"] for one in machine["log"]}
    assert [one["this_area"] for one in machine["swap"]] == [True]
    assert "processes" not in machine


def test_an_area_of_another_size_is_not_this_one(golden: Golden) -> None:
    """The resume device names an area whose slots are not those of the image's: a remark, and no claim."""
    with open_memory(golden(IMAGE)) as source:
        assert source.image is not None
        found = read_identity(FactReader(Kernel.of(source)))
        assert found.swap is not None
        other = replace(found, swap=(replace(found.swap[0], slots=found.swap[0].slots + 1),))
        document = machine_document(other, source.image, None, with_processes=True)
        unknown = machine_document(replace(found, image_area=None), source.image, None, with_processes=False)
    assert [one["this_area"] for one in document["swap"] or ()] == [False]
    assert document["remarks"] == [
        "the kernel writes its image to swap area 0, whose slots or place are not those of this area"
    ]
    assert machine_text(document).endswith("\nprocesses: ?")
    assert [one["this_area"] for one in unknown["swap"] or ()] == [None]
    assert "whether it is this area: ?" in machine_text(unknown)


def test_the_verdict_stays_last(golden: Golden) -> None:
    """The machine comes before the verdict, which is the answer."""
    text = hibernaut("inspect", golden(IMAGE), "--for-kernel", "6.1").out
    assert text.index("\nmachine ") < text.index("\nkernel 6.1")


def test_processes(golden: Golden) -> None:
    """`inspect --processes` has those of `ps`; kernel threads are in brackets, arguments come out of swap."""
    path = golden(IMAGE)
    document = hibernaut("ps", path, "--json").document
    assert len(document["processes"]) == 45
    assert document["release"] == "6.1.0-56-amd64"
    assert document["at"] == "2026-11-22T15:59:40.178613Z"
    assert hibernaut("inspect", path, "--processes", "--json").document["machine"]["processes"] == document["processes"]
    lines = hibernaut("ps", path).out.splitlines()
    assert lines[0].split() == ["PID", "PPID", "STARTED", "(UTC)", "UID", "RSS", "SWAP", "LOST", "COMMAND"]
    assert lines[1].split() == [
        "1",
        "0",
        "2026-11-22",
        "15:59:35",
        "0",
        "104",
        "15",
        "0",
        "/bin/busybox",
        "sh",
        "/init",
        "nokaslr",
    ]
    assert lines[2].endswith("-     -  [kthreadd]")
    assert hibernaut("inspect", path, "--processes").out.splitlines()[-45:] == lines[1:]
    assert hibernaut("ps", golden("swap-6.12-lz4.img")).out.splitlines()[1].endswith("/bin/busybox sh /init")


def test_less_of_processes_and_log(golden: Golden) -> None:
    """Processes without kernel threads, and the last messages alone."""
    path = golden(IMAGE)
    (only,) = hibernaut("ps", path, "--no-kernel-threads", "--json").document["processes"]
    assert (only["pid"], only["kernel"]) == (1, False)
    last = hibernaut("dmesg", path, "--last", 2).out.splitlines()
    assert last == hibernaut("dmesg", path).out.splitlines()[-2:]


@pytest.mark.parametrize("source", [IMAGE, "ram-6.1-secretmem.elf"])
def test_dmesg(golden: Golden, source: str) -> None:
    """The log of an image and of a dump, from the banner on."""
    result = hibernaut("dmesg", golden(source))
    lines = result.out.splitlines()
    assert (result.status, lines[0][:28]) == (0, "[    0.000000] Linux version")
    assert any("Command line: console=ttyS0" in line for line in lines)
    document = hibernaut("dmesg", golden(source), "--json").document
    assert document["unread_records"] == 0
    assert [one["sequence"] for one in document["records"]] == list(range(len(document["records"])))


def test_without_drgn(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """`inspect` continues, and its remark has the command that installs drgn; `ps` and `dmesg` need it."""
    monkeypatch.setitem(sys.modules, "drgn", None)
    result = hibernaut("inspect", golden(IMAGE))
    assert result.status == 0
    remark = next(line for line in result.out.splitlines() if line.startswith("REMARK"))
    assert remark.startswith("REMARK  its machine is not shown: drgn 0.1 or newer")
    assert remark.endswith(how_to_install("drgn"))
    assert result.out.endswith("image is intact\n")
    for command in ("ps", "dmesg"):
        refused = hibernaut(command, golden(IMAGE))
        assert (refused.status, refused.out) == (2, "")
        assert how_to_install("drgn") in refused.err


def test_memory_without_a_kernel(image: Path) -> None:
    """The remark has the reason; there is nothing to list."""
    document = hibernaut("inspect", image, "--json").document
    assert "machine" not in document
    assert document["remarks"][-1].startswith("its machine is not shown: no VMCOREINFO in memory")
    for command in ("ps", "dmesg"):
        assert hibernaut(command, image).status == 2


def test_options_that_exclude_each_other(image: Path) -> None:
    """Options that contradict each other are refused."""
    for options in (
        ("--no-machine", "--processes"),
        ("--redact", "--on-machine", "this"),
        ("--scan", "--redact"),
        ("--salvage", "--processes"),
    ):
        result = hibernaut("inspect", image, *options)
        assert (result.status, result.out) == (2, "")
        assert "exclude" in result.err


SECRETS = {
    "hostname": "annas-laptop",
    "domain": "annas.example",
    "machine_id": "0123456789abcdef0123456789abcdef",
    "zone": "Europe/Vaduz",
}
COMMAND_LINE = (
    "root=UUID=5ec2e7a1 resume=/dev/mapper/anna-swap quiet loglevel=3 hostname=annas-laptop 5ec2e7a2"
    " loglevel=anna/5ec2e7a3 resume_offset=4096 pässword=5ec2e7a4"
)
NEVER = ("anna", "5ec2e7a", "0123456789abcdef0", "Vaduz", "10.1.2.3", "52:54:00", "passwd", "1000")


def secret_document(golden: Golden) -> InspectDocument:
    """Return the document of an image with names and addresses in every fact that may have some."""
    found = hibernaut("inspect", golden(IMAGE), "--json", "--processes").document
    machine = found["machine"]
    machine |= SECRETS | {"command_line": COMMAND_LINE}
    machine["kernel"]["banner"] = "Linux version 6.1 (anna@annas-laptop) (gcc 12) #1 SMP"
    machine["swap"][0]["path"] = "/dev/mapper/anna-swap"
    machine["mounts"][0] |= {"path": "/home/anna", "source": "//10.1.2.3/anna"}
    machine["network"][0] |= {"hardware": "52:54:00:12:34:56", "addresses": ["10.1.2.3/8"], "name": "anna0"}
    machine["log"][0]["text"] = "Command line: hostname=annas-laptop"
    machine["processes"][0] |= {"uid": 1000, "name": "anna.sh", "arguments": ["sh", "passwd=5ec2e7a5"]}
    machine["processes"][1] |= {"name": "10.1.2.3-manager"}
    found["remarks"] = ["/home/anna/swap.img: odd"]
    found["problems"] = [{"what": "bad /home/anna/swap.img", "where": "/home/anna/swap.img: byte 1"}]
    return cast(InspectDocument, found)


def test_redacted_output_has_no_secret(golden: Golden) -> None:
    """None of the secrets is left, as JSON or as text; without redaction all of them are there."""
    document = secret_document(golden)
    whole = json.dumps(document)
    assert all(secret in whole for secret in NEVER)
    redacted = redacted_inspect_document(document, "/home/anna/swap.img")
    for text in (json.dumps(redacted, ensure_ascii=False), machine_text(redacted["machine"])):
        assert [secret for secret in NEVER if secret in text] == []
        assert "console" not in text
    machine = redacted["machine"]
    assert machine["command_line"] == (
        "root=[left out] resume=[left out] quiet loglevel=3 hostname=[left out] [left out] loglevel=[left out]"
        " resume_offset=4096 [left out]"
    )
    assert machine["kernel"]["banner"] == "Linux version 6.1 ([left out]) (gcc 12) #1 SMP"
    assert redacted["problems"] == [{"what": "bad IMAGE", "where": "IMAGE: byte 1"}]
    assert (machine["kernel"]["release"], machine["product"]) == ("6.1.0-56-amd64", document["machine"]["product"])
    assert machine["modules"] == document["machine"]["modules"]
    assert [one["name"] for one in machine["processes"] or ()][:3] == [None, None, "rcu_gp"]
    assert whole == json.dumps(document)


def test_every_fact_of_a_machine_is_kept_or_left_out(golden: Golden) -> None:
    """A fact that is added later is left out by decision, not by chance: both lists together are all."""
    machine = redacted_inspect_document(secret_document(golden), "x")["machine"]
    kept = {
        *("kernel", "booted_at", "hibernated_at", "uptime_seconds", "clock_source", "minutes_west", "cpus"),
        *("cpu_model", "vendor", "product", "bios", "hypervisor", "modules", "dm_crypt", "completeness"),
        *("left_out", "remarks"),
    }
    left_out = {one.partition(".")[0] for one in machine["left_out"]} - {"builder"}
    assert not kept & left_out
    assert kept | left_out == set(MachineIdentityDocument.__annotations__)


def test_redact_on_the_command_line(golden: Golden) -> None:
    """The text has no path, address or line of the log, and the facts of a bug report."""
    text = hibernaut("inspect", golden(IMAGE), "--redact").out
    for absent in ("/dev/vda", "hlab.wait=1", "debian-kernel@", "[    5.0", "/tmp", "lo down"):
        assert absent not in text
    for present in ("6.1.0-56-amd64", "nokaslr", "image is intact", "LEFT OUT  builder, hostname", "4 levels"):
        assert present in text


def test_control_characters_are_visible(golden: Golden) -> None:
    """A terminal never gets an escape sequence of the machine, nor a line of its making."""
    machine: dict[str, Any] = hibernaut("inspect", golden(IMAGE), "--json", "--processes").document["machine"]
    nasty = "\x1b[2Jx\nimage is damaged\u202e"
    machine |= {"hostname": nasty, "command_line": nasty, "zone": nasty, "modules": [nasty], "remarks": [nasty]}
    machine["kernel"]["banner"] = nasty
    machine["dm_crypt"] = [nasty]
    machine["swap"][0]["path"] = nasty
    machine["mounts"][0] |= {"path": nasty, "source": nasty, "type": nasty}
    machine["network"][0]["name"] = nasty
    machine["log"][0]["text"] = nasty
    machine["processes"][0] |= {"name": nasty, "arguments": [nasty]}
    text = machine_text(cast(MachineIdentityDocument, machine))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "WARNING: device \\x1b[2Jx" in text
    assert not any(line.startswith("image is damaged") for line in text.splitlines())
