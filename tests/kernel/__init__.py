# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of the facts that a real kernel states about itself."""
