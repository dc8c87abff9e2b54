"""What a file that is not UTF-8 contains, and what to do about it.

The first bytes name a format (gzip, PDF, Word). For text, each candidate encoding is tried and its
result compared with the letters that a language really uses: an encoding is proposed only where one
candidate gives readable text and no other does. A wrong proposal would destroy the text silently.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SIGNATURE_BYTES = 4096  # of a file's beginning; the names inside a zip are within it

_CONVERT = "Extract its text into a .txt file, or leave it out."
_UNPACK = "Unpack it, or leave it out."
_REMOVE = "Leave it out: only text is read."
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a gzip archive", "Unpack it (gunzip), or leave it out."),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\0", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"%PDF-", "a PDF document", "Extract its text (pdftotext), or leave it out."),
    (b"\xd0\xcf\x11\xe0", "an old Microsoft Office document", "Save it as plain text (UTF-8)."),
    (b"\x89PNG", "a PNG image", _REMOVE),
    (b"\xff\xd8\xff", "a JPEG image", _REMOVE),
    (b"GIF8", "a GIF image", _REMOVE),
    (b"SQLite format 3\0", "an SQLite database", _CONVERT),
    (b"PAR1", "a Parquet table", _CONVERT),
    (b"\x7fELF", "a program", _REMOVE),
    (b"MZ", "a program", _REMOVE),
    (b"ID3", "an MP3 recording", _REMOVE),
    (b"\xff\xfb", "an MP3 recording", _REMOVE),
    (b"fLaC", "a FLAC recording", _REMOVE),
    (b"OggS", "an Ogg recording", _REMOVE),
    (b"RIFF", "a recording, an image or a film", _REMOVE),
    (b"\x93NUMPY", "a NumPy array", _REMOVE),
    (b"{\\rtf", "an RTF document", "Save it as plain text (UTF-8)."),
)
_TAR = b"ustar"  # at _TAR_AT
_TAR_AT = 257
_ZIPS = (
    (b"word/", "a Word document", "Save it as plain text (UTF-8)."),
    (b"opendocument.text", "an OpenDocument text", "Save it as plain text (UTF-8)."),
    (b"epub+zip", "an EPUB book", _CONVERT),
    (b"xl/", "an Excel workbook", _CONVERT),
    (b"ppt/", "a PowerPoint presentation", _CONVERT),
    (b"", "a zip archive", _UNPACK),
)
_MARKS = (  # the mark of UTF-32LE begins with that of UTF-16LE
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)

_PUNCTUATION = frozenset("“”‘’„‚«»‹›–—‑…•·°§©®™€£¡¿ªº№\xa0，。、；：？！（）《》「」『』【】　・～")
_INSIDE_WORDS = frozenset("’‘‑–—·\xa0")  # punctuation that stands between two letters
_FEWEST_LETTERS = 4  # of a script other than Latin, to be sure of it
_FEWEST_RARE_LETTERS = 2  # with accents, to be sure of an encoding that is rare today
_FEWEST_PLAIN_LETTERS = 3  # beside those with accents
_OPENING = "„‚"
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_AFTER_SMALL_OR_SINGLE = re.compile(
    r"(?<=[a-z])[^\x00-\x7f]|(?<=[A-Z])[^\x00-\x7f](?=[a-z])|(?<=\b[A-Z])[^\x00-\x7f](?!\w)"
)
_DASH_AFTER_LETTER = re.compile("(?<=[A-Za-z])[–—]")
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_SYMBOLS = re.compile("[¢¤¥¦¨¬¯±´¸×÷ˆ˘-˝∙√∞∫≈≠≤≥⌐-◿]")
_MOST_SYMBOLS = 0.1  # of the characters beyond ASCII
_MOST_MIXED = 0.2  # borders with Latin letters, for each letter of another script


_MULTIBYTE = ("GB18030", "BIG5", "CP932", "EUC-JP", "CP949", "UTF-16LE", "UTF-16BE")


@dataclass(frozen=True)
class _Language:
    """Its letters beyond ASCII; in a text, at least the share `least` of such letters are these."""

    letters: frozenset[str]
    least: float
    latin: bool = False


@dataclass(frozen=True)
class _Encoding:
    name: str  # as `iconv -f` takes it
    label: str
    languages: Sequence[_Language]
    codec: str = ""

    @property
    def is_multibyte(self) -> bool:
        """Return whether the end of a sample may be part of a character."""
        return self.name in _MULTIBYTE


def _latin(letters: str) -> _Language:
    return _Language(frozenset(letters + letters.upper()), 1.0, latin=True)


_WESTERN = tuple(
    map(
        _latin,
        (
            "",  # English: quotation marks and dashes alone
            "àâæçéèêëîïôœùûüÿ",
            "äöüß",
            "áéíñóúü",
            "ãáàâçéêíõóôú",
            "àèéìîòù",
            "åäöæøé",
            "ðþæöáéíóúý",
            "éèëïöüó",
        ),
    )
)
_CENTRAL = tuple(
    map(
        _latin,
        (
            "ąćęłńóśźż",
            "áčďéěíňóřšťúůýž",
            "áäčďéíľňóôšťúýž",
            "áéíóöőúüű",
            "čćđšž",
            "ăâîșțşţ",
        ),
    )
)
_TURKISH = (_latin("çğıöşüâîİ"),)
_BALTIC = tuple(map(_latin, ("ąčęėįšųūž", "āčēģīķļņšūž", "äõöüšž")))
_CYRILLIC = (_Language(frozenset("оеаинтсрвлкмдпуяыьгі"), 0.6),)
_GREEK = (_Language(frozenset("αοιετσνηυρπκμλωςάόέίή"), 0.7),)
_HEBREW = (_Language(frozenset("יוהלאתבמרשנ"), 0.5),)
_ARABIC = (_Language(frozenset("الينمروتبهسعدف"), 0.5),)
_THAI = (_Language(frozenset("นรากอเงมยลวดทส่้ี"), 0.5),)
_KANA = frozenset(map(chr, (*range(0x3041, 0x3097), *range(0x30A1, 0x30FB), 0x30FC)))
_JAPANESE = (_Language(_KANA, 0.3),)
_KOREAN = (
    _Language(
        frozenset("이다는을의에가고하지로기도사리은인서한어나를시대자라그해있아수부일들"),
        0.25,
    ),
)
_SIMPLIFIED = (
    _Language(
        frozenset(
            "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过"
            "发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她"
        ),
        0.25,
    ),
)
_TRADITIONAL = (
    _Language(
        frozenset(
            "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過"
            "發後作裡用道行所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心她"
        ),
        0.25,
    ),
)
_WIDE = (*_SIMPLIFIED, *_TRADITIONAL, *_JAPANESE, *_KOREAN, *_CYRILLIC, *_GREEK)

_CANDIDATES = (
    _Encoding("CP1252", "Windows-1252", _WESTERN),
    _Encoding("GB18030", "GB18030", _SIMPLIFIED),
    _Encoding("BIG5", "Big5", _TRADITIONAL),
    _Encoding("CP932", "Shift-JIS", _JAPANESE),
    _Encoding("EUC-JP", "EUC-JP", _JAPANESE),
    _Encoding("CP949", "EUC-KR", _KOREAN),
    _Encoding("CP1251", "Windows-1251", _CYRILLIC),
    _Encoding("KOI8-R", "KOI8-R", _CYRILLIC),
    _Encoding("CP866", "DOS code page 866", _CYRILLIC),
    _Encoding("CP1250", "Windows-1250", _CENTRAL),
    _Encoding("ISO-8859-2", "ISO-8859-2", _CENTRAL),
    _Encoding("CP1253", "Windows-1253", _GREEK),
    _Encoding("CP1254", "Windows-1254", _TURKISH),
    _Encoding("CP1257", "Windows-1257", _BALTIC),
    _Encoding("CP1255", "Windows-1255", _HEBREW),
    _Encoding("CP1256", "Windows-1256", _ARABIC),
    _Encoding("CP874", "TIS-620", _THAI),
    _Encoding("UTF-16LE", "UTF-16 without its mark", _WIDE),
    _Encoding("UTF-16BE", "UTF-16 without its mark", _WIDE),
)
_RARE = (  # tried only where nothing else fits: é of Windows-1252 is È here
    _Encoding("CP850", "DOS code page 850", _WESTERN),
    _Encoding("MACINTOSH", "Mac Roman", _WESTERN, codec="mac_roman"),
)
_ALWAYS_LIKELY = ("Windows-1252", "GB18030", "Shift-JIS", "Windows-1251")


def file_format(head: bytes) -> tuple[str, str] | None:
    """Name a binary format by the first bytes of a file, and say what to do with it."""
    if head.startswith(b"PK\x03\x04"):
        return next((what, advice) for inside, what, advice in _ZIPS if inside in head)
    for signature, what, advice in _SIGNATURES:
        if head.startswith(signature):
            return what, advice
    return ("a tar archive", _UNPACK) if head[_TAR_AT:].startswith(_TAR) else None


def encoding_advice(head: bytes, sample: bytes, *, name: str) -> str:
    """Say what to type for a file that is not UTF-8.

    `head` is its beginning, `sample` some lines from the first bad byte on, `name` what to call the
    file in a shell.
    """
    if marked := next((found for mark, found in _MARKS if head.startswith(mark)), ""):
        return _convert(marked, marked, name)
    if zeros := _utf16_by_zeros(head):
        return _convert(zeros, "UTF-16 without its mark", name)
    if _is_binary(head) or _is_binary(sample):
        return "This does not look like text: leave it out."
    if _is_damaged_utf8(head + sample):
        return (
            "It is UTF-8 with some broken bytes. To drop those, type: "
            f"iconv -c -f UTF-8 -t UTF-8 {name} > NEW"
        )
    if certain := certain_encoding(head, sample):
        return _convert(certain.name, certain.label, name)
    return (
        f"It could be {_listed(likely_encodings(sample))}. Open it in an editor that shows it "
        "right, and save it as UTF-8; if it is not text, leave it out."
    )


def certain_encoding(head: bytes, sample: bytes) -> _Encoding | None:
    """Return the one encoding that makes readable text of the sample, or None if not just one.

    Text too short to be sure of in one encoding is reason enough not to be sure of another.
    """
    found = _readable(_CANDIDATES, head, sample) or _readable(_RARE, head, sample)
    if len(set(found.values())) != 1:  # encodings that agree on every character are one
        return None
    encoding, text = next(iter(found.items()))
    n_letters = _letters(text)
    if not encoding.languages[0].latin:
        return encoding if n_letters >= _FEWEST_LETTERS else None
    if encoding in _RARE:
        return encoding if n_letters >= _FEWEST_RARE_LETTERS else None
    is_usual = encoding is _CANDIDATES[0] or n_letters > _FEWEST_RARE_LETTERS
    return encoding if is_usual or not _readable(_RARE, head, sample) else None


def _readable(candidates: Sequence[_Encoding], head: bytes, sample: bytes) -> dict[_Encoding, str]:
    """Return the text that the sample is in each encoding, where it is readable."""
    return {
        encoding: text
        for encoding in candidates
        for text in _decoded(encoding, head if encoding.name.startswith("UTF-16") else sample)
        if any(_is_written_in(text, language) for language in encoding.languages)
    }


def likely_encodings(sample: bytes) -> list[str]:
    """Return the labels of up to three encodings that the bytes are valid in, the best first."""
    shares = {
        encoding.label: max(_share(text, language) for language in encoding.languages)
        for encoding in _CANDIDATES[:-2]
        for text in _decoded(encoding, sample)
    }
    ranked = sorted((label for label in shares if shares[label] > 0), key=lambda x: -shares[x])
    return list(dict.fromkeys([*ranked, *(x for x in _ALWAYS_LIKELY if x in shares)]))[:3]


def _convert(encoding: str, label: str, name: str) -> str:
    return (
        f"It looks like {label}. Type: iconv -f {encoding} -t UTF-8 {name} > NEW; "
        "if it is not text, leave it out."
    )


def _listed(labels: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(labels[:-1]), *labels[-1:]))) or "any old encoding"


def _utf16_by_zeros(head: bytes) -> str:
    """Recognise UTF-16 by its zero bytes: every second one of Latin letters, spaces, line ends."""
    pairs = len(head) // 2
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if pairs and max(even, odd) > 0.2 * pairs and min(even, odd) < 0.02 * pairs:
        return "UTF-16LE" if odd > even else "UTF-16BE"
    return ""


def _is_binary(data: bytes) -> bool:
    controls = sum(data.count(byte) for byte in (*range(9), *range(14, 32), 127))
    return controls > 0.02 * len(data) and not any(_decoded_wide(data))


def _decoded_wide(data: bytes) -> Iterator[bool]:
    """Whether this is UTF-16 of a script whose letters hold bytes that look like controls."""
    for encoding in _CANDIDATES[-2:]:
        for text in _decoded(encoding, data):
            yield any(_is_written_in(text, language) for language in encoding.languages)


def _is_damaged_utf8(data: bytes) -> bool:
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    intact = sum(char > "\x7f" for char in text) - broken
    return intact > 3 * broken


def _decoded(encoding: _Encoding, sample: bytes) -> Iterator[str]:
    """Yield the sample in this encoding, cut where a last character of several bytes may be."""
    for cut in range(4 if encoding.is_multibyte else 1):
        try:
            yield sample[: len(sample) - cut].decode(encoding.codec or encoding.name)
        except UnicodeDecodeError:
            continue
        return


def _is_written_in(text: str, language: _Language) -> bool:
    return (
        _share(text, language) >= language.least
        and _punctuation_is_plausible(text)
        and (_fits_latin(text) if language.latin else _fits_other(text))
    )


def _share(text: str, language: _Language) -> float:
    """Return the share of letters beyond ASCII that are this language's."""
    letters = [char for char in text if char > "\x7f" and char not in _PUNCTUATION]
    if not letters:  # English; of dashes that touch a word, each is a letter in Mac Roman
        marks = _DASH_AFTER_LETTER.sub("", text)
        return float(language.latin and not language.letters and not marks.isascii())
    return sum(char in language.letters for char in letters) / len(letters)


def _punctuation_is_plausible(text: str) -> bool:
    """Return whether there are few symbols, and no quotation mark inside a word.

    `d‚j` is `déj` in a DOS encoding.
    """
    if len(_SYMBOLS.findall(text)) > _MOST_SYMBOLS * len(_BEYOND_ASCII.findall(text)):
        return False
    if _CONTROLS.search(text) or re.search(rf"(?<=[\w'’])[{_OPENING}]", text):
        return False
    marks = re.finditer(r"(?<=[A-Za-z])[^\x00-\x7f](?=[A-Za-z])", text)
    return not any(m[0] in _PUNCTUATION and m[0] not in _INSIDE_WORDS for m in marks)


def _fits_latin(text: str) -> bool:
    """Return whether letters with accents stand among plain ones, and capitals begin words."""
    accented = _letters(text)
    among = len(re.findall(r"(?:(?<=[A-Za-z])|(?=.[A-Za-z]))[^\x00-\x7f]", text))
    inside = _AFTER_SMALL_OR_SINGLE.finditer(text)
    plain = sum(char.isalpha() for char in text if char <= "\x7f")
    return (
        plain >= _FEWEST_PLAIN_LETTERS
        and among >= 0.5 * accented
        and not any(m[0].isupper() for m in inside)
    )


def _fits_other(text: str) -> bool:
    """Return whether words mix with no Latin ones."""
    letters = _letters(text)
    mixed = len(re.findall(r"[A-Za-z](?=[^\x00-\x7f])|[^\x00-\x7f](?=[A-Za-z])", text))
    return letters > 0 and mixed <= _MOST_MIXED * letters


def _letters(text: str) -> int:
    """Count the letters beyond ASCII."""
    return sum(char.isalpha() for char in text if char > "\x7f")
