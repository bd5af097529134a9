"""Conversations to token ids, and which of them are answers that the model learns to write.

Here: data.template around a prompt and its answer, what a chat template writes around messages, and
what keeps a text that holds a special piece's name from becoming that piece: what a template writes
is tokenised with its special pieces, what people wrote is tokenised as plain text. Not here: Jinja
(chat_templates.py), what does not fit the model (conversations.py), messages in files (columns.py),
what the loss makes of the answers. Imports no TensorFlow.
"""

import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline.batches.chat_templates import ChatTemplate, Layout, Messages
from input_pipeline.batches.template import FIELD, NO_SAMPLING, Encoded, Sampling
from input_pipeline.tokenizers.tokenization import Tokenizer

_SPOKEN = ("user", "assistant")
_Piece = tuple[str | tuple[int, ...] | None, bool]  # text, ids or a break; and whether it counts
_Row = tuple[list[int], list[int]]  # ids, and 1 for those that count


def pack_messages(messages: Messages) -> str:
    """Returns a conversation as the one text that ChatEncoder takes."""
    return json.dumps(messages, ensure_ascii=False)


def unpack_messages(text: str | bytes) -> list[tuple[str, str]]:
    """Returns what `pack_messages` took."""
    return [(role, content) for role, content in json.loads(text)]


class _Stretch(NamedTuple):
    """A part of a conversation: ids, or text that is tokenised as one.

    Attributes:
        ids: None where there is text.
        counts: runs of ids or characters: how many, and whether they count.
        text: '' for ids.
        starts: whether the text is tokenised as one that nothing stands before.
    """

    ids: tuple[int, ...] | None
    counts: tuple[tuple[int, bool], ...]
    text: str = ""
    starts: bool = True


class ChatEncoder:
    """Conversations to token ids; the interface is that of template.Encoder.

    A text is what `pack_messages` gives. An answer counts with all that follows it up to the end of
    its turn, so that the model learns to stop. An empty last answer is left out with all behind it:
    that is a prompt.

    Attributes:
        fields: see Encoder.
        max_length: tokens of an example.
        room: tokens that are left for a prompt and its answer.
        stop_ids: each of them ends an answer.
        tail: what the template writes between an answer and its end.
    """

    fields = ("text",)

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        *,
        is_chat: bool,
        max_length: int,
        prefix_ids: Sequence[int] = (),
        count_all: bool = False,
        seq2seq: bool = False,
    ):
        """Reads the template, and tries it on a prompt and an answer.

        Args:
            tokenizer: of the model.
            template: in Jinja, or with {text} for the prompt and {pair} for the answer.
            is_chat: whether it is in Jinja.
            max_length: tokens of an example.
            prefix_ids: before everything: the virtual tokens of prompt tuning.
            count_all: whether every answer of a conversation counts, not just the last.
            seq2seq: an encoder-decoder reads what stands before the last answer and writes that.

        Raises:
            ValueError: the template is none, the tokeniser has no piece that ends an answer, or
                there is no room.
        """
        self._tokenizer, self._following = tokenizer, tokenizer.following()
        self._prefix, self._seq2seq = tuple(prefix_ids), seq2seq
        self._count_all = count_all and not seq2seq
        self._ends = tuple(tokenizer.end_ids) or (tokenizer.eos_id,)
        if min(self._ends) < 0:
            raise ValueError(
                "the tokeniser has no piece that ends a text (eos), so that no answer would end: "
                "set config.tokenizer.model to one that has"
            )
        self._chat = None
        if is_chat:
            ids = {role: getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad", "unk")}
            names = {f"{r}_token": tokenizer.piece(i) if i >= 0 else "" for r, i in ids.items()}
            self._chat = ChatTemplate(template, names)
        elif FIELD.findall(template) != ["text", "pair"]:
            raise ValueError(
                f"data.template={template!r} must hold {{text}}, the prompt, and behind it the "
                "answer, {pair}, as '{text}\\n{pair}' does; or set config.generation.chat_template"
            )
        self._words = tuple(FIELD.split(template)[::2])  # around the fields of data.template
        self._parse = functools.cache(self._parsed)
        example = [("user", "?"), ("assistant", "!")]
        self.tail, _ = self._end(self._layout(_SPOKEN).around[-1], "")
        last = next(s for s in reversed(self._stretches(example)) if s.ids and s.counts[0][1])
        self.stop_ids = tuple(sorted({last.ids[-1], self._ends[-1]}))
        self.max_length = max_length
        self.room = max_length - len(self.encode([example])[0][0]) + 2
        if self.room < 2:
            raise ValueError(
                f"layout.max_length={max_length} leaves no room for a prompt and its answer beside "
                f"the template's {max_length - self.room} tokens: raise it"
            )

    def __call__(
        self,
        texts: Sequence[str] | Sequence[bytes],
        pairs: None = None,
        *,
        num_threads: int | None = None,
        sampling: Mapping[str, Sampling] = NO_SAMPLING,
        offsets: bool = False,
    ) -> Encoded:
        """Encodes conversations.

        Args:
            texts: of `pack_messages`, str or UTF-8 bytes.
            pairs: conversations have none.
            num_threads: see Tokenizer.encode_batch.
            sampling: not possible.
            offsets: conversations have none.

        Returns:
            Encoded, whose fields are 1 at tokens that count, else 0.

        Raises:
            ValueError: a conversation is longer than `max_length`, the template refuses or changes
                it, or segmentations are to be drawn.
        """
        if sampling:
            raise ValueError("augmentation.sampling_rate: not for conversations, set it to 0")
        rows = self.encode([unpack_messages(text) for text in texts], num_threads=num_threads)
        lengths_B = np.array([len(ids) for ids, _ in rows], np.int64)
        if lengths_B.max(initial=0) > self.max_length:
            raise ValueError(
                f"{(lengths_B > self.max_length).sum()} of {len(rows)} conversations are longer "
                f"than layout.max_length={self.max_length}, the longest has {lengths_B.max()} "
                "tokens: raise it"
            )
        tokens, fields = (
            np.fromiter((i for row in rows for i in row[k]), dtype, lengths_B.sum())
            for k, dtype in enumerate((np.int32, np.int8))
        )
        return Encoded(tokens, np.zeros_like(tokens), lengths_B, np.zeros(len(rows), bool), fields)

    def encode(
        self, conversations: Sequence[Messages], *, num_threads: int | None = None
    ) -> list[_Row]:
        """Returns ids of conversations of any length, and 1 for each that counts, else 0."""
        return self._rows([self._stretches(row) for row in conversations], num_threads)

    def prompts(self, conversations: Sequence[Messages]) -> list[list[int]]:
        """Returns the ids of conversations up to the last answer, which is left out."""
        return [
            ids for ids, _ in self.encode([[*c[:-1], ("assistant", "")] for c in conversations])
        ]

    def without_start(self, messages: Messages) -> list[tuple[str, str]] | None:
        """Returns a conversation whose start is cut, so that it has `max_length` tokens.

        The messages of user and assistant lose their first characters, the first of them first. The
        template, the system message and the last answer stay whole: None if these are too long.
        """
        messages = list(messages)
        for k, (role, content) in enumerate(messages[:-1]):
            while role in _SPOKEN:
                messages[k] = role, content
                excess = len(self.encode([messages])[0][0]) - self.max_length
                if excess <= 0:
                    return messages
                if not content:
                    break
                [(ids, offsets)] = self._tokenizer.encode_with_offsets([content])
                stop = offsets[excess][0] if excess < len(ids) else len(content)
                content = content[max(stop, 1) :]
        return None

    def _rows(
        self, conversations: Sequence[Sequence[_Stretch]], num_threads: int | None
    ) -> list[_Row]:
        """Tokenises each different stretch once, and joins."""
        stretches = {s for row in conversations for s in row}
        known = {s: (s.ids, [int(s.counts[0][1])] * len(s.ids)) for s in stretches if s.ids}
        for starts, tokenizer in ((True, self._tokenizer), (False, self._following)):
            texts = [s for s in stretches if s.text and s.starts == starts]
            # Characters that all count or do not need no offsets, which take longer.
            alike = [s for s in texts if len({counts for _, counts in s.counts}) == 1]
            ids = tokenizer.encode_batch([s.text for s in alike], num_threads=num_threads)
            for s, row in zip(alike, ids, strict=True):
                known[s] = row, [int(s.counts[0][1])] * len(row)
            mixed = [s for s in texts if s not in known]
            pairs = tokenizer.encode_with_offsets([s.text for s in mixed])
            for s, (row, offsets) in zip(mixed, pairs, strict=True):
                known[s] = row, _counted(s.counts, offsets)
        rows = []
        for row in conversations:
            ids, counts = [*self._prefix], [0] * len(self._prefix)
            for s in row:
                row_ids, row_counts = known[s]
                ids += row_ids
                counts += row_counts
            rows.append((ids, counts))
        return rows

    def _layout(self, roles: tuple[str, ...]) -> Layout:
        if self._chat is not None:
            return self._chat.layout(roles)
        if roles != _SPOKEN:
            raise ValueError(
                f"data.template is for a prompt and its answer, found messages of "
                f"{', '.join(roles)}: set config.generation.chat_template"
            )
        return Layout(self._words, (0, 1))

    def _stretches(self, messages: Messages) -> list[_Stretch]:
        """Returns the parts of a conversation."""
        messages, last = list(messages), len(messages) - 1
        if is_prompt := not messages[last][1]:
            messages[last] = messages[last][0], "!"  # templates may want one
        around, order = self._layout(tuple(role for role, _ in messages))
        contents = [c for _, c in messages] if self._chat is None else self._chat.contents(messages)
        marks = self._marks(around)
        pieces: list[_Piece] = [(tuple(self._tokenizer.start_ids), False)] * (self._chat is None)
        pieces += self._template(around[0])
        for message, content, after in zip(order, contents, around[1:], strict=True):
            is_last = message == last
            counts = is_last or (self._count_all and messages[message][0] == "assistant")
            if is_last and self._seq2seq:
                pieces.append((tuple(self._tokenizer.between_ids), False))
            if is_last and is_prompt:
                break
            pieces += self._content(content, marks, counts)
            tail, end = self._end(after, around[-1]) if counts else ("", "")
            pieces += self._template(tail, counts=True) + self._template(end, counts=True)
            if is_last and not end:
                pieces.append((self._ends, True))
            if not (is_last and self._seq2seq):
                pieces += self._template(after[len(tail) + len(end) :])
        return self._joined(pieces)

    def _template(self, text: str, *, counts: bool = False) -> list[_Piece]:
        """Returns what the template writes, in pieces."""
        return [(piece, counts) for piece in self._parse(text) if piece]

    def _parsed(self, text: str) -> list[str | tuple[int, ...]]:
        """Returns ids of a text of data.template, or by turns text and ids of special pieces."""
        if self._chat is None:
            return [tuple(self._tokenizer.encode_batch([text], num_threads=1)[0])] if text else []
        special = self._tokenizer.special_pieces
        parts = self._marks((text,)).split(text)
        return [(special[part],) if k % 2 else part for k, part in enumerate(parts)]

    @functools.cache  # noqa: B019, as long as the run
    def _marks(self, around: tuple[str, ...]) -> re.Pattern:
        """Returns what finds the special pieces that the template writes, the longest first."""
        special = self._tokenizer.special_pieces if self._chat is not None else ()
        written = [piece for piece in special if any(piece in text for text in around)]
        written.sort(key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, written)) or '(?!)'})")

    def _content(self, text: str, marks: re.Pattern, counts: bool) -> Iterator[_Piece]:
        """Yields a message, broken within what would be read as a special piece."""
        # A message within data.template is tokenised apart from the template's words.
        edges = [(None, counts)] * (self._chat is None)
        yield from edges
        place = 0
        for match in marks.finditer(text):
            yield text[place : match.start() + 1], counts
            yield None, counts
            place = match.start() + 1
        yield text[place:], counts
        yield from edges

    def _end(self, after: str, final: str) -> tuple[str, str]:
        """Returns what follows an answer before its end, and the special piece that is its end.

        Where a template writes no such piece, an answer ends where what follows the last one, which
        is `final`, follows it too.
        """
        if self._chat is None:
            return after, ""
        if match := self._marks((after,)).search(after):
            return after[: match.start()], match[0]
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(after, final, strict=False))
        return "".join(character for character, _ in same), ""

    def _joined(self, pieces: Sequence[_Piece]) -> list[_Stretch]:
        """Joins texts up to the next ids or break: they are tokenised as one."""
        stretches, text, counts, starts = [], "", (), True
        for value, is_counted in [*pieces, (None, False)]:
            if isinstance(value, str):
                text += value
                counts += ((len(value), is_counted),) * bool(value)
                continue
            if text:
                stretches.append(_Stretch(None, counts, text, starts))
            if value:
                stretches.append(_Stretch(value, ((len(value), is_counted),)))
            if text or value:
                starts = self._chat is None
            text, counts = "", ()
        return stretches


def _counted(runs: Sequence[tuple[int, bool]], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Returns 1 for tokens with a character that counts; an empty one takes the next character."""
    lengths, counts = zip(*runs, strict=True)
    counts = np.repeat(counts, lengths)
    before = np.concatenate([[0], np.cumsum(counts), [counts.sum()]])
    starts_T, stops_T = np.array(offsets, np.int64).reshape(-1, 2).T
    return (before[np.maximum(stops_T, starts_T + 1)] > before[starts_T]).astype(int).tolist()
