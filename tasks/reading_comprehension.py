"""Reading comprehension: the answer to a question is a stretch of the text, or there is none.

A long context is read in overlapping windows, beside the question in each. Every position of the
context has a score for being the first and one for being the last token of the answer; the first
position of the sequence stands for a window without it (as in BERT, 1810.04805). Scores are log
probabilities among the positions of a window, so that a window without the answer, which gives
nearly all to its first position, cannot outbid others. Windows are cut by
input_pipeline/batches/windows.py and answers compared by evaluation/answers.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from evaluation import answers
from evaluation.answers import Answer
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, mean, one_each
from input_pipeline.batches.targets import Chunk, Targets
from input_pipeline.batches.template import FIELDS, Encoded, Encoder
from input_pipeline.batches.windows import split
from input_pipeline.examples import Examples, object_array
from models.token_heads import TokenHead
from tasks.limits import Given, Limit
from tasks.task import Loss, Task, rows_of

_NEVER = -1e9  # log probability of what cannot be; exp() of it is 0
_CHUNK = 1024  # windows whose offsets are held at once


class ReadingComprehension(Task):
    """Texts are contexts, pairs the questions, spans the answers; several are all right."""

    METRICS = (
        Metric("f1", "F1, %", mean, scale=100, digits=1),
        Metric("exact_match", "exact match, %", mean, scale=100, digits=1),
    )
    FLOOR = "best matching sentence"
    POSITIONS = ("asked_RxL", "starts_RxL", "ends_RxL")
    OFFSETS = True

    def check(self, examples: Examples, split: str) -> None:
        """Raises ValueError for examples without questions, or without answers where all have."""
        if examples.pairs_N is None:
            raise ValueError(
                f"the {split} examples have no questions: set config.data.pair_column, or read "
                "SQuAD's format"
            )
        if examples.spans is None:
            raise ValueError(
                f"the {split} examples have no answers: set config.data.spans_column to the column "
                "of [[start, stop, label], ...], or read SQuAD's format"
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
        del training
        overlap = self.config.data.overlap
        return split(examples, self.tokenizer, room=encoder.room, overlap=overlap)

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields how many questions have no answer that can be predicted, by what is in the way.

        In training that is the first answer of each, which is learned; else any will do.
        """
        examples, reading, overlap = given.examples, self.config.reading, self.config.data.overlap
        if examples.spans is None:
            return
        long_N, lost_N, inside_N = _out_of_reach(given, most=reading.max_answer)
        count = int((np.diff(examples.spans.splits_N1) > 0).sum())
        lengths_S = examples.spans.values[:, 1] - examples.spans.values[:, 0]
        yield Limit(
            int(long_N.sum()),
            count,
            f"answers are longer than config.reading.max_answer={reading.max_answer} characters "
            "and can never be predicted",
            f"raise it; the longest takes {lengths_S.max(initial=0)}",
        )
        yield Limit(
            int(lost_N.sum()),
            count,
            "answers stand in no window whole, being longer than two windows overlap, and can "
            "never be predicted",
            f"raise config.data.overlap (now {overlap}) or config.layout.max_length",
        )
        yield Limit(
            int(inside_N.sum()),
            count,
            "answers begin or end within a token and can never be predicted exactly",
            "take a checkpoint whose tokens are single characters, as BERT's are in Chinese",
        )

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Returns the positions that may be chosen, and of the first answer the first and last."""
        context = _is_context(encoded)
        starts, ends = np.zeros_like(context), np.zeros_like(context)
        for i, first in enumerate(encoded.starts_B.tolist() if chunk.training else ()):
            span = chunk.spans.row(i)[:1] if chunk.spans is not None else ()
            places = first + np.flatnonzero(context[first : first + int(encoded.lengths_B[i])])
            tokens = _tokens_of(encoded.offsets[places], *span[0, :2]) if len(span) else None
            start, end = (first, first) if tokens is None else places[list(tokens)]
            starts[start] = ends[end] = True
        asked = context.copy()
        asked[encoded.starts_B] = True
        positions = zip(self.POSITIONS, (asked, starts, ends), strict=True)
        return Targets({name: values.astype(np.int32) for name, values in positions}, {})

    def head(self, *, num_features: int) -> nn.Module:
        """Returns a head with two logits per position."""
        if num_features:
            raise ValueError(
                "config.features.use: of reading comprehension only 'none' is possible"
            )
        return TokenHead(2, dropout=self.config.model.dropout)

    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> Loss:
        """Sums the mean cross-entropy of start and end among the positions of each window."""
        weights_B = batch["weights_B"].astype(jnp.float32)
        asked_BxP, logits_Px2 = _asked(outputs, batch)
        # Replaced before the logarithm, not after: 0 * NaN would reach the gradient.
        logits_BxPx2 = jnp.where(
            (asked_BxP & (weights_B[:, None] > 0))[..., None], logits_Px2, _NEVER
        )
        true_Px2 = jnp.stack([batch["starts_RxL"].ravel(), batch["ends_RxL"].ravel()], axis=1) > 0
        true_BxPx2 = asked_BxP[..., None] & true_Px2
        logs_BxPx2 = jax.nn.log_softmax(logits_BxPx2, axis=1)
        losses_B = -jnp.where(true_BxPx2, logs_BxPx2, 0.0).sum((1, 2)) / 2
        best_BxPx2 = logits_BxPx2 == logits_BxPx2.max(1, keepdims=True)
        right_B = (best_BxPx2 & true_BxPx2).any(1).all(-1)
        losses_B = jnp.where(weights_B > 0, losses_B, 0.0)
        weight = jnp.sum(weights_B)
        return jnp.sum(weights_B * losses_B), weight, {"both_right": jnp.sum(weights_B * right_B)}

    def outputs(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> Mapping[str, jax.Array]:
        """Returns log probabilities within each window, -1e9 where nothing is asked."""
        asked_BxP, logits_Px2 = _asked(outputs, batch)
        logits_BxPx2 = jnp.where(asked_BxP[..., None], logits_Px2, _NEVER)
        norms_Bx2 = jax.nn.logsumexp(logits_BxPx2, axis=1)
        segments_RxL = batch["segments_RxL"]
        logs_RxLx2 = outputs["logits_RxLxC"] - norms_Bx2[jnp.maximum(segments_RxL - 1, 0)]
        logs_RxLx2 = jnp.where(batch["asked_RxL"][..., None] > 0, logs_RxLx2, _NEVER)
        return {"start_RxL": logs_RxLx2[..., 0], "end_RxL": logs_RxLx2[..., 1]}

    def decode(
        self, predictions: Predictions, windows: Examples, examples: Examples, encoder: Encoder
    ) -> Predictions:
        """Returns of each example 'answers_N', tuples of Answer from the best on, and 'null_N'.

        The latter is the log probability of no answer in the window that is least sure of it.
        """
        del examples
        reading = self.config.reading
        rows_W = rows_of(windows, predictions.ids_N)
        found: dict[int, dict[tuple[int, int], float]] = {}
        nulls: dict[int, float] = {}
        for first in range(0, len(rows_W), _CHUNK):
            rows = rows_W[first : first + _CHUNK]
            encoded = encoder(windows.texts_N[rows], windows.pairs_N[rows], offsets=True)
            context = _is_context(encoded)
            for i, row in enumerate(rows.tolist()):
                place = slice(encoded.starts_B[i], encoded.starts_B[i] + encoded.lengths_B[i])
                tokens = np.flatnonzero(context[place])
                starts, ends = predictions["start_N"][first + i], predictions["end_N"][first + i]
                owner = int(windows.owners_N[row])
                nulls[owner] = min(nulls.get(owner, 0.0), float(starts[0] + ends[0]))
                mine = found.setdefault(owner, {})
                for *span, score in answers.n_best(
                    starts[tokens],
                    ends[tokens],
                    encoded.offsets[place][tokens] + windows.starts_N[row],
                    count=reading.n_best,
                    max_characters=reading.max_answer,
                ):
                    mine[tuple(span)] = max(mine.get(tuple(span), -np.inf), score)
        best = []
        for id_ in sorted(found):
            ranked = sorted(found[id_].items(), key=lambda item: (-item[1], item[0]))
            ranked = ranked[: reading.n_best]
            best.append(tuple(Answer(*place, score) for place, score in ranked))
        nulls_N = np.array([nulls[id_] for id_ in sorted(found)], np.float32)
        outputs = {"answers_N": object_array(best), "null_N": nulls_N}
        return Predictions(np.array(sorted(found), np.int64), outputs)

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Returns exact match and F1 as CMRC 2018 defines them."""
        chosen = examples.take(rows_of(examples, predictions.ids_N))
        texts = [text for text, _ in self._chosen(predictions, chosen)]
        return self._scores(texts, chosen)

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Returns what the context's first clause is worth, and those most like the question.

        That is the clause or sentence with most of the question's characters and pairs of
        characters, the first of equal ones.
        """
        del train
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
        given, predicted = chosen.as_given(), self._chosen(predictions, chosen)
        for i, (text, best) in enumerate(predicted):
            context = given.texts_N[i]
            record: dict[str, Any] = {"id": int(chosen.ids_N[i])}
            if chosen.names_N is not None:
                record["name"] = chosen.names_N[i]
            record |= {"question": given.pairs_N[i], "text": context}
            if chosen.spans is not None:
                record["answers"] = _true_answers(chosen, i)
                record["wrong"] = not answers.exact_match(text, record["answers"])
            start, stop = chosen.span_as_given(i, best.start, best.stop) if text else (-1, -1)
            record |= {"prediction": context[start:stop], "start": start}
            record["confidence"] = float(np.exp(best.score))
            record["n_best"] = [
                _as_given(chosen, i, _stripped(chosen.texts_N[i], found), context)
                for found in predictions["answers_N"][i]
            ]
            yield record

    def counted(self, encoded: Encoded, targets: Targets) -> np.ndarray:
        """Returns which tokens may be chosen."""
        return targets.positions["asked_RxL"] > 0

    def _chosen(self, predictions: Predictions, examples: Examples) -> list[tuple[str, Answer]]:
        """Returns the answer of each example, as text of its context and as found."""
        reading = self.config.reading
        found = []
        for i, candidates in enumerate(predictions["answers_N"]):
            nothing = Answer(0, 0, float(predictions["null_N"][i]))
            best = candidates[0] if candidates else nothing
            if reading.no_answer and nothing.score - best.score > reading.threshold:
                best = nothing
            best = _stripped(examples.texts_N[i], best)
            found.append((examples.texts_N[i][best.start : best.stop], best))
        return found

    def _scores(self, texts: Sequence[str], examples: Examples) -> Scores:
        """Scores one answer per example."""
        truth = [_true_answers(examples, i) for i in range(len(examples))]
        pairs = list(zip(texts, truth, strict=True))
        return Scores(
            self.METRICS,
            examples.ids_N.astype(np.int64),
            {
                "f1": one_each(np.array([answers.f1(*pair) for pair in pairs])),
                "exact_match": one_each(np.array([answers.exact_match(*pair) for pair in pairs])),
            },
            truth=truth,
        )


def _out_of_reach(given: Given, *, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns which examples have no answer within reach, bool [N] each: all are longer than
    `most` characters; of the others all are in no window whole; or all share a token with others.
    Of those that are learned, the first answer alone counts.
    """
    examples, windows, encoder = given.examples, given.windows, given.pipeline.encoder
    count = 1 if given.training else None
    rows = {int(id_): row for row, id_ in enumerate(examples.ids_N)}
    answers_N = (examples.spans.row(i)[:count, :2].tolist() for i in range(len(examples)))
    wanted = [set(map(tuple, each)) for each in answers_N]
    short = [{a for a in each if a[1] - a[0] <= most} for each in wanted]
    whole: list[set] = [set() for _ in wanted]
    exact_N = np.zeros(len(wanted), bool)
    asked = [w for w in range(len(windows)) if len(windows.spans.row(w))]
    for chunk in range(0, len(asked), _CHUNK):
        part = np.array(asked[chunk : chunk + _CHUNK])
        encoded = encoder(windows.texts_N[part], windows.pairs_N[part], offsets=True)
        context = _is_context(encoded)
        for i, window in enumerate(part.tolist()):
            row, start = rows[int(windows.owners_N[window])], int(windows.starts_N[window])
            place = slice(encoded.starts_B[i], encoded.starts_B[i] + encoded.lengths_B[i])
            offsets_Lx2, text = encoded.offsets[place][context[place]], windows.texts_N[window]
            for begin, end, _ in windows.spans.row(window).tolist():
                if (begin + start, end + start) not in short[row]:
                    continue
                whole[row].add((begin + start, end + start))
                tokens = _tokens_of(offsets_Lx2, begin, end)
                if tokens is not None:
                    low, high = offsets_Lx2[tokens[0], 0], offsets_Lx2[tokens[1], 1]
                    same = answers.exact_match(text[low:high], [text[begin:end]]) > 0
                    exact_N[row] |= same and high - low <= most
    asked_N, short_N, whole_N = (np.array(list(map(bool, s))) for s in (wanted, short, whole))
    return asked_N & ~short_N, short_N & ~whole_N, whole_N & ~exact_N


def _is_context(encoded: Encoded) -> np.ndarray:
    """Returns which tokens are of characters of the context, bool, flat."""
    return (encoded.fields == FIELDS.index("text")) & (
        encoded.offsets[:, 1] > encoded.offsets[:, 0]
    )


def _tokens_of(offsets_Lx2: np.ndarray, start: int, stop: int) -> tuple[int, int] | None:
    """Returns the first and last token of a stretch of characters; None if not all are there."""
    starts_L, stops_L = offsets_Lx2.T
    inside = np.flatnonzero((stops_L > start) & (starts_L < stop))
    if not len(inside) or stops_L[-1] < stop:
        return None
    return int(inside[0]), int(inside[-1])


def _asked(
    outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
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


def _as_given(examples: Examples, index: int, answer: Answer, context: str) -> dict[str, Any]:
    """Returns one of the n best answers as it stands in the context that was given."""
    start, stop = examples.span_as_given(index, answer.start, answer.stop)
    confidence = round(float(np.exp(answer.score)), 6)
    return {"text": context[start:stop], "start": start, "confidence": confidence}


def _true_answers(examples: Examples, index: int) -> list[str]:
    context = examples.texts_N[index]
    return [context[start:stop] for start, stop, _ in examples.spans.row(index).tolist()]
