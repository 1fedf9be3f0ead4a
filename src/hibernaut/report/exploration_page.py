# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages of `explore` and `answers`: scope, verdicts, and each shortest run as a strip of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hibernaut.exploration.scenes import PlaceState, RunScenes, scenes_of
from hibernaut.report.answers import answers_document
from hibernaut.report.explore import explore_document, way_answer
from hibernaut.report.page import page_style, template_environment
from hibernaut.report.text import counted
from hibernaut.report.visible import visible_line

if TYPE_CHECKING:
    from hibernaut.exploration import Exploration, Played
    from hibernaut.linux.machine import Machine
    from hibernaut.studies.answers import Answers

__all__ = ["answers_report", "exploration_report"]

_CSS = {
    PlaceState.WAITS: "waits",
    PlaceState.COPYING: "copying",
    PlaceState.COPIED: "copied",
    PlaceState.CHANGED_BEFORE: "changed-before",
    PlaceState.CHANGED_AFTER: "changed-after",
    PlaceState.NOT_LISTED: "never",
}
MAX_FINDINGS = 8


def exploration_report(found: Exploration, machine: Machine | None = None) -> str:
    """Return the page of an exploration: HTML without a script.

    Args:
        found: the exploration.
        machine: the machine of a source that was explored; None for a family.
    """
    document = explore_document(found, {}, "line")
    unsafe = [way["way"] for way in document["ways"] if not way["safe"]]
    verdict = f"Not safe: {', '.join(unsafe)}" if unsafe else "No run loses or breaks anything"
    if not document["covered"]:
        verdict += ", as far as it was explored"
    runs = [
        _run(f"{way.name}: {ending.outcome}", ending.played, machine, _times(ending.runs, ending.machines))
        for way in found.ways
        for ending in way.endings
        if ending.outcome.violated
    ]
    executed = "Every run was executed" if document["covered"] else "Not every run was executed"
    study = {
        "name": "Scope",
        "scope": f"{document['scope']}. {executed}.",
        "ways": [
            {
                "name": way["way"],
                "verdict": way_answer(way),
                "machines": way["machines"],
                "runs": way["runs"],
                "states": way["states"],
            }
            for way in document["ways"]
        ],
    }
    return _page("exploration", verdict, "bad" if unsafe else "ok", [study], runs, "Shortest runs that break something")


def answers_report(answers: Answers) -> str:
    """Return the page of the answers: HTML without a script."""
    document = answers_document(answers)
    failed = [claim["title"] for claim in document["claims"] if not claim["holds"]]
    number = len(document["claims"])
    verdict = f"{counted(number, 'claim')}: each holds" if number else "No claim is about these studies alone"
    if failed:
        verdict = f"{len(failed)} of {counted(number, 'claim')} {'does' if len(failed) == 1 else 'do'} not hold"
    studies = [
        {
            "name": f"Study {study['name']}",
            "scope": study["scope"],
            "ways": [
                {
                    "name": name,
                    "verdict": f"cut on {counted(way['cut'], 'machine')}" if way["cut"] else "every run was executed",
                    **{key: value for key, value in way.items() if key != "cut"},
                }
                for name, way in study["ways"].items()
            ],
        }
        for study in document["studies"]
    ]
    runs = [
        _run(
            judged.claim.title,
            judged.shown.played if judged.shown else None,
            None,
            [
                f"{'Does not hold' if judged.against else 'Holds'} on {judged.machines} machines, {judged.runs} runs."
                f" Exactly: {judged.claim.says}."
            ],
        )
        for judged in answers.judged
    ]
    return _page("answers", verdict, "bad" if failed else "ok", studies, runs, "Claims")


def _times(runs: int, machines: int) -> list[str]:
    verb = "ends" if runs == 1 else "end"
    return [f"{counted(runs, 'run')} on {counted(machines, 'machine')} {verb} like this; the shortest:"]


def _run(title: str, played: Played | None, machine: Machine | None, words: Iterable[str]) -> dict[str, Any]:
    """Return the variables of a run in the template."""
    if played is None:
        return {"title": title, "sentences": list(words), "scenes": [], "findings": [], "left_out": 0}
    strip = scenes_of(played, machine)
    return {
        "title": title,
        "sentences": [*words, f"Choices: {'; '.join(played.lines) or 'none'}."],
        "scenes": [
            {"lines": list(map(visible_line, scene.lines)), "boxes": _boxes(strip, number)}
            for number, scene in enumerate(strip.scenes)
        ],
        "findings": [str(one) for one in played.run.violations[:MAX_FINDINGS]],
        "left_out": strip.left_out,
    }


def _boxes(strip: RunScenes, number: int) -> list[dict[str, Any]]:
    """Return the boxes of a scene in the order of the copy, the cursor among them."""
    scene = strip.scenes[number]
    boxes: list[dict[str, Any]] = [
        {
            "start": place.start_pfn,
            "pages": place.pages,
            "name": place.name,
            "broken": place.broken,
            "state": str(state),
            "css": _CSS[state],
        }
        for place, state in zip(strip.places, scene.states, strict=True)
    ]
    if scene.cursor is not None:
        passed = sum(place.start_pfn < scene.cursor for place in strip.places)
        boxes.insert(passed, {"cursor": scene.cursor})
    return boxes


def _page(
    what: str, verdict: str, state: str, studies: Sequence[Any], runs: Sequence[dict[str, Any]], runs_title: str
) -> str:
    from importlib.metadata import version  # slow to import

    return (
        template_environment()
        .get_template("exploration.html.j2")
        .render(
            version=version("hibernaut"),
            style=page_style(),
            what=what,
            verdict=verdict,
            state=state,
            studies=studies,
            runs=runs,
            runs_title=runs_title,
            place_states=[(css, str(state)) for state, css in _CSS.items()],
        )
    )
