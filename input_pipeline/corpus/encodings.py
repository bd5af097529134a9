"""Bytes of text files to characters: which encoding a file is in, and its lines in that encoding.

Here: detection, decoding in bounded memory (gzip included), and naming the line of a byte that does
not fit. Not here: what the lines mean (formats.py). Called by formats.py and sources.py.

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
from typing import BinaryIO

MAX_CHARACTERS = 10_000_000  # of one line: more is a file without line ends, not a text

_BLOCK = 1 << 20  # bytes read at a time
_SAMPLE = 1 << 16  # bytes judged
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# cp950 and big5hkscs hold what Windows and Hong Kong added to Big5; they serve where it fails.
_BYTEWISE = ("utf-8", "gb18030", "big5", "cp950", "big5hkscs")
_WIDE = ("utf-16-le", "utf-16-be")

# The most frequent characters of modern Chinese, simplified and traditional.
_FREQUENT = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之"
    "年过发后作里好很没看家都小么还這個們來為國說時會對於著過發後裡沒還，。！？、：；"
)
_MAX_FOREIGN_BITS = 13  # per non-ASCII character: Chinese takes 7 to 11, noise 17 and more


class _DoesNotDecode(ValueError):
    """The place of the first byte that is not in an encoding."""

    def __init__(self, offset: int, line: int, byte: int):
        self.offset, self.line, self.byte = offset, line, byte


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
        encoding: as `resolve` returns it.
        newline: what ends lines: '\n' or '\r' alone, or '' for any of '\r', '\n' and '\r\n'.

    Raises:
        ValueError: naming file and line, for bytes that are not in `encoding`, for a line of more
            than MAX_CHARACTERS, and for a damaged gzip file.
    """
    with _opened(path) as file:
        text = io.TextIOWrapper(file, encoding=encoding, newline=newline)
        try:
            for number, line in enumerate(
                iter(functools.partial(text.readline, MAX_CHARACTERS + 1), ""), start=1
            ):
                if len(line) > MAX_CHARACTERS:
                    raise ValueError(
                        f"{path}:{number}: the line has more than {MAX_CHARACTERS:,} characters; "
                        "expected one example a line: restore the line ends, or split the text"
                    )
                yield number, line.removeprefix("\ufeff") if number == 1 else line
        except UnicodeDecodeError:
            raise _damage(path, encoding) from None
        except UnicodeError as error:  # UTF-16 or 32 without its BOM
            raise _without_bom(path, encoding, error) from None


def read_text(path: Path, encoding: str) -> str:
    """Returns the whole text of a file without its BOM. Errors are those of `lines`."""
    try:
        return "".join(_decoded(path, encoding)).removeprefix("\ufeff")
    except _DoesNotDecode:
        raise _damage(path, encoding) from None


def head(path: Path, encoding: str) -> str:
    """Returns the beginning of a text, without its BOM. Errors are those of `lines`."""
    try:
        return next(_decoded(path, encoding)).removeprefix("\ufeff")
    except _DoesNotDecode:
        raise _damage(path, encoding) from None


def first_bytes(path: Path) -> bytes:
    """Returns up to 8 bytes of a file, unpacked if it ends in .gz."""
    with _opened(path) as file:
        return file.read(8)


def read_bytes(path: Path) -> bytes:
    """Returns the whole content of a file, unpacked if it ends in .gz."""
    with _opened(path) as file:
        return file.read()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path}: not a whole gzip file ({error}); fetch it again, or drop .gz from its name"
        ) from None


def _decoded(path: Path, encoding: str) -> Iterator[str]:
    """Yields the text of a file in blocks.

    Raises:
        _DoesNotDecode: at the first byte that does not fit.
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
                place = offset - len(error.object) + error.start
                sound = error.object[: error.start].decode(encoding, errors="ignore")
                # Lines end at either, or at both together.
                line = max(feeds + sound.count("\n"), returns + sound.count("\r"))
                raise _DoesNotDecode(place, 1 + line, error.object[error.start]) from None
            except UnicodeError as error:
                raise _without_bom(path, encoding, error) from None
            feeds, returns = feeds + text.count("\n"), returns + text.count("\r")
            yield text
            if not block:
                return


def _decodes(path: Path, encoding: str, *, nul: bool) -> bool:
    """Returns whether the whole file is in `encoding`, and without a NUL unless `nul` allows it."""
    try:
        return all(nul or "\0" not in text for text in _decoded(path, encoding))
    except _DoesNotDecode:
        return False


@functools.lru_cache(maxsize=4096)
def _detect(path: Path, size: int, changed: int) -> str:
    """Returns the encoding of a file; its size and time of change key the cache."""
    del size, changed
    with _opened(path) as file:
        start = file.read(3)
    encoding = next((name for bom, name in _BOMS.items() if start.startswith(bom)), None)
    if encoding is None and _decodes(path, "utf-8", nul=False):  # UTF-16 is full of NULs
        encoding = "utf-8"
    if encoding is None:
        likely = _likely(path)
        encoding = next((name for name in likely if _decodes(path, name, nul=True)), None)
        if encoding is None:
            raise _undetected(path, "".join(likely[:1]))
    return encoding


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
    costs = [(_cost(c), count, c.isascii()) for c, count in Counter(text).items()]
    foreign = [(cost, count) for cost, count, ascii in costs if not ascii]
    total = sum(cost * count for cost, count, _ in costs)
    mean = sum(c * n for c, n in foreign) / max(1, sum(n for _, n in foreign))
    return total, mean


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


def _first_misfit(path: Path, encoding: str) -> _DoesNotDecode | None:
    try:
        for _ in _decoded(path, encoding):
            pass
    except _DoesNotDecode as error:
        return error
    return None


def _without_bom(path: Path, encoding: str, error: UnicodeError) -> ValueError:
    return ValueError(f"{path}: {error}; pass --config.data.encoding={encoding}-le, -be, or auto")


def _damage(path: Path, encoding: str) -> ValueError:
    """Returns what is wrong with a file that is not in the encoding it was declared to be in."""
    likely = "".join(_likely(path)[:1])
    if not likely:
        remedy = "convert it to UTF-8, or pass what it is in as --config.data.encoding=NAME"
    elif codecs.lookup(likely) == codecs.lookup(encoding):
        remedy = f"it seems to be damaged {likely}; repair that line"
    else:
        remedy = f"it seems to be {likely}: pass --config.data.encoding={likely}"
    misfit = _first_misfit(path, encoding)
    if misfit is None:
        return ValueError(f"{path}: it changed while it was read; start again")
    return ValueError(
        f"{path}:{misfit.line}: not {encoding}, found byte 0x{misfit.byte:02x} at offset "
        f"{misfit.offset}; {remedy}"
    )


def _undetected(path: Path, likely: str) -> ValueError:
    """Returns why no encoding fits a file; `likely` is the one it seems to be in, or ''."""
    misfit = _first_misfit(path, likely or "utf-8")
    if misfit is None:
        return ValueError(
            f"{path}: it holds NUL characters and reads as no Chinese; remove them, or name its "
            "encoding with --config.data.encoding=utf-8 or another"
        )
    remedy = "convert the file to UTF-8, or name its encoding with --config.data.encoding=NAME"
    if likely:
        remedy = f"it seems to be damaged {likely}: repair that line"
    return ValueError(
        f"{path}:{misfit.line}: byte 0x{misfit.byte:02x} at offset {misfit.offset} is not "
        f"{likely or 'utf-8'}, and no other encoding fits; {remedy}"
    )
