# SPDX-License-Identifier: GPL-2.0-or-later
"""Experiments and their results: the matrix of ways and situations, the demo, the explanation, the answers."""
