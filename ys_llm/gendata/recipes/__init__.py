"""Recipes (one YAML file per kind of record) and the items that they plan."""
