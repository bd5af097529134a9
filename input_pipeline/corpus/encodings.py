"""Bytes of text files to characters: which encoding a file is in, and its lines in that encoding.

Here: detection, decoding in bounded memory (gzip included), and naming the line of a byte that does
not fit. Not here: what the lines mean (formats.py).

Detection prefers UTF-8 whenever the whole file decodes. Otherwise each candidate is judged by the
bits that its decoding would take under a crude model of Chinese text: the encoding in which the
bytes are cheapest to explain is the likeliest (Rissanen, Modeling by shortest data description,
1978). The model needs no table of frequencies: what is common in simplified and traditional Chinese
is what the first levels of GB 2312 and of Big5 hold.
"""

import codecs
import contextlib
import functools
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

MAX_CHARACTERS = 10_000_000  # of one line: more is a file without line ends, not a text

_BLOCK = 1 << 20  # bytes read at a time
_SAMPLE = 1 << 16  # bytes judged
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# cp950 and big5hkscs hold what Windows and Hong Kong added to Big5; they serve where it fails.
_BYTEWISE = ("utf-8", "gb18030", "big5", "cp950", "big5hkscs")
_WIDE = ("utf-16-le", "utf-16-be")

# The most frequent characters of modern Chinese, simplified and traditional.
_FREQUENT = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之"
    "年过发后作里好很没看家都小么还這個們來為國說時會對於著過發後裡沒還，。！？、：；"
)
_MAX_FOREIGN_BITS = 13  # per non-ASCII character: Chinese takes 7 to 11, noise 17 and more


def suffix_of(path: Path) -> str:
    """Returns the suffix in lower case, without its dot and before .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix.removeprefix(".")


def resolve(path: Path, declared: str) -> str:
    """Returns the encoding to read `path` in: what is `declared`, or with 'auto' what it is in.

    Raises:
        ValueError: if Python has no text encoding of that name, or detection fails.
    """
    if declared == "auto":
        stat = path.stat()
        return _detect(path, stat.st_size, stat.st_mtime_ns)
    try:
        "".encode(declared)
    except LookupError:
        raise ValueError(
            f"config.data.encoding: Python knows no text encoding {declared!r}; try 'auto'"
        ) from None
    return declared


def lines(path: Path, encoding: str, *, newline: str = "\n") -> Iterator[tuple[int, str]]:
    r"""Yields the number, from 1, and the text of each line with its end, without a BOM.

    Args:
        path: a text file, gzipped if it ends in .gz.
        encoding: what `resolve` returned.
        newline: what ends lines: '\n' or '\r' alone, or '' for any of '\r', '\n' and '\r\n'.

    Raises:
        ValueError: naming file and line, for bytes that are not in `encoding`, for a line of more
            than MAX_CHARACTERS, and for a damaged gzip file.
    """
    with _opened_text(path, encoding, newline) as text:
        read = functools.partial(text.readline, MAX_CHARACTERS + 1)
        for number, line in enumerate(iter(read, ""), start=1):
            if len(line) > MAX_CHARACTERS:
                raise ValueError(
                    f"{path}:{number}: the line has more than {MAX_CHARACTERS:,} characters; "
                    "expected one example a line: restore the line ends, or split the text"
                )
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def read_text(path: Path, encoding: str, *, size: int = -1) -> str:
    """Returns the first `size` characters of a file, or all, without a BOM; raises as `lines`."""
    with _opened_text(path, encoding, "") as text:
        return text.read(size).removeprefix("\ufeff")


def read_bytes(path: Path, size: int = -1) -> bytes:
    """Returns the first `size` bytes of a file, or all, unpacked if it ends in .gz."""
    with _opened(path) as file:
        return file.read(size)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path}: not a whole gzip file ({error}); fetch it again, or drop .gz from its name"
        ) from None


@contextlib.contextmanager
def _opened_text(path: Path, encoding: str, newline: str) -> Iterator[TextIO]:
    try:
        with _opened(path) as file:
            try:
                yield io.TextIOWrapper(file, encoding=encoding, newline=newline)
            except UnicodeDecodeError:
                raise _damage(path, encoding) from None
    except UnicodeError as error:  # UTF-16 or 32 without its BOM
        remedy = f"pass --config.data.encoding={encoding}-le, -be, or auto"
        raise ValueError(f"{path}: {error}; {remedy}") from None


def _first_misfit(path: Path, encoding: str, *, nul: bool = True) -> tuple[int, int, int] | None:
    """Returns line, offset and value of the first byte that is not in `encoding`, None without.

    With `nul` False, the first block that holds a NUL counts as one.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    offset, feeds, returns = 0, 0, 0
    with _opened(path) as file:
        while True:
            block = file.read(_BLOCK)
            offset += len(block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:  # its object is what was pending, and the block
                sound = error.object[: error.start].decode(encoding, errors="ignore")
                # Lines end at either, or at both together.
                line = max(feeds + sound.count("\n"), returns + sound.count("\r"))
                place = offset - len(error.object) + error.start
                return 1 + line, place, error.object[error.start]
            if not nul and "\0" in text:
                return 1, 0, 0
            if not block:
                return None
            feeds, returns = feeds + text.count("\n"), returns + text.count("\r")


@functools.lru_cache(maxsize=4096)
def _detect(path: Path, size: int, changed: int) -> str:
    """Returns the encoding of a file; its size and time of change key the cache."""
    del size, changed
    start = read_bytes(path, 3)
    for bom, encoding in _BOMS.items():
        if start.startswith(bom):
            return encoding
    if _first_misfit(path, "utf-8", nul=False) is None:  # UTF-16 is full of NULs
        return "utf-8"
    likely = _likely(path)
    for encoding in likely:
        if _first_misfit(path, encoding) is None:
            return encoding
    raise _damage(path, likely[0] if likely else "utf-8")


def _likely(path: Path) -> list[str]:
    """Returns the encodings in which a file reads like Chinese, likeliest first.

    Far less likely ones are left out: they may decode what is merely damaged.
    """
    head, foreign = _sample(path)
    costs = {name: _bits(head, name) for name in (*_BYTEWISE, *_WIDE)}
    if foreign and min(costs, key=costs.__getitem__) in _BYTEWISE:
        costs = {name: _bits(foreign, name) for name in _BYTEWISE}  # all that is not ASCII
    ranked = sorted(costs, key=costs.__getitem__)
    if costs[ranked[0]][1] > _MAX_FOREIGN_BITS:
        return []
    return [name for name in ranked if costs[name][0] <= 1.1 * costs[ranked[0]][0]]


def _sample(path: Path) -> tuple[bytes, bytes]:
    """Returns the first bytes of a file, and the first of its lines that are not all ASCII."""
    head, foreign = b"", bytearray()
    with _opened(path) as file:
        while (block := file.read(_BLOCK)) and len(foreign) < _SAMPLE:
            head = head or block[:_SAMPLE]
            for line in block.splitlines(keepends=True):
                if not line.isascii():
                    foreign += line[: _SAMPLE - len(foreign)]
    return head, bytes(foreign)


def _bits(raw: bytes, encoding: str) -> tuple[float, float]:
    """Returns the cost of `raw` read in `encoding`: all of it, and the mean per foreign character.

    What is cut off at the end costs nothing.
    """
    text = codecs.getincrementaldecoder(encoding)("replace").decode(raw)
    counts = Counter(text)
    costs = {character: _cost(character) * count for character, count in counts.items()}
    foreign = [character for character in counts if not character.isascii()]
    mean = sum(map(costs.get, foreign)) / max(1, sum(map(counts.get, foreign)))
    return sum(costs.values()), mean


def _cost(character: str) -> int:
    """Returns the bits that a character of Chinese text takes, roughly: minus log2 of its share."""
    if character in _FREQUENT:
        return 7
    if character.isascii():
        return 6 if character.isprintable() or character in "\t\n\r" else 40
    point = ord(character)
    if 0x4E00 <= point <= 0x9FFF:
        common = 0xB0 <= _lead(character, "gb2312") <= 0xD7  # the first levels, by frequency
        return 11 if common or 0xA4 <= _lead(character, "big5") <= 0xC6 else 18
    if 0x2010 <= point <= 0x2026 or 0x3000 <= point <= 0x3017 or 0xFF01 <= point <= 0xFF5E:
        return 9  # punctuation and full-width forms
    if character == "\ufffd":
        return 60
    return 20 if character.isprintable() else 30  # kana, emoji, other scripts; or nothing at all


def _lead(character: str, encoding: str) -> int:
    return character.encode(encoding, errors="ignore")[:1].ljust(1, b"\0")[0]


def _damage(path: Path, encoding: str) -> ValueError:
    """Returns what is wrong with a file that is not in an encoding, and what may help."""
    misfit, likely = _first_misfit(path, encoding), "".join(_likely(path)[:1])
    if misfit is None:
        return ValueError(
            f"{path}: it holds NUL characters and reads as no Chinese, or it has just changed; "
            "remove them, or name its encoding with --config.data.encoding=utf-8 or another"
        )
    if not likely:
        remedy = "convert it to UTF-8, or name its encoding with --config.data.encoding=NAME"
    elif codecs.lookup(likely) == codecs.lookup(encoding):
        remedy = f"it seems to be damaged {likely}: repair that line"
    else:
        remedy = f"it seems to be {likely}: pass --config.data.encoding={likely}"
    line, offset, byte = misfit
    return ValueError(
        f"{path}:{line}: byte 0x{byte:02x} at offset {offset} is not {encoding}; {remedy}"
    )
