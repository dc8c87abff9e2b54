"""What may be set, and where each value came from."""
