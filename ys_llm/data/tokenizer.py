"""Text to token ids and back, exactly, for any Unicode text.

Four kinds, one layout: id 0 `<end>`, id 1 `<start>`, ids 2..257 the bytes, then what was learned:

- `bpe`: byte-level byte-pair encoding.
- `words`: the same on lower-case text with case markers (`casing.py`), the words that save most
  tokens kept whole.
- `chars`: the most frequent characters, by code point. `bytes`: nothing.

Text is cut into pieces first, and no token crosses the border of a piece: so a text may be encoded
in parts that are cut before a space or line break which follows another character. Every kind is
saved as a `tokenizer.json` that the library `tokenizers` reads (`words` then expects marked text).
A piece of over 1,000 characters, such as a genome on one line, is taken in parts of 1,000 each.
"""

import codecs
import hashlib
import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ys_llm.config.schema import Kind
from ys_llm.data.case_markers import MARKERS, SHOUT, UPPER, Restorer, mark, restore
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.system.files import write_atomically

CONTROLS = ("<end>", "<start>")
SMALLEST_VOCAB = len(CONTROLS) + 256

# Of what `words` learns, the share that spells; the rest keeps words whole. On held-out English
# (0.8 MB) at 4,096 tokens 1, 3/4, 1/2 and 1/4 gave 0.294, 0.293, 0.295 and 0.302 tokens per byte;
# at 8,192 the first three were equal within 0.6 %.
_SPELLING_SHARE = 0.75

_CHUNK_CHARS = 1 << 16  # in training the library holds 90 bytes for each byte of a text
_LONGEST_PIECE = 1000  # characters; the library needs a minute to learn from a piece of 5 million
_MAYBE_LONG = re.compile(rf"[^ \t\r\n]{{{_LONGEST_PIECE}}}|[ \t\r\n]{{{_LONGEST_PIECE}}}")
_CACHED_PIECES = 1 << 18
_CACHED_PIECE_CHARS = 32  # longer ones are rarely met again
_ID_OF_BYTE = "".join(chr(byte + len(CONTROLS)) for byte in range(256))

# Letters with their marks, as ranges: `\p{L}` is unknown to `re`, and `\w` differs between the two
# engines and between versions of Unicode. What is missing here counts as a symbol.
_LETTERS = (
    "A-Za-zªµºÀ-ÖØ-öø-\u1fff\u2c00-\u2dff\u3040-\ud7ff\uf900-\ufdff\ufe20-\ufe2f\ufe70-\ufefe"
    "\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc\U00010000-\U0001efff\U00020000-\U0010ffff"
)


def _pattern(markers: str = "") -> str:
    """Write the regular expression of a piece, read alike by `re` and by the library.

    A word with its leading space; a contraction; a digit; symbols with their leading space; line
    breaks with the spaces before them; spaces, the last of which is left to the word after it.
    Line breaks are no part of the symbols before them, although that would save 2 % of the tokens:
    a prompt that ends in a full stop would then never be followed by a new paragraph.
    """
    return (
        (f"[{markers}]|" if markers else "")
        + f" ?[{_LETTERS}]+|'(?:[sdmt]|ll|ve|re)(?![{_LETTERS}])|[0-9]"
        + f"| ?[^{_LETTERS}0-9 \t\r\n{markers}]+"
        + "|[ \t]*[\r\n]+|[ \t]+(?![^ \t])|[ \t]+"
    )


_PATTERN, _MARKED_PATTERN = _pattern(), _pattern(MARKERS)
_CUT = re.compile(r"(?<=[^ \t\r\n])(?=[ \r\n])")  # a piece ends there whatever surrounds it


class Tokenizer:
    """Encodes and decodes; made by `train_tokenizer` or `load`."""

    end_id = 0
    start_id = 1

    def __init__(self, saved: str) -> None:
        """Read what `save` writes; any other text raises an exception that says why."""
        library = tokenizers.Tokenizer.from_str(saved)
        library.encode_special_tokens = True  # else a typed `<end>` would end the document
        self.kind = _kind_of(library)
        self.vocab_size = library.get_vocab_size()
        self.fingerprint = hashlib.sha256(saved.encode()).hexdigest()
        self._saved = saved
        self._token_bytes = _token_bytes(library, self.kind)
        self.id_format = id_format(self.vocab_size)
        self._packed_piece = _PackedPieces(library, self.kind, self.id_format).__getitem__
        self._findall = re.compile(_piece_pattern(self.kind)).findall

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, never a control id. Raises UserError on a lone surrogate."""
        return [id for (id,) in struct.iter_unpack(self.id_format, self.encode_packed(text))]

    def encode_packed(self, text: str) -> bytes:
        """The ids of `encode` as a shard holds them: each in the struct format `id_format`."""
        if self.kind == "bytes":  # nothing is learned and nothing to look up: 50 times as fast
            ids, _ = codecs.charmap_decode(_utf8(text), "strict", _ID_OF_BYTE)
            return ids.encode("utf-16-le")
        findall, packed_piece = self._findall, self._packed_piece
        chunks = map(mark, _chunks(text)) if self.kind == "words" else _chunks(text)
        return b"".join([b"".join(map(packed_piece, findall(chunk))) for chunk in chunks])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; controls print nothing, bytes that are no UTF-8 U+FFFD."""
        text = b"".join(map(self._token_bytes.__getitem__, ids)).decode("utf-8", "replace")
        return restore(text) if self.kind == "words" else text

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for, a case marker as its marker; controls none."""
        return self._token_bytes[token_id]

    def token_text(self, token_id: int) -> str:
        r"""Return how one token reads: `<end>`, ` the`, `<upper>`, or `\xe3` where no UTF-8."""
        if token_id < len(CONTROLS):
            return CONTROLS[token_id]
        text = self._token_bytes[token_id].decode("utf-8", "backslashreplace")
        if self.kind == "words":
            return {UPPER: "<upper>", SHOUT: "<shout>"}.get(text, text)
        return text

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`, whole or not at all."""
        write_atomically(path, self._saved)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read what `save` wrote. Raises UserError where it is missing, damaged or not ours."""
        fix = "Put back the one its model was trained with, or train both anew: ys train clean all"
        try:
            return cls(path.read_bytes().decode("utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}", fix) from error
        except Exception as error:  # the library raises the plain class
            raise UserError(f"{path} is not a tokenizer of ys: {error}", fix) from error


class StreamDecoder:
    """Decodes token by token: what `push` and `flush` return, joined, is `decode` of all ids.

    The bytes of a character may come in several tokens, and a case marker waits for its word.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._restorer = Restorer() if tokenizer.kind == "words" else None

    def push(self, token_id: int) -> str:
        """Return the text that this token completes, often all of it, sometimes none."""
        text = self._utf8.decode(self._tokenizer.token_bytes(token_id))
        return self._restorer.push(text) if self._restorer else text

    def flush(self) -> str:
        """Return what is still held; the text ends here."""
        text = self._utf8.decode(b"", final=True)
        return self._restorer.push(text) + self._restorer.flush() if self._restorer else text


def train_tokenizer(texts: Sequence[str], *, kind: Kind, vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of at most `vocab_size` tokens; the order of the texts does not matter.

    Nothing that occurs once is learned, characters aside. Raises UserError where `vocab_size` has
    no room for the controls and the bytes.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise UserError(
            f"tokenizer.vocab_size is {vocab_size}, but the {len(CONTROLS)} controls and the 256 "
            f"bytes alone are {SMALLEST_VOCAB} tokens",
            f"Try --set tokenizer.vocab_size={SMALLEST_VOCAB}, or more.",
            exit_code=EXIT_USAGE,
        )
    if kind == "words":
        library = _train_words(texts, vocab_size)
    elif kind == "bpe":
        library = _train_bpe(_all_chunks(texts), kind, vocab_size)
    else:
        learned = _frequent_chars(texts, vocab_size - SMALLEST_VOCAB) if kind == "chars" else []
        library = _assemble(kind, learned)
    return Tokenizer(library.to_str())


def id_format(vocab_size: int) -> str:
    """The struct format of an id, the smallest that holds any of such a vocabulary."""
    return "<H" if vocab_size <= 1 << 16 else "<I"


class _PackedPieces(dict[str, bytes]):
    """The ids of each piece met so far: looking one up costs a hundredth of encoding it."""

    def __init__(self, library: tokenizers.Tokenizer, kind: Kind, id_format: str) -> None:
        super().__init__()
        self._tokenize = library.model.tokenize  # half the price of a whole `encode`
        self._spelled = _utf8_text if kind == "chars" else _byte_level
        self._pack = struct.Struct(id_format).pack

    def __missing__(self, piece: str) -> bytes:
        if len(piece) > _LONGEST_PIECE:
            return b"".join(map(self.__getitem__, _parts(piece)))
        packed = b"".join(self._pack(token.id) for token in self._tokenize(self._spelled(piece)))
        if len(piece) <= _CACHED_PIECE_CHARS and len(self) < _CACHED_PIECES:
            self[piece] = packed
        return packed


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise UserError(
            f"{around!r} holds half of a character (a lone surrogate)",
            "Give text that can be written as UTF-8.",
        ) from error


def _utf8_text(text: str) -> str:
    _utf8(text)
    return text


def _chunks(text: str) -> Iterator[str]:
    """Cut a long text where a piece ends in any case, so that its pieces stay the same."""
    start = 0
    while len(text) - start > _CHUNK_CHARS:
        cut = _CUT.search(text, start + _CHUNK_CHARS)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _parts(piece: str) -> list[str]:
    starts = range(0, len(piece), _LONGEST_PIECE)
    return [piece[start : start + _LONGEST_PIECE] for start in starts]


def _without_long_pieces(chunks: Iterable[str], kind: Kind) -> Iterator[str]:
    """The chunks to learn from; where a piece is longer than it may be, cut into pieces."""
    findall = re.compile(_piece_pattern(kind)).findall
    for chunk in chunks:
        if _MAYBE_LONG.search(chunk):
            yield from chain.from_iterable(map(_parts, findall(chunk)))
        else:
            yield chunk


def _all_chunks(texts: Iterable[str]) -> Iterator[str]:
    return chain.from_iterable(map(_chunks, texts))


def _train_bpe(chunks: Iterable[str], kind: Kind, vocab_size: int) -> tokenizers.Tokenizer:
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
    return _assemble(kind, map("".join, merges), merges)


def _train_words(texts: Sequence[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Learn to spell first; then keep whole what the spelling still costs most tokens for."""
    n_spelling = int((vocab_size - SMALLEST_VOCAB) * _SPELLING_SHARE)
    spelling = _train_bpe(map(mark, _all_chunks(texts)), "words", SMALLEST_VOCAB + n_spelling)
    findall = re.compile(_MARKED_PATTERN).findall
    counts: Counter[str] = Counter()
    for chunk in _without_long_pieces(map(mark, _all_chunks(texts)), "words"):
        counts.update(findall(chunk))
    pieces = [piece for piece, count in counts.items() if count > 1]
    saved = {
        piece: counts[piece] * (len(encoding.ids) - 1)
        for piece, encoding in zip(pieces, spelling.encode_batch_fast(pieces), strict=True)
        if len(encoding.ids) > 1
    }
    ranked = sorted(saved, key=lambda piece: (-saved[piece], piece))
    kept = map(_byte_level, ranked[: vocab_size - spelling.get_vocab_size()])
    merges = _merges(spelling)
    return _assemble("words", chain(map("".join, merges), kept), merges)


def _merges(library: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(library.to_str())["model"]["merges"]]


def _frequent_chars(texts: Sequence[str], limit: int) -> list[str]:
    counts: Counter[str] = Counter()
    for chunk in _all_chunks(texts):
        counts.update(chunk)
    return sorted(sorted(counts, key=lambda char: (-counts[char], char))[:limit])


def _assemble(
    kind: Kind, learned: Iterable[str], merges: list[tuple[str, str]] | None = None
) -> tokenizers.Tokenizer:
    # Two merges may make the same token, which then keeps its first id.
    tokens = dict.fromkeys(chain(CONTROLS, _byte_names(kind), learned))
    model = models.BPE(
        vocab={token: token_id for token_id, token in enumerate(tokens)},
        merges=merges or [],
        byte_fallback=kind == "chars",
        ignore_merges=kind == "words",  # a word kept whole is met before its spelling
    )
    library = tokenizers.Tokenizer(model)
    library.add_special_tokens(list(CONTROLS))
    library.pre_tokenizer = _pre_tokenizer(kind)
    if kind == "chars":
        library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        library.decoder = decoders.ByteLevel()
    return library


def _piece_pattern(kind: Kind) -> str:
    return _MARKED_PATTERN if kind == "words" else _PATTERN


def _pre_tokenizer(kind: Kind) -> pre_tokenizers.PreTokenizer:
    """Return the library's own form of the cutting, a different one for each kind."""
    split = pre_tokenizers.Split(tokenizers.Regex(_piece_pattern(kind)), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if kind == "chars":
        return split
    return byte_level if kind == "bytes" else pre_tokenizers.Sequence([split, byte_level])


def _kind_of(library: tokenizers.Tokenizer) -> Kind:
    """Read the kind off all but the vocabulary: the library refuses a field of our own.

    A normalizer, truncation or decoder that is not ours would change text without a word.
    """
    kinds: tuple[Kind, ...] = get_args(Kind)
    found = _without_vocabulary(library)
    for kind in kinds:
        if found == _without_vocabulary(_assemble(kind, [])):
            return kind
    raise ValueError("it cuts text in another way")


def _without_vocabulary(library: tokenizers.Tokenizer) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(library.to_str())
    parts["model"] = {**parts["model"], "vocab": None, "merges": None}
    return parts


def _byte_names(kind: Kind) -> list[str]:
    """Return how the library writes the tokens of the bytes."""
    return [f"<0x{byte:02X}>" for byte in range(256)] if kind == "chars" else _BYTE_CHARS


def _byte_level_alphabet() -> list[str]:
    """Return the printable character that the library writes for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    codes = {byte: byte for byte in printable}
    codes |= {byte: 0x100 + index for index, byte in enumerate(others)}
    return [chr(codes[byte]) for byte in range(256)]


_BYTE_CHARS = _byte_level_alphabet()
_BYTE_TABLE = "".join(_BYTE_CHARS)
_BYTE_OF_CHAR = {char: byte for byte, char in enumerate(_BYTE_CHARS)}


def _byte_level(piece: str) -> str:
    return codecs.charmap_decode(_utf8(piece), "strict", _BYTE_TABLE)[0]


def _token_bytes(library: tokenizers.Tokenizer, kind: Kind) -> list[bytes]:
    """Return the bytes of each id; refuse a vocabulary that is not laid out as ours."""
    vocab = library.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    first = [*CONTROLS, *_byte_names(kind)]
    if tokens[:SMALLEST_VOCAB] != first or max(vocab.values()) != len(tokens) - 1:
        raise ValueError("its ids do not begin with <end>, <start> and the bytes, or have gaps")
    learned = tokens[SMALLEST_VOCAB:]
    if kind == "chars":
        rest = [token.encode() for token in learned]
    else:
        rest = [bytes(_BYTE_OF_CHAR[char] for char in token) for token in learned]
    return [b"", b"", *(bytes([byte]) for byte in range(256)), *rest]
