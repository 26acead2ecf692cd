"""Formats of other programs that a segmentation's instances are written in."""
