# SPDX-License-Identifier: GPL-2.0-or-later
"""A document of `--json` as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["json_text"]


def json_text(document: Mapping[str, Any]) -> str:
    """Return a document as `--json` prints it, with its last newline."""
    return json.dumps(document, indent=1) + "\n"
