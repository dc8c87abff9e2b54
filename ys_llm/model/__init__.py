"""The language model that all mixers share."""
