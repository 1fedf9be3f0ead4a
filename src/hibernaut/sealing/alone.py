# SPDX-License-Identifier: GPL-2.0-or-later
"""The verifier alone, with the standard library alone: `hibernaut-verify.pyz`, for an initramfs.

It answers as `hibernaut verify` does: one line, and the exit status 0 (whole), 1 (touched, moved or older) or 2 (no
image, no seal, another key, not readable).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from typing import NoReturn

from hibernaut.errors import HibernautError
from hibernaut.sealing.blocks import BlockFile
from hibernaut.sealing.counters import accept, counter_of, least_words
from hibernaut.sealing.in_window import manifest_in_area
from hibernaut.sealing.keys import CheckingKey, read_passphrase, read_public_key
from hibernaut.sealing.manifest import MOST_BYTES, SealManifest, open_manifest
from hibernaut.sealing.verification import SealVerdict, verify_image

__all__ = ["main", "read_manifest"]

NAME = "hibernaut-verify"
PIECE_BYTES = 1 << 20
LATER = (
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.utf_8",
    "zipimport",
    "zlib",
    "gettext",
    "shutil",
    "textwrap",
)
"""Modules that Python or argparse imports when it needs them."""


def read_manifest(path: str | os.PathLike[str], key: CheckingKey) -> SealManifest:
    """Return the manifest in a file, its seal checked. Raises FormatError, OSError."""
    name = os.fspath(path)
    data = bytearray()
    with open(path, "rb") as file:  # in pieces: one read of MOST_BYTES takes that much memory before it has a byte
        while len(data) <= MOST_BYTES and (piece := file.read(PIECE_BYTES)):
            data += piece
    return open_manifest(bytes(data), key, name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verifier and return its exit status.

    Args:
        arguments: its arguments; None: those of the process.
    """
    parser = _parser()
    try:
        given = parser.parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    if given.files:
        return _print_files()
    try:
        verdict, least = _verdict(given)
    except HibernautError as error:
        _say(str(error))
        return 2
    except MemoryError:
        _say("the machine has too little memory for the manifest; see its size, or give a smaller image")
        return 2
    except OSError as error:
        _say(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}; check the path")
        return 2
    if not given.quiet:
        sys.stdout.write(f"{_visible(given.area)}: {verdict.sentence}{least_words(least)}\n")
    return 0 if verdict.state == "whole" else 1


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with 2."""
        _say(f"{message}; see {NAME} --help")
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=NAME,
        description="Tell whether a resuming kernel will read of a hibernation image what was sealed.",
        epilog="Exit status: 0 whole, 1 touched, moved or older, 2 no image, no seal of this key, or not readable.",
    )
    parser.add_argument("area", metavar="AREA", nargs="?", default="", help="swap device with the image")
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--key", metavar="FILE", help="public key that sealed it (PEM)")
    keys.add_argument("--secret", metavar="FILE", help="file with the passphrase that sealed it")
    parser.add_argument("--manifest", metavar="FILE", help="file with the manifest (default: in the area)")
    parser.add_argument("--offset", metavar="PAGES", type=_number, default=0, help="block of the swap header")
    parser.add_argument("--base", metavar="BYTES", type=_number, default=0, help="byte at which the device begins")
    parser.add_argument("--least", metavar="N", type=_number, default=0, help="smallest counter that is accepted")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--counter-file", metavar="FILE", help="file with the smallest counter that is accepted")
    kept.add_argument("--counter-tpm", metavar="INDEX", type=_number, help="counter of the TPM with it (tpm2-tools)")
    parser.add_argument("--once", action="store_true", help="raise the kept counter above that of a whole image")
    parser.add_argument("--quiet", "-q", action="store_true", help="print nothing: the exit status is the answer")
    parser.add_argument(
        "--files", action="store_true", help="print the files of Python that this program needs, and stop"
    )
    return parser


def _number(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 2^63 - 1")
    return value


def _verdict(given: argparse.Namespace) -> tuple[SealVerdict, int | None]:
    """Return the verdict, and what `accept` returns. Raises HibernautError, OSError."""
    if not given.area:
        raise HibernautError("no AREA is given", advice=f"see {NAME} --help")
    if given.key is None and given.secret is None:
        raise HibernautError("no key is given", advice="give --key FILE, or --secret FILE for a passphrase")
    counter = counter_of(given.counter_file, given.counter_tpm)
    if given.once and counter is None:
        raise HibernautError("no counter is kept", advice="give --counter-file or --counter-tpm with --once")
    key: CheckingKey = read_passphrase(given.secret) if given.key is None else read_public_key(given.key)
    area = BlockFile(given.area, given.base)
    try:
        if given.manifest is None:
            manifest, _ = manifest_in_area(area, key, given.offset)
        else:
            manifest = read_manifest(given.manifest, key)
        least = max(given.least, counter.at_most(manifest.counter) if counter else 0)
        verdict = verify_image(area, manifest, header_block=given.offset, least=least)
        return verdict, accept(verdict, counter, given.once)
    finally:
        area.close()


def _print_files() -> int:
    """Print the interpreter and the files of its library that are loaded, one a line: what an initramfs needs."""
    for name in LATER:
        import_module(name)
    loaded = dict(sys.modules)
    files = {sys.executable, *(getattr(module, "__file__", None) for module in loaded.values())}
    files |= {_imported_file(name) for name in loaded}
    for file in sorted(file for file in files if file and os.path.isfile(file)):
        sys.stdout.write(f"{file}\n")
    return 0


def _imported_file(name: str) -> str | None:
    """Return the file that an import of a loaded module begins with; None if it begins with none.

    Such a module can have put another one in its place: `collections.abc` does so since Python 3.13.
    """
    parent = name.rpartition(".")[0]
    folders = getattr(sys.modules.get(parent), "__path__", ()) if parent else None
    found = PathFinder.find_spec(name, folders)
    return found.origin if found else None


def _say(line: str) -> None:
    sys.stderr.write(f"{NAME}: {_visible(line)}\n")


def _visible(text: str) -> str:
    """Return a text on one line, with all but printable ASCII escaped."""
    return "".join(char if " " <= char <= "~" else char.encode("unicode_escape").decode("ascii") for char in text)


if __name__ == "__main__":
    sys.exit(main())
