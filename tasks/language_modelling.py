"""Language modelling on your own text: masked (BERT), causal (decoders), span corruption (T5).

Here: what each kind asks for. Not here: what they share (language_task.py), how tokens and spans
are drawn (input_pipeline/batches/masking.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from evaluation import surprisal
from evaluation.evaluate import Predictions
from evaluation.metrics import Scores
from input_pipeline.batches import masking
from input_pipeline.batches.template import Encoded, Encoder
from input_pipeline.examples import Examples
from models.bert import BertConfig
from models.decoder import DecoderConfig
from models.t5 import T5Config
from tasks.language_task import LanguageModelling
from tasks.task import Chunk, Targets, groups_of, rows_of

_MEAN_SPAN = 3.0  # tokens of a corrupted span (1910.10683)


class MaskedLanguageModelling(LanguageModelling):
    """Tokens or words are masked anew in each epoch, and filled in (1810.04805)."""

    positions = ("tokens_RxL", "targets_RxL")
    parts = ("mlm_head",)
    BACKBONE = BertConfig

    def __init__(self, config: ConfigDict, labels: Sequence[str], **parts: Any):
        """Also refuses a tokeniser without a mask."""
        super().__init__(config, labels, **parts)
        self.offsets = config.language.whole_words
        if self.tokenizer.mask_id < 0:
            raise ValueError(
                "config.task='masked_language_modelling', but the tokeniser has no mask: leave "
                "config.tokenizer.model empty, to use the checkpoint's own"
            )

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Masks; whole words, if they are asked for and data.words stored them."""
        words = chunk.examples.words if self.config.language.whole_words else None
        if words is None:
            starts_P = np.repeat(encoded.starts_B, encoded.lengths_B)
            units_P = np.arange(len(encoded.tokens)) - starts_P
        elif list(chunk.examples.texts_N[chunk.indices_B]) == list(chunk.texts_B):
            units_P = masking.word_of_tokens(encoded, words.take(chunk.indices_B))
        else:
            raise ValueError(
                "config.language.whole_words masks the words of the stored texts, which "
                "config.augmentation changes: set its rates to 0, or whole_words to False"
            )
        tokens, targets = masking.mask_tokens(
            encoded.tokens,
            encoded.lengths_B,
            may_mask_P=(encoded.fields >= 0) & (encoded.tokens != self.tokenizer.unk_id),
            units_P=units_P,
            share=self.config.language.mask_share,
            mask_id=self.tokenizer.mask_id,
            vocab_size=self.tokenizer.vocab_size,
            draws=self.draws(chunk),
        )
        return Targets({"tokens_RxL": tokens, "targets_RxL": targets}, {})


class CausalLanguageModelling(LanguageModelling):
    """Each token of a text is predicted from those before it in its window."""

    metrics = (*surprisal.BITS, *surprisal.OF_TOKENS)
    FLOOR = "character 5-grams"
    parts = ("lm_head",)
    BACKBONE = DecoderConfig

    def __init__(self, config: ConfigDict, labels: Sequence[str], **parts: Any):
        """Also refuses a decoder that sees what it predicts."""
        super().__init__(config, labels, **parts)
        if self.backbone.bidirectional:
            raise ValueError(
                "config.model.bidirectional=True lets a decoder see the tokens that "
                "causal_language_modelling asks for: set it to False"
            )

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Asks for the next token wherever it is of the text."""
        targets = np.zeros_like(encoded.tokens)
        targets[:-1] = np.where(encoded.fields[1:] >= 0, encoded.tokens[1:] + 1, 0)
        targets[np.cumsum(encoded.lengths_B) - 1] = 0  # what follows is another example
        return Targets({"targets_RxL": targets}, {})

    def counted(self, encoded: Encoded, targets: Targets) -> np.ndarray:
        """Returns the tokens that are predicted, each at the place before it."""
        return np.append(False, super().counted(encoded, targets)[:-1])

    def decode(
        self, predictions: Predictions, windows: Examples, examples: Examples, encoder: Encoder
    ) -> Predictions:
        """Joins windows, and adds 'first_N', how many tokens have nothing before them."""
        joined = super().decode(predictions, windows, examples, encoder)
        first_N = joined["windows_N"] * (not encoder.around[0])
        return dataclasses.replace(joined, outputs={**joined.outputs, "first_N": first_N})

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Also spreads the nats of a document over its characters and bytes.

        A first token, where no mark comes before it, costs what any of the vocabulary would, so
        that the bits are always those in which a text could be written.
        """
        texts = list(examples.texts_N[rows_of(examples, predictions.ids_N)])
        nats_N = surprisal.sums(predictions)[0]
        nats_N = nats_N + predictions["first_N"] * np.log(self.backbone.vocab_size)
        of_texts = surprisal.bit_scores(predictions.ids_N, nats_N, texts)
        statistics = {**of_texts.statistics, **surprisal.token_scores(predictions).statistics}
        groups_N = groups_of(examples, predictions.ids_N)
        return dataclasses.replace(
            of_texts, metrics=self.metrics, statistics=statistics, groups_N=groups_N
        )

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Scores a model of character n-grams that learned the same texts."""
        examples = examples.take(np.argsort(examples.ids_N, kind="stable"))
        texts = list(examples.texts_N)
        floor = surprisal.ngram_floor(list(train.texts_N), examples.ids_N, texts)
        return {self.FLOOR: dataclasses.replace(floor, groups_N=examples.groups_N)}

    def rates(self, nats: float, text: str) -> Mapping[str, float]:
        """Returns the bits per character."""
        return {"bits_per_character": round(nats / np.log(2) / max(len(text), 1), 4)}


class SpanCorruption(LanguageModelling):
    """Spans are taken out of a text and written by the decoder (1910.10683)."""

    positions = ("tokens_RxL", "is_target_RxL", "targets_RxL")
    parts = ("decoder", "lm_head")
    BACKBONE = T5Config

    def __init__(self, config: ConfigDict, labels: Sequence[str], **parts: Any):
        """Also refuses a tokeniser with too few sentinels for the longest text."""
        super().__init__(config, labels, **parts)
        self._sentinels = masking.sentinels(self.tokenizer)
        needed = int(self._spans(np.array([config.layout.max_length]))[0])
        if len(self._sentinels) < needed:
            raise ValueError(
                f"config.layout.max_length={config.layout.max_length} needs {needed} sentinels "
                f"(<extra_id_0>, ...), the tokeniser has {len(self._sentinels)}: lower it, or "
                "use the tokeniser of a T5"
            )

    def encoder(self, template: str, *, max_length: int, prefix_ids: Sequence[int]) -> Encoder:
        """Returns one that leaves room for the sentinels, which are in source and target."""
        lengths = np.arange(max_length + 1)
        needed = lengths + 2 * np.maximum.accumulate(self._spans(lengths)) + 1
        longest = int(np.searchsorted(needed, max_length, side="right")) - 1
        return super().encoder(template, max_length=longest, prefix_ids=prefix_ids)

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Replaces the tokens by those of source and target."""
        tokens, is_target, lengths_B = masking.corrupt_spans(
            encoded.tokens,
            encoded.lengths_B,
            is_text_P=encoded.fields >= 0,
            share=self.config.language.mask_share,
            mean_span=_MEAN_SPAN,
            sentinel_ids=self._sentinels,
            end_id=self.backbone.end_id,
            draws=self.draws(chunk),
        )
        positions = (tokens, is_target, np.where(is_target, tokens + 1, 0))
        named = zip(self.positions, positions, strict=True)
        positions = {name: values.astype(np.int32) for name, values in named}
        return Targets(positions, {"lengths_B": lengths_B})

    def _spans(self, lengths: np.ndarray) -> np.ndarray:
        share = self.config.language.mask_share
        return masking.span_counts(lengths, share=share, mean_span=_MEAN_SPAN)[1]

    def asked_tokens(self, train: Examples) -> np.ndarray:
        """Returns the tokens that the corruption of training texts asks for."""
        return np.concatenate([targets - 1 for targets in self.asked(train)["targets_N"]])
