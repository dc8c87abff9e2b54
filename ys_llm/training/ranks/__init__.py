"""Training in several processes; see docs/distributed.md."""
