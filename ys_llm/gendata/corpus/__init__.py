"""The corpus on disk: files, manifest, README."""
