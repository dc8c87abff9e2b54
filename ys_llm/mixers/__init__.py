"""Sequence mixers, one file each; `protocol` says what a mixer is and finds it by its name."""
