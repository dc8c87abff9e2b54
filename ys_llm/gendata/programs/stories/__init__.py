"""The story grammar."""
