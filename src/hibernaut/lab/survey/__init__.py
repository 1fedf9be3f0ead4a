# SPDX-License-Identifier: GPL-2.0-or-later
"""The survey of stock kernels: the memory that is out of the direct map after whatever a kernel can be asked to do."""
