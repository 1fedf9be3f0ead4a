# SPDX-License-Identifier: GPL-2.0-or-later
"""Seals and verdicts on sealed images as documents and text."""

from __future__ import annotations

from hibernaut.report.documents import SealDocument, SealKeyDocument, VerifyDocument
from hibernaut.report.text import counted, size_text
from hibernaut.sealing.counters import least_words
from hibernaut.sealing.keys import SEAL_WORDS, SealKind
from hibernaut.sealing.manifest import SealManifest
from hibernaut.sealing.verification import SealVerdict

__all__ = ["seal_document", "seal_key_document", "seal_key_text", "seal_text", "verify_document", "verify_text"]


def _key_id(manifest: SealManifest) -> str | None:
    return manifest.key_id.hex() if manifest.kind is SealKind.ED25519 else None


def seal_document(
    area: str, manifest: SealManifest, size_bytes: int, path: str | None, block: int | None
) -> SealDocument:
    """Return the document of `seal`.

    Args:
        area: path of the area.
        manifest: the manifest.
        size_bytes: its length.
        path: file that it was written to; None if it is in the area.
        block: its first block in the area; None if it is in a file.
    """
    return {
        "area": area,
        "seal": SEAL_WORDS[manifest.kind],
        "key_id": _key_id(manifest),
        "counter": manifest.counter,
        "covered_blocks": manifest.covered_blocks,
        "map_pages": manifest.map_pages,
        "data_blocks": manifest.entries - 1,
        "manifest": path,
        "manifest_block": block,
        "manifest_bytes": size_bytes,
    }


def seal_text(document: SealDocument) -> str:
    """Return the line of `seal`."""
    covered, size = document["covered_blocks"], size_text(document["manifest_bytes"])
    place = document["manifest"] or f"block {document['manifest_block']} of the area"
    return (
        f"{document['area']}: {counted(covered, 'block')} ({size_text(covered * 4096)}) sealed with "
        f"{document['seal']}, counter {document['counter']}; manifest of {size} in {place}"
    )


def verify_document(
    area: str, verdict: SealVerdict, path: str | None, block: int | None, least: int | None = None
) -> VerifyDocument:
    """Return the document of `verify`.

    Args:
        area: path of the area.
        verdict: the verdict.
        path: file of the manifest; None if it is in the area.
        block: its first block in the area; None if it is in a file.
        least: smallest counter that is accepted from now on; None if none is kept, or the image is not whole.
    """
    manifest = verdict.manifest
    return {
        "area": area,
        "state": verdict.state,
        "sentence": verdict.sentence,
        "least": least,
        "difference": verdict.what,
        "block": verdict.block,
        "seal": SEAL_WORDS[manifest.kind],
        "key_id": _key_id(manifest),
        "counter": manifest.counter,
        "covered_blocks": manifest.covered_blocks,
        "manifest": path,
        "manifest_block": block,
    }


def verify_text(document: VerifyDocument) -> str:
    """Return the line of `verify`."""
    return f"{document['area']}: {document['sentence']}{least_words(document['least'])}"


def seal_key_document(path: str, key_id: bytes, tpm: bool = False, pcrs: str | None = None) -> SealKeyDocument:
    """Return the document of `seal-key`.

    Args:
        path: file of the private key.
        key_id: SHA-256 of the public key.
        tpm: whether a TPM has sealed the private key.
        pcrs: registers that it depends on.
    """
    return {"private": path, "public": f"{path}.pub", "key_id": key_id.hex(), "tpm": tpm, "pcrs": pcrs}


def seal_key_text(document: SealKeyDocument) -> str:
    """Return the line of `seal-key`."""
    depends = f" and {document['pcrs']}" if document["pcrs"] else ""
    sealed = f", sealed by this machine's TPM{depends}" if document["tpm"] else ""
    return f"{document['private']}: private key{sealed}, to seal; {document['public']}: public key, to verify"
