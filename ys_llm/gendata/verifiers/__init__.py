"""Verifiers: checks of generated records."""
