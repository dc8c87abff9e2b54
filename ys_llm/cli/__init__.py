"""The command `ys`: one file per command."""
