# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks: pure functions from the facts of a machine to a finding."""
