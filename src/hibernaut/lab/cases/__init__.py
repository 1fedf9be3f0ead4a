# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases that every kernel of the laboratory must pass: what each does, how they run, the table."""
