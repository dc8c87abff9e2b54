"""Tasks that ask for memory alone: each a deterministic function of a seed, with an accuracy."""
