"""Spans of characters, found by tags of tokens or as spans: names, words, parts of speech.

Here: the task. Not here: spans to tags and back (input_pipeline/batches/span_tags.py, which also
describes tokens across a border), tokens that are one character (character_tokenizer.py), the
chain of tags (models/crf.py), heads (models/token_heads.py, models/span_heads.py), windows put
together (text_windows.py), scores and floors (evaluation/spans.py). Scores are always against
the characters of the data, so that what a tokeniser cannot represent counts as missed.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from evaluation import metrics, probes, spans
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores
from input_pipeline.batches import span_tags
from input_pipeline.batches.template import Encoded, Encoder
from input_pipeline.batches.windows import split as split_windows
from input_pipeline.examples import Examples, object_array
from input_pipeline.tokenizers.character_tokenizer import CharacterTokenizer
from models import crf, layers
from models.span_heads import SpanHead, best_spans, span_divergences, span_losses
from models.token_heads import TokenHead
from tasks import text_windows
from tasks.limits import Given, Limit, untaught
from tasks.task import Arrays, Chunk, Fit, Loss, Targets, Task, rows_of, text_record

_PROBED_TOKENS = 16_000  # more take minutes, and so do many tags
_PROBED = 500_000  # tokens times tags
_HEAD_SIZE = 64  # of 'global_pointer', as in its paper


class Tagging(Task):
    """Spans with one of `labels`; of the heads, global_pointer alone finds overlapping ones."""

    metrics = (
        Metric("f1", "F1, %", metrics.f1, scale=100, digits=1),
        Metric("precision", "precision, %", metrics.precision, scale=100, digits=1),
        Metric("recall", "recall, %", metrics.recall, scale=100, digits=1),
    )
    FLOOR = "dictionary of training spans"
    LABELS = "span_labels"
    PROBE = True
    SMOOTHING = True
    BOUND = ("tagging.characters", "tagging.head", "tagging.slots")
    offsets = True

    def __init__(self, config: ConfigDict, labels: Sequence[str], **parts: Any):
        """Takes span labels.

        Raises:
            ValueError: there are none.
        """
        if not labels:
            raise ValueError(
                "config.task='tagging' learns spans, and the data have none: set "
                "config.data.spans_column"
            )
        super().__init__(config, labels, **parts)
        self._flat = config.tagging.head != "global_pointer"
        if config.regularize.label_smoothing and not self._flat:
            raise ValueError(
                "config.regularize.label_smoothing: spans of config.tagging.head='global_pointer' "
                "are no distribution to smooth: set it to 0, or the head to 'softmax' or 'crf'"
            )
        self._slots = config.tagging.slots
        if self._slots > 1 and (config.tagging.characters or not self._flat):
            raise ValueError(
                f"config.tagging.slots={self._slots} gives pieces several tags, with "
                "config.tagging.characters=False and a head of 'softmax' or 'crf': found "
                f"{config.tagging.characters} and {config.tagging.head!r}"
            )
        # 1 + tag of each slot; of global_pointer 1 where spans may start and stop.
        self.positions = tuple(f"tags{slot or ''}_RxL" for slot in range(self._slots))
        if config.tagging.characters:
            self.tokenizer = CharacterTokenizer(self.tokenizer)
        if not self._flat and config.model.head_start == "probe":
            raise ValueError(
                "config.model.head_start='probe' fits linear heads, and "
                "config.tagging.head='global_pointer' is none: set it to 'random'"
            )
        self._taught: set[int] = set()

    def prose(self) -> str:
        """Describes what is learned, for the start-up log."""
        units = "characters" if self.config.tagging.characters or self._slots > 1 else "tokens"
        return f"spans of {units} by {self.config.tagging.head}: {', '.join(self.labels)}"

    def check(self, examples: Examples, split: str) -> None:
        """Raises on examples without spans, and on overlapping ones for a head that knows none."""
        if examples.spans is None:
            raise ValueError(
                f"the {split} split has no spans to learn: set config.data.spans_column"
            )
        rows = range(len(examples)) if self._flat else ()
        if overlap := [i for i in rows if span_tags.overlapping(examples.spans.row(i))]:
            raise ValueError(
                f"config.tagging.head={self.config.tagging.head!r}: spans overlap in "
                f"{len(overlap):,} of {len(examples):,} examples of the {split} split, first in "
                f"{str(examples.texts_N[overlap[0]])[:40]!r}: set "
                "config.data.overlapping_spans='drop' or config.tagging.head='global_pointer'"
            )

    def windows(self, examples: Examples, encoder: Encoder, *, training: bool) -> Examples:
        """Cuts long texts.

        In training, the part of a span that a window's edge leaves gets the label after the last,
        whose tokens the loss ignores: a window does not show whether the name goes on.
        """
        overlap = self.config.data.overlap
        windows = split_windows(examples, self.tokenizer, room=encoder.room, overlap=overlap)
        if not training:
            return windows
        return text_windows.with_cut_spans(windows, examples, label=len(self.labels))

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields how many spans the tokens, windows or training labels put out of reach."""
        examples, windows, tagging = given.examples, given.windows, self.config.tagging
        if examples.spans is None:
            return
        total, encoder = len(examples.spans.values), given.pipeline.encoder
        reached_N = self._reachable(windows, examples, encoder)
        remedy = f"raise config.data.overlap (now {self.config.data.overlap})"
        if not tagging.characters:
            remedy = f"set config.tagging.slots=4 or characters=True, or {remedy}"
        what = (
            "spans begin or end within a token, have none, or are longer than the overlap of "
            "windows and whole in none: they can never be predicted exactly"
        )
        yield Limit(total - int(reached_N.sum()), total, what, remedy)
        if not self._flat:
            yield self._too_many(windows, training=given.training)
        kinds_S = examples.spans.values[:, 2]
        if given.training:
            self._taught = set(kinds_S.tolist())
        elif self._taught:
            yield from untaught(kinds_S, self._taught, self.labels, "spans")

    def _too_many(self, windows: Examples, *, training: bool) -> Limit:
        """Returns the limit of windows with more spans than global_pointer finds."""
        most = self.config.tagging.max_spans
        is_whole_S = windows.spans.values[:, 2] < len(self.labels)  # not what an edge left of one
        counts_W = np.add.reduceat(np.append(is_whole_S, 0), windows.spans.splits_N1[:-1])
        counts_W *= np.diff(windows.spans.splits_N1) > 0
        what, remedy = "windows have more spans", f"raise it to {counts_W.max(initial=0)}"
        many = Limit(int((counts_W > most).sum()), len(windows), what, remedy)
        if many.count and training:
            raise ValueError(f"config.tagging.max_spans={most}: {many.prose('train')}")
        return many._replace(what=f"{what} than config.tagging.max_spans={most}, not all are found")

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Returns tags, and for global_pointer the spans in tokens."""
        sizes_P = np.clip(encoded.offsets[:, 1] - encoded.offsets[:, 0], 1, self._slots)
        sizes_P = np.where(text_windows.in_text(encoded), sizes_P, 0)
        tags_PxS = (np.arange(self._slots) < sizes_P[:, None]).astype(np.int32)
        most = self.config.tagging.max_spans
        learned = chunk.training and chunk.spans is not None
        spans_BxKx3 = np.zeros((len(encoded.lengths_B), most, 3), np.int32)
        for row, first in enumerate(encoded.starts_B if learned else ()):
            here = slice(first, first + encoded.lengths_B[row])
            places = np.flatnonzero(sizes_P[here])
            spans_Sx3, offsets_Tx2 = chunk.spans.row(row), encoded.offsets[here][places]
            places, offsets_Tx2 = text_windows.spread(places, offsets_Tx2, self._slots)
            shared_SxT, owners_T = span_tags.tokens_of(offsets_Tx2, spans_Sx3)
            unknown_S = spans_Sx3[:, 2] == len(self.labels)
            if self._flat:
                tags_T = 1 + span_tags.to_tags(owners_T, spans_Sx3[:, 2])
                hidden_T = np.append(unknown_S, False)[owners_T]
            else:
                runs_Sx3 = span_tags.runs_of(shared_SxT[~unknown_S], spans_Sx3[~unknown_S, 2])
                if len(runs_Sx3) > most:
                    raise ValueError(
                        f"config.tagging.max_spans={most}, but {chunk.texts_B[row][:40]!r} has "
                        f"{len(runs_Sx3)} spans: raise it"
                    )
                runs_Sx3[:, :2] = places[runs_Sx3[:, :2]]
                spans_BxKx3[row, : len(runs_Sx3)] = runs_Sx3 + np.array([0, 0, 1])
                tags_T = np.ones(len(places), np.int32)
                touched_SxT = shared_SxT > 0
                hidden_T = touched_SxT[unknown_S].any(0) & ~touched_SxT[~unknown_S].any(0)
            tags_PxS.reshape(-1)[first * self._slots + places] = np.where(hidden_T, 0, tags_T)
        positions = dict(zip(self.positions, tags_PxS.T, strict=True))
        return Targets(positions, {} if self._flat else {"spans_BxKx3": spans_BxKx3})

    def head(self, *, num_features: int) -> nn.Module:
        """Returns the head of config.tagging."""
        tagging, count = self.config.tagging, len(self.labels)
        if not self._flat:
            return SpanHead(count, size=_HEAD_SIZE, dropout=tagging.dropout)
        chain = tagging.head == "crf"
        options = {"dropout": tagging.dropout, "chain": chain, "slots": self._slots}
        return TokenHead(span_tags.num_tags(count), **options)

    def probe(self, windows: Examples, vectors: Predictions, encoder: Encoder) -> Fit:
        """Fits softmax regression over the tags of tokens; chains start from zeros as usual."""
        inputs_N, inputs, tags, slots = vectors["inputs_NxD"], [], [], []
        units = text_windows.tokens(windows, encoder, slots=self._slots)
        for window, places, offsets_Tx2 in units:
            spans_Sx3 = windows.spans.row(window)
            owners_T = span_tags.tokens_of(offsets_Tx2, spans_Sx3)[1]
            known_T = np.append(spans_Sx3[:, 2] < len(self.labels), True)[owners_T]
            inputs.append(inputs_N[window][places[known_T] // self._slots])
            slots.append(places[known_T] % self._slots)
            tags.append(span_tags.to_tags(owners_T, spans_Sx3[:, 2])[known_T])
        counts = np.cumsum(list(map(len, tags)))
        num_tags = span_tags.num_tags(len(self.labels))
        most = min(_PROBED_TOKENS, _PROBED // num_tags)
        used = slice(0, 1 + int(np.searchsorted(counts, most)))
        inputs_TxD, tags_T, slots_T = (np.concatenate(x[used]) for x in (inputs, tags, slots))
        weights_C = np.ones(num_tags)
        fits: list[probes.Probe] = []
        for slot in range(self._slots):
            rows = np.flatnonzero(slots_T == slot)
            options = {"inverse_penalties": [fits[0].inverse_penalty]} if fits else {}
            try:
                fit = probes.classes(inputs_TxD[rows], tags_T[rows], weights_C=weights_C, **options)
                fits.append(fit)
            except ValueError:  # few pieces are that long
                if not fits:
                    raise
                fits.append(fits[-1])
        kernel = np.concatenate([fit.kernel_DxC for fit in fits], axis=1)
        heads = {"head/kernel": kernel, "head/bias": np.concatenate([fit.bias_C for fit in fits])}
        return heads, f"{len(tags_T):,} tokens, {fits[0].prose()}"

    def loss(self, outputs: Arrays, batch: Arrays) -> Loss:
        """Means over tokens of what their tags cost, in chains too; or over examples, of spans."""
        tags_RxL, segments_RxL, weights_RxL = self._tokens(batch)
        asked_RxL, weights_B = weights_RxL > 0, batch["weights_B"].astype(jnp.float32)
        if not self._flat:
            losses_B = span_losses(outputs, batch["spans_BxKx3"], asked_RxL, segments_RxL)
            losses_B = jnp.where(weights_B > 0, losses_B, 0.0)
            return jnp.sum(weights_B * losses_B), jnp.sum(weights_B), {}
        tags_RxL = jnp.where(asked_RxL, tags_RxL - 1, 0)
        logits_RxLxC = jnp.where(asked_RxL[..., None], outputs["logits_RxLxC"], 0.0)
        scores = crf.Scores(*(outputs[name] for name in crf.Scores._fields))
        chains = crf.chains(asked_RxL, segments_RxL)
        smoothing = self.config.regularize.label_smoothing
        likelihoods_RxL = crf.log_likelihoods(
            logits_RxLxC, tags_RxL, chains, scores, smoothing=smoothing
        )
        right_RxL = jnp.argmax(logits_RxLxC, axis=-1) == tags_RxL
        sums = {"accuracy": jnp.sum(weights_RxL * right_RxL)}
        return -jnp.sum(weights_RxL * likelihoods_RxL), jnp.sum(weights_RxL), sums

    def divergence(
        self, outputs: Arrays, others: Arrays, batch: Arrays, projections: tuple[Callable, ...]
    ) -> jax.Array:
        """Compares the probabilities of each token's tags, of chains too; or of spans."""
        _, segments_RxL, weights_RxL = self._tokens(batch)
        asked_RxL = weights_RxL > 0
        if not self._flat:
            weights_B = batch["weights_B"].astype(jnp.float32)
            apart_B = span_divergences(outputs, others, asked_RxL, segments_RxL, len(weights_B))
            return jnp.sum(weights_B * jnp.where(weights_B > 0, apart_B, 0.0))
        sides = (
            jnp.where(asked_RxL[..., None], side["logits_RxLxC"], 0.0) for side in (outputs, others)
        )
        return jnp.sum(weights_RxL * layers.divergence(*sides))

    def outputs(self, outputs: Arrays, batch: Arrays) -> Arrays:
        """Finds the best legal tags and the probability of each, or the best spans."""
        _, segments_RxL, weights_RxL = self._tokens(batch)
        asked_RxL = weights_RxL > 0
        if not self._flat:
            size = {"num_examples": len(batch["weights_B"]), "count": self.config.tagging.max_spans}
            spans_BxKx3, scores_BxK = best_spans(outputs, asked_RxL, segments_RxL, **size)
            return {"spans_BxKx3": spans_BxKx3, "scores_BxK": scores_BxK}
        legal = zip(crf.Scores._fields, span_tags.allowed(len(self.labels)), strict=True)
        scores = crf.Scores(*(jnp.where(ok, outputs[name], crf.FORBIDDEN) for name, ok in legal))
        chains, logits_RxLxC = crf.chains(asked_RxL, segments_RxL), outputs["logits_RxLxC"]
        tags_RxL = crf.decode(logits_RxLxC, chains, scores)
        sure_RxLxC = crf.marginals(logits_RxLxC, chains, scores)
        sure_RxL = jnp.take_along_axis(sure_RxLxC, tags_RxL[..., None], axis=-1)[..., 0]
        shape = (*batch["segments_RxL"].shape, self._slots)
        return {"tags_RxL": tags_RxL.reshape(shape), "sure_RxL": sure_RxL.reshape(shape)}

    def _tokens(self, batch: Arrays) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns tags and segments of all slots [R, L * S], and the weights of their examples,
        float32, 0 where there is no tag."""
        tags_RxLxS = jnp.stack([batch[name] for name in self.positions], axis=-1)
        tags_RxL = tags_RxLxS.reshape(len(tags_RxLxS), -1)
        segments_RxL = jnp.repeat(batch["segments_RxL"], self._slots, axis=1)
        weights_1B = jnp.append(0.0, batch["weights_B"].astype(jnp.float32))
        return tags_RxL, segments_RxL, weights_1B[segments_RxL] * (tags_RxL > 0)

    def _reachable(self, windows: Examples, examples: Examples, encoder: Encoder) -> np.ndarray:
        options = {"flat": self._flat, "slots": self._slots}
        return text_windows.reachable(windows, examples, encoder, **options)

    def decode(
        self, predictions: Predictions, windows: Examples, examples: Examples, encoder: Encoder
    ) -> Predictions:
        """Returns 'spans_N' (int32 [S, 3] of start, stop, label), 'scores_N' (a probability each),
        'confidence_N' (that of the least certain tag or span) and, with truth, 'reachable_N', how
        many true spans the tokens can represent.

        Of two windows, that one finds a span on whose side its middle lies: farther from the edge.
        """
        scored: list[list[text_windows.ScoredSpan]] = [[] for _ in range(len(examples))]
        sure_N = np.ones(len(examples), np.float32)
        rows_W = text_windows.rows_of_owners(windows, examples)
        lows_W, highs_W = text_windows.territories(windows)
        units = text_windows.tokens(windows, encoder, slots=self._slots)
        for window, places, offsets_Tx2 in units:
            runs_Sx3, scores_S, sure = self._runs(predictions, window, places)
            row, text = rows_W[window], windows.texts_N[window]
            sure_N[row] = min(sure_N[row], sure)
            spans_Sx3 = span_tags.to_characters(runs_Sx3, offsets_Tx2, text, flat=self._flat)
            spans_Sx3[:, :2] += int(windows.starts_N[window])
            for span, score in zip(spans_Sx3.tolist(), scores_S.tolist(), strict=True):
                if span[0] < span[1] and lows_W[window] <= sum(span[:2]) / 2 < highs_W[window]:
                    scored[row].append((*span, score))
        kept = [text_windows.in_order(part, flat=self._flat) for part in scored]
        spans = [np.array([s[:3] for s in part], np.int32).reshape(-1, 3) for part in kept]
        scores = [np.array([s[3] for s in part], np.float32) for part in kept]
        outputs = {"spans_N": object_array(spans), "scores_N": object_array(scores)}
        outputs["confidence_N"] = sure_N
        if examples.spans is not None:
            outputs["reachable_N"] = self._reachable(windows, examples, encoder)
        order = np.argsort(examples.ids_N, kind="stable")
        return Predictions(examples.ids_N[order], {n: v[order] for n, v in outputs.items()})

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Counts spans whose characters and label are both right; the detail is by label."""
        taken = examples.take(rows_of(examples, predictions.ids_N))
        return spans.scores(
            self.metrics,
            predictions.ids_N,
            predictions["spans_N"],
            [taken.spans.row(row) for row in range(len(taken))],
            labels=self.labels,
            reachable_N=predictions.outputs.get("reachable_N"),
            groups_N=taken.groups_N,
        )

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Scores the tags of single characters, and the spellings of spans."""
        examples = examples.take(np.argsort(examples.ids_N, kind="stable"))
        scores = {}
        for name, floor in (
            ("most frequent tag per character", spans.character_frequency),
            (self.FLOOR, spans.dictionary),
        ):
            outputs = {"spans_N": object_array(floor(train, examples.texts_N))}
            scores[name] = self.score(Predictions(examples.ids_N, outputs), examples)
        return scores

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields 'id', 'name' (if there is one), 'text', 'spans' (if known) and 'predicted' as
        [start, stop, label, characters], 'scores' of these, 'wrong' (if known), 'confidence'."""
        given = examples.as_given()
        for at, row in enumerate(rows_of(examples, predictions.ids_N)):
            spans_Sx3 = predictions["spans_N"][at].tolist()
            moved = [(*examples.span_as_given(row, i, j), k) for i, j, k in spans_Sx3]
            record = text_record(given, int(row), pair="")
            record["predicted"] = self._shown(moved, given.texts_N[row])
            record["scores"] = [round(float(score), 4) for score in predictions["scores_N"][at]]
            if examples.spans is not None:
                record["spans"] = self._shown(examples.spans.row(row).tolist(), given.texts_N[row])
                record["wrong"] = sorted(record["spans"]) != sorted(record["predicted"])
            yield record | {"confidence": float(predictions["confidence_N"][at])}

    def _shown(self, spans: Sequence[Sequence[int]], text: str) -> list[list]:
        return [[i, j, self.labels[label], text[i:j]] for i, j, label in spans]

    def counted(self, encoded: Encoded, targets: Targets) -> np.ndarray:
        """Returns which tokens get a tag: of the text, with characters, and not cut by an edge."""
        return targets.positions["tags_RxL"] > 0

    def _runs(
        self, predictions: Predictions, window: int, places: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Returns runs of the tokens at `places`, a score for each, and the least certainty."""
        if self._flat:
            tags_T, sure_T = (
                predictions[name][window].reshape(-1)[places] for name in ("tags_N", "sure_N")
            )
            runs_Sx3 = span_tags.from_tags(tags_T)
            scores = [sure_T[first : last + 1].min() for first, last, _ in runs_Sx3.tolist()]
            return runs_Sx3, np.array(scores), sure_T.min(initial=1.0)
        odds_K = np.exp(-np.clip(predictions["scores_NxK"][window], -50, 50).astype(np.float64))
        sure_K, spans_Kx3 = 1 / (1 + odds_K), predictions["spans_NxKx3"][window]
        spans_Sx3 = spans_Kx3[sure_K > 0.5].astype(np.int64)
        spans_Sx3[:, :2] = np.searchsorted(places, spans_Sx3[:, :2])
        return spans_Sx3, sure_K[sure_K > 0.5], np.maximum(sure_K, 1 - sure_K).min(initial=1.0)
