"""A file that is not UTF-8 gets advice that fits, or a list of what it could be; never a guess."""

import gzip
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from ys_llm.data.encodings import encoding_advice
from ys_llm.data.readers import read_documents
from ys_llm.errors import UserError

TEXTS = {
    "Chinese": "他们在村子里住了很多年，每天早上都去河边打水。老人说，河水从山上来，山上有雪。",
    "Taiwanese": "他們在村子裡住了很多年，每天早上都去河邊打水。老人說，河水從山上來。",
    "Japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "Korean": "옛날 옛적에 산골 마을에 한 나무꾼이 살고 있었습니다. 그는 매일 산에 갔습니다.",
    "French": "Il était une fois, à Genève — “ça va”, dit l’élève très âgé.",
    "German": "Die Straße führte über die Brücke. Schöne Grüße aus München!",
    "Spanish": "El niño comió paella en la montaña. ¿Qué pasó después?",
    "English": "He said “no” and left — it’s over…",
    "Russian": "Жили-были старик со старухой у самого синего моря тридцать лет и три года.",
    "Greek": "Μια φορά κι έναν καιρό ήταν ένας γέρος που ζούσε κοντά στη θάλασσα.",
    "Polish": "Był sobie dziad i baba, bardzo starzy oboje, a w lesie śpiewały ptaki.",
    "Czech": "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Turkish": "Şemsi Paşa pasajında sesi büzüşesiceler, ığdır.",
    "Hebrew": "בראשית ברא אלוהים את השמים ואת הארץ",
}
CERTAIN = [
    ("Chinese", "gb18030", "GB18030"),
    ("Chinese", "gbk", "GB18030"),
    ("Taiwanese", "big5", "BIG5"),
    ("Japanese", "shift_jis", "CP932"),
    ("Japanese", "euc_jp", "EUC-JP"),
    ("Korean", "euc_kr", "CP949"),
    ("French", "cp1252", "CP1252"),
    ("German", "latin1", "CP1252"),
    ("Spanish", "cp1252", "CP1252"),
    ("English", "cp1252", "CP1252"),
    ("French", "mac_roman", "MACINTOSH"),
    ("German", "cp850", "CP850"),
    ("Russian", "cp1251", "CP1251"),
    ("Russian", "koi8_r", "KOI8-R"),
    ("Russian", "cp866", "CP866"),
    ("Greek", "cp1253", "CP1253"),
    ("Polish", "cp1250", "CP1250"),
    ("Polish", "iso8859_2", "ISO-8859-2"),
    ("Czech", "cp1250", "CP1250"),
    ("Turkish", "cp1254", "CP1254"),
    ("Hebrew", "cp1255", "CP1255"),
    ("Chinese", "utf_16_le", "UTF-16LE"),
    ("Japanese", "utf_16_be", "UTF-16BE"),
    ("French", "utf_16_le", "UTF-16LE"),
    ("Russian", "utf_16", "UTF-16"),
    ("German", "utf_32", "UTF-32"),
]


def refusal(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        read_documents(path)
    return caught.value


def proposed(error: UserError) -> str:
    found = re.search(r"iconv -f (\S+)", error.fix)
    return found[1] if found else ""


@pytest.mark.parametrize(("language", "codec", "iconv"), CERTAIN)
@pytest.mark.parametrize("n_lines", [1, 400])
def test_an_encoding_that_is_certain_is_proposed(
    tmp_path: Path, language: str, codec: str, iconv: str, n_lines: int
) -> None:
    path = tmp_path / "a.txt"
    encodable = TEXTS[language].encode(codec, "ignore").decode(codec)
    path.write_bytes("\n".join([encodable] * n_lines).encode(codec))
    assert proposed(refusal(path)) == iconv


SENTENCES: dict[str, list[str]] = {
    "gbk": ["春天来了，河边的柳树发了芽。", "他说：“明天我们一起去学校吧。”", "老人坐在门口。"],
    "big5": ["這本書講的是一個小女孩和她的狗。"],
    "shift_jis": ["春になると、川のそばの木に花が咲いた。", "カメラとノート"],
    "euc_jp": ["春になると、川のそばの木に花が咲いた。", "カメラとノートを買いました。"],
    "euc_kr": ["봄이 오자 강가의 나무에 꽃이 피었다."],
    "cp1251": ["Весной у реки расцвели деревья.", "Мы пойдём завтра.", "Она купила хлеб и молоко."],
    "koi8_r": ["Весной у реки расцвели деревья."],
    "cp866": ["Весной у реки расцвели деревья."],
    "cp1252": [
        "L’été dernier, nous sommes allés à la mer.",
        "Das Mädchen hörte die Vögel früh am Morgen.",
        "¿Dónde está el niño? Mañana vendrá.",
        "Perché non è venuto? È già partito.",
        "“Don’t go,” she said — but he had left.",
        "Flickan såg en älg på vägen.",
    ],
    "cp1250": ["Dziewczynka znalazła żółty kwiat.", "Děti šly do školy přes most."],
    "cp1254": ["Küçük kız ağaçların altında oturdu."],
    "cp1256": ["في الربيع أزهرت الأشجار بجانب النهر"],
    "cp850": ["L'été dernier, nous sommes allés à la mer.", "El niño comió después."],
    "mac_roman": ["Das Mädchen hörte die Vögel früh am Morgen.", "El niño comió después."],
    "utf_16_le": ["Весной у реки расцвели деревья.", "A spring day", "他们来了"],
    "utf_16_be": ["春になると、川のそばの木に花が咲いた。", "A spring day"],
    "utf_16": ["A", "Весной"],
}  # fmt: skip


@pytest.mark.parametrize("codec", SENTENCES)
def test_of_a_text_that_is_cut_anywhere_no_wrong_encoding_is_proposed(codec: str) -> None:
    """A text too short to be sure of gives a list of what it could be, without a command."""
    for sentence in SENTENCES[codec]:
        for end in range(1, len(sentence) + 1):
            text = sentence[:end]
            data = text.encode(codec)
            if "\0" not in data.decode("latin1") and data.isascii():
                continue
            advice = encoding_advice(data, data, name="a.txt")
            found = re.search(r"iconv -f (\S+) -t UTF-8 a\.txt", advice)
            if found:
                read_as = {"MACINTOSH": "mac_roman"}.get(found[1], found[1])
                assert data.decode(read_as) == text
            else:
                assert advice.startswith("It could be ") and end < len(sentence), advice


@pytest.mark.skipif(not shutil.which("iconv"), reason="there is no iconv")
@pytest.mark.parametrize(("language", "codec", "iconv"), CERTAIN)
def test_the_command_that_is_proposed_gives_the_text_back(
    tmp_path: Path, language: str, codec: str, iconv: str
) -> None:
    path = tmp_path / "a file.txt"
    text = TEXTS[language].encode(codec, "ignore").decode(codec)
    path.write_bytes(text.encode(codec))
    command = re.search(r"iconv .* > ", refusal(path).fix)
    assert command
    subprocess.run(f"{command[0]} new.txt", shell=True, check=True, cwd=tmp_path, timeout=60)
    assert (tmp_path / "new.txt").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "data",
    [
        "Ein Wort: größer, wie auf Polnisch żółw".encode("cp1250", "replace") + b"\xff\xfe\x81",
        bytes(range(0x80, 0x100)) * 3,
        "他".encode("gbk"),
    ],
)
def test_what_is_not_certain_is_a_list_and_no_command(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    error = refusal(path)
    assert "iconv" not in error.fix
    assert error.fix.startswith("It could be ")
    assert "save it as UTF-8" in error.fix


def test_damaged_utf8_is_not_taken_for_an_old_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(("Жили-были старик со старухой.\n" * 50).encode()[:-7] + b"\xd0 end")
    error = refusal(path)
    assert error.fix.startswith("It is UTF-8 with some broken bytes. To drop those, type: iconv -c")


def a_word_document(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", "<document/>")


@pytest.mark.parametrize(
    ("data", "what", "advice"),
    [
        (gzip.compress(b"text", mtime=0), "a gzip archive", "gunzip"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "a PDF document", "pdftotext"),
        (b"\x89PNG\r\n\x1a\n\0\0", "a PNG image", "Leave it out"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image", "Leave it out"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Microsoft Office document", "plain text"),
        (b"\x7fELF\x02\x01\x01\0", "a program", "Leave it out"),
        (b"ID3\x03\0\0\0\0\0\0", "an MP3 recording", "Leave it out"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "a recording, an image or a film", "Leave it out"),
        (b"\x93NUMPY\x01\0v\0", "a NumPy array", "Leave it out"),
        (bytes(257) + b"ustar\x0000", "a tar archive", "Unpack it"),
        (None, "a Word document", "plain text"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.dat"])
def test_a_binary_format_is_known_by_its_first_bytes(
    tmp_path: Path, data: bytes | None, what: str, advice: str, name: str
) -> None:
    path = tmp_path / name
    if data is None:
        a_word_document(path)
    else:
        path.write_bytes(data)
    error = refusal(path)
    assert error.problem.startswith(f"{path} is {what}; expected ")
    assert advice in error.fix and "iconv" not in error.fix
