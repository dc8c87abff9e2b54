"""Training text: records made by programs or by a language model, verified, with their provenance.

`ys gen-data` is the command; `command.py` is what it calls.
"""
