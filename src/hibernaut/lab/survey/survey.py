# SPDX-License-Identifier: GPL-2.0-or-later
"""The survey of one kernel: a guest that takes every step, and further boots with parameters that change the map."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import LabError
from hibernaut.lab.guest.initramfs import module_order, modules_with_dependencies
from hibernaut.lab.host.kernels import GuestKernel
from hibernaut.lab.host.temporary import temporary_folder
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.survey.reading import Reading, address_of_pool, read_direct_map
from hibernaut.lab.survey.steps import (
    DEBUGGING,
    MODULES,
    PLUGGED_MIB,
    STEPS,
    SurveyedGuest,
    SurveyStep,
)
from hibernaut.lab.trial.configuration import configuration_of
from hibernaut.lab.variants import Variant
from hibernaut.lab.vm.qemu import Hardware

__all__ = ["PARAMETERS", "SURVEYED", "StepTaken", "adapted", "answer_of", "survey"]

SURVEYED = Variant("survey", "guest of the survey", memory_mib=3072, kfence=True)
"""3 GiB, so that one entry of the direct map spans 1 GiB."""
SMALL = dataclasses.replace(SURVEYED, memory_mib=512)
PARAMETERS = "crashkernel=192M secretmem.enable=1"


@dataclass(frozen=True)
class StepTaken:
    """A step of the survey.

    Attributes:
        step: the step.
        done: what was done; empty if nothing was.
        reading: the direct map afterwards; None if the step was not taken.
        unable: why it was not taken, or not read; empty if it was.
    """

    step: SurveyStep
    done: str
    reading: Reading | None
    unable: str = ""


def survey(lab: Lab, progress: Callable[[StepTaken], None] = lambda _: None) -> list[StepTaken]:
    """Survey a kernel: take every step that it can take, and read its direct map after each.

    Args:
        lab: laboratory with the kernel.
        progress: called after each step.

    Raises:
        LabUnavailable: the laboratory lacks something on this machine.
        LabError: the guest does not boot.
    """
    taken = []
    for one in _steps_of(lab):
        taken.append(one)
        progress(one)
    return taken


def _steps_of(lab: Lab) -> Iterator[StepTaken]:
    with temporary_folder("survey") as folder:
        yield from _one_guest(lab, folder)
        configuration = configuration_of(lab.kernel)
        for symbol, step, parameters in DEBUGGING:
            if configuration is not None and not configuration.has(symbol):
                yield StepTaken(step, "", None, f"CONFIG_{symbol} is not set")
                continue
            try:
                with lab.boot(SMALL, folder, [], shared_ram=True, adapt=adapted(parameters)) as guest:
                    yield take(step, SurveyedGuest(guest, {}, pool=address_of_pool(guest)))
            except LabError as error:
                yield StepTaken(step, "", None, f"the guest does not boot: {error.what}")


def _one_guest(lab: Lab, folder: Path) -> Iterator[StepTaken]:
    """Yield the steps of the guest that takes them one after the other; those that a crash prevents, too."""
    modules = further_modules(lab.kernel)
    files = [*modules.values(), lab.kernel.vmlinuz]
    crashed = ""
    with lab.boot(SURVEYED, folder, [], shared_ram=True, files=files, adapt=adapted(PARAMETERS)) as guest:
        named = {path.name.split(".")[0]: path for path in modules.values()}
        surveyed = SurveyedGuest(guest, named, lab.kernel.vmlinuz.name, address_of_pool(guest))
        for step in STEPS:
            one = StepTaken(step, "", None, crashed) if crashed else take(step, surveyed)
            if not guest.qemu.running and not crashed:
                crashed = f"the guest crashed at {step.name}: {guest.crash_message()}"
                one = StepTaken(step, "", None, crashed)
            yield one


def take(step: SurveyStep, surveyed: SurveyedGuest) -> StepTaken:
    """Take a step and read the direct map; a step that the kernel cannot take has the reason."""
    done = ""
    try:
        done = step.run(surveyed)
        return StepTaken(step, done, read_direct_map(surveyed.guest, surveyed.pool))
    except LabError as error:
        return StepTaken(step, done, None, error.what)


def further_modules(kernel: GuestKernel) -> dict[str, Path]:
    """Return the modules that a guest loads on command: those of `MODULES` that the kernel has, with dependencies."""
    at_boot = module_order(kernel.modules)
    found = modules_with_dependencies(kernel.modules, MODULES)
    return {name: path for name, path in found.items() if name not in at_boot}


def adapted(parameters: str) -> Callable[[Hardware], Hardware]:
    """Return the function that gives a machine what the survey needs: parameters, two CPUs, room for more memory."""

    def adapt(hardware: Hardware) -> Hardware:
        return dataclasses.replace(
            hardware,
            parameters=f"{hardware.parameters} {parameters}",
            cpus=2,
            pluggable_mib=PLUGGED_MIB,
        )

    return adapt


def answer_of(taken: list[StepTaken]) -> str:
    """Return the answer to the survey's question for one kernel, a sentence."""
    readings = [one for one in taken if one.reading is not None]
    if not readings:
        return "Nothing was read."
    huge = [(one.step.name, hidden) for one in readings if one.reading for hidden in one.reading.hidden if hidden.huge]
    small: dict[str, int] = {}
    for one in readings:
        for hidden in one.reading.hidden if one.reading else ():
            if hidden.kind == "not present" and not hidden.huge:
                small[hidden.owner] = max(small.get(hidden.owner, 0), hidden.pages)
    if huge:
        step, first = huge[0]
        return f"Yes: after {step}, {first.entries} of {first.level.size} of {first.owner} not present."
    listed = ", ".join(f"{owner} (up to {_pages(pages)})" for owner, pages in small.items())
    of_4k = f"4K entries are, for {listed}" if small else "no 4K entry is, either"
    number = f"{len(readings)} reading{'s' if len(readings) != 1 else ''}"
    return f"None seen: in {number} no 2M or 1G entry was not present; {of_4k}."


def _pages(pages: int) -> str:
    return f"{pages} page" if pages == 1 else f"{pages} pages"
