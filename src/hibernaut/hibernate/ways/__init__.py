"""Ways to save a page that the direct map does not show, one file each, one interface."""

from __future__ import annotations

from hibernaut.hibernate.ways.base import Way
from hibernaut.hibernate.ways.fixmap import Fixmap
from hibernaut.hibernate.ways.mutants import FixmapNoClear, FixmapNoFlush, RemapNoUnmap
from hibernaut.hibernate.ways.remap import Remap

__all__ = ["Fixmap", "FixmapNoClear", "FixmapNoFlush", "Remap", "RemapNoUnmap", "Way"]
