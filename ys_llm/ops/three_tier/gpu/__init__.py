"""Experimental CUDA backends of the recurrence: no GPU has run them yet, and `auto` takes none."""
