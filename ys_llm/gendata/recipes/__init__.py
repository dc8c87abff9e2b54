"""What a kind of record is, and the items that it plans."""
