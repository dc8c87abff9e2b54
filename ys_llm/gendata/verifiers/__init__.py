"""Checks of generated records."""
