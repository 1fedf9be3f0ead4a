# SPDX-License-Identifier: GPL-2.0-or-later
"""Readers under fire: one fuzz target a reader, and the engine that runs them. `make fuzz` starts it."""
