"""Learns a SentencePiece vocabulary, or fits a pretrained one to a corpus: drops and adds pieces.

Here: functions from a serialised ModelProto to another, and how the ids of the two correspond. Not
here: the embeddings that follow (models/pretrained/vocabulary.py). Imports no TensorFlow.

Dropping is safe for BPE since its merges are local. No merge crosses the bounds of a piece that a
text ends up with, so that the piece came about as it does when it stands alone; with what it passes
through kept, each merge of the text is still there, and of the merges to choose from only others
have gone. It is safe for unigram models since the best path stays the best of fewer paths.

Measured with Gemma 3 270M and the 1,280 training reviews of configs/reviews.py, 8,000 others kept:
167.8M embedding parameters become 13.9M, logits of texts of kept pieces stay equal to the bit, and
building the model takes 5.8 s and 2.2 GiB at its peak instead of 9.8 s and 3.4 GiB. 2,000 new
pieces from all 13,890 training reviews are found in 3 s and make unseen reviews 10 % shorter.
"""

import heapq
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto_lib

from input_pipeline.tokenizers.tokenization import SPACE

_TYPES = proto_lib.ModelProto.SentencePiece  # NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE
_BPE, _UNIGRAM = proto_lib.TrainerSpec.BPE, proto_lib.TrainerSpec.UNIGRAM
_CHUNK = 10_000  # texts encoded at a time
_LETTERS = re.compile(r"[^\W\d_]+")  # what a new piece consists of: digits stay single, as they are
_WORD = re.compile(f"{SPACE}?{_LETTERS.pattern}")  # a space may only stand at its beginning
_BREAK = -1


def train_tokenizer(texts: Iterable[str], path: str | os.PathLike, *, vocab_size: int) -> None:
    """Learns a SentencePiece BPE model from `texts` and writes it to `path`.

    Characters stay as they are (identity normalisation), so that full-width ，？；： survive, and
    what the vocabulary lacks falls back to bytes: every text decodes to itself. The same texts in
    the same order give the same file.

    Raises:
        ValueError: the texts are too few for `vocab_size`, or `vocab_size` is too small for the 260
            fixed pieces and the characters that the texts consist of.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=0.9995,
            required_chars=SPACE,  # as bytes it would decode to itself, not to a space
            normalization_rule_name="identity",
            byte_fallback=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            bos_piece="<bos>",
            eos_piece="<eos>",
            num_threads=1,  # more threads would make ties fall as they like
            max_sentence_length=1 << 20,  # bytes; longer texts would be left out
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"no tokeniser of tokenizer.vocab_size={vocab_size} can be learned from these texts "
            f"(SentencePiece: {error}): change tokenizer.vocab_size"
        ) from None
    Path(path).write_bytes(model.getvalue())


def trim(model: bytes, texts: Iterable[str], *, others: int, ids: Collection[int] = ()) -> bytes:
    """Keeps the pieces that `texts` use, those of `ids` and the `others` most frequent other ones.

    These are shared out among scripts as the texts are. By score alone nearly all of Gemma's would
    be Latin: with 1,280 reviews for texts and 8,000 others, 48 % of unseen reviews consist of kept
    pieces only (47 % with no others); shared out, 75 % do.

    Kept as well: space, control, unknown, byte and user-defined pieces, and the characters and
    pieces that the merges of kept ones pass through. The order stays. Texts of kept pieces only are
    segmented as before; others fall back to smaller pieces and bytes. A model without bytes keeps
    its characters, so that none is lost.

    Args:
        model: a serialised ModelProto, BPE or unigram.
        texts: the corpus.
        others: how many more pieces, at most, from the highest score down.
        ids: pieces that the texts have where they are read, among other words.

    Returns:
        A serialised ModelProto.

    Raises:
        ValueError: a model of another kind.
    """
    proto = _parse(model, (_BPE, _UNIGRAM))
    scores = {i: piece.score for i, piece in enumerate(proto.pieces) if piece.type == _TYPES.NORMAL}
    used = set(chain.from_iterable(_encode(model, texts))) | set(ids)
    kept = used | (set(range(len(proto.pieces))) - scores.keys())
    longest = 0 if proto.trainer_spec.byte_fallback else 1  # without bytes, characters are kept
    # The bytes of a space don't decode to one.
    kept |= {i for i in scores if (p := proto.pieces[i].piece) == SPACE or len(p) <= longest}
    if proto.trainer_spec.model_type == _UNIGRAM:
        # The scores of unknown and user-defined pieces derive from these two.
        kept |= {min(scores, key=scores.get), max(scores, key=scores.get)}
    kept |= _passed_through(proto, kept)
    kept |= _passed_through(proto, _most_frequent(proto, scores, used, kept, others))
    return _serialise(proto, [proto.pieces[i] for i in sorted(kept)])


def extend(model: bytes, texts: Iterable[str], *, new_pieces: int) -> bytes:
    """Adds the pieces that shorten `texts` most, at the end, by going on with BPE.

    The most frequent pair of adjacent pieces becomes a new piece, over and over. It consists of
    letters, behind at most one space: none reaches across white space, digits or punctuation.
    Scores below all others let the old merges come first, so that no text gets longer.

    Args:
        model: a serialised ModelProto of kind BPE.
        texts: the corpus.
        new_pieces: how many; fewer where no pair occurs twice any more.

    Returns:
        A serialised ModelProto.

    Raises:
        ValueError: a model of another kind.
    """
    proto = _parse(model, (_BPE,))
    rows = ((*row, _BREAK) for row in _encode(model, texts))
    flat = np.fromiter(chain.from_iterable(rows), np.int32)
    lowest = min((p.score for p in proto.pieces if p.type == _TYPES.NORMAL), default=0.0)
    added = [
        _TYPES(piece=text, score=lowest - 1 - order, type=_TYPES.NORMAL)
        for order, text in enumerate(_merge_pairs(proto, flat, new_pieces))
    ]
    return _serialise(proto, [*proto.pieces, *added])


def parts(old: bytes, new: bytes) -> list[list[int]]:
    """Returns which pieces of `old` each piece of `new` stands for.

    Args:
        old: the serialised ModelProto that `new` was made from by `trim`, `extend` or both.
        new: what they returned.

    Returns:
        For each id of `new`, ids of `old`: its own where `old` has the piece, else those that spell
        it, which are the ones it takes the place of in a text.
    """
    bare = proto_lib.ModelProto.FromString(old)
    # A piece is spelled as it is: no prefix, nothing escaped.
    flags = ("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces")
    spec = proto_lib.NormalizerSpec(name="identity", **dict.fromkeys(flags, False))
    bare.normalizer_spec.CopyFrom(spec)
    ids = {piece.piece: i for i, piece in enumerate(bare.pieces)}
    processor = sentencepiece.SentencePieceProcessor(model_proto=bare.SerializeToString())
    pieces = [piece.piece for piece in proto_lib.ModelProto.FromString(new).pieces]
    return [[ids[piece]] if piece in ids else processor.encode(piece) for piece in pieces]


def _parse(model: bytes, kinds: Sequence[int]) -> proto_lib.ModelProto:
    proto = proto_lib.ModelProto.FromString(model)
    name = proto_lib.TrainerSpec.ModelType.Name
    if (kind := proto.trainer_spec.model_type) not in kinds:
        raise ValueError(
            f"the tokeniser is a SentencePiece model of kind {name(kind)}, expected "
            f"{' or '.join(map(name, kinds))}: set config.tokenizer.new_pieces=0"
            f"{', config.tokenizer.keep_others=-1' * (_UNIGRAM in kinds)}"
        )
    return proto


def _serialise(proto: proto_lib.ModelProto, pieces: Sequence[_TYPES]) -> bytes:
    """Returns a model like `proto` with other pieces; its special ids follow them."""
    # Not a copy: of what else a model may hold, segmentations are checked while it is loaded.
    model = proto_lib.ModelProto(
        pieces=pieces,
        trainer_spec=proto.trainer_spec,
        normalizer_spec=proto.normalizer_spec,
        denormalizer_spec=proto.denormalizer_spec,
    )
    trainer = model.trainer_spec
    trainer.vocab_size = len(pieces)
    ids = {piece.piece: i for i, piece in enumerate(pieces)}
    for name in ("unk", "bos", "eos", "pad"):
        setattr(trainer, f"{name}_id", ids.get(getattr(trainer, f"{name}_piece"), -1))
    return model.SerializeToString(deterministic=True)


def _encode(model: bytes, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yields the ids of each text."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = iter(texts)
    while chunk := list(islice(texts, _CHUNK)):
        yield from processor.encode(chunk, num_threads=-1)


def _most_frequent(
    proto: proto_lib.ModelProto,
    scores: Mapping[int, float],
    used: Set[int],
    kept: Set[int],
    count: int,
) -> list[int]:
    """Returns `count` pieces beyond `kept`: by score, of each script in proportion to `used`."""
    if not count:  # naming the scripts of 250,000 pieces takes half a second
        return []
    scripts = {i: _script(proto.pieces[i].piece) for i in scores}
    shares = Counter(scripts[i] for i in used & scores.keys())
    left = {script: round(count * n / shares.total()) for script, n in shares.items()}
    chosen = []
    for i in sorted(scores.keys() - kept, key=lambda i: (-scores[i], i)):
        if left.get(scripts[i]):
            left[scripts[i]] -= 1
            chosen.append(i)
    return chosen


def _script(piece: str) -> str:
    """Returns the first word of the Unicode name of the first letter: CJK, LATIN, HIRAGANA."""
    letter = next(filter(str.isalpha, piece), "")
    return unicodedata.name(letter, "").partition(" ")[0] if letter else ""


def _passed_through(proto: proto_lib.ModelProto, kept: Iterable[int]) -> set[int]:
    """Returns the pieces that BPE passes through while it builds each of `kept`, and these."""
    kept = set(kept)
    if proto.trainer_spec.model_type != _BPE:
        return kept
    merged = (_TYPES.NORMAL, _TYPES.USER_DEFINED, _TYPES.UNUSED)
    known = {p.piece: (i, p.score) for i, p in enumerate(proto.pieces) if p.type in merged}
    for i in list(kept):
        piece = proto.pieces[i]
        if piece.type not in (_TYPES.NORMAL, _TYPES.UNUSED):
            continue  # matched as a whole
        symbols = list(piece.piece)
        kept.update(known[symbol][0] for symbol in symbols if symbol in known)
        while pairs := [
            (-known[left + right][1], place)
            for place, (left, right) in enumerate(pairwise(symbols))
            if left + right in known
        ]:
            place = min(pairs)[1]  # the highest score, and of equal ones the first
            symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
            kept.add(known[symbols[place]][0])
    return kept


def _merge_pairs(proto: proto_lib.ModelProto, flat: np.ndarray, new_pieces: int) -> list[str]:
    """Joins the most frequent pairs of ids in `flat`, where _BREAK stands between texts.

    Returns:
        The new pieces in order.
    """
    words = [piece.piece for piece in proto.pieces]
    normal = {p.piece: i for i, p in enumerate(proto.pieces) if p.type == _TYPES.NORMAL}
    reserved = set(words) - normal.keys()
    size = len(words) + new_pieces
    first, second = np.zeros((2, size + 1), bool)  # may begin, may go on; the last is _BREAK
    for word, i in normal.items():
        first[i], second[i] = bool(_WORD.fullmatch(word)), bool(_LETTERS.fullmatch(word))
    flat = np.concatenate([[_BREAK], flat, [_BREAK, _BREAK]]).astype(np.int32)

    def pairs(places: np.ndarray | slice, following: np.ndarray | slice) -> dict[int, int]:
        left, right = flat[places], flat[following]
        codes = (left.astype(np.int64) * size + right)[first[left] & second[right]]
        codes, counts = np.unique(codes, return_counts=True)
        return dict(zip(codes.tolist(), counts.tolist(), strict=True))

    counts = pairs(slice(None, -1), slice(1, None))
    heap = [(-count, code) for code, count in counts.items() if count > 1]
    heapq.heapify(heap)
    added: list[str] = []
    while heap and len(added) < new_pieces:
        count, code = heapq.heappop(heap)
        if -count != counts[code]:
            continue  # the count has changed, and the heap holds the present one elsewhere
        left, right = divmod(code, size)
        word = words[left] + words[right]
        if word in reserved:
            continue
        if word not in normal:
            normal[word] = len(words)
            first[len(words)], second[len(words)] = first[left], second[left]
            words.append(word)
            added.append(word)
        places = _occurrences(flat, left, right)
        near = np.unique(np.concatenate([places - 1, places, places + 1]))
        changes = {code: -count for code, count in pairs(near, near + 1).items()}
        flat[places] = normal[word]
        flat = np.delete(flat, places + 1)
        places -= np.arange(len(places))
        near = np.unique(np.concatenate([places - 1, places]))
        for code, count in pairs(near, near + 1).items():
            changes[code] = changes.get(code, 0) + count
        for code, change in changes.items():
            counts[code] = counts.get(code, 0) + change
            if change and counts[code] > 1:
                heapq.heappush(heap, (-counts[code], code))
    return added


def _occurrences(flat: np.ndarray, left: int, right: int) -> np.ndarray:
    """Returns where the pair stands, without overlaps: of aaa only the first two are one."""
    places = np.flatnonzero((flat[:-1] == left) & (flat[1:] == right))
    if left == right:
        # How far each place is from the start of its run.
        order = np.arange(len(places))
        starts = np.where(np.diff(places, prepend=-2) > 1, order, 0)
        places = places[(order - np.maximum.accumulate(starts)) % 2 == 0]
    return places
