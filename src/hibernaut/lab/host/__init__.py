# SPDX-License-Identifier: GPL-2.0-or-later
"""The host side of the laboratory: programs, Debian packages, kernels, the cache."""
