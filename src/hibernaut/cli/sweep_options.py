# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of the commands that sweep over many simulated machines: what is explored, and where the work is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from hibernaut.cli.options import among
from hibernaut.exploration import Bounds, Family
from hibernaut.exploration.scopes import BOUND_WORDS, FAMILY_WORDS, bounds_of_words, family_of_words, words_of_family
from hibernaut.hibernation.ways import MUTANTS, WAYS

__all__ = ["ScopeOptions", "SweepOptions"]

DEFAULT_WAYS = ",".join(name for name in WAYS if name not in MUTANTS)

MOST_PROCESSES = 1024
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
            max=MOST_PROCESSES,
            metavar="N",
            rich_help_panel=SWEEP_SECTION,
            help="Number of processes. Default: one a core.",
        ),
    ] = None


@dataclass(frozen=True)
class ScopeOptions:
    """The runs that are explored."""

    layout: Annotated[
        list[str] | None,
        typer.Option(
            "--layout",
            metavar="KEY=VALUES",
            help="Variation of the simulated machines; repeatable: "
            + "; ".join(f"{key}={values}" for key, values in FAMILY_WORDS.items())
            + f". Default: {'; '.join(words_of_family(Family()))}.",
            autocompletion=among(f"{key}=" for key in FAMILY_WORDS),
        ),
    ] = None
    via: Annotated[
        str,
        typer.Option(
            "--via",
            metavar="WAY,...",
            help=f"Ways to copy: {', '.join(WAYS)}, reserved:N. Default: {DEFAULT_WAYS.replace(',', ', ')}.",
            autocompletion=among(WAYS),
        ),
    ] = DEFAULT_WAYS
    bound: Annotated[
        list[str] | None,
        typer.Option(
            "--bound",
            metavar="KEY=N",
            help="Bound of the exploration; repeatable: "
            + "; ".join(f"{key} ({what})" for key, what in BOUND_WORDS.items())
            + ". Default: no bound; frames=1.",
            autocompletion=among(f"{key}=" for key in BOUND_WORDS),
        ),
    ] = None
    then_allocate: Annotated[
        int,
        typer.Option(
            "--then-allocate",
            min=0,
            max=4096,
            metavar="PAGES",
            help="Pages that every resumed machine allocates. Default: 0.",
        ),
    ] = 0

    @property
    def ways(self) -> tuple[str, ...]:
        """Names of the ways."""
        return tuple(self.via.split(","))

    def family(self) -> Family:
        """Return the family of simulated machines. Raises HibernautError if the words of --layout describe none."""
        return family_of_words(self.layout or ())

    def bounds(self) -> Bounds:
        """Return the bounds. Raises HibernautError if the words of --bound describe none."""
        return bounds_of_words(self.bound or ())
