# SPDX-License-Identifier: GPL-2.0-or-later
"""The confirmation of a prediction on a real kernel: a guest is arranged like the model's machine and hibernates."""

from __future__ import annotations

from pathlib import Path

from hibernaut.errors import LabError
from hibernaut.lab.judgement import Confirmation, TornImage, judge
from hibernaut.lab.laboratory import Hibernated, Lab
from hibernaut.lab.page_tables import reachable_tables
from hibernaut.lab.prediction import Prediction, cannot_arrange
from hibernaut.lab.record import LOG_NAME, RESUMED_LOG_NAME, SPARE_NAME, require_arranged
from hibernaut.linux import DirectMap
from hibernaut.paging.entries import Level
from hibernaut.paging.spans import Stop
from hibernaut.swsusp import open_image
from hibernaut.volumes.output import write_file

__all__ = ["confirm"]


def confirm(lab: Lab, prediction: Prediction, folder: Path) -> Confirmation:
    """Arrange a guest as predicted, let it hibernate, resume it from its own image if it makes one, and judge.

    Args:
        lab: laboratory with the kernel.
        prediction: a prediction that can be arranged (`cannot_arrange`).
        folder: existing folder for the guest's disks, its record and its kernel's log.

    Raises:
        LabUnavailable: the laboratory lacks something on this machine.
        LabError: the prediction cannot be arranged, or the guest fails or times out.
        HibernautError: the image is unusable.
    """
    reason = cannot_arrange(prediction)
    if reason:
        raise LabError(f"this cannot be arranged: {reason}")
    done = lab.hibernate(prediction.variant, folder)
    write_file(folder / LOG_NAME, done.log.encode())
    record = done.record
    require_arranged(record)
    if record.blocks != sorted(record.blocks):
        raise LabError(f"the guest's regions do not ascend: {' '.join(map(hex, record.blocks))}")
    if done.outcome != "hibernated" or prediction.outcome != "saved":
        return judge(prediction, done)
    torn = _torn_image(done)
    disks = [done.image, done.folder / SPARE_NAME]
    resumed = lab.resume(record, disks, folder, partition=record.partition, offset=record.offset)
    write_file(folder / RESUMED_LOG_NAME, resumed.log.encode())
    return judge(prediction, done, torn, resumed)


def _torn_image(done: Hibernated) -> TornImage:
    """Return the page tables that the guest's own image lacks."""
    record = done.record
    with open_image(done.image, offset=record.offset, partition=record.partition) as image:
        memory, cr3 = image.memory(), image.info.cr3
        found = DirectMap.find(memory, cr3)
        _, missing = reachable_tables(memory, cr3, found.levels)
        blocks = [
            block
            for block in record.blocks
            if (walk := found.tables.walk(found.vaddr(block))).stop == Stop.TABLE_MISSING and walk.level == Level.PMD
        ]
    return TornImage(tuple(sorted(missing)), tuple(blocks))
