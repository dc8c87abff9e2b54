"""What an export to transformers carries besides `model/exported.py`; nothing here imports it."""
