"""Answers that are written: instructions, dialogues, translations, poems; decoders and T5.

The loss is on the answer alone. Not here: templates and which tokens are of an answer
(input_pipeline/batches/chat.py), log probabilities in chunks (models/language_heads.py), the loop
that writes (models/generation.py), what written texts are worth (evaluation/generated_text.py).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from evaluation import generated_text, surprisal
from evaluation.evaluate import Predictions
from evaluation.metrics import Scores, about
from input_pipeline.batches.chat import ChatEncoder, pack_messages, unpack_messages
from input_pipeline.batches.conversations import fitting, messages_of, name_of
from input_pipeline.batches.template import Encoded
from input_pipeline.batches.windows import token_counts
from input_pipeline.examples import Examples, object_array
from input_pipeline.tokenizers.tokenization import Tokenizer
from models.backbone import BackboneConfig
from models.bert import BertConfig
from models.decoder import DecoderConfig
from models.generation import Decoding
from models.language_heads import LanguageHead, Seq2SeqHead
from models.t5 import T5Config
from tasks.language_task import LanguageModelling
from tasks.limits import Given, Limit, tell
from tasks.task import Chunk, Targets, Task, rows_of
from tasks.writing import Writer

_NEAREST = "nearest training prompt"


class Generation(Task):
    """A prompt, with or without messages before it, and the answer to write."""

    METRICS = (surprisal.BITS[0], *surprisal.OF_TOKENS)
    FLOOR = "character 5-grams"
    POSITIONS = ("targets_RxL",)

    def __init__(
        self,
        config: ConfigDict,
        labels: Sequence[str],
        *,
        tokenizer: Tokenizer,
        backbone: BackboneConfig,
    ):
        """Checks the options.

        Raises:
            ValueError: the model cannot write, or an option does not fit it or another.
        """
        super().__init__(config, labels, tokenizer=tokenizer, backbone=backbone)
        self._seq2seq = isinstance(backbone, T5Config)
        if self._seq2seq:
            self.POSITIONS = ("is_target_RxL", "targets_RxL")
        self._writer: Writer | None = None
        options = config.generation
        rates = [name for name, rate in config.augmentation.items() if "_rate" in name and rate]
        for wrong, message in (
            (
                isinstance(backbone, BertConfig)
                or (isinstance(backbone, DecoderConfig) and backbone.bidirectional),
                f"config.task='generation' needs a decoder or T5 and model.bidirectional=False; "
                f"{config.model.checkpoint} is a {backbone.model_type}",
            ),
            (
                rates,
                f"config.augmentation.{'='.join(rates[:1])} would change answers as well, which "
                "the model is to write: set it to 0",
            ),
            (
                self._seq2seq and options.train_on == "all",
                "config.generation.train_on='all': an encoder-decoder writes one answer to what "
                "it reads: set it to 'last'",
            ),
            (
                options.beams > 1 and options.temperature,
                f"config.generation.beams={options.beams} searches, temperature="
                f"{options.temperature} draws: set beams to 1, or temperature to 0",
            ),
        ):
            if wrong:
                raise ValueError(message)

    @property
    def parts(self) -> tuple[str, ...]:
        """The decoder of T5, and the output layer of those that have one."""
        return ("decoder", "lm_head") if self._seq2seq else ("lm_head",)

    def prose(self) -> str:
        """Says what is learned."""
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
        if empty and (self.config.generation.on_empty == "stop" or len(empty) == len(examples)):
            raise ValueError(
                f"{len(empty)} of {len(examples)} {split} examples have an empty answer, the first "
                f"is {name_of(examples, empty[0])}: fill it, or set "
                "config.generation.on_empty='drop'"
            )

    def encoder(self, template: str, *, max_length: int, prefix_ids: Sequence[int]) -> ChatEncoder:
        """Returns one that reads whole conversations, such as `windows` packs."""
        options = self.config.generation
        chat = options.chat_template
        if chat == "checkpoint":
            chat = self.tokenizer.chat_template
            if not chat:
                raise ValueError(
                    "config.generation.chat_template='checkpoint', but the tokeniser of "
                    f"{self.config.model.checkpoint} comes without one: give one, or set '' for "
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

        Empty answers are dropped from training; elsewhere they are prompts, of which no metric is.
        """
        on_long = self.config.generation.on_long
        return fitting(examples, encoder, on_long=on_long, keep_prompts=not training)

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields what is left out, cut, not written, or longer than what is written."""
        examples, windows, training = given.examples, given.windows, given.training
        options, total = self.config.generation, len(examples)
        answers = [""] * total if examples.pairs_N is None else examples.pairs_N
        full_N = np.array([bool(answer.strip()) for answer in answers], bool)
        kept_N = np.isin(examples.ids_N, windows.ids_N)
        rows = rows_of(examples, windows.ids_N)
        changed = sum(
            pack_messages(messages_of(examples, row)) != text
            for row, text in zip(rows.tolist(), windows.texts_N, strict=True)
        )
        long = ~kept_N & (full_N | (not training))
        where = f"longer than config.layout.max_length={self.config.layout.max_length} tokens"
        longer = "raise config.layout.max_length (and row_length)"
        empty = "left out" if training else "prompts only, in no metric"
        yield Limit(
            int((~full_N).sum()) if full_N.any() else 0,  # of a file of prompts all are
            total,
            f"examples have an empty answer and are {empty}",
            "write the answers",
        )
        or_cut = "" if options.on_long == "cut" else ", or set config.generation.on_long='cut'"
        yield Limit(int(long.sum()), total, f"examples are {where} and left out", longer + or_cut)
        lost = f"examples are {where} and lose the start of their prompt"
        yield Limit(changed, total, lost, longer)
        if training:
            return
        lengths_N = token_counts([a for a in answers if a.strip()], self.tokenizer)
        yield Limit(
            int((lengths_N > options.max_tokens).sum()),
            len(lengths_N),
            f"answers are longer than config.generation.max_tokens={options.max_tokens} and can "
            "never be written whole",
            f"raise it; the longest takes {lengths_N.max(initial=0)}",
        )
        written = min(int((full_N & kept_N).sum()), options.examples)
        yield Limit(
            int((full_N & kept_N).sum()) - written if given.complete else 0,
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
        del targets
        return encoded.fields == 1

    def head(self, *, num_features: int) -> nn.Module:
        """Returns the output projection of the backbone, chunk by chunk."""
        if num_features:
            raise ValueError("config.features.use: a model that writes reads none: set 'none'")
        head = Seq2SeqHead if self._seq2seq else LanguageHead
        return head(chunk=self.config.generation.chunk)

    # Cross-entropy of the tokens that are asked for, whatever asks for them.
    loss = LanguageModelling.loss
    outputs = LanguageModelling.outputs

    def decode(
        self,
        predictions: Predictions,
        windows: Examples,
        examples: Examples,
        encoder: ChatEncoder,
    ) -> Predictions:
        """Keeps what was asked for; of examples that were left out, nothing was."""
        del encoder
        found = surprisal.by_document(predictions, windows.ids_N)
        ids_N = np.sort(examples.ids_N)
        places_N = np.searchsorted(found.ids_N, ids_N)
        there_N = np.isin(ids_N, found.ids_N)
        outputs = {}
        for name in ("targets_N", "log_probability_N", "best_N"):
            none = np.zeros(0, found[name][0].dtype)
            pairs = zip(places_N, there_N, strict=True)
            outputs[name] = object_array([found[name][i] if there else none for i, there in pairs])
        return Predictions(ids_N, outputs)

    def complete(
        self,
        predictions: Predictions,
        examples: Examples,
        encoder: ChatEncoder,
        *,
        model: nn.Module,
        params: Mapping[str, jax.Array],
        adapted: Callable[[Callable], Callable],
    ) -> Predictions:
        """Adds texts_N: the answers to the first generation.examples prompts, None to others.

        Prompts that come without an answer are all answered.
        """
        packed = self.windows(examples, encoder, training=False)
        messages = dict(zip(packed.ids_N, map(unpack_messages, packed.texts_N), strict=True))
        asked = [i for i in predictions.ids_N if i in messages]
        known = [i for i in asked if messages[i][-1][1]][: self.config.generation.examples]
        chosen = [i for i in asked if i in {*known} or not messages[i][-1][1]]
        prompts = encoder.prompts([messages[i] for i in chosen])
        if self._writer is None:
            self._writer = self._made_writer(model, adapted, encoder.stop_ids)
        written = self._writer(params, prompts, chosen)
        most = self.config.generation.max_tokens
        cut = sum(len(ids) >= most for ids in written)
        what = f"answers reach config.generation.max_tokens={most} and stop there"
        tell([Limit(cut, len(written), what, "raise it")], "written", print)
        answers = [self.tokenizer.decode(ids).removesuffix(encoder.tail) for ids in written]
        texts = dict(zip(chosen, answers, strict=True))
        texts_N = object_array([texts.get(i) for i in predictions.ids_N])
        return Predictions(predictions.ids_N, {**predictions.outputs, "texts_N": texts_N})

    def _made_writer(
        self, model: nn.Module, adapted: Callable[[Callable], Callable], end_ids: tuple[int, ...]
    ) -> Writer:
        names = ("max_tokens", "temperature", "top_k", "top_p", "beams", "length_penalty")
        options = {name: self.config.generation[name] for name in names}
        decoding = Decoding(**options, end_ids=end_ids, pad_id=max(self.tokenizer.pad_id, 0))
        return Writer(model, adapted, decoding, rows=self.config.eval.rows, seed=self.config.seed)

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Returns what answers cost and, where some were written, what these are worth.

        The former is about the examples with an answer that fit, the latter about those of them for
        which a text was written; how many of the others there are is in the details.
        """
        rows_N = rows_of(examples, predictions.ids_N)
        answers = [examples.pairs_N[i] for i in rows_N]
        nats_N, _, tokens_N = surprisal.sums(predictions)
        read = [answer if count else "" for answer, count in zip(answers, tokens_N, strict=True)]
        found = surprisal.bit_scores(predictions.ids_N, nats_N, read)
        statistics = {**found.statistics, **surprisal.token_scores(predictions).statistics}
        statistics = {name: about(tokens_N > 0, values) for name, values in statistics.items()}
        metrics = self.METRICS
        if "texts_N" in predictions.outputs:
            texts = zip(predictions["texts_N"], answers, strict=True)
            texts = [text if answer.strip() else None for text, answer in texts]
            metrics += generated_text.METRICS
            statistics |= _of_written(texts, answers)
        without = sum(not answer.strip() for answer in answers)
        return Scores(
            metrics,
            found.ids_N,
            {metric.name: statistics[metric.name] for metric in metrics},
            detail={
                "without_answer": without,
                "too_long": int((tokens_N == 0).sum()) - without,
            },
            truth=found.truth,
        )

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Returns what answers cost character 5-grams, and what answers to other prompts are worth.

        The latter are those to the nearest training prompts, of the examples that `complete` takes.
        """
        examples = examples.take(np.argsort(examples.ids_N, kind="stable"))
        fitting_ids = {*self.windows(examples, self._encoder, training=False).ids_N}
        read = [
            a if i in fitting_ids and a.strip() else ""
            for i, a in zip(examples.ids_N, examples.pairs_N, strict=True)
        ]
        train = train.take(np.array([bool(answer.strip()) for answer in train.pairs_N]))
        floor = surprisal.ngram_floor(list(train.pairs_N), examples.ids_N, read)
        is_read_N = np.array([bool(answer) for answer in read])
        statistics = {name: about(is_read_N, values) for name, values in floor.statistics.items()}
        scores = {self.FLOOR: dataclasses.replace(floor, statistics=statistics)}
        chosen = [i for i, answer in enumerate(read) if answer.strip()][
            : self.config.generation.examples
        ]
        if not chosen:
            return scores
        prompts = [_prompt(examples, i) for i in chosen]
        others = [_prompt(train, i) for i in range(len(train))]
        nearest = generated_text.nearest_answers(prompts, others, list(train.pairs_N))
        texts_N = np.full(len(examples), None, object)
        texts_N[chosen] = nearest
        statistics = _of_written(texts_N, read)
        return scores | {
            _NEAREST: Scores(
                generated_text.METRICS, examples.ids_N, statistics, truth=scores[self.FLOOR].truth
            )
        }

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields prompt, answer and what was written, and what the answer costs.

        'wrong' is what was written otherwise or, if nothing was, an answer of which not every token
        is the likeliest; 'confidence', the bits per character, so that the most surprising answers
        come first.
        """
        nats_N, correct_N, tokens_N = surprisal.sums(predictions)
        texts_N = predictions.outputs.get("texts_N", np.full(len(predictions), None, object))
        given = examples.as_given()
        for k, i in enumerate(rows_of(examples, predictions.ids_N).tolist()):
            record: dict[str, Any] = {"id": int(examples.ids_N[i])}
            if examples.names_N is not None:
                record["name"] = examples.names_N[i]
            *before, (_, prompt), (_, shown) = messages_of(given, i)
            _, answer = messages_of(examples, i)[-1]
            if before:
                record["history"] = before
            record["prompt"] = prompt
            if answer:
                record["answer"] = shown
            record["prediction"] = texts_N[k]
            if tokens_N[k]:
                bits = float(nats_N[k] / np.log(2) / len(answer))
                record["bits_per_character"] = round(bits, 4)
                exact = correct_N[k] == tokens_N[k] if texts_N[k] is None else texts_N[k] == answer
                record |= {"wrong": not exact, "confidence": round(bits, 4)}
            elif answer:
                record |= {"wrong": True, "confidence": 0.0}  # left out
            yield record


def _of_written(texts_N: Sequence[str | None], answers: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the statistics of written texts, which are about the examples that have one."""
    is_written_N = np.array([text is not None for text in texts_N])
    found = generated_text.statistics(texts_N, answers)
    return {name: about(is_written_N, values) for name, values in found.items()}


def _prompt(examples: Examples, i: int) -> str:
    return "\n".join(content for _, content in messages_of(examples, i)[:-1])
