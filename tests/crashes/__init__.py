# SPDX-License-Identifier: GPL-2.0-or-later
"""Every instant of every write: calls recorded, states of the disk enumerated, each one checked.

`calls` has the recorder of a process's calls that change files, `disk` the states that a loss of power may leave after
any of them, `scenarios` the commands and what may be in their files. `python -m tests.crashes` prints the table of
docs/reliability.md. `booted` gives such states to real kernels.
"""
