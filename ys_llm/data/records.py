"""The name of a document: a hash of what it says, by which corpora and manifests know it."""

import hashlib


def document_id(text: str, prompt: str | None = None) -> str:
    """128 bits in hexadecimal; `prompt` is None where the document is plain text."""
    digest = hashlib.blake2b(digest_size=16)
    if prompt is not None:
        asked = prompt.encode()
        digest.update(b"prompt %d " % len(asked) + asked)
    digest.update(b"text " + text.encode())
    return digest.hexdigest()
