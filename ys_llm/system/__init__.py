"""What lies below everything: files, the machine, signals, locks."""
