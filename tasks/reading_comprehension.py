"""Reading comprehension: the answer to a question is a stretch of the text, or there is none.

A long context is read in overlapping windows, beside the question in each. Every position of the
context has a score for being the first and one for being the last token of the answer; the first
position of the sequence stands for a window without it (as in BERT, 1810.04805). Scores are log
probabilities among the positions of a window, so that a window without the answer, which gives
nearly all to its first position, cannot outbid others. Windows are cut by
input_pipeline/batches/windows.py and answers compared by evaluation/answers.py.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from evaluation import answers
from evaluation.answers import Answer
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, mean, one_each
from input_pipeline.batches.template import Encoded, Encoder
from input_pipeline.batches.windows import split
from input_pipeline.examples import Examples, object_array
from models import layers
from models.token_heads import TokenHead
from tasks import text_windows
from tasks.limits import Given, Limit
from tasks.task import Arrays, Chunk, Loss, Targets, Task, rows_of, text_record

_N_BEST = 20  # starts and ends that are combined, and answers of --mode=predict
_NEVER = -1e9  # log probability of the impossible; exp() of it is 0


class ReadingComprehension(Task):
    """Texts are contexts, pairs the questions, spans the answers; several are all right."""

    metrics = (
        Metric("f1", "F1, %", mean, scale=100, digits=1),
        Metric("exact_match", "exact match, %", mean, scale=100, digits=1),
    )
    FLOOR = "best matching sentence"
    SMOOTHING = True
    positions = ("asked_RxL", "starts_RxL", "ends_RxL")
    offsets = True

    def check(self, examples: Examples, split: str) -> None:
        """Raises ValueError for examples without questions, or without answers where all have."""
        for column, what, remedy in (
            (examples.pairs_N, "questions", "config.data.pair_column"),
            (examples.spans, "answers", "config.data.spans_column to [[start, stop, label], ...]"),
        ):
            if column is None:
                raise ValueError(
                    f"the {split} examples have no {what}: set {remedy}, or read SQuAD's format"
                )
        without = np.flatnonzero(np.diff(examples.spans.splits_N1) == 0)
        if len(without) and not self.config.reading.no_answer:
            raise ValueError(
                f"{len(without)} of {len(examples)} {split} examples have no answer, the first has "
                f"id {examples.ids_N[without[0]]} ({examples.pairs_N[without[0]][:40]!r}): set "
                "config.reading.no_answer=True if a question may have none, else remove them"
            )

    def encoder(self, template: str, *, max_length: int, prefix_ids: Sequence[int]) -> Encoder:
        """Returns the Encoder.

        Raises:
            ValueError: an example would start with the context, not with the place of no answer.
        """
        encoder = super().encoder(template, max_length=max_length, prefix_ids=prefix_ids)
        if not encoder.around[0] and encoder.fields[0] == "text":
            raise ValueError(
                f"config.data.template={template!r}: the first token stands for no answer, and so "
                "must not be of the context: put {pair} first, or set config.tokenizer.marks='bos'"
            )
        return encoder

    def windows(self, examples: Examples, encoder: Encoder, *, training: bool) -> Examples:
        """Cuts long contexts."""
        overlap = self.config.data.overlap
        return split(examples, self.tokenizer, room=encoder.room, overlap=overlap)

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields how many questions have no answer that can be predicted, by the reason.

        In training that is the first answer of each, which is learned; else any will do.
        """
        if (spans := given.examples.spans) is None:
            return
        most, overlap = self.config.reading.max_answer, self.config.data.overlap
        longest = (spans.values[:, 1] - spans.values[:, 0]).max(initial=0)
        for lost_N, what, remedy in zip(
            _out_of_reach(given, most=most),
            (
                f"are longer than config.reading.max_answer={most} characters",
                "are whole in no window, being longer than two windows overlap,",
                "begin or end within a token and, exactly,",
            ),
            (
                f"raise it; the longest takes {longest}",
                f"raise config.data.overlap (now {overlap}) or config.layout.max_length",
                "take a checkpoint whose tokens are single characters, as BERT's are in Chinese",
            ),
            strict=True,
        ):
            count = int((np.diff(spans.splits_N1) > 0).sum())
            what = f"answers {what} and can never be predicted"
            yield Limit(int(lost_N.sum()), count, what, remedy)

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Returns the positions that may be chosen, and of the first answer the first and last."""
        context = text_windows.in_text(encoded)
        starts, ends = np.zeros_like(context), np.zeros_like(context)
        for i, first in enumerate(encoded.starts_B.tolist() if chunk.training else ()):
            span = chunk.spans.row(i)[:1] if chunk.spans is not None else ()
            places = first + np.flatnonzero(context[first : first + int(encoded.lengths_B[i])])
            tokens = _tokens_of(encoded.offsets[places], *span[0, :2]) if len(span) else None
            start, end = (first, first) if tokens is None else places[list(tokens)]
            starts[start] = ends[end] = True
        asked = context.copy()
        asked[encoded.starts_B] = True
        positions = zip(self.positions, (asked, starts, ends), strict=True)
        return Targets({name: values.astype(np.int32) for name, values in positions}, {})

    def head(self, *, num_features: int) -> nn.Module:
        """Returns a head with two logits per position."""
        return TokenHead(2, dropout=self.config.model.dropout)

    def loss(self, outputs: Arrays, batch: Arrays) -> Loss:
        """Sums the mean cross-entropy of start and end among the positions of each window."""
        weights_B = batch["weights_B"].astype(jnp.float32)
        asked_BxP, logits_BxPx2 = self._counted(outputs, batch)
        true_Px2 = jnp.stack([batch["starts_RxL"].ravel(), batch["ends_RxL"].ravel()], axis=1) > 0
        true_BxPx2 = asked_BxP[..., None] & true_Px2
        logs_BxPx2 = jax.nn.log_softmax(logits_BxPx2, axis=1)
        losses_B = -jnp.where(true_BxPx2, logs_BxPx2, 0.0).sum((1, 2)) / 2
        if smoothing := self.config.regularize.label_smoothing:
            logs_B = jnp.where(asked_BxP[..., None], logs_BxPx2, 0.0).sum((1, 2)) / 2
            mean_B = logs_B / jnp.maximum(asked_BxP.sum(axis=1), 1)
            losses_B = (1 - smoothing) * losses_B - smoothing * mean_B
        best_BxPx2 = logits_BxPx2 == logits_BxPx2.max(1, keepdims=True)
        right_B = (best_BxPx2 & true_BxPx2).any(1).all(-1)
        losses_B = jnp.where(weights_B > 0, losses_B, 0.0)
        weight = jnp.sum(weights_B)
        return jnp.sum(weights_B * losses_B), weight, {"both_right": jnp.sum(weights_B * right_B)}

    def divergence(
        self, outputs: Arrays, others: Arrays, batch: Arrays, projections: tuple[Callable, ...]
    ) -> jax.Array:
        """Compares the probabilities of starts and ends, half of each."""
        asked_BxP, _ = self._counted(outputs, batch)
        sides = (self._counted(side, batch)[1].swapaxes(1, 2) for side in (outputs, others))
        apart_Bx2 = layers.divergence(*sides, where=asked_BxP[:, None])
        weights_B = batch["weights_B"].astype(jnp.float32)
        return jnp.sum(weights_B * jnp.where(weights_B > 0, apart_Bx2.mean(axis=1), 0.0))

    def _counted(self, outputs: Arrays, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """Returns which positions are asked [B, P], and logits [B, P, 2] of those that count.

        Replaced before the logarithm, not after: 0 * NaN would reach the gradient.
        """
        asked_BxP, logits_Px2 = _asked(outputs, batch)
        counted_BxP = asked_BxP & (batch["weights_B"][:, None] > 0)
        return asked_BxP, jnp.where(counted_BxP[..., None], logits_Px2, _NEVER)

    def outputs(self, outputs: Arrays, batch: Arrays) -> Arrays:
        """Returns log probabilities within each window, -1e9 where nothing is asked."""
        asked_BxP, logits_Px2 = _asked(outputs, batch)
        logits_BxPx2 = jnp.where(asked_BxP[..., None], logits_Px2, _NEVER)
        norms_Bx2 = jax.nn.logsumexp(logits_BxPx2, axis=1)
        examples_RxL = jnp.maximum(batch["segments_RxL"] - 1, 0)
        logs_RxLx2 = outputs["logits_RxLxC"] - norms_Bx2[examples_RxL]
        logs_RxLx2 = jnp.where(batch["asked_RxL"][..., None] > 0, logs_RxLx2, _NEVER)
        return {"start_RxL": logs_RxLx2[..., 0], "end_RxL": logs_RxLx2[..., 1]}

    def decode(
        self, predictions: Predictions, windows: Examples, examples: Examples, encoder: Encoder
    ) -> Predictions:
        """Returns of each example 'answers_N', tuples of Answer from the best on, and 'null_N'.

        The latter is the log probability of no answer in the window that is least sure of it.
        """
        reading, windows = self.config.reading, windows.take(rows_of(windows, predictions.ids_N))
        options = {"count": _N_BEST, "max_characters": reading.max_answer}
        scores: dict[int, dict[tuple[int, int], float]] = defaultdict(dict)
        nulls: dict[int, float] = {}
        for window, places, offsets_Tx2 in text_windows.tokens(windows, encoder):
            starts_L, ends_L = predictions["start_N"][window], predictions["end_N"][window]
            owner, offsets_Tx2 = (
                int(windows.owners_N[window]),
                offsets_Tx2 + windows.starts_N[window],
            )
            nulls[owner] = min(nulls.get(owner, 0.0), float(starts_L[0] + ends_L[0]))
            best = scores[owner]  # of a stretch that several windows hold, the highest score
            for *span, score in answers.n_best(
                starts_L[places], ends_L[places], offsets_Tx2, **options
            ):
                best[tuple(span)] = max(best.get(tuple(span), -np.inf), score)
        ranked = []
        for owner in sorted(scores):
            best = sorted(scores[owner].items(), key=lambda item: (-item[1], item[0]))
            ranked.append(tuple(Answer(*span, score) for span, score in best[:_N_BEST]))
        nulls_N = np.array([nulls[owner] for owner in sorted(nulls)], np.float32)
        outputs = {"answers_N": object_array(ranked), "null_N": nulls_N}
        return Predictions(np.array(sorted(scores), np.int64), outputs)

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Returns exact match and F1 as CMRC 2018 defines them."""
        chosen = examples.take(rows_of(examples, predictions.ids_N))
        return self._scores([text for text, _ in self._chosen(predictions, chosen)], chosen)

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Scores the context's first clause, and the clause and sentence most like the question.

        That is the one with most of the question's characters and pairs of characters, the first of
        equal ones.
        """
        examples = examples.take(np.argsort(examples.ids_N, kind="stable"))
        pairs = list(zip(examples.texts_N, examples.pairs_N, strict=True))
        guesses = {
            "first clause": [answers.most_alike(context, "", marks="，") for context, _ in pairs],
            "best matching clause": [answers.most_alike(*pair, marks="，") for pair in pairs],
            self.FLOOR: [answers.most_alike(*pair) for pair in pairs],
        }
        return {name: self._scores(texts, examples) for name, texts in guesses.items()}

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields each question with its prediction, '' for no answer, and the n best.

        {name: prediction} of all is the file that CMRC's and SQuAD's scripts take.
        """
        chosen = examples.take(rows_of(examples, predictions.ids_N))
        given = chosen.as_given()
        for i, (text, best) in enumerate(self._chosen(predictions, chosen)):
            context = given.texts_N[i]
            record = text_record(given, i, text="", pair="question") | {"text": context}
            if chosen.spans is not None:
                record["answers"] = _true_answers(chosen, i)
                record["wrong"] = not answers.exact_match(text, record["answers"])
            start, stop = chosen.span_as_given(i, best.start, best.stop) if text else (-1, -1)
            record |= {"prediction": context[start:stop], "start": start}
            record |= {"confidence": float(np.exp(best.score)), "n_best": []}
            for answer in predictions["answers_N"][i]:
                answer = _stripped(chosen.texts_N[i], answer)
                start, stop = chosen.span_as_given(i, answer.start, answer.stop)
                confidence = round(float(np.exp(answer.score)), 6)
                shown = {"text": context[start:stop], "start": start, "confidence": confidence}
                record["n_best"].append(shown)
            yield record

    def counted(self, encoded: Encoded, targets: Targets) -> np.ndarray:
        """Returns which tokens may be chosen."""
        return targets.positions["asked_RxL"] > 0

    def _chosen(self, predictions: Predictions, examples: Examples) -> list[tuple[str, Answer]]:
        """Returns the answer of each example, as text of its context and as predicted."""
        reading, chosen = self.config.reading, []
        for i, candidates in enumerate(predictions["answers_N"]):
            nothing = Answer(0, 0, float(predictions["null_N"][i]))
            best = candidates[0] if candidates else nothing
            if reading.no_answer and nothing.score - best.score > reading.threshold:
                best = nothing
            best = _stripped(examples.texts_N[i], best)
            chosen.append((examples.texts_N[i][best.start : best.stop], best))
        return chosen

    def _scores(self, texts: Sequence[str], examples: Examples) -> Scores:
        """Scores one answer per example."""
        truth = [_true_answers(examples, i) for i in range(len(examples))]
        statistics = {
            name: one_each(np.array(list(map(compare, texts, truth))))
            for name, compare in (("f1", answers.f1), ("exact_match", answers.exact_match))
        }
        ids_N, groups_N = examples.ids_N.astype(np.int64), examples.groups_N
        return Scores(self.metrics, ids_N, statistics, truth=truth, groups_N=groups_N)


def _out_of_reach(given: Given, *, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns which examples have no answer within reach, bool [N] each: all are longer than
    `most` characters; of the others all are in no window whole; or all share a token with others.
    Of examples to learn from, the first answer alone counts.
    """
    examples, count = given.examples, 1 if given.training else None
    answers_N = (examples.spans.row(i)[:count, :2].tolist() for i in range(len(examples)))
    wanted = [set(map(tuple, spans)) for spans in answers_N]
    short = [{span for span in spans if span[1] - span[0] <= most} for spans in wanted]
    whole_N, exact_N = np.zeros((2, len(examples)), bool)
    windows = given.windows.take(np.diff(given.windows.spans.splits_N1) > 0)
    rows_W = text_windows.rows_of_owners(windows, examples)
    for window, _, offsets_Lx2 in text_windows.tokens(windows, given.pipeline.encoder):
        row, moved, text = rows_W[window], windows.starts_N[window], windows.texts_N[window]
        for start, stop, _ in windows.spans.row(window).tolist():
            if (start + moved, stop + moved) not in short[row]:
                continue
            whole_N[row] = True
            if (tokens := _tokens_of(offsets_Lx2, start, stop)) is not None:
                low, high = offsets_Lx2[tokens[0], 0], offsets_Lx2[tokens[1], 1]
                same = answers.exact_match(text[low:high], [text[start:stop]]) > 0
                exact_N[row] |= same and high - low <= most
    asked_N, short_N = (np.array(list(map(bool, spans)), bool) for spans in (wanted, short))
    return asked_N & ~short_N, short_N & ~whole_N, whole_N & ~exact_N


def _tokens_of(offsets_Lx2: np.ndarray, start: int, stop: int) -> tuple[int, int] | None:
    """Returns the first and last token of a stretch of characters; None if not all are there."""
    starts_L, stops_L = offsets_Lx2.T
    inside = np.flatnonzero((stops_L > start) & (starts_L < stop))
    if not len(inside) or stops_L[-1] < stop:
        return None
    return int(inside[0]), int(inside[-1])


def _asked(outputs: Arrays, batch: Arrays) -> tuple[jax.Array, jax.Array]:
    """Returns which positions each window may choose from, bool [B, P], and logits [P, 2].

    A selection instead of a scatter, as in models.heads.pool.
    """
    numbers_B = 1 + jnp.arange(batch["weights_B"].shape[-1])
    asked_P = jnp.where(batch["asked_RxL"] > 0, batch["segments_RxL"], 0).ravel()
    return asked_P == numbers_B[:, None], outputs["logits_RxLxC"].reshape(-1, 2)


def _stripped(context: str, answer: Answer) -> Answer:
    """Returns an answer without white space at its ends, which tokens may take in."""
    text = context[answer.start : answer.stop]
    start = answer.start + len(text) - len(text.lstrip())
    return answer._replace(start=start, stop=start + len(text.strip()))


def _true_answers(examples: Examples, index: int) -> list[str]:
    context = examples.texts_N[index]
    return [context[start:stop] for start, stop, _ in examples.spans.row(index).tolist()]
