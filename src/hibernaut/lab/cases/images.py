# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases of the kernel's own images: read, rewritten, changed, in other places."""

from __future__ import annotations

from pathlib import Path

from hibernaut.lab.cases.case import CaseFailed
from hibernaut.lab.cases.steps import hibernate, open_saved, require_passed, resume_from, resume_rewritten
from hibernaut.lab.golden import check_golden, make_golden
from hibernaut.lab.host.kernels import image_rules_of
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.variants import Swap, variant_named
from hibernaut.lab.vm.disks import PARTITION_START_BYTES
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp import rewrite_image
from hibernaut.swsusp.codecs import CompressorName

__all__ = ["read_facts", "rewrite", "rewrite_changed", "swap_elsewhere"]

CHANGED = b"changed by hibernaut rewrite"
CHANGED_PAGE = 17


def read_facts(lab: Lab, folder: Path) -> str:
    """Read images and dumps of four guests and compare with the facts that each guest and its kernel reported."""
    golden, workshop = folder / "golden", folder / "workshop"
    golden.mkdir()
    workshop.mkdir()
    told: list[str] = []
    expected = make_golden(lab, golden, workshop, told.append)
    wrong = check_golden(golden, expected)
    if wrong:
        raise CaseFailed("; ".join(wrong))
    left_out = "".join(f"; {line}" for line in told if " is left out: " in line)
    return f"{', '.join(expected)}: {sum(map(len, expected.values()))} facts agree{left_out}"


def rewrite(lab: Lab, folder: Path) -> str:
    """Rewrite the kernel's image in each form it knows; the image is uncompressed, so every form fits its blocks."""
    saved = hibernate(lab, variant_named("none"), folder)
    own = require_passed(resume_from(lab, saved, saved.image), "the kernel's own image")
    compressors: list[CompressorName] = [*image_rules_of(lab.kernel).compressors, "none"]
    seen = [resume_rewritten(lab, saved, compressor) for compressor in compressors]
    return f"{own}; {'; '.join(seen)}"


def rewrite_changed(lab: Lab, folder: Path) -> str:
    """Change one of the guest's pages in the image: the resumed guest sees this change and no other."""
    saved = hibernate(lab, variant_named("lzo"), folder)
    first, frame = next(
        (page, frame) for page, frame, count in saved.record.frames if page <= CHANGED_PAGE < page + count
    )
    paddr = (frame + CHANGED_PAGE - first) * PAGE_SIZE
    out = folder / "changed.img"
    with open_saved(saved) as image:
        rewrite_image(image, out, writes=[(paddr, CHANGED)], compressor="lzo")
    resumed = resume_from(lab, saved, out, [f"!peek locked {CHANGED_PAGE} 0 {len(CHANGED)}", "!verify locked"])
    peek, verify = resumed.facts.get("answers") or ([resumed.reason], [""])
    if list(peek) != [f"bytes {CHANGED.hex()}"]:
        raise CaseFailed(f"the guest sees {peek}")
    if not verify[-1].endswith("bad=1") or f"page={CHANGED_PAGE} " not in verify[0]:
        raise CaseFailed(f"the guest reports {verify}")
    return f"page {CHANGED_PAGE} at {paddr:#x} reads {CHANGED.decode()!r}, the other pages are unchanged"


def swap_elsewhere(swap: Swap, lab: Lab, folder: Path) -> str:
    """Resume from a swap area that does not start its disk: the kernel's own image, and a rewritten one."""
    saved = hibernate(lab, variant_named(swap.value), folder)
    own = require_passed(resume_from(lab, saved, saved.image), "the kernel's own image")
    record = saved.record
    where = f"partition at byte {PARTITION_START_BYTES}" if record.partition else f"resume_offset {record.offset}"
    return f"{where}: {own}; {resume_rewritten(lab, saved, 'lzo')}"
