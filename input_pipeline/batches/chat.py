"""Conversations to token ids, and which of them are answers that the model learns to write.

Here: data.template around a prompt and its answer, what a chat template writes around messages, and
what keeps a text that holds a special piece's name from becoming that piece: what a template writes
is tokenised with its special pieces, what people wrote is tokenised as plain text. Not here: Jinja
(chat_templates.py), messages in files (columns.py), what the loss makes of the answers. Called by
tasks/generation.py. Imports no TensorFlow.
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
        parts: the text, in parts that count or not.
        counts: whether `ids` count.
        starts: whether the text is tokenised as one that nothing stands before.
    """

    ids: tuple[int, ...] | None
    parts: tuple[tuple[str, bool], ...] = ()
    counts: bool = False
    starts: bool = True

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.parts)

    @property
    def is_mixed(self) -> bool:
        return len({counts for _, counts in self.parts}) > 1


class ChatEncoder:
    """Conversations to token ids; the interface is that of template.Encoder.

    A text is what `pack_messages` gives. An answer counts with all that follows it up to the end of
    its turn, so that the model learns to stop. An empty last answer is left out with all behind it:
    that is a prompt.

    Attributes:
        fields: as of Encoder.
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
        self._chat, self._words = None, ("", "", "")
        if is_chat:
            ids = {role: getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad", "unk")}
            names = {
                f"{role}_token": tokenizer.piece(i) if i >= 0 else "" for role, i in ids.items()
            }
            self._chat = ChatTemplate(template, names)
        elif FIELD.findall(template) == ["text", "pair"]:
            self._words = tuple(FIELD.split(template)[::2])
        else:
            raise ValueError(
                f"data.template={template!r} must hold {{text}}, the prompt, and behind it "
                "{pair}, the answer, such as '{text}\\n{pair}'; or set "
                "config.generation.chat_template"
            )
        self._parse = functools.cache(self._parsed)
        example = [("user", "?"), ("assistant", "!")]
        self.tail, _ = self._end(self._layout(_SPOKEN).around[-1], "")
        last = next(s for s in reversed(self._stretches(example)) if s.ids and s.counts)
        self.stop_ids = tuple(sorted({last.ids[-1], self._ends[-1]}))
        self.max_length = max_length
        self.room = max_length - len(self.encode([example])[0][0]) + 2
        if self.room < 2:
            raise ValueError(
                f"layout.max_length={max_length} leaves no room for a prompt and its answer: the "
                f"template takes {max_length - self.room} tokens; raise layout.max_length"
            )

    def __call__(
        self,
        texts: Sequence[str] | Sequence[bytes],
        pairs: None = None,
        *,
        choices: None = None,
        num_threads: int | None = None,
        sampling: Mapping[str, Sampling] = NO_SAMPLING,
        offsets: bool = False,
    ) -> Encoded:
        """Encodes conversations.

        Args:
            texts: of `pack_messages`, str or UTF-8 bytes.
            pairs: there are none, as there are no choices.
            choices: as said.
            num_threads: as of Tokenizer.encode_batch.
            sampling: not possible, as offsets are not.
            offsets: as said.

        Returns:
            Encoded, whose fields are 1 at tokens that count, 0 at those of other text that is at
            least in part a message, and -1 of the template.

        Raises:
            ValueError: a conversation is longer than `max_length`, the template refuses or changes
                it, or something is asked for that there is not.
        """
        if pairs is not None or choices is not None or sampling or offsets:
            raise ValueError(
                "conversations have no second texts, choices, offsets, or segmentations that are "
                "drawn: set augmentation.sampling_rate to 0"
            )
        rows = self.encode([unpack_messages(text) for text in texts], num_threads=num_threads)
        lengths_B = np.array([len(ids) for ids, _ in rows], np.int64)
        if lengths_B.max(initial=0) > self.max_length:
            raise ValueError(
                f"{(lengths_B > self.max_length).sum()} of {len(rows)} conversations are longer "
                f"than layout.max_length={self.max_length}, the longest has {lengths_B.max()} "
                "tokens: raise it"
            )
        count = int(lengths_B.sum())
        tokens = np.fromiter((i for ids, _ in rows for i in ids), np.int32, count)
        fields = np.fromiter((field for _, found in rows for field in found), np.int8, count)
        return Encoded(tokens, np.zeros_like(tokens), lengths_B, np.zeros(len(rows), bool), fields)

    def encode(
        self, conversations: Sequence[Messages], *, num_threads: int | None = None
    ) -> list[tuple[list[int], list[int]]]:
        """Returns ids and fields of conversations of any length."""
        return self._rows([self._stretches(row) for row in conversations], num_threads)

    def prompts(self, conversations: Sequence[Messages]) -> list[list[int]]:
        """Returns the ids of conversations up to the last answer, which is left out."""
        stretches = [self._stretches([*row[:-1], ("assistant", "")]) for row in conversations]
        return [ids for ids, _ in self._rows(stretches, None)]

    def without_start(self, messages: Messages) -> list[tuple[str, str]] | None:
        """Returns a conversation whose start is cut, so that it has `max_length` tokens.

        The messages of user and assistant lose their first characters, the first of them first. The
        template, what the system says and the last answer stay whole: None if these are too long.
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
    ) -> list[tuple[list[int], list[int]]]:
        """Tokenises each different stretch once, and joins."""
        stretches = {s for row in conversations for s in row}
        known = {
            s: (s.ids, [1 if s.counts else -1] * len(s.ids)) for s in stretches if s.ids is not None
        }
        for starts, tokenizer in ((True, self._tokenizer), (False, self._following)):
            plain = [
                s for s in stretches if s.ids is None and s.starts == starts and not s.is_mixed
            ]
            found = tokenizer.encode_batch([s.text for s in plain], num_threads=num_threads)
            for s, ids in zip(plain, found, strict=True):
                known[s] = ids, [int(s.parts[0][1])] * len(ids)
            mixed = [s for s in stretches if s.starts == starts and s.is_mixed]
            for s, (ids, offsets) in zip(
                mixed, tokenizer.encode_with_offsets([s.text for s in mixed]), strict=True
            ):
                known[s] = ids, _fields(s.parts, offsets)
        rows = []
        for row in conversations:
            ids, fields = [*self._prefix], [-1] * len(self._prefix)
            for s in row:
                ids += known[s][0]
                fields += known[s][1]
            rows.append((ids, fields))
        return rows

    def _layout(self, roles: tuple[str, ...]) -> Layout:
        if self._chat is not None:
            return self._chat.layout(roles)
        if roles != _SPOKEN:
            raise ValueError(
                f"data.template is for a prompt and its answer, found messages of "
                f"{', '.join(roles)}: set config.generation.chat_template to 'checkpoint', or to a "
                "chat template"
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
        if self._chat is None:
            return [(self._parse(text), counts)] if text else []
        return [(piece, counts) for piece in self._parse(text)]

    def _parsed(self, text: str) -> tuple:
        """Returns ids of a text of data.template, or by turns text and ids of special pieces."""
        if self._chat is None:
            return tuple(self._tokenizer.encode_batch([text], num_threads=1)[0])
        special = self._tokenizer.special_pieces
        parts = self._marks((text,)).split(text)
        return tuple((special[part],) if k % 2 else part for k, part in enumerate(parts))

    @functools.cache  # noqa: B019, as long as the run
    def _marks(self, around: tuple[str, ...]) -> re.Pattern:
        """Returns what finds the special pieces that the template writes, the longest first."""
        special = self._tokenizer.special_pieces if self._chat is not None else ()
        found = [piece for piece in special if any(piece in text for text in around)]
        found.sort(key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, found)) or '(?!)'})")

    def _content(self, text: str, marks: re.Pattern, counts: bool) -> Iterator[_Piece]:
        """Yields a message, broken within what would be read as a special piece."""
        apart = self._chat is None  # from the template's words, whatever the message
        yield (None if apart else ""), counts
        place = 0
        for match in marks.finditer(text):
            yield text[place : match.start() + 1], counts
            yield None, counts
            place = match.start() + 1
        yield text[place:], counts
        yield (None if apart else ""), counts

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
        stretches, parts, starts = [], [], True
        for value, counts in [*pieces, (None, False)]:
            if isinstance(value, str):
                parts += [(value, counts)] * bool(value)
                continue
            if parts:
                stretches.append(_Stretch(None, tuple(parts), starts=starts))
            if value:
                stretches.append(_Stretch(value, counts=counts))
            if parts or value:
                starts = self._chat is None
            parts = []
        return stretches


def _fields(parts: Sequence[tuple[str, bool]], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Returns 1 for each token with a character that counts; an empty one is of the next one's."""
    counts = np.repeat([counts for _, counts in parts], [len(text) for text, _ in parts])
    before = np.concatenate([[0], np.cumsum(counts), [counts.sum()]])
    starts_T, stops_T = np.array(offsets, np.int64).reshape(-1, 2).T
    stops_T = np.maximum(stops_T, starts_T + 1)
    return (before[stops_T] > before[starts_T]).astype(int).tolist()
