"""Answers that are written: instructions, dialogues, translations, poems; decoders and T5.

The loss is on the answer alone. Not here: templates and which tokens are of an answer
(input_pipeline/batches/chat.py), log probabilities in chunks (models/language_heads.py), the loop
that writes (models/generation.py), scores of written texts (evaluation/generated_text.py).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from evaluation import generated_text, surprisal
from evaluation.evaluate import Predictions
from evaluation.metrics import Scores, about
from input_pipeline.batches.chat import ChatEncoder, pack_messages, unpack_messages
from input_pipeline.batches.conversations import fitting, messages_of
from input_pipeline.batches.template import Encoded
from input_pipeline.batches.windows import token_counts
from input_pipeline.examples import Examples, object_array
from models.bert import BertConfig
from models.generation import Decoding
from models.t5 import T5Config
from tasks.language_task import TokenTask
from tasks.limits import Given, Limit, report
from tasks.task import Chunk, Loaded, Targets, groups_of, rows_of, text_record
from tasks.writing import Writer

_NEAREST = "nearest training prompt"
_DECODING = ("max_tokens", "temperature", "top_k", "top_p", "beams", "length_penalty")


class Generation(TokenTask):
    """A prompt, with or without messages before it, and the answer to write."""

    metrics = (surprisal.BITS[0], *surprisal.OF_TOKENS)
    FLOOR = "character 5-grams"
    BOUND = ("generation.chat_template",)

    def __init__(self, config: ConfigDict, labels: Sequence[str], **parts: Any):
        """Checks the options.

        Raises:
            ValueError: the model cannot write, or an option does not fit it or another.
        """
        super().__init__(config, labels, **parts)
        self._seq2seq, self._writer = isinstance(self.backbone, T5Config), None
        self.parts = ("lm_head",)
        if self._seq2seq:
            self.positions, self.parts = ("is_target_RxL", "targets_RxL"), ("decoder", "lm_head")
        options, problem = config.generation, ""
        rates = [name for name, rate in config.augmentation.items() if "_rate" in name and rate]
        if isinstance(self.backbone, BertConfig) or getattr(self.backbone, "bidirectional", False):
            problem = (
                "config.task='generation' needs a decoder or T5 and model.bidirectional=False; "
                f"{config.model.checkpoint} is a {self.backbone.model_type}"
            )
        elif rates:
            problem = f"config.augmentation.{rates[0]} would change answers as well: set it to 0"
        elif self._seq2seq and options.train_on == "all":
            problem = (
                "config.generation.train_on='all': an encoder-decoder writes one answer to what it "
                "reads: set it to 'last'"
            )
        elif options.beams > 1 and options.temperature:
            problem = (
                f"config.generation.beams={options.beams} searches, temperature="
                f"{options.temperature} draws: set beams to 1, or temperature to 0"
            )
        if problem:
            raise ValueError(problem)

    def prose(self) -> str:
        """Describes what is learned."""
        options = self.config.generation
        which = "every answer" if options.train_on == "all" else "the answer"
        template = "a chat template" if options.chat_template else "data.template"
        return f"learns to write {which} within {template}"

    def check(self, examples: Examples, split: str) -> None:
        """Raises ValueError without answers, with empty ones that stop, or unfit messages."""
        if self.config.generation.examples:
            generated_text.check_installed()
        if examples.pairs_N is None:
            raise ValueError(
                f"the {split} examples have no answers: set config.data.pair_column to the column "
                "that holds them, or config.data.messages_column"
            )
        if examples.histories_N is not None and not self.config.generation.chat_template:
            raise ValueError(
                f"{split} examples have several messages, for which data.template has no places: "
                "set config.generation.chat_template to 'checkpoint', or to a chat template"
            )
        empty = [i for i, answer in enumerate(examples.pairs_N) if not answer.strip()]
        if empty and len(empty) == len(examples):
            raise ValueError(
                f"all {len(empty)} {split} examples have an empty answer: fill them, or set "
                "config.data.pair_column to the column that holds them"
            )

    def encoder(self, template: str, *, max_length: int, prefix_ids: Sequence[int]) -> ChatEncoder:
        """Returns one that reads the whole conversations that `windows` packs."""
        options = self.config.generation
        chat = options.chat_template
        if chat == "checkpoint" and not (chat := self.tokenizer.chat_template):
            raise ValueError(
                "config.generation.chat_template='checkpoint', but the tokeniser of "
                f"{self.config.model.checkpoint} comes without one: give one, or '' for "
                "data.template"
            )
        self._encoder = ChatEncoder(
            self.tokenizer,
            chat or template,
            is_chat=bool(chat),
            max_length=max_length,
            prefix_ids=prefix_ids,
            count_all=options.train_on == "all",
            seq2seq=self._seq2seq,
        )
        return self._encoder

    def windows(self, examples: Examples, encoder: ChatEncoder, *, training: bool) -> Examples:
        """Packs each conversation into one text; drops or cuts what is too long.

        Empty answers are dropped from training; elsewhere they are prompts, in no metric.
        """
        on_long = self.config.generation.on_long
        return fitting(examples, encoder, on_long=on_long, keep_prompts=not training)

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields what is dropped, cut, not written, or longer than what is written."""
        examples, windows, training = given.examples, given.windows, given.training
        options, length = self.config.generation, self.config.layout.max_length
        total, rows = len(examples), rows_of(examples, windows.ids_N).tolist()
        answers = [messages_of(examples, i)[-1][1] for i in range(total)]
        full_N = np.array(list(map(bool, answers)), bool)
        kept_N, where = np.isin(examples.ids_N, windows.ids_N), f"config.layout.max_length={length}"
        pairs = zip(rows, windows.texts_N, strict=True)
        changed = sum(pack_messages(messages_of(examples, row)) != text for row, text in pairs)
        dropped = ~kept_N & (full_N | (not training))
        empty = "dropped" if training else "prompts only, in no metric"
        yield Limit(
            int((~full_N).sum()) if full_N.any() else 0,  # in a file of prompts all are empty
            total,
            f"examples have an empty answer and are {empty}",
            "write the answers",
        )
        longer = "raise config.layout.max_length (and row_length)"
        or_cut = "" if options.on_long == "cut" else ", or set config.generation.on_long='cut'"
        what = f"examples are longer than {where} tokens and"
        yield Limit(int(dropped.sum()), total, f"{what} dropped", longer + or_cut)
        yield Limit(changed, total, f"{what} lose the start of their prompt", longer)
        if training:
            return
        lengths_N = token_counts([answer for answer in answers if answer], self.tokenizer)
        yield Limit(
            int((lengths_N > options.max_tokens).sum()),
            len(lengths_N),
            f"answers are longer than config.generation.max_tokens={options.max_tokens} and can "
            "never be written whole",
            f"raise it; the longest takes {lengths_N.max(initial=0)}",
        )
        known = int((full_N & kept_N).sum())
        written = min(known, options.examples)
        yield Limit(
            known - written if given.complete else 0,
            int(full_N.sum()),
            f"answers have no written one beside them: {written:,} are compared",
            f"raise config.generation.examples (now {options.examples})",
        )

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Asks for the tokens of answers: of a decoder at the place before each of them.

        Of a dialogue the last answer alone is evaluated, whatever is trained on; where that is
        empty, nothing is.
        """
        counts_P = encoded.fields == 1
        lasts_B = encoded.starts_B + encoded.lengths_B - 1
        if not chunk.training:
            runs_P = np.cumsum(np.diff(counts_P, prepend=False) & counts_P)
            answered_B = [bool(unpack_messages(text)[-1][1]) for text in chunk.texts_B]
            last_B = np.where(answered_B, runs_P[lasts_B], 0)
            counts_P &= runs_P == np.repeat(last_B, encoded.lengths_B)
        asked = np.where(counts_P, encoded.tokens + 1, 0).astype(np.int32)
        if self._seq2seq:
            return Targets({"is_target_RxL": counts_P.astype(np.int32), "targets_RxL": asked}, {})
        asked = np.append(asked[1:], np.int32(0))
        asked[lasts_B] = 0  # what follows is another example
        return Targets({"targets_RxL": asked}, {})

    def counted(self, encoded: Encoded, targets: Targets) -> np.ndarray:
        """Returns the tokens of answers."""
        return encoded.fields == 1

    def decode(
        self, predictions: Predictions, windows: Examples, examples: Examples, encoder: ChatEncoder
    ) -> Predictions:
        """Keeps what was asked for: nothing, of examples that were dropped."""
        kept = surprisal.by_document(predictions, windows.ids_N)
        ids_N, place_of = np.sort(examples.ids_N), {int(id_): i for i, id_ in enumerate(kept.ids_N)}
        outputs = {}
        for name in ("targets_N", "log_probability_N", "best_N"):
            none = kept[name][0][:0]
            parts = [kept[name][place_of[i]] if i in place_of else none for i in ids_N.tolist()]
            outputs[name] = object_array(parts)
        return Predictions(ids_N, outputs)

    def complete(
        self, predictions: Predictions, examples: Examples, encoder: ChatEncoder, loaded: Loaded
    ) -> Predictions:
        """Adds texts_N: the answers to the first generation.examples prompts, None to others.

        Prompts that come without an answer are all answered.
        """
        packed, options = self.windows(examples, encoder, training=False), self.config.generation
        messages = dict(zip(packed.ids_N, map(unpack_messages, packed.texts_N), strict=True))
        asked = [i for i in predictions.ids_N if i in messages]
        known = {i for i in asked if messages[i][-1][1]}
        compared = {*[i for i in asked if i in known][: options.examples]}
        chosen = [i for i in asked if i in compared or i not in known]
        prompts = encoder.prompts([messages[i] for i in chosen])
        if self._writer is None:  # kept, since it compiles
            ends = {"end_ids": encoder.stop_ids, "pad_id": max(self.tokenizer.pad_id, 0)}
            decoding = Decoding(**{name: options[name] for name in _DECODING}, **ends)
            rows, seed = self.config.eval.rows, self.config.seed
            self._writer = Writer(loaded.model, loaded.adapted, decoding, rows=rows, seed=seed)
        written = self._writer(loaded.params, prompts, chosen)
        cut = sum(len(ids) >= options.max_tokens for ids in written)
        what = f"answers reach config.generation.max_tokens={options.max_tokens} and stop there"
        report([Limit(cut, len(written), what, "raise it")], "written", print)
        answers = [self.tokenizer.decode(ids).removesuffix(encoder.tail) for ids in written]
        texts = dict(zip(chosen, answers, strict=True))
        texts_N = object_array([texts.get(i) for i in predictions.ids_N])
        return Predictions(predictions.ids_N, {**predictions.outputs, "texts_N": texts_N})

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Scores the loss on answers and, where some were written, the written ones.

        The former is about the examples with an answer that fit, the latter about those of them for
        which a text was written; how many others there are is in the details.
        """
        rows_N, metrics = rows_of(examples, predictions.ids_N), self.metrics
        answers = [examples.pairs_N[i] for i in rows_N]
        nats_N, _, tokens_N = surprisal.sums(predictions)
        read = [answer if count else "" for answer, count in zip(answers, tokens_N, strict=True)]
        of_texts = surprisal.bit_scores(predictions.ids_N, nats_N, read)
        statistics = {**of_texts.statistics, **surprisal.token_scores(predictions).statistics}
        statistics = {name: about(tokens_N > 0, values) for name, values in statistics.items()}
        if "texts_N" in predictions.outputs:
            texts = zip(predictions["texts_N"], answers, strict=True)
            texts = [text if answer.strip() else None for text, answer in texts]
            metrics += generated_text.METRICS
            statistics |= _of_written(texts, answers)
        without = sum(not answer.strip() for answer in answers)
        detail = {"without_answer": without, "too_long": int((tokens_N == 0).sum()) - without}
        statistics = {metric.name: statistics[metric.name] for metric in metrics}
        groups_N = groups_of(examples, predictions.ids_N)
        return Scores(metrics, of_texts.ids_N, statistics, detail, of_texts.truth, groups_N)

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Scores character 5-grams on the answers, and answers to other prompts.

        The latter are those to the nearest training prompts, of the examples that `complete` takes.
        """
        examples = examples.take(np.argsort(examples.ids_N, kind="stable"))
        fitting_ids = {*self.windows(examples, self._encoder, training=False).ids_N}
        pairs = zip(examples.ids_N, examples.pairs_N, strict=True)
        read = [answer if i in fitting_ids and answer.strip() else "" for i, answer in pairs]
        train = train.take(np.array([bool(answer.strip()) for answer in train.pairs_N]))
        floor = surprisal.ngram_floor(list(train.pairs_N), examples.ids_N, read)
        is_read_N = np.array([bool(answer) for answer in read])
        statistics = {name: about(is_read_N, values) for name, values in floor.statistics.items()}
        floor = dataclasses.replace(floor, statistics=statistics, groups_N=examples.groups_N)
        scores = {self.FLOOR: floor}
        chosen = np.flatnonzero(is_read_N)[: self.config.generation.examples]
        if not len(chosen):
            return scores
        asked, known = ([_prompt(part, i) for i in range(len(part))] for part in (examples, train))
        texts_N = np.full(len(examples), None, object)
        texts_N[chosen] = generated_text.nearest_answers(
            [asked[i] for i in chosen], known, list(train.pairs_N)
        )
        statistics = _of_written(texts_N, read)
        metrics = generated_text.METRICS
        return scores | {
            _NEAREST: dataclasses.replace(floor, metrics=metrics, statistics=statistics)
        }

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields prompt, answer, the written text and the answer's bits per character.

        An example is 'wrong' if the text differs from the answer or, without a text, if not every
        token of the answer is the likeliest; 'confidence' is the bits per character, so that the
        most surprising answers come first.
        """
        nats_N, correct_N, tokens_N = surprisal.sums(predictions)
        texts_N = predictions.outputs.get("texts_N", np.full(len(predictions), None, object))
        given = examples.as_given()
        for k, i in enumerate(rows_of(examples, predictions.ids_N).tolist()):
            record = text_record(examples, i, text="", pair="")
            *before, (_, prompt), (_, shown) = messages_of(given, i)
            _, answer = messages_of(examples, i)[-1]
            record |= ({"history": before} if before else {}) | {"prompt": prompt}
            record |= ({"answer": shown} if answer else {}) | {"prediction": texts_N[k]}
            if tokens_N[k]:
                bits = round(float(nats_N[k] / np.log(2) / len(answer)), 4)
                exact = correct_N[k] == tokens_N[k] if texts_N[k] is None else texts_N[k] == answer
                record |= {"bits_per_character": bits, "wrong": not exact, "confidence": bits}
            elif answer:
                record |= {"wrong": True, "confidence": 0.0}  # dropped
            yield record


def _of_written(texts_N: Sequence[str | None], answers: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the statistics of written texts, which are about the examples that have one."""
    is_written_N = np.array([text is not None for text in texts_N])
    statistics = generated_text.statistics(texts_N, answers)
    return {name: about(is_written_N, values) for name, values in statistics.items()}


def _prompt(examples: Examples, i: int) -> str:
    return "\n".join(content for _, content in messages_of(examples, i)[:-1])
