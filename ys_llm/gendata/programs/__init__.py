"""Programs that make records, and their parts: grammar, vocabulary, tables, stories."""
