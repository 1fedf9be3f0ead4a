# SPDX-License-Identifier: GPL-2.0-or-later
"""Judging a kernel: does its hibernation save every page of the direct map and leave the map as it was?"""
