"""The programs that write records, and what they share: grammar, stage, plots, tables."""
