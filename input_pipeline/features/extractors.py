"""Numbers read off a text: lengths, scripts, punctuation, lexicon hits, pinyin, radicals, overlap.

Here: the raw, dense statistics, which learn nothing. features.py adds TF-IDF and fits on the
training split what has to be fitted.

Nearly all are shares of characters of some class, which is one sparse product: a text's bag of
characters times the membership of each character of the alphabet in each class.
"""

import functools
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from input_pipeline.examples import Examples, Ragged

DENSE = ("lengths", "characters", "punctuation", "lexicon", "pinyin", "radicals", "values")

Resources = Mapping[str, Mapping[str, Any]]
Columns = dict[str, np.ndarray]  # name of a feature -> its value for each text, float64 [N]

_SCRIPTS = (
    *("han", "kana", "hangul", "latin", "digit", "punctuation", "white_space", "emoji", "other"),
    *("upper_case", "full_width", "traditional", "simplified", "rare_han"),
)
_SENTENCE_ENDS = frozenset("。！？!?…；;\n\r")
# A mark and what is typed in its stead, full and half width: they count as one.
_MARK_GROUPS = (
    "，,﹐ 。.．｡ 、､ ；;﹔ ：: ？? ！! …⋯ ～~〜 —–―－ - ·•・ “”\"＂「」『』 ‘’' （）() 《》〈〉<> "
    "【】[]〔〕 /／\\ %％ ￥¥$ #＃ @＠ &＆ *＊ +＋ =＝ _＿"
)
_MARKS = {group[0]: group for group in _MARK_GROUPS.split()}
_MARK_OF = {char: mark for mark, chars in _MARKS.items() for char in chars}
_REPEATED = "。！？…～，"
_NEGATION = re.compile(r"[不没沒无無未别別非勿莫]\w?$")  # before a hit: 不太好, but not 不，好
_INITIALS = (
    *("zh", "ch", "sh", "b", "p", "m", "f", "d", "t", "n", "l"),
    *("g", "k", "h", "j", "q", "x", "r", "z", "c", "s", "y", "w"),
)
_UNIFIED = range(0x4E00, 0x9FA6)  # ideographs of Unicode 1.1, in the order of their radicals


RADICALS = "".join(unicodedata.normalize("NFKC", chr(0x2F00 + index)) for index in range(214))
_RANGES = {
    "han": "\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af",
    "kana": "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9d",
    "hangul": "\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e",
    "emoji": "\U0001f000-\U0001faff\u2600-\u27bf\u2b50\ufe0f",
}
_SCRIPT = re.compile("|".join(f"(?P<{name}>[{ranges}])" for name, ranges in _RANGES.items()))


def load_resources(kinds: Sequence[str], *, lexicon: str) -> Resources:
    """Returns what the extractors `kinds` look up, by kind.

    It is stored with the fitted features, so that results never change later: the categories of
    each word of the lexicon, and the syllable and tone of each character, such as 'hao3'.

    Args:
        kinds: config.features.extractors.
        lexicon: config.features.lexicon.

    Raises:
        FileNotFoundError: there is no such lexicon.
        ValueError: none is named, it is wrong, or the package pypinyin is not installed.
    """
    return {
        "lexicon": read_lexicon(lexicon) if "lexicon" in kinds else {},
        "pinyin": _read_pinyin() if "pinyin" in kinds else {},
    }


def extract(examples: Examples, settings: Mapping[str, Any]) -> Columns:
    """Returns the features in a fixed order, those of the second text behind 'pair/'.

    Args:
        examples: with `pairs_N`, statistics of the overlap of both texts are added.
        settings: 'extractors', of which those in DENSE are made; 'resources', see `load_resources`;
            'words', whether 'lengths' counts words too; 'value_names', of the columns of
            `values_NxK`.

    Raises:
        ValueError: `examples` lack words or values, or one is not a number.
    """
    texts = [("", examples.texts_N, examples.words)]
    if examples.pairs_N is not None:
        texts.append(("pair/", examples.pairs_N, examples.pair_words))
    both, columns = [], {}
    for prefix, texts_N, words in texts:
        both.append(Characters(texts_N))
        made = _of_one_text(both[-1], settings, words if settings["words"] else None)
        columns |= {prefix + name: values_N for name, values_N in made.items()}
    if len(both) == 2:
        columns |= overlap(*both)
    if "values" in settings["extractors"]:
        columns |= _values(examples, settings["value_names"])
    return columns


def _of_one_text(
    characters: "Characters", settings: Mapping[str, Any], words: Ragged | None
) -> Columns:
    resources = settings["resources"]
    makers: dict[str, Callable[[], Columns]] = {  # in the order of DENSE
        "lengths": lambda: lengths(characters, words),
        "characters": lambda: characters.shares(_SCRIPTS, _scripts),
        "punctuation": lambda: punctuation(characters),
        "lexicon": lambda: lexicon_hits(characters, resources["lexicon"]),
        "pinyin": lambda: sounds(characters, resources["pinyin"]),
        "radicals": lambda: characters.shares(RADICALS, radical_of),
    }
    return {
        f"{kind}/{name}": values_N
        for kind, make in makers.items()
        if kind in settings["extractors"]
        for name, values_N in make().items()
    }


class Characters:
    """N texts as one array of characters.

    Attributes:
        texts_N: the texts.
        lengths_N: characters of each, at least 1 so that one can divide by it.
        codes_P, rows_P: code point and text of each of the P characters.
        alphabet: the U different characters, sorted; `index_P` is each one's place in it.
        bag_NxU: sparse counts.
    """

    def __init__(self, texts_N: Sequence[str]):
        self.texts_N = texts_N
        counts_N = np.fromiter(map(len, texts_N), np.int64, len(texts_N))
        encoded = "".join(texts_N).encode("utf-32-le", "surrogatepass")
        self.codes_P = np.frombuffer(encoded, np.uint32).astype(np.int64)
        self.rows_P = np.repeat(np.arange(len(texts_N)), counts_N)
        self.lengths_N = np.maximum(counts_N, 1)
        codes_U, self.index_P = np.unique(self.codes_P, return_inverse=True)
        self.alphabet = [chr(code) for code in codes_U]
        splits = np.concatenate([[0], np.cumsum(counts_N)])
        ones = np.ones(len(self.codes_P))
        shape = (len(texts_N), len(codes_U))
        self.bag_NxU = csr_matrix((ones, self.index_P, splits), shape)

    def shares(self, names: Sequence[str], names_of: Callable[[str], Iterable[str]]) -> Columns:
        """Returns for each name the share of the characters that `names_of` puts under it."""
        column = {name: index for index, name in enumerate(names)}
        member_UxK = np.zeros((len(self.alphabet), len(names)))
        for row, char in enumerate(self.alphabet):
            member_UxK[row, [column[name] for name in names_of(char)]] = 1
        shares_NxK = (self.bag_NxU @ member_UxK) / self.lengths_N[:, None]
        return dict(zip(names, shares_NxK.T, strict=True))

    def among(self, chars: Iterable[str]) -> np.ndarray:
        """Returns bool [P]: whether each character is one of `chars`."""
        return np.isin(self.codes_P, [ord(char) for char in chars])

    def starts(self, inside_P: np.ndarray) -> np.ndarray:
        """Returns bool [P]: where a run of `inside_P` starts; none goes on into the next text."""
        same_row_P = np.diff(self.rows_P, prepend=-1) == 0
        return inside_P & ~(same_row_P & np.concatenate([[False], inside_P[:-1]]))

    def sum(self, values_P: np.ndarray) -> np.ndarray:
        """Sums over the characters of each text: float64 [N]."""
        return np.bincount(self.rows_P, values_P, minlength=len(self.texts_N))


def lengths(characters: Characters, words: Ragged | None) -> Columns:
    """Returns lengths in characters, sentences and, where their ends are given, words."""
    inside_P = ~characters.among(_SENTENCE_ENDS)
    starts_P = characters.starts(inside_P)
    sentences_N = characters.sum(starts_P)
    count_N = characters.sum(np.ones(len(characters.codes_P)))
    distinct_N = np.diff(_distinct(characters).indptr)
    columns = {
        "characters": count_N,
        "log_characters": np.log1p(count_N),
        "sentences": sentences_N,
        "characters_per_sentence": characters.sum(inside_P) / np.maximum(sentences_N, 1),
        "distinct_share": distinct_N / characters.lengths_N,
    }
    if words is not None:
        words_N = np.diff(words.splits_N1).astype(np.float64)
        columns |= {"words": words_N, "characters_per_word": count_N / np.maximum(words_N, 1)}
    return columns


def punctuation(characters: Characters) -> Columns:
    """Returns the share of each mark, of repeated ones, and what the text ends with."""
    shares = characters.shares(list(_MARKS), lambda char: _MARK_OF.get(char, ""))
    columns = {"all": sum(shares.values()), **shares}
    columns["kinds"] = np.sum([share_N > 0 for share_N in shares.values()], axis=0)
    for mark in _REPEATED:
        marks_P = characters.among(_MARKS[mark])
        again_P = marks_P & ~characters.starts(marks_P)
        columns[f"repeated_{mark}"] = characters.sum(again_P) / characters.lengths_N
    last_N = np.array([_MARK_OF.get(text.rstrip()[-1:], "") for text in characters.texts_N], "U1")
    columns["ends_with_mark"] = (last_N != "").astype(np.float64)
    for mark in _REPEATED:
        columns[f"ends_with_{mark}"] = (last_N == mark).astype(np.float64)
    return columns


def lexicon_hits(characters: Characters, lexicon: Mapping[str, Sequence[str]]) -> Columns:
    """Counts words of each category per 100 characters, apart where a negation stands before.

    Hits don't overlap; where several words start, the longest is the hit.
    """
    categories = sorted(set(chain.from_iterable(lexicon.values())))
    names = [name for category in categories for name in (category, f"not_{category}")]
    column = {name: index for index, name in enumerate(names)}
    sizes: dict[str, list[int]] = {}  # of the words with each first character, the longest first
    for first, size in sorted({(word[0], -len(word)) for word in lexicon}):
        sizes.setdefault(first, []).append(-size)
    hits_NxK = np.zeros((len(characters.texts_N), len(names)))
    for row, text in enumerate(characters.texts_N):
        place = 0
        while place < len(text):
            stops = (place + size for size in sizes.get(text[place], ()))
            stop = next((stop for stop in stops if text[place:stop] in lexicon), None)
            if stop:
                negated = _NEGATION.search(text[max(place - 2, 0) : place])
                for category in lexicon[text[place:stop]]:
                    hits_NxK[row, column[f"not_{category}" if negated else category]] += 1
            place = stop or place + 1
    return dict(zip(names, (100 * hits_NxK / characters.lengths_N[:, None]).T, strict=True))


def sounds(characters: Characters, pinyin: Mapping[str, str]) -> Columns:
    """Returns shares of tones, initials and finals, each character read in its usual way."""
    names = sorted({part for syllable in pinyin.values() for part in _parts(syllable)})
    return characters.shares(names, lambda char: _parts(pinyin[char]) if char in pinyin else ())


def overlap(first: Characters, second: Characters) -> Columns:
    """Compares the two texts of each pair."""
    columns = {}
    for name, size in (("characters", 1), ("bigrams", 2)):
        one_NxV, other_NxV = _distinct(first, size), _distinct(second, size)
        shared_N = _row_sums(one_NxV.multiply(other_NxV))
        one_N, other_N = _row_sums(one_NxV), _row_sums(other_NxV)
        columns[f"jaccard_{name}"] = shared_N / np.maximum(one_N + other_N - shared_N, 1)
        columns[f"{name}_of_text"] = shared_N / np.maximum(one_N, 1)
        columns[f"{name}_of_pair"] = shared_N / np.maximum(other_N, 1)
    columns["log_length_ratio"] = np.log(first.lengths_N / second.lengths_N)
    columns["equal"] = (np.asarray(first.texts_N) == np.asarray(second.texts_N)).astype(np.float64)
    return {f"overlap/{name}": values_N for name, values_N in columns.items()}


def _distinct(characters: Characters, size: int = 1) -> csr_matrix:
    """Returns which n-grams of `size` 1 or 2 a text holds: [N, 2 ** (21 * size)], ones."""
    codes_P, rows_P = characters.codes_P, characters.rows_P
    width = 1 << 21  # above the last code point
    if size == 2:
        inside = rows_P[1:] == rows_P[:-1]
        codes_P = (codes_P[:-1] * width + codes_P[1:])[inside]
        rows_P = rows_P[1:][inside]
    shape = (len(characters.texts_N), width**size)
    bag = csr_matrix((np.ones(len(codes_P)), (rows_P, codes_P)), shape)  # sums duplicates
    bag.data[:] = 1
    return bag


def _row_sums(matrix_NxV: csr_matrix) -> np.ndarray:
    return np.asarray(matrix_NxV.sum(axis=1), np.float64).ravel()


def _values(examples: Examples, names: Sequence[str]) -> Columns:
    values_NxK = examples.values_NxK
    if values_NxK is None or values_NxK.shape[1] != len(names):
        raise ValueError(
            "config.features.extractors has 'values', but the examples have "
            f"{0 if values_NxK is None else values_NxK.shape[1]} columns of numbers, expected "
            f"{len(names) or 'some'}: name them in config.data.value_columns, or leave it out"
        )
    bad = np.argwhere(~np.isfinite(values_NxK))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"config.features: example {examples.ids_N[row]} ({examples.texts_N[row][:20]!r}) has "
            f"{values_NxK[row, column]} in column {names[column]!r} of config.data.value_columns, "
            f"and {len(bad) - 1} other values are no numbers either: fill them in, or leave it out"
        )
    return {f"values/{name}": values_NxK[:, i].astype(float) for i, name in enumerate(names)}


def read_lexicon(path: str) -> dict[str, tuple[str, ...]]:
    """Reads a word and a category a line, with a tab or white space between, in UTF-8.

    A word may stand in several lines with a category each. Blank lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: none is named, or a line is not as described.
    """
    if not path:
        raise ValueError(
            "config.features.extractors has 'lexicon' but config.features.lexicon is empty: name a "
            "file with a word and a category a line"
        )
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"config.features.lexicon: there is no file {file.absolute()}")
    lexicon: dict[str, tuple[str, ...]] = {}
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # it has made \r\n and \r to \n
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error}): convert it") from error
    for number, line in enumerate(lines, 1):
        parts = [part.strip() for part in line.split("\t" if "\t" in line else None)]
        if line.strip() and (len(parts) != 2 or not all(parts)):
            raise ValueError(
                f"{file}:{number}: found {line!r}, expected a word and a category with a tab or a "
                "space between"
            )
        if line.strip():
            lexicon[parts[0]] = tuple(dict.fromkeys((*lexicon.get(parts[0], ()), parts[1])))
    if not lexicon:
        raise ValueError(f"{file}: no words; expected a word and a category a line")
    return lexicon


def _read_pinyin() -> dict[str, str]:
    """Returns the usual reading of each Chinese character that has one."""
    try:
        from pypinyin import Style, pinyin
    except ImportError:
        raise ValueError(
            "config.features.extractors has 'pinyin', which takes readings from the package "
            "pypinyin, which is not installed: run pip install pypinyin, or leave it out"
        ) from None
    chars = [chr(code) for code in _UNIFIED]
    options = {"style": Style.TONE3, "neutral_tone_with_five": True, "errors": lambda _: [""]}
    readings = zip(chars, pinyin(chars, **options), strict=True)
    return {char: usual for char, (usual, *_) in readings if usual}


@functools.lru_cache(maxsize=4096)
def _parts(syllable: str) -> tuple[str, ...]:
    """Splits 'hao3' into what is counted: its initial, final and tone."""
    sound, tone = (syllable[:-1], syllable[-1]) if syllable[-1].isdigit() else (syllable, "5")
    initial = next((initial for initial in _INITIALS if sound.startswith(initial)), "")
    return f"initial_{initial}", f"final_{sound[len(initial) :]}", f"tone_{tone}"


def radical_of(char: str) -> str:
    """Returns the Kangxi radical, 心 for 情; '' of what is no ideograph of Unicode 1.1.

    The block of unified ideographs is sorted by radical, and each radical's section begins with the
    character that is the radical, which the Kangxi Radicals block is compatible with.
    """
    return RADICALS[bisect_right(RADICALS, char) - 1] if ord(char) in _UNIFIED else ""


def _scripts(char: str) -> Iterable[str]:
    """Yields the classes of a character: one script, and any of the last five."""
    match, category = _SCRIPT.match(char), unicodedata.category(char)
    if "\uff01" <= char <= "\uff5e" or char == "\u3000":
        yield "full_width"
        char = unicodedata.normalize("NFKC", char)
    if category == "Lu":
        yield "upper_case"
    if match:
        yield match.lastgroup
        yield from _variant(char) if match.lastgroup == "han" else ()
    elif category == "Nd":
        yield "digit"
    elif char.isspace():
        yield "white_space"
    elif category[0] in "PS":
        yield "punctuation"
    else:
        yield "latin" if "LATIN" in unicodedata.name(char, "") else "other"


def _variant(char: str) -> Iterable[str]:
    """Yields whether a character is traditional, simplified or rare, by the standards that hold it.

    GB 2312 is the simplified one; Big5's level 1 the 5,401 frequent traditional characters. Of
    them, 2,073 are in Big5 alone, 92 % of which OpenCC would change.
    """
    simplified, traditional = char.encode("gb2312", "ignore"), char.encode("big5", "ignore")
    frequent = b"" < traditional <= b"\xc6\x7e"
    if frequent and not simplified:
        yield "traditional"
    elif not simplified:
        yield "rare_han"
    elif not traditional and simplified < b"\xd8\xa1":  # level 1
        yield "simplified"
