# SPDX-License-Identifier: GPL-2.0-or-later
"""The notebooks of the documentation: executed again, each cell shows the output that is stored.

With HIBERNAUT_UPDATE_DOCS=1 the stored outputs are replaced, to be read before they are committed.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, Golden
from tests.test_docs import provide

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra report)")
pytest.importorskip("drgn", reason="drgn is not installed (the extra lab)")

NOTEBOOKS = sorted((REPOSITORY / "docs").rglob("*.ipynb"))
DRAWING = re.compile(r"<svg.*?(<title.*?</desc>).*?</svg>", re.DOTALL)
"""A chart; its drawing depends on matplotlib's version, its title and description do not."""


def executed(notebook: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Yield the outputs of each code cell, executed in order in one namespace."""
    names: dict[str, Any] = {}
    number = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        number += 1
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        printed = StringIO()
        value = None
        with redirect_stdout(printed):
            exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
        outputs: list[dict[str, Any]] = []
        if printed.getvalue():
            outputs.append({"name": "stdout", "output_type": "stream", "text": lines(printed.getvalue())})
        if value is not None:
            data = {"text/plain": lines(str(value))}
            if hasattr(value, "_repr_html_"):
                data = {"text/html": lines(value._repr_html_()), "text/plain": [type(value).__name__]}
            outputs.append({"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"})
        cell["execution_count"] = number
        yield outputs


def lines(text: str) -> list[str]:
    """Return a text as notebooks store it."""
    return text.splitlines(keepends=True)


def comparable(outputs: list[dict[str, Any]]) -> str:
    """Return outputs as text without drawings."""
    text = json.dumps([{key: one[key] for key in ("data", "text") if key in one} for one in outputs])
    whole = json.loads(text)
    for one in whole:
        for kind, stored in one.get("data", {}).items():
            one["data"][kind] = DRAWING.sub(r"\1", "".join(stored))
    return json.dumps(whole, indent=1)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_it_stores(
    path: Path, golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables, texts, titles and descriptions are equal; a source is left open by no cell."""
    notebook = json.loads(path.read_text())
    provide(path.read_text(), tmp_path, golden)
    monkeypatch.chdir(tmp_path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found = list(executed(notebook))
    if os.environ.get("HIBERNAUT_UPDATE_DOCS"):
        for cell, outputs in zip(code, found, strict=True):
            cell["outputs"] = outputs
        path.write_text(json.dumps(notebook, indent=1) + "\n")
    for cell, outputs in zip(code, found, strict=True):
        assert comparable(cell["outputs"]) == comparable(outputs), "".join(cell["source"])
    assert any(cell["outputs"] for cell in code)


def test_there_is_a_notebook() -> None:
    """The documentation has one, of the format that Jupyter reads."""
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text())
        assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
