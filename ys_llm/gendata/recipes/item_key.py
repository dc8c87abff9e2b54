"""The name of an item: a hash of what it follows from, by which journals know it."""

import hashlib


def item_key(digest: str, index: int, seed: int) -> str:
    """128 bits in hexadecimal; `digest` is that of the kind."""
    return hashlib.blake2b(f"{digest}:{index}:{seed}".encode(), digest_size=16).hexdigest()
