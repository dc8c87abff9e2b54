"""The layer below everything else: files, the machine, signals, locks."""
