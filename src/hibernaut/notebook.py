# SPDX-License-Identifier: GPL-2.0-or-later
"""HTML tables by which notebooks show results (`_repr_html_`)."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from itertools import islice

__all__ = ["html_table"]

MOST_ROWS = 200
MOST_CHARACTERS = 400
"""Characters of a cell; a longer text ends with "..."."""


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], *, row_header: int = 0) -> str:
    """Return a table as HTML, every text escaped; characters that do not print are visible escapes.

    Its size is bounded: of very many rows the first `MOST_ROWS` are shown and the others counted, of a very long text
    the first `MOST_CHARACTERS` characters.

    Args:
        caption: its caption.
        head: heads of its columns.
        rows: its rows.
        row_header: index of the column that names a row.
    """
    lines = ["<table>", f"<caption>{_cell(caption)}</caption>"]
    heads = "".join(f'<th scope="col">{_cell(one)}</th>' for one in head)
    lines.append(f"<thead><tr>{heads}</tr></thead><tbody>")
    left = iter(rows)
    for row in islice(left, MOST_ROWS):
        cells = (
            f'<th scope="row">{_cell(one)}</th>' if column == row_header else f"<td>{_cell(one)}</td>"
            for column, one in enumerate(row)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    more = sum(1 for _ in left)
    if more:
        lines.append(f'<tr><td colspan="{len(head)}">{more} more</td></tr>')
    return "\n".join([*lines, "</tbody></table>"])


def _cell(value: object) -> str:
    text = str(value)
    if len(text) > MOST_CHARACTERS:
        text = text[:MOST_CHARACTERS] + "..."
    return html.escape("".join(one if one.isprintable() else repr(one)[1:-1] for one in text))
