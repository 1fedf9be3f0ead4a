# SPDX-License-Identifier: GPL-2.0-or-later
"""Manifests: digests by hashlib over whole files, facts of the area, and when there is no manifest."""

from __future__ import annotations

import datetime
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hibernaut import __version__
from hibernaut.report.schema import schema_of
from tests.cli.run import hibernaut, refused
from tests.memory.naive import lime, page_of
from tests.swsusp import naive, userland
from tests.swsusp.images import PAGES, image_file
from tests.swsusp.userland import Userland


def facts(path: Path) -> dict[str, object]:
    """Return what a manifest has of a file."""
    content = path.read_bytes()
    return {"path": str(path), "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def manifest_of(path: Path, command: str) -> dict[str, Any]:
    """Return a manifest that follows the published schema."""
    found: dict[str, Any] = json.loads(path.read_text())
    schema = schema_of(command)
    jsonschema.validate(found, {"$ref": "#/$defs/ManifestDocument", "$defs": schema["$defs"]})
    assert path.stat().st_mode & 0o777 == 0o600
    return found


@pytest.mark.parametrize("to", ["raw", "elf", "lime", "kdump"])
def test_convert_has_digests_and_the_verdict_of_the_crc(tmp_path: Path, to: str) -> None:
    """Of an image with a CRC; the document of --json has the same."""
    path = image_file(tmp_path, PAGES, naive.Layout())
    out, made = tmp_path / "out", tmp_path / "out.json"
    words = ["convert", path, out, "--to", to, "--manifest", made]
    document = hibernaut(*words, "--json").document
    found = manifest_of(made, "convert")
    assert document["manifest"] == found
    assert (found["source"], found["output"]) == (facts(path), facts(out))
    assert (found["version"], found["command"]) == (__version__, ["hibernaut", *map(str, words), "--json"])
    time = datetime.datetime.strptime(found["time"], "%Y-%m-%dT%H:%M:%S%z")
    assert abs(datetime.datetime.now(datetime.UTC) - time) < datetime.timedelta(hours=1)
    stored = int.from_bytes(path.read_bytes()[4060:4064], "little")
    assert found["area"] == {
        "uuid": None,
        "offset_pages": 0,
        "state": "image",
        "checksum": "crc32",
        "stored": hex(stored),
        "ok": True,
    }


def test_the_uuid_is_that_of_the_swap_header(tmp_path: Path) -> None:
    """As mkswap writes it, at byte 1036 of a header of version 1."""
    path = image_file(tmp_path, PAGES, naive.Layout())
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(b"\1\0\0\0")
        file.seek(1036)
        file.write(bytes(range(16)))
    made = tmp_path / "made"
    hibernaut("convert", path, tmp_path / "out", "--to", "raw", "--manifest", made)
    assert manifest_of(made, "convert")["area"]["uuid"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"


def test_images_without_a_crc_and_of_suspend_utils(tmp_path: Path) -> None:
    """A checksum that is not there is null; the MD5 is compared."""
    path, made = image_file(tmp_path), tmp_path / "made"
    hibernaut("convert", path, tmp_path / "out", "--to", "raw", "--offset", 2, "--manifest", made)
    area = manifest_of(made, "convert")["area"]
    assert (area["offset_pages"], area["checksum"], area["stored"], area["ok"]) == (2, None, None, None)
    path.write_bytes(userland.build(PAGES, Userland(flags=3)).device)
    hibernaut("convert", path, tmp_path / "out", "--to", "raw", "--manifest", made)
    area = manifest_of(made, "convert")["area"]
    assert (area["state"], area["checksum"], area["ok"]) == ("uswsusp", "md5", True)


def test_of_a_dump_there_is_no_area(tmp_path: Path) -> None:
    """The digest is that of the file as it is, compressed too."""
    path, made = tmp_path / "dump", tmp_path / "made"
    path.write_bytes(lime([(0, page_of(0)), (8 * 4096, page_of(8))]))
    hibernaut("convert", path, tmp_path / "out", "--to", "raw", "--manifest", made)
    found = manifest_of(made, "convert")
    assert (found["area"], found["source"]) == (None, facts(path))


def test_save_and_rewrite_have_one(tmp_path: Path) -> None:
    """In place, the source is the file before it was written."""
    path, made = image_file(tmp_path, PAGES, naive.Layout()), tmp_path / "made"
    out = tmp_path / "out"
    before = facts(path)
    assert not hibernaut("rewrite", path, out, "--write", "0x9000=00", "--manifest", made).status
    found = manifest_of(made, "rewrite")
    assert (found["source"], found["output"], found["area"]["ok"]) == (before, facts(out), True)
    assert not hibernaut("rewrite", path, "--in-place", "--write", "0x9000=00", "--manifest", made).status
    found = manifest_of(made, "rewrite")
    assert (found["source"], found["output"]) == (before, facts(path))
    assert before["sha256"] != facts(path)["sha256"]


def test_a_failure_leaves_no_manifest(tmp_path: Path) -> None:
    """Nor does it touch an older one."""
    path, made = image_file(tmp_path, PAGES, naive.Layout(crc_error=5)), tmp_path / "made"
    refused("convert", path, tmp_path / "out", "--to", "raw", "--manifest", made, status=1)
    assert not made.exists()
    made.write_text("older")
    refused("convert", path, tmp_path / "out", "--to", "raw", "--manifest", made, status=1)
    assert made.read_text() == "older"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["image", "made"]


def test_it_replaces_no_other_file_of_the_command(tmp_path: Path) -> None:
    """Source and output stay; a folder that is not there is noticed before anything is written."""
    path, out = image_file(tmp_path, PAGES, naive.Layout()), tmp_path / "out"
    link = tmp_path / "link"
    link.hardlink_to(path)
    crc = zlib.crc32(path.read_bytes())
    for manifest in (path, out, link):
        line = refused("convert", path, out, "--to", "raw", "--manifest", manifest)
        assert "another file of this command" in line
    assert "No such file" in refused("convert", path, out, "--to", "raw", "--manifest", tmp_path / "no" / "where")
    assert not out.exists()
    assert zlib.crc32(path.read_bytes()) == crc
