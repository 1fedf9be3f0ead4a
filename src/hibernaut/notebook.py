# SPDX-License-Identifier: GPL-2.0-or-later
"""HTML tables by which notebooks show results (`_repr_html_`)."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["html_table"]


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as HTML, every text escaped; characters that do not print are visible escapes."""
    lines = ["<table>", f"<caption>{_cell(caption)}</caption>"]
    lines.append(f"<thead><tr>{''.join(f'<th>{_cell(one)}</th>' for one in head)}</tr></thead><tbody>")
    lines += [f"<tr>{''.join(f'<td>{_cell(one)}</td>' for one in row)}</tr>" for row in rows]
    return "\n".join([*lines, "</tbody></table>"])


def _cell(value: object) -> str:
    text = str(value)
    return html.escape("".join(one if one.isprintable() else repr(one)[1:-1] for one in text))
