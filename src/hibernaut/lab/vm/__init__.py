# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual machines: QEMU, its ports and disks, and the debugger protocol."""
