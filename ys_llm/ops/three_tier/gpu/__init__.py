"""Experimental GPU backends of the recurrence; no GPU has run them yet."""
