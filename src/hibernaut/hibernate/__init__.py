"""Hibernation: which pages are saved, the ways to copy one, the snapshot, the log of events."""
