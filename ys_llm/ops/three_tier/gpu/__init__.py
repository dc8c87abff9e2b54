"""Experimental CUDA backends of the recurrence: not yet run on a GPU, and never `auto`."""
