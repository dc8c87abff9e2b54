"""Training text: kinds of records, made by programs or by a language model, verified and traced.

`ys gen-data` is the way in; `command.py` has what it does.
"""
