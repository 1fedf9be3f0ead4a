"""`python -m hibernaut`."""

from __future__ import annotations

from hibernaut.cli import main

main()
