"""Recoding of text by named ops, each with an alignment, so that spans survive in both directions.

Here: the ops that config.data.normalization may name, in the order they are to be applied, and
what they did to a corpus, for its manifest. Not here: the normaliser inside a tokeniser
(silent_loss.py measures it), and dropping whole texts (cleaning.py).

    control               drops control characters but \\n and \\t, byte order marks, soft hyphens,
                          directional marks, and variation selectors and tags outside emoji
    zero_width            drops zero-width spaces and joiners, but for joiners inside emoji
    halfwidth             full-width ASCII and space to half width, but ，！？：；（）～｛｝［］＂＇
    halfwidth_punctuation these too, and 。、“”‘’
    fullwidth_punctuation ,?!:; beside a Chinese character, and a pair of () of which one is, to
                          full width; emoticons such as :) are left
    simplified            traditional to simplified characters (OpenCC t2s); in simplified text it
                          still takes 乾 and 藉 for 干 and 借, in names too
    traditional           simplified to traditional characters (OpenCC s2t)
    simplified_phrases    and Taiwan's words to the mainland's: 軟體 to 软件 (OpenCC tw2sp); only in
                          texts with a traditional character, since it would spoil 显著 elsewhere
    traditional_phrases   and the mainland's words to Taiwan's (OpenCC s2twp)
    variants              rare forms of traditional characters to Taiwan's standard (爲 to 為, 説 to
                          說, by OpenCC) and printers' old forms to the usual ones (敎 to 教); what
                          simplified text uses (户, 着, 温) is left
    compatibility         what NFKC replaces, character by character (㎡ ① ﬁ, Kangxi radicals,
                          compatibility ideographs), but no punctuation, no full-width form, no
                          Hangul letters (ㅠㅠ), nothing that would bring in a space
    nfc                   Unicode's composed normal form
    lower                 lower case
    repeated_punctuation  runs of one of ！？!?，,、；：～~ to one; 。。 ... …… and longer to ……;
                          ——— and longer to ——
    repeated_characters   more than three of one letter or Chinese character to three; no digits
    urls:drop             URLs; with urls:mask they become 链接
    mentions:drop         @names, up to what no name can hold, so that Chinese right after one goes
                          too; with mentions:mask they become @用户
    emoji:drop            emoji, as whole sequences; with emoji:mask they become 表情
    chinese_spaces        drops spaces between two Chinese characters or punctuation marks; where
                          they stand for commas, as in many reviews, clauses run together
    whitespace            runs of white space to one space, or to \\n if they hold a line break, and
                          none at either end

Every op but the four of OpenCC gives the same when it is applied again.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.alignment import Alignment, Edit, apply_edits, minimal
from input_pipeline.records import Record, Span

HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # for a [class]
_MARKS = "、。〃〈-】〔-〟！-／：-＠［-｀｛-･"  # punctuation that only East Asian text has
_QUOTES = "“”‘’…—"  # that it shares with others
_WIDE = {chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)}  # full-width ASCII
_CHINESE_WIDTH = "！＂＇（），：；？［］｛｝～"  # of it, what Chinese writes so
# From emoji-data.txt of Unicode 16: what is an emoji by default, and what U+FE0F makes one.
_PICTURE = (
    "⌚⌛⏩-⏬⏰⏳◽◾☔☕♈-♓♿⚓⚡⚪⚫⚽⚾⛄⛅⛎⛔⛪⛲⛳⛵⛺⛽✅✊✋✨❌❎❓-❕❗➕-➗➰➿⬛⬜⭐⭕"
    "\U0001f004\U0001f0cf\U0001f18e\U0001f191-\U0001f19a\U0001f201\U0001f21a\U0001f22f"
    "\U0001f232-\U0001f23a\U0001f250-\U0001f251\U0001f300-\U0001f64f\U0001f680-\U0001f6ff"
    "\U0001f7e0-\U0001f7f0\U0001f90c-\U0001f9ff\U0001fa70-\U0001faff"
)
_PICTURE_IF_MARKED = (
    "©®‼⁉™ℹ↔-↙↩↪⌨⏏⏭-⏯⏱⏲⏸-⏺Ⓜ▪▫▶◀◻◼☀-⛿✀-➿⤴⤵⬅-⬇〰〽㊗㊙\U0001f170\U0001f171\U0001f17e\U0001f17f"
)
_FLAG, _SKIN = "\U0001f1e6-\U0001f1ff", "\U0001f3fb-\U0001f3ff"
_TAGS = "\U000e0020-\U000e007f"  # spell a region's flag after a black one
_ANY_PICTURE = _PICTURE + _PICTURE_IF_MARKED + _FLAG
_ELEMENT = f"(?:[{_PICTURE}]|[{_PICTURE_IF_MARKED}](?=\ufe0f))[\ufe0f{_SKIN}{_TAGS}]*"
_EMOJI = (  # what is left of broken ones goes too
    f"{_ELEMENT}(?:\u200d(?:{_ELEMENT}|[{_PICTURE_IF_MARKED}]))*"
    f"|[{_FLAG}]{{1,2}}\ufe0f*|[0-9#*]?\ufe0f*\u20e3\ufe0f*"
)


class _Step(NamedTuple):
    """One pass over a text: to the recoded text, and to the edits that lead there, in order."""

    text: Callable[[str], str]
    edits: Callable[[str], Iterable[Edit]]


def _pattern(pattern: str, replacement: str | Callable[[re.Match], str]) -> _Step:
    """Replaces each match, of at least one character, as `re.sub` does."""
    compiled = re.compile(pattern)
    replace = replacement if callable(replacement) else lambda match: match.expand(replacement)

    def edits(text: str) -> Iterator[Edit]:
        for match in compiled.finditer(text):
            yield Edit(match.start(), match.end(), replace(match))

    return _Step(partial(compiled.sub, replacement), edits)


def _each(mapping: Mapping[str, str], pattern: str = "") -> _Step:
    """Replaces all characters that `mapping` holds; with `pattern`, those of its matches."""
    compiled = re.compile(pattern or f"[{_charset(mapping)}]")

    def replace(match: re.Match) -> str:
        return "".join([mapping[character] for character in match[0]])

    def edits(text: str) -> Iterator[Edit]:
        for match in compiled.finditer(text):
            for place, character in enumerate(match[0], match.start()):
                yield Edit(place, place + 1, mapping[character])

    return _Step(partial(compiled.sub, replace), edits)


def _charset(characters: Iterable[str]) -> str:
    """Returns the inside of a [class] of `characters`."""
    codes = np.array(sorted(map(ord, characters)))
    runs = np.split(codes, np.flatnonzero(np.diff(codes) > 1) + 1)
    return "".join(f"\\U{run[0]:08x}-\\U{run[-1]:08x}" for run in runs)


@cache
def _all_characters() -> str:
    """Returns every code point that Unicode's data describe, without surrogates."""
    return "".join(map(chr, (*range(0xD800), *range(0xE000, 0x32400), *range(0xE0000, 0xE0200))))


def _control() -> _Step:
    dropped = "\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
    dropped += "\ufe00-\ufe0d\ufff9-\ufffb\U000e0001\U000e0100-\U000e01ef"
    stray_mark = f"[\ufe0e\ufe0f](?<![{_ANY_PICTURE}].)(?<![0-9#*].(?=\u20e3))"
    stray_tags = f"[{_TAGS}](?<![\U0001f3f4{_TAGS}].)[{_TAGS}]*"
    return _pattern(f"(?s)[{dropped}]|{stray_mark}|{stray_tags}", "")


def _zero_width() -> _Step:
    stray_joiner = f"\u200d(?:(?<![{_ANY_PICTURE}\ufe0f{_TAGS}].)|(?![{_ANY_PICTURE}]))"
    return _pattern(f"(?s)[\u200b\u200c\u2060-\u2064\u180e\ufeff]|{stray_joiner}", "")


def _fullwidth_punctuation() -> _Step:
    chinese = f"[{HAN}》〉」』】]"
    mouth = r"[-']?(?:[DPp](?![A-Za-z0-9])|\)|\((?![^()\n]*\)))"
    more = f"[,?!:;]*(?<![:;](?={mouth}))"  # stops before an emoticon
    marks = _each(_WIDE, f"[,?!:;](?:(?<={chinese}.){more}|{more}(?={chinese}))")
    pairs, beside = re.compile(r"\([^()（）\n]*\)"), re.compile(chinese)

    def edits(text: str) -> list[Edit]:
        wide = []
        for match in pairs.finditer(text):
            start, stop = match.span()
            if beside.search(text[max(0, start - 1) : start + 2] + text[stop - 2 : stop + 1]):
                wide += Edit(start, start + 1, "（"), Edit(stop - 1, stop, "）")
        # After the parentheses, character for character: (好:) holds no emoticon.
        return sorted([*wide, *marks.edits(apply_edits(text, sorted(wide)))])

    return _Step(lambda text: apply_edits(text, edits(text)), edits)


def _load_opencc(config: str) -> Callable[[str], str]:
    try:
        import opencc
    except ImportError:
        raise ImportError("an op of data.normalization needs OpenCC: pip install opencc") from None
    # Without characters that few fonts, and no vocabularies, have: 鞾 stays, not U+2B587.
    return opencc.OpenCC(config, include_tofu_risk_dictionaries=False).convert


def _converted(convert: Callable[[str], str], source: str, target: str, at: int) -> Iterator[Edit]:
    """Cuts source = text[at:...] into the smallest parts whose conversions, joined, are `target`.

    OpenCC reports no offsets. But it matches the longest entries from the left, so that the ends
    of its entries are cuts of this kind; halving a text at the cut nearest to its middle finds
    them all, and each remaining part is converted to its own part of `target`.
    """
    if source == target:
        return
    middle = len(source) // 2
    for distance in range(2 * middle + 1):
        cut = middle + (distance + 1) // 2 * (-1) ** distance
        if not 0 < cut < len(source):
            continue
        left = convert(source[:cut])
        if target.startswith(left) and convert(source[cut:]) == target[len(left) :]:
            yield from _converted(convert, source[:cut], left, at)
            yield from _converted(convert, source[cut:], target[len(left) :], at + cut)
            return
    yield Edit(at, at + len(source), target)


def _opencc(config: str) -> _Step:
    """Converts by characters, and the phrases that decide between them: lengths stay the same."""
    convert = _load_opencc(config)

    def edits(text: str) -> Iterator[Edit]:
        for place, new in enumerate(convert(text)):
            if text[place] != new:
                yield Edit(place, place + 1, new)

    return _Step(convert, edits)


def _opencc_phrases(config: str, script: str = "") -> _Step:
    """Converts words too, each of which keeps one range: 打印机 to 印表機.

    With `script`, the conversion that finds nothing to do in a text of the wanted script already,
    that text is left alone.
    """
    convert = _load_opencc(config)
    to_script = _load_opencc(script) if script else lambda text: None

    def guarded(text: str) -> str:
        return text if to_script(text) == text else convert(text)

    return _Step(guarded, lambda text: _converted(convert, text, guarded(text), 0))


def _variants() -> _Step:
    """Hong Kong's forms, then OpenCC's own standard, to Taiwan's, unless they are simplified."""
    han = re.findall(f"[{HAN}]", _all_characters())
    lines = "\n".join(han)  # no line holds a phrase
    standard = _load_opencc("t2tw")(_load_opencc("hk2t")(lines)).split("\n")
    simplified = _load_opencc("t2s")(lines).split("\n")
    mapping = {c: v for c, v, s in zip(han, standard, simplified, strict=True) if v != c != s}
    old_forms = "吿告敎教尙尚靑青淸清眞真愼慎鎭鎮顚顛卽即旣既鄕鄉"  # Unicode calls them z-variants
    mapping |= dict(zip(old_forms[::2], old_forms[1::2], strict=True))
    return _each(mapping)


def _compatibility() -> _Step:
    def is_folded(c: str) -> bool:
        if unicodedata.category(c)[0] == "P" or unicodedata.east_asian_width(c) in "FH":
            return False
        hangul_letter = "\u3131" <= c <= "\u318e"
        return not hangul_letter and (" " not in folds[c] or unicodedata.category(c) == "Zs")

    folds = {c: unicodedata.normalize("NFKC", c) for c in _all_characters()}
    return _each({c: f for c, f in folds.items() if c != f and is_folded(c)})


def _nfc() -> _Step:
    """Composes; a segment is a character with the marks that may join it."""
    seconds = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}  # of Hangul
    for character in _all_characters():
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and parts[0][0] != "<":
            seconds.add(chr(int(parts[1], 16)))
    firsts = {c: unicodedata.normalize("NFD", c)[0] for c in _all_characters()}
    joining = _charset(c for c, f in firsts.items() if f in seconds or unicodedata.combining(f))
    compose = partial(unicodedata.normalize, "NFC")
    others = _charset(c for c in _all_characters() if compose(c) != c)
    segments = _pattern(f"(?s).?[{joining}]+|[{others}]", lambda match: compose(match[0]))
    return _Step(compose, segments.edits)


def _lower() -> _Step:
    upper = {c: c.lower() for c in _all_characters() if c.lower() != c}
    # As str.lower does, but for its ς at the end of a word: characters know no words here.
    return _Step(lambda text: text.replace("Σ", "σ").lower(), _each(upper).edits)


def _repeated_punctuation() -> _Step:
    def replace(match: re.Match) -> str:
        if match[1] or match[0] == "…":
            return match[0][0]
        return "——" if match[0][0] == "—" else "……"

    ellipsis = r"(?:\.{3,}|。{2,}|…+)+"
    return _pattern(rf"([！？!?，,、；：～~])\1+|—{{3,}}|{ellipsis}", replace)


def _whitespace() -> _Step:
    def replace(match: re.Match) -> str:
        if match.start() == 0 or match.end() == len(match.string):
            return ""
        return " " if match[0].splitlines()[0] == match[0] else "\n"

    return _pattern(r"(?s)\s(?:\s+|(?<![ \n])|\Z|(?<=\A.))", replace)


def _chinese_spaces() -> _Step:
    space = "[ \t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]"
    strict, loose = f"[{HAN}{_MARKS}]", f"[{HAN}{_MARKS}{_QUOTES}]"
    between = rf"(?<={strict}.){space}*(?={loose})|(?<={loose}.){space}*(?={strict})"
    return _pattern(f"{space}(?:{between})", "")


_URL = (
    r"(?:[Hh][Tt][Tt][Pp][Ss]?://|[Ff][Tt][Pp]://|(?<![A-Za-z0-9])[Ww]{3}\.)"
    r"[!#-;=?-Z_a-z~\[\]]*[A-Za-z0-9/_~=#&%+-]"  # a mark at the end is the sentence's
)
_MENTION = r"(?<![A-Za-z0-9Ａ-Ｚａ-ｚ０-９._%+-])(?:[@＠][_-]*[^\W_][\w-]*)+"  # no e-mail, no @_@
_OPS: dict[str, Callable[[], _Step]] = {
    "control": _control,
    "zero_width": _zero_width,
    "halfwidth": partial(
        _each, {w: n for n, w in _WIDE.items() if w not in _CHINESE_WIDTH} | {"\u3000": " "}
    ),
    "halfwidth_punctuation": partial(
        _each,
        {w: n for n, w in _WIDE.items() if w in _CHINESE_WIDTH}
        | dict(zip("。、“”‘’", ".,\"\"''", strict=True)),
    ),
    "fullwidth_punctuation": _fullwidth_punctuation,
    "simplified": partial(_opencc, "t2s"),
    "traditional": partial(_opencc, "s2t"),
    "simplified_phrases": partial(_opencc_phrases, "tw2sp", "t2s"),
    "traditional_phrases": partial(_opencc_phrases, "s2twp"),
    "variants": _variants,
    "compatibility": _compatibility,
    "nfc": _nfc,
    "lower": _lower,
    "repeated_punctuation": _repeated_punctuation,
    "repeated_characters": partial(_pattern, r"([^\W\d_])\1{3,}", r"\1\1\1"),
    "urls:drop": partial(_pattern, _URL, ""),
    "urls:mask": partial(_pattern, _URL, "链接"),
    "mentions:drop": partial(_pattern, _MENTION, ""),
    "mentions:mask": partial(_pattern, _MENTION, "@用户"),
    "emoji:drop": partial(_pattern, _EMOJI, ""),
    "emoji:mask": partial(_pattern, _EMOJI, "表情"),
    "chinese_spaces": _chinese_spaces,
    "whitespace": _whitespace,
}


_step = cache(lambda name: _OPS[name]())  # some take a tenth of a second to make


def _count(counts: dict[str, Any], text: str, edits: list[Edit], where: str) -> None:
    """Adds the edits of one text to `Normalizer.counts` of one op."""
    counts["texts"] += 1
    for start, stop, replacement in edits:
        old, new = stop - start, len(replacement)
        counts["changed"] += min(old, new)
        counts["dropped"] += max(0, old - new)
        counts["added"] += max(0, new - old)
    if len(counts["examples"]) < 3:
        start, stop, replacement = edits[0]
        left, right = text[max(0, start - 6) : start], text[stop : stop + 6]
        before, after = (left + s[:8] + right for s in (text[start:stop], replacement))
        counts["examples"].append({"where": where, "before": before, "after": after})


class Normalizer:
    """Applies ops in order, and counts what they do to records.

    Attributes:
        counts: by op, of the records so far: 'texts' that it touched, those of one record apart;
            'changed' characters, that others stand for, and 'dropped' and 'added' ones; 'examples'
            of the first edit in three texts, with up to six characters on either side.
    """

    def __init__(self, ops: Sequence[str]):
        """Takes names of ops, as in config.data.normalization."""
        self._steps = [(name, _step(name)) for name in ops]
        zeros = {"texts": 0, "changed": 0, "dropped": 0, "added": 0}
        self.counts: dict[str, dict[str, Any]] = {name: zeros | {"examples": []} for name in ops}

    def text(self, text: str) -> str:
        """Returns `text` recoded; the fastest way, and the same as `align(text)[0]`."""
        for _, step in self._steps:
            text = step.text(text)
        return text

    def align(self, text: str) -> tuple[str, Alignment]:
        """Returns `text` recoded, and its alignment with `text`; counts nothing."""
        result, alignment = self._recoded(text, None)
        return result, alignment or Alignment.from_edits(len(text), [])

    def record(self, record: Record) -> tuple[Record, int]:
        """Recodes all texts and the spans of `record`, and counts what was done.

        Returns:
            The record without the spans of which nothing is left, and how many those are.
        """
        pair, _ = self._recoded(record.pair, record.where)
        text, alignment = self._recoded(record.text, record.where)
        spans = record.spans
        if alignment:
            spans = (Span(*alignment.to_normalized(a, b), label) for a, b, label in spans)
            spans = tuple(span for span in spans if span.start < span.stop)
        choices, negatives = (
            tuple(self._recoded(text, record.where)[0] for text in texts)
            for texts in (record.choices, record.negatives)
        )
        turns = json.loads(record.history or "[]")
        turns = [(role, self._recoded(content, record.where)[0]) for role, content in turns]
        history = json.dumps(turns, ensure_ascii=False) if turns else ""
        recoded = record._replace(
            text=text, pair=pair, spans=spans, choices=choices, history=history, negatives=negatives
        )
        return recoded, len(record.spans) - len(spans)

    def _recoded(self, text: str, where: str | None) -> tuple[str, Alignment | None]:
        """Returns `text` recoded, counted if it is somewhere, and its alignment if it changed."""
        alignment = None
        for name, step in self._steps:
            after = step.text(text)
            if after != text:  # most ops leave most texts alone
                edits = list(minimal(text, step.edits(text)))
                part = Alignment.from_edits(len(text), edits)
                alignment = alignment.then(part) if alignment else part
                if where is not None:
                    _count(self.counts[name], text, edits, where)
                text = after
        return text, alignment
