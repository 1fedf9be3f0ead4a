# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of the commands that sweep over many simulated machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

__all__ = ["SweepOptions"]

SWEEP_SECTION = "Where it runs"


@dataclass(frozen=True)
class SweepOptions:
    """The processes, or the cluster, that share the work."""

    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            metavar="ADDRESS",
            rich_help_panel=SWEEP_SECTION,
            help="Dask scheduler (tcp://...) whose workers share the work. Default: processes of this machine.",
        ),
    ] = None
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=1,
            metavar="N",
            rich_help_panel=SWEEP_SECTION,
            help="Number of processes. Default: one a core.",
        ),
    ] = None
