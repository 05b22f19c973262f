# ruff: noqa: RUF001
"""Finds out how the bytes of a text file stand for characters.

A byte order mark decides; then zero bytes, which only UTF-16 has at every other place; then UTF-8, which text in
another encoding does not resemble. What is left is a guess: each encoding that can decode the bytes is judged by the
text that it makes, and the guess is shown to the user with that text. charset-normalizer 3.5.3 was tried instead: it
read 7 of 13 short tables, with 69 kB of code.

    >>> guess_encoding("姓名,年龄\\n张三,36\\n".encode("gb18030"))
    Guess(name='gb18030', mark=0, is_certain=False)
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass

#: The encodings that can be read: the usual name of each, by the name of Python's codec.
ENCODINGS = {
    "utf-8": "utf-8",
    "utf-16-le": "utf-16-le",
    "utf-16-be": "utf-16-be",
    "cp1252": "windows-1252",
    "iso8859-1": "iso-8859-1",
    "iso8859-15": "iso-8859-15",
    "cp1250": "windows-1250",
    "cp1251": "windows-1251",
    "cp1253": "windows-1253",
    "cp1254": "windows-1254",
    "cp1255": "windows-1255",
    "cp1256": "windows-1256",
    "cp1257": "windows-1257",
    "mac-roman": "macintosh",
    "cp850": "ibm850",
    "koi8-r": "koi8-r",
    "gb18030": "gb18030",
    "big5": "big5",
    "cp932": "shift_jis",
    "euc_jp": "euc-jp",
    "cp949": "euc-kr",
}
_CODECS = {usual: codec for codec, usual in ENCODINGS.items()}
_ALIASES = {
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "gbk": "gb18030",
    "gb2312": "gb18030",
    "cp950": "big5",
    "utf-16": "utf-16-le",
    "ascii": "utf-8",
    "utf-8-sig": "utf-8",
}
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_SAMPLE = 64 * 1024
#: What a guess must at least be worth; text in UTF-8 with a few bad bytes is worth less in every other encoding.
_LEAST_WORTH = 0.3


@dataclass(frozen=True)
class Guess:
    """An encoding by its usual name, how many bytes its byte order mark has, and whether there is no other choice."""

    name: str
    mark: int
    is_certain: bool


def codec_of(name: str) -> str:
    """Returns Python's name for one of the usual names."""
    return _CODECS[name]


def usual_name(name: str) -> str | None:
    """Returns the usual name of an encoding that can be read, whatever its spelling, or None for any other."""
    if name in _CODECS:
        return name
    try:
        codec = codecs.lookup(str(name)).name
    except (LookupError, ValueError):
        return None
    return ENCODINGS.get(_ALIASES.get(codec, codec))


def unit(name: str) -> int:
    """Returns how many bytes a line feed has."""
    return 2 if name.startswith("utf-16") else 1


def byte_order_mark(head: bytes) -> Guess | None:
    """Returns what the byte order mark says, if there is one. Some programs write it twice."""
    for mark, name in _MARKS:
        count = 0
        while head.startswith(mark, count * len(mark)):
            count += 1
        if count:
            return Guess(name, count * len(mark), True)
    return None


def guess_encoding(head: bytes, sample: bytes = b"") -> Guess:
    """Returns the encoding of a text that begins with `head`; `sample` has more lines of it that are not all ASCII."""
    marked = byte_order_mark(head)
    if marked:
        return marked
    wide = _guess_wide(head)
    if wide:
        return Guess(wide, 0, False)
    lines = [line for line in (head + b"\n" + sample).splitlines() if not line.isascii()]
    in_utf8 = sum(_decodes(line, "utf-8") for line in lines)
    if in_utf8 * 2 >= len(lines):
        return Guess("utf-8", 0, in_utf8 == len(lines))
    best, worth = "utf-8", _LEAST_WORTH
    text = b"\n".join(lines)
    text = text if len(text) <= _SAMPLE else text[: text.rfind(b"\n", 0, _SAMPLE)]
    for codec, judge, bonus in _JUDGES:
        if _decodes(text, codec):
            judged = judge(text.decode(codec)) + bonus
            if judged > worth:
                best, worth = ENCODINGS[codec], judged
    return Guess(best, 0, False)


def _decodes(data: bytes, codec: str) -> bool:
    try:
        data.decode(codec)
    except UnicodeDecodeError:
        return False
    return True


def _guess_wide(head: bytes) -> str | None:
    """Returns utf-16-le or utf-16-be when zero bytes say so. One zero byte in another encoding says nothing."""
    head = head[: _SAMPLE // 2 * 2]
    zeros = head.count(0)
    if len(head) < 4 or len(head) % 2 or zeros * 50 < len(head):
        return None
    even = head[::2].count(0)
    name = "utf-16-le" if even * 20 <= zeros else "utf-16-be" if even * 20 >= zeros * 19 else None
    if name is None or not _decodes(head[:-2], name):
        return None
    is_other_text = _decodes(head, "utf-8") and not re.search(rb"[\1-\x08\x0e-\x1f]", head)
    return None if is_other_text and zeros * 10 < len(head) else name


# --- What the text is worth -------------------------------------------------------------------------------------------

#: The letters beyond a to z of languages that share an alphabet; a text in a wrong encoding mixes those of several.
_ALPHABETS = [
    frozenset(letters + letters.upper())
    for letters in (
        "äöüßé",
        "éèêëàâçîïôûùœæÿü",
        "áéíóúñü",
        "ãõáéíóúâêôçàü",
        "åäöæøéðþáíóúý",
        "àèéìòùî",
        "ëïéöüèêç",
        "ąćęłńóśźż",
        "áčďéěíňóřšťúůýž",
        "áäčďéíĺľňóôŕšťúýž",
        "áéíóöőúüű",
        "ăâîșțşţ",
        "čćđšž",
        "çğıİöşüâîû",
        "ąčęėįšųūž",
        "āčēģīķļņšūž",
        "äöõüšž",
        "абвгдеёжзийклмнопрстуфхцчшщъыьэюя",
        "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя",
        "абвгдђежзијклљмнњопрстћуфхцчџш",
        "αβγδεζηθικλμνξοπρστυφχψωςάέήίόύώϊϋΐΰ",
        "אבגדהוזחטיךכלםמןנסעףפץצקרשת",
        "ءآأؤإئابةتثجحخدذرزسشصضطظعغـفقكلمنهوىيپچژگ",
    )
]
_MARKS_IN_TEXT = frozenset("°€£§©®™–—…‘’“”«»¿¡ºª²³µ·×÷\xa0½¼¾±")


_FINAL = frozenset("ςךםןףץ")
_FREQUENT = frozenset("оеаинтсрвлαοιετσνηυρςיוהלאמاليمةئئéäöüáíóèàçñåøãčšžąęłışğėū")


def _judge_letters(text: str) -> float:
    """Returns up to about 1 for a text whose letters belong to one language and whose capitals begin words."""
    found = [(before, char, after) for before, char, after in _neighbours(text) if char > "\x7f"]
    letters = [char for _, char, _ in found if char.isalpha()]
    alphabet = max((sum(char in letters_of for char in letters) for letters_of in _ALPHABETS), default=0)
    frequent = sum(char.lower() in _FREQUENT for char in letters)
    wrong = sum(_is_wrong(*one) for one in found)
    marks = sum(char in _MARKS_IN_TEXT for _, char, _ in found)
    return (0.8 * alphabet + 0.2 * frequent + 0.8 * marks - wrong) / len(found) if found else 0.0


def _neighbours(text: str) -> zip:
    return zip(" " + text, text, text[1:] + " ", strict=False)


def _is_wrong(before: str, char: str, after: str) -> bool:
    """Tells of a character that no word has in this place."""
    if not char.isalpha():
        is_inside = before.isalpha() and after.isalpha()
        if char in "‘“«¿¡" and before.isalpha():
            return True
        return char not in _MARKS_IN_TEXT or (is_inside and char not in "’·\xa0–—")
    if char in "ьъыЬЪЫ" and not before.isalpha():
        return True
    if (char in _FINAL and after.isalpha()) or (char == "σ" and not after.isalpha()):
        return True
    neighbours = [other for other in (before, after) if other.isalpha()]
    if any((other < "Ͱ") != (char < "Ͱ") for other in neighbours) or not neighbours:
        return True
    if char.isupper():
        return before.islower() or (before.isupper() and after.islower())
    return after.isupper()


_COMMON_CHINESE = frozenset(
    "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能好都然没日"
    "于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进把法此实回二理美点"
    "月明其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相次东政海口使教西再平真听世气信北少关"
    "李王张刘陈杨赵黄周吴市省县区路号姓价格量产品日期龄别址编类单数金额總國這個們會時說來對後沒發長將現動實點話機間問電門東號價"
    "張劉陳楊趙黃吳縣區齡別產類單數額姓"
)
_HANGUL = ("가", "힣")
_KANA = ("\u3041", "\u30ff")


def _judge_east_asian(is_own: Callable[[str], float]) -> Callable[[str], float]:
    def judge(text: str) -> float:
        wide = [char for char in text if char > "\x7f"]
        return sum(map(is_own, wide)) / len(wide) if wide else 0.0

    return judge


def _lead(char: str, codec: str) -> int:
    try:
        data = char.encode(codec)
    except UnicodeEncodeError:
        return 0
    return data[0] if len(data) == 2 else 0


def _chinese(codec: str, first: int, last: int) -> Callable[[str], float]:
    def worth(char: str) -> float:
        if char in _COMMON_CHINESE:
            return 1.2
        if _KANA[0] <= char <= _KANA[1] or "\uff61" <= char <= "\uff9f":
            return -1.0
        lead = _lead(char, codec)
        return 0.8 if first <= lead <= last else 0.6 if 0xA1 <= lead <= 0xA3 else -0.3

    return worth


def _japanese(codec: str, first: int, last: int) -> Callable[[str], float]:
    def worth(char: str) -> float:
        if _KANA[0] <= char <= _KANA[1]:
            return 1.2
        if "\uff61" <= char <= "\uff9f":
            return 0.0
        lead = _lead(char, codec)
        return 0.75 if first <= lead <= last else 0.5 if 0x81 <= lead <= 0x82 or 0xA1 <= lead <= 0xA3 else -0.3

    return worth


def _korean(char: str) -> float:
    if _HANGUL[0] <= char <= _HANGUL[1]:
        return 0.95 if 0xB0 <= _lead(char, "euc_kr") <= 0xC8 else -0.5
    return 0.0


#: Codec, judge, and what the encoding is worth for being common. The first of two equal ones is taken.
_JUDGES: list[tuple[str, Callable[[str], float], float]] = [
    ("cp1252", _judge_letters, 0.05),
    ("cp1250", _judge_letters, 0.02),
    ("cp1251", _judge_letters, 0.02),
    ("cp1253", _judge_letters, 0.01),
    ("cp1254", _judge_letters, 0.01),
    ("cp1257", _judge_letters, 0.0),
    ("cp1255", _judge_letters, 0.0),
    ("cp1256", _judge_letters, 0.0),
    ("mac-roman", _judge_letters, 0.0),
    ("cp850", _judge_letters, -0.02),
    ("koi8-r", _judge_letters, 0.0),
    ("gb18030", _judge_east_asian(_chinese("gb2312", 0xB0, 0xD7)), 0.0),
    ("big5", _judge_east_asian(_chinese("big5", 0xA4, 0xC6)), 0.0),
    ("cp932", _judge_east_asian(_japanese("cp932", 0x88, 0x97)), 0.0),
    ("euc_jp", _judge_east_asian(_japanese("euc_jp", 0xB0, 0xCF)), 0.0),
    ("cp949", _judge_east_asian(_korean), 0.0),
]
