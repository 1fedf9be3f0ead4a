# SPDX-License-Identifier: GPL-2.0-or-later
"""Hibernation images in Volatility 3, in place.

`plugins/` is the folder that Volatility loads (`vol -p`). Its one module imports volatility3, which has a licence of
its own (Volatility Software License 1.0); no other module of this package does, and Volatility is not part of it.
"""
