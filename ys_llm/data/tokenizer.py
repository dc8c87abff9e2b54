"""Text to token ids and back, exactly, for any Unicode text.

Five kinds share one layout: id 0 is `<end>`, id 1 `<start>`, ids 2..257 are the bytes, further
control tokens may follow (`ROLE_TOKENS`, then spare ones), and then the learned tokens:

- `bpe`: byte-level byte-pair encoding.
- `bpe_joiner`: the same on text with joiners (`joiners.py`): a word at the beginning of a line or
  of a quotation is the same tokens as after a space.
- `words`: the same on lower-case text with case markers (`case_markers.py`); the words that save
  the most tokens are tokens of their own.
- `chars`: the most frequent characters, by code point. `bytes`: none.

Text is first cut into pieces (`pieces.py`), and no token crosses the border of a piece. A text may
therefore be encoded in parts, if each part but the first begins with a space or line break that
follows another character. Every kind is saved as a `tokenizer.json` that the library `tokenizers`
can read (`words` then expects text with case markers, `bpe_joiner` text with joiners). A piece of
over 1,000 characters, such as a genome on one line, is encoded in parts of 1,000.

A text that contains `<end>` or `<user>` is encoded as those characters, never as a control token.
`with_roles` adds the tokens of roles to a tokenizer without them, after all others.
"""

import codecs
import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ys_llm.config.schema import TokenizerKind
from ys_llm.data.case_markers import CASE
from ys_llm.data.controls import CONTROLS, FURTHER_CONTROLS, ROLE_TOKENS, controls_of
from ys_llm.data.joiners import JOINERS
from ys_llm.data.marking import Marking, MarkingDecoder
from ys_llm.data.pieces import (
    BYTE_CHARS,
    BYTE_OF_CHAR,
    LONGEST_PIECE,
    MAYBE_LONG,
    byte_level,
    piece_finder,
    piece_pattern,
    split_chunks,
    split_long_piece,
    to_utf8,
)
from ys_llm.errors import EXIT_USAGE, UserError, command_line
from ys_llm.system.files import write_atomically

SMALLEST_VOCAB = len(CONTROLS) + 256
_MARKINGS: dict[TokenizerKind, Marking] = {"bpe_joiner": JOINERS, "words": CASE}

# Share of the learned tokens of `words` that are parts of words; the rest are whole words. On
# held-out English (0.8 MB), 4,096 tokens with shares of 1, 3/4, 1/2 and 1/4 gave 0.294, 0.293,
# 0.295 and 0.302 tokens per byte; with 8,192 tokens the first three were within 0.6 %.
_WORD_PART_SHARE = 0.75

_CACHED_PIECES = 1 << 18
LEARNED_CHARS = 256_000_000  # of text: a vocabulary learned from more is hardly another
_CACHED_PIECE_CHARS = 32  # longer ones rarely occur again
_ID_OF_BYTE = "".join(chr(byte + len(CONTROLS)) for byte in range(256))


class Tokenizer:
    """Encodes and decodes text; `train_tokenizer` and `load` return one."""

    end_id = 0
    start_id = 1

    def __init__(self, saved: str) -> None:
        """Parse what `save` writes; raise an exception with the reason on any other text."""
        library = tokenizers.Tokenizer.from_str(saved)
        library.encode_special_tokens = True  # else a literal `<end>` would end the document
        self.kind = _kind_of(library)
        self.marking = _MARKINGS.get(self.kind)
        self.vocab_size = library.get_vocab_size()
        self.fingerprint = hashlib.sha256(saved.encode()).hexdigest()
        self.saved = saved
        self.controls: Mapping[str, int] = controls_of(library)
        self._control_names = {id: name for name, id in self.controls.items()}
        self._token_bytes = _token_bytes(library, self.kind, self._control_names)
        self.id_format = id_format(self.vocab_size)
        self._packed_piece = _PackedPieces(library, self.kind, self.id_format).__getitem__
        self._findall = piece_finder(self.kind)

    @property
    def has_roles(self) -> bool:
        """Return whether there is a control token for each role of a conversation."""
        return all(name in self.controls for name in ROLE_TOKENS)

    def with_roles(self) -> "Tokenizer":
        """Return a tokenizer with a control token for each role; all other ids are what they are.

        New ones come after all others: a model needs as many more rows (`with_more_tokens`).
        """
        missing = [name for name in ROLE_TOKENS if name not in self.controls]
        if not missing:
            return self
        parts = json.loads(self.saved)
        parts["model"]["vocab"] |= {name: self.vocab_size + n for n, name in enumerate(missing)}
        library = tokenizers.Tokenizer.from_str(json.dumps(parts))
        library.add_special_tokens(missing)
        return Tokenizer(library.to_str())

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, never a control id. Raises UserError on a lone surrogate."""
        return [id for (id,) in struct.iter_unpack(self.id_format, self.encode_packed(text))]

    def encode_packed(self, text: str) -> bytes:
        """Return the ids of `encode` as stored in a shard: packed in the format `id_format`."""
        if self.kind == "bytes":  # without a lookup
            ids, _ = codecs.charmap_decode(to_utf8(text), "strict", _ID_OF_BYTE)
            return ids.encode("utf-16-le")
        findall, packed_piece = self._findall, self._packed_piece
        chunks: Iterable[str] = split_chunks(text)
        if self.marking:
            chunks = map(self.marking.encode, chunks)
        return b"".join([b"".join(map(packed_piece, findall(chunk))) for chunk in chunks])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`: control tokens give nothing, invalid UTF-8 gives U+FFFD."""
        text = b"".join(map(self._token_bytes.__getitem__, ids)).decode("utf-8", "replace")
        return self.marking.decode(text) if self.marking else text

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token: those of its character for a marker, none for controls."""
        return self._token_bytes[token_id]

    def token_text(self, token_id: int) -> str:
        r"""Return a token for display: `<end>`, ` the`, `<capital>`; `\xe3` for invalid UTF-8."""
        if token_id in self._control_names:
            return self._control_names[token_id]
        text = self._token_bytes[token_id].decode("utf-8", "backslashreplace")
        return self.marking.names.get(text, text) if self.marking else text

    def save(self, path: Path) -> None:
        """Write `tokenizer.json` atomically, into a folder that exists."""
        write_atomically(path, self.saved, create_folder=False)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read what `save` wrote. Raises UserError if it is missing, damaged or of another kind."""
        command = command_line("train", "clean", "all", run=path.parent.name)
        fix = f"Restore the one its model was trained with, or train both from scratch: {command}"
        try:
            return cls(path.read_bytes().decode("utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}", fix) from error
        except Exception as error:  # the library raises the plain class
            raise UserError(f"{path} is not a tokenizer of ys: {error}", fix) from error


class StreamDecoder:
    """Decodes token by token; the results of `push` and `flush`, joined, are `decode` of all ids.

    The bytes of one character may come in several tokens, and a marker waits for its word.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._markers = MarkingDecoder(tokenizer.marking) if tokenizer.marking else None

    def push(self, token_id: int) -> str:
        """Return the text that this token completes, often all of it, sometimes none."""
        text = self._utf8.decode(self._tokenizer.token_bytes(token_id))
        return self._markers.push(text) if self._markers else text

    def flush(self) -> str:
        """Return the text of what is still pending, at the end of the ids."""
        text = self._utf8.decode(b"", final=True)
        return self._markers.push(text) + self._markers.flush() if self._markers else text


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: TokenizerKind,
    vocab_size: int,
    control_tokens: int = len(CONTROLS),
) -> Tokenizer:
    """Learn a vocabulary of at most `vocab_size` tokens; the order of the texts does not matter.

    Merges and whole words need to occur twice. `texts` is iterated more than once. Of the
    `control_tokens` the first are `<end>` and `<start>`, then come ROLE_TOKENS and spare ones.
    Raises UserError if `vocab_size` is too small for the control tokens and the bytes.
    """
    further = FURTHER_CONTROLS[: control_tokens - len(CONTROLS)]
    smallest = SMALLEST_VOCAB + len(further)
    if vocab_size < smallest:
        raise UserError(
            f"tokenizer.vocab_size is {vocab_size}; the {control_tokens} control tokens and the "
            f"256 bytes already need {smallest}",
            f"Type --set tokenizer.vocab_size={smallest}, or more.",
            exit_code=EXIT_USAGE,
        )
    vocab_size -= len(further)  # of these tokens, nothing is learned
    if kind == "words":
        library = _train_words(texts, vocab_size, further)
    elif kind in ("bpe", "bpe_joiner"):
        library = _train_bpe(_all_chunks(texts, kind), kind, vocab_size, further)
    else:
        learned = _frequent_chars(texts, vocab_size - SMALLEST_VOCAB) if kind == "chars" else []
        library = _assemble(kind, learned, further=further)
    return Tokenizer(library.to_str())


def id_format(vocab_size: int) -> str:
    """Return the struct format of an id: two bytes where the vocabulary allows, else four."""
    return "<H" if vocab_size <= 1 << 16 else "<I"


class _PackedPieces(dict[str, bytes]):
    """A cache of the ids of each piece: most pieces of a text occur again."""

    def __init__(self, library: tokenizers.Tokenizer, kind: TokenizerKind, id_format: str) -> None:
        super().__init__()
        self._tokenize = library.model.tokenize  # `encode` would split the piece again
        self._to_library = _utf8_text if kind == "chars" else byte_level
        self._pack = struct.Struct(id_format).pack

    def __missing__(self, piece: str) -> bytes:
        if len(piece) > LONGEST_PIECE:
            return b"".join(map(self.__getitem__, split_long_piece(piece)))
        packed = b"".join(self._pack(token.id) for token in self._tokenize(self._to_library(piece)))
        if len(piece) <= _CACHED_PIECE_CHARS and len(self) < _CACHED_PIECES:
            self[piece] = packed
        return packed


def _utf8_text(text: str) -> str:
    to_utf8(text)
    return text


def _without_long_pieces(chunks: Iterable[str], kind: TokenizerKind) -> Iterator[str]:
    """Yield the chunks to learn from, with pieces over `LONGEST_PIECE` cut into parts."""
    findall = piece_finder(kind)
    for chunk in chunks:
        if MAYBE_LONG.search(chunk):
            yield from chain.from_iterable(map(split_long_piece, findall(chunk)))
        else:
            yield chunk


def _all_chunks(texts: Iterable[str], kind: TokenizerKind) -> Iterator[str]:
    """Yield the chunks of the texts, with the markers of a tokenizer of this kind."""
    chunks = chain.from_iterable(map(split_chunks, texts))
    marking = _MARKINGS.get(kind)
    return map(marking.encode, chunks) if marking else chunks


def _train_bpe(
    chunks: Iterable[str], kind: TokenizerKind, vocab_size: int, further: Sequence[str] = ()
) -> tokenizers.Tokenizer:
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = _pre_tokenizer(kind)
    trained.train_from_iterator(
        _without_long_pieces(chunks, kind),
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(CONTROLS),
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    merges = _merges(trained)
    return _assemble(kind, map("".join, merges), merges, further)


def _train_words(
    texts: Iterable[str], vocab_size: int, further: Sequence[str]
) -> tokenizers.Tokenizer:
    """Learn parts of words, then add the whole words that save the most tokens."""
    n_part_tokens = int((vocab_size - SMALLEST_VOCAB) * _WORD_PART_SHARE)
    parts = _train_bpe(_all_chunks(texts, "words"), "words", SMALLEST_VOCAB + n_part_tokens)
    findall = piece_finder("words")
    counts: Counter[str] = Counter()
    for chunk in _without_long_pieces(_all_chunks(texts, "words"), "words"):
        counts.update(findall(chunk))
    pieces = [piece for piece, count in counts.items() if count > 1]
    saved = {
        piece: counts[piece] * (len(encoding.ids) - 1)
        for piece, encoding in zip(pieces, parts.encode_batch_fast(pieces), strict=True)
        if len(encoding.ids) > 1
    }
    ranked = sorted(saved, key=lambda piece: (-saved[piece], piece))
    whole_words = map(byte_level, ranked[: vocab_size - parts.get_vocab_size()])
    merges = _merges(parts)
    return _assemble("words", chain(map("".join, merges), whole_words), merges, further)


def _merges(library: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(library.to_str())["model"]["merges"]]


def _frequent_chars(texts: Iterable[str], limit: int) -> list[str]:
    counts: Counter[str] = Counter()
    for chunk in _all_chunks(texts, "chars"):
        counts.update(chunk)
    return sorted(sorted(counts, key=lambda char: (-counts[char], char))[:limit])


def _assemble(
    kind: TokenizerKind,
    learned: Iterable[str],
    merges: list[tuple[str, str]] | None = None,
    further: Sequence[str] = (),
) -> tokenizers.Tokenizer:
    # Two merges may yield the same token, which then keeps its first id.
    tokens = dict.fromkeys(chain(CONTROLS, _byte_names(kind), further, learned))
    model = models.BPE(
        vocab={token: token_id for token_id, token in enumerate(tokens)},
        merges=merges or [],
        byte_fallback=kind == "chars",
        ignore_merges=kind == "words",  # look up whole words before parts
    )
    library = tokenizers.Tokenizer(model)
    library.add_special_tokens([*CONTROLS, *further])
    library.pre_tokenizer = _pre_tokenizer(kind)
    if kind == "chars":
        library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        library.decoder = decoders.ByteLevel()
    return library


def _pre_tokenizer(kind: TokenizerKind) -> pre_tokenizers.PreTokenizer:
    """Return the library's pre-tokenizer of a kind; no two kinds have the same."""
    split = pre_tokenizers.Split(tokenizers.Regex(piece_pattern(kind)), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if kind == "chars":
        return split
    return byte_level if kind == "bytes" else pre_tokenizers.Sequence([split, byte_level])


def _kind_of(library: tokenizers.Tokenizer) -> TokenizerKind:
    """Recognise the kind by everything but the vocabulary; the file format has no field for it.

    A file with a normalizer, truncation or decoder of its own would change text silently.
    """
    kinds: tuple[TokenizerKind, ...] = get_args(TokenizerKind)
    found = _without_vocabulary(library)
    for kind in kinds:
        if found == _without_vocabulary(_assemble(kind, [])):
            return kind
    raise ValueError("it splits text in another way")


def _without_vocabulary(library: tokenizers.Tokenizer) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(library.to_str())
    parts["model"] = {**parts["model"], "vocab": None, "merges": None}
    return {**parts, "added_tokens": None}


def _byte_names(kind: TokenizerKind) -> list[str]:
    """Return the names that the library gives to the tokens of single bytes."""
    return [f"<0x{byte:02X}>" for byte in range(256)] if kind == "chars" else BYTE_CHARS


def _token_bytes(
    library: tokenizers.Tokenizer, kind: TokenizerKind, controls: Mapping[int, str]
) -> list[bytes]:
    """Return the bytes of each id; raise ValueError for a vocabulary with another layout."""
    vocab = library.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    first = [*CONTROLS, *_byte_names(kind)]
    if tokens[:SMALLEST_VOCAB] != first or max(vocab.values()) != len(tokens) - 1:
        raise ValueError("its ids do not begin with <end>, <start> and the bytes, or have gaps")
    known = [b"", b"", *(bytes([byte]) for byte in range(256))]
    return known + [
        b"" if id in controls else _bytes_of(token, kind)
        for id, token in enumerate(tokens[SMALLEST_VOCAB:], start=SMALLEST_VOCAB)
    ]


def _bytes_of(token: str, kind: TokenizerKind) -> bytes:
    return token.encode() if kind == "chars" else bytes(BYTE_OF_CHAR[char] for char in token)
