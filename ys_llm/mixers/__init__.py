"""Sequence mixers, one file each; the trunk in `model.py` finds them by file name."""
