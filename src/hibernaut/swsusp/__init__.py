"""The image file of Linux's hibernation: declarations, reader, writer, checker."""
