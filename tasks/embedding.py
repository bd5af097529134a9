"""Vectors of texts, close where texts belong together: a bi-encoder.

An example is a query with a passage that belongs to it and any number that do not, or a pair of
sentences with a grade. Each text is a token sequence of its own, pooled to one vector; texts are
compared by the cosine. Not here: pooling (models/embedding_head.py), search and its metrics
(evaluation/retrieval.py), cached gradients (training/tuning/regularizers.py).
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata

from evaluation import lexical, retrieval
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, about, mean, one_each
from input_pipeline.batches.separate import SeparateEncoder
from input_pipeline.batches.template import FIELD, Encoded, Encoder
from input_pipeline.examples import Examples, Ragged
from models.embedding_head import EmbeddingHead
from models.pretrained import sentence_transformers
from tasks import contrastive, limits
from tasks.classification import LOSS
from tasks.limits import Given, Limit
from tasks.passage_pool import PassagePool
from tasks.regression import correlation, products
from tasks.task import Arrays, Chunk, Loss, Targets, Task, digest, groups_of, rows_of, text_record

BM25 = {"BM25 on characters": False, "BM25 on words": True}
_SCALES = 1.0, 1000.0  # of cosines, within which a fitted one is
_CHUNK = 512  # queries whose similarities to all passages are in memory at once
_GRADED = (
    Metric("spearman", "Spearman correlation", correlation, additive=False),
    Metric("pearson", "Pearson correlation", correlation),
    Metric("loss", "squared error of the grade", mean, higher_is_better=False),
)


class Embedding(Task):
    """Queries find their passages; or the cosine of a pair follows its grade.

    Predictions.fitted is the scale of the cosines that has the lowest loss on the validation split,
    since models that rank alike have cosines of different spread: it makes their losses, which
    integration compares, about ranking. Of graded pairs it is the line from cosine to grade, and
    the loss the squared error of that line as a share of the grades' variance: 1 is that of the
    mean grade.
    """

    metrics = (*retrieval.METRICS, LOSS)  # of pairs with a grade, those of _GRADED
    BOUND = ("embedding.passage_template",)
    EXPORT = "embedding"
    FLOOR = next(iter(BM25))
    JOINT = True
    READY = True
    TEACHABLE = True

    def __init__(self, config: ConfigDict, labels: Sequence[str], **parts: Any):
        """Checks the options.

        Raises:
            ValueError: a loss for other data, dimensions that the model does not have, a pooling
                that is none here, or a step without anything to compare.
        """
        super().__init__(config, labels, **parts)
        options, self._graded = config.embedding, config.data.label_kind == "number"
        auto = "cosent" if self._graded else "info_nce"
        self._loss = auto if options.loss == "auto" else options.loss
        if self._loss not in (("cosent",) if self._graded else ("info_nce", "triplet")):
            raise ValueError(
                f"config.embedding.loss={options.loss!r} does not fit config.data.label_kind="
                f"{config.data.label_kind!r}: 'cosent' is for grades (label_kind='number'), "
                "'info_nce' and 'triplet' for passages that belong to a query or do not"
            )
        templates = {"data.template": config.data.template}
        if options.passage_template:
            templates["embedding.passage_template"] = options.passage_template
        for key, template in templates.items():
            if FIELD.findall(template) != ["text"]:
                raise ValueError(
                    f"config.{key}={template!r} must hold {{text}} once, and no other field: each "
                    "text has a vector of its own"
                )
        self._dimensions = sorted({*options.dimensions, self.backbone.width})
        if self._dimensions[-1] > self.backbone.width:
            raise ValueError(
                f"config.embedding.dimensions={options.dimensions}: vectors have "
                f"{self.backbone.width} dimensions: name fewer"
            )
        self._pooling, self._prompts = config.model.pooling, ("", "")
        if self._pooling not in ("mean", "first", "last", "auto"):
            raise ValueError(
                f"config.model.pooling={self._pooling!r}: an embedding is the 'mean', the 'first' "
                "or the 'last' of the hidden states, or 'auto', what the checkpoint's folder says"
            )
        self.sequences = 2 if self._graded else 2 + options.negatives
        if self._loss == "triplet" and not options.negatives:
            raise ValueError(
                "config.embedding.loss='triplet' compares with negatives: set "
                "config.embedding.negatives to 1 or more"
            )
        if config.data.batch_size < 2 and self._loss != "triplet":
            raise ValueError(
                f"config.data.batch_size={config.data.batch_size}: a step of one example has no "
                "others to compare with: set it to 2 or more, better 32"
            )
        self.unfitted = {"scale": 1 / config.embedding.temperature}
        if self._graded:
            self.metrics = _GRADED
            self.unfitted = {"slope": 0.0, "intercept": 0.0, "variance": 1.0}
        self._as_passages = False

    def adopt(self, folder: Path) -> str:
        """Takes pooling and prompts from a folder of sentence-transformers, where they are 'auto'.

        Raises:
            ValueError: the folder has none, or parts that are not computed here.
        """
        if self._pooling != "auto":
            return ""
        said = sentence_transformers.read(folder)
        if said is None:
            raise ValueError(
                f"config.model.pooling='auto', but {folder} is no folder of sentence-transformers "
                "(it has no modules.json): set it to 'mean', 'first' or 'last'"
            )
        self._pooling, self._prompts = said.pooling, (said.query, said.passage)
        note = (
            f"{folder.name} says: {said.pooling} pooling, {said.query!r} before a query, "
            f"{said.passage!r} before a passage"
        )
        if said.max_length:
            note += f", {said.max_length:,} tokens at most"
        if said.lower and "lower" not in self.config.data.normalization:
            note += ", lower case, which here config.data.normalization=('lower',) does"
        return f"{note}."

    def templates(self, template: str) -> tuple[str, str]:
        """Returns what queries and passages are read in; prompts give way to own templates."""
        query, passage = self._prompts
        own = template != "{text}"
        return (
            template if own else query + template,
            self.config.embedding.passage_template or (template if own else passage + template),
        )

    def prose(self) -> str:
        """Describes what is learned."""
        return f"{self._pooling} pooling to vectors, compared by {self._loss}"

    def check(self, examples: Examples, split: str) -> None:
        """Raises on examples without pairs, grades, or what the loss compares."""
        needed = {
            "passages that belong to a query: set config.data.pair_column": examples.pairs_N,
            "grades: set config.data.label_column": examples.numbers_N if self._graded else (),
        }
        for what, column in needed.items():
            if column is None:
                raise ValueError(f"the {split} data have no {what}")
        if self._graded and examples.teacher_NxC is not None:
            raise ValueError("config.teach.targets has scores of candidates, and pairs have grades")
        if self._graded and not np.isfinite(examples.numbers_N).any():
            raise ValueError(f"no {split} example has a grade: check config.data.label_column")
        if not self._graded and not any(examples.pairs_N):
            raise ValueError(f"no {split} query has a passage: check config.data.pair_column")
        if split == "train" and self._loss == "triplet" and examples.negatives_N is None:
            raise ValueError(
                "config.embedding.loss='triplet', but the training data have no negatives: set "
                "config.data.negatives_column, or the loss to 'info_nce'"
            )

    def alone(self, *, passages: bool) -> "Embedding":
        """Returns the task of single texts, which are passages or queries."""
        task = copy.copy(self)
        task.sequences, task._as_passages = 1, passages
        return task

    def encoder(self, template: str, *, max_length: int, prefix_ids: Sequence[int]) -> Encoder:
        """Returns what encodes queries by config.data.template, passages by their own."""
        options = {"max_length": max_length, "prefix_ids": prefix_ids}
        templates = self.templates(template)
        if self._as_passages:
            templates = templates[1], templates[1]
        query, passage = (Encoder(self.tokenizer, words, **options) for words in templates)
        return SeparateEncoder(query, passage, sequences=self.sequences)

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields what is cut, and examples with nothing to learn from."""
        yield from super().limits(given)
        examples = given.examples
        if self._graded and examples.numbers_N is not None:
            without = int((~np.isfinite(examples.numbers_N)).sum())
            yield limits.masked(without, len(examples), "grade")
        elif examples.pairs_N is not None and any(examples.pairs_N):  # none where texts are given
            yield limits.masked(sum(not p for p in examples.pairs_N), len(examples), "passage")
            where = "read in later epochs" if given.training else "never read"
            yield limits.beyond(examples, self.sequences - 2, where)

    def candidates(
        self, examples: Examples, indices_B: np.ndarray, epochs_B: np.ndarray
    ) -> Sequence[Sequence[str]] | None:
        """Returns the hard negatives of each example; of more than a step takes, the next ones in
        each epoch."""
        if self.sequences <= 2 or examples.negatives_N is None:
            return None
        rows = examples.negatives_N[indices_B]
        drawn = zip(rows, epochs_B, strict=True)
        return [[row[i] for i in self._drawn(len(row), int(epoch))] for row, epoch in drawn]

    def _drawn(self, length: int, epoch: int) -> list[int]:
        """Returns which of so many negatives a step of an epoch takes."""
        count = self.sequences - 2
        return [(epoch * count + i) % length for i in range(min(count, length))]

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Returns queries_B and passages_BxP, numbers of equal texts (0 is absent), numbers_B of
        graded pairs, and weights_B, 0 for what nothing can be learned from."""
        examples, indices_B = chunk.examples, chunk.indices_B
        queries, passages = _numbers(examples)
        count, places = len(indices_B), max(self.sequences - 1, 1)
        passages_BxP = np.zeros((count, places), np.int32)
        if examples.pairs_N is not None:
            passages_BxP[:, 0] = [passages.get(text, 0) for text in examples.pairs_N[indices_B]]
        drawn = self.candidates(examples, indices_B, chunk.epochs_B) or ()
        for row, texts in enumerate(drawn):
            passages_BxP[row, 1 : 1 + len(texts)] = [passages[text] for text in texts]
        arrays: dict[str, np.ndarray] = {
            "queries_B": np.array([queries[t] for t in examples.texts_N[indices_B]], np.int32),
            "passages_BxP": passages_BxP,
        }
        taught_B = passages_BxP[:, 0] > 0
        if self._graded:
            numbers_B = np.zeros(count, np.float32)
            if examples.numbers_N is not None:
                numbers_B = examples.numbers_N[indices_B].astype(np.float32)
            taught_B &= np.isfinite(numbers_B)
            arrays["numbers_B"] = np.where(taught_B, numbers_B, 0)
        if chunk.training and examples.teacher_NxC is not None:
            arrays |= self._taught(chunk, passages_BxP > 0)
        known = self._graded and examples.numbers_N is not None
        asked_B = taught_B if chunk.training or known else np.ones(count, bool)
        arrays["weights_B"] = asked_B.astype(np.float32)
        return Targets({}, arrays)

    def _taught(self, chunk: Chunk, there_BxP: np.ndarray) -> dict[str, np.ndarray]:
        """Returns a teacher's scores of what a step reads, and where it has two or more of them,
        the passage's among them."""
        scores_BxP = np.full(there_BxP.shape, np.nan, np.float32)
        for row, (index, epoch) in enumerate(zip(chunk.indices_B, chunk.epochs_B, strict=True)):
            given, count = chunk.examples.teacher_NxC[index], int(there_BxP[row].sum()) - 1
            others = chunk.examples.negatives_N
            length = len(others[index]) if count > 0 and others is not None else 0
            places = [0, *(1 + i for i in self._drawn(length, int(epoch)))]
            scores_BxP[row, : len(places)] = given[places]
        known_BxP = np.isfinite(scores_BxP) & there_BxP
        taught_B = known_BxP[:, 0] & (known_BxP.sum(axis=1) > 1)
        scores_BxP = np.where(known_BxP, scores_BxP, np.float32(contrastive.ABSENT))
        return {"scores_BxP": scores_BxP, "taught_B": taught_B.astype(np.float32)}

    def head(self, *, num_features: int) -> nn.Module:
        """Returns the pooling head."""
        del num_features
        options = self.config.embedding
        temperature = options.temperature, options.learn_temperature
        return EmbeddingHead(self.sequences, self._pooling, *temperature)

    def loss(self, outputs: Arrays, batch: Arrays) -> Loss:
        """Sums the loss over the queries of a whole step, the mean over the dimensions."""
        weights_B, losses, sums = batch["weights_B"].astype(jnp.float32), [], {}
        vectors_BxKxE = jnp.where(weights_B[:, None, None] > 0, outputs["vectors_BxKxE"], 0.0)
        scale_B, margin = outputs["scale_B"], self.config.embedding.margin
        for size in self._dimensions:
            units_BxKxE = contrastive.unit(vectors_BxKxE[..., :size])
            if self._loss == "triplet":
                losses_B, sums = contrastive.triplet(units_BxKxE, margin, batch)
            else:
                compare = contrastive.cosent if self._loss == "cosent" else contrastive.info_nce
                losses_B, sums = compare(units_BxKxE, scale_B, batch)
            if "scores_BxP" in batch:
                teach = self.config.teach
                apart_B = contrastive.distance(units_BxKxE, scale_B, batch, teach.temperature)
                losses_B += teach.share * batch["taught_B"] * (apart_B - losses_B)
            losses.append(jnp.sum(weights_B * losses_B))
        return sum(losses) / len(losses), jnp.sum(weights_B), sums

    def divergence(
        self, outputs: Arrays, others: Arrays, batch: Arrays, projections: tuple[Callable, ...]
    ) -> jax.Array:
        """Sums the squared distances of the normalised vectors."""
        weights_Bx1x1 = batch["weights_B"].astype(jnp.float32)[:, None, None]
        first, second = (
            contrastive.unit(jnp.where(weights_Bx1x1 > 0, side["vectors_BxKxE"], 0.0))
            for side in (outputs, others)
        )
        return jnp.sum(weights_Bx1x1 * jnp.square(first - second))

    def guess_loss(self, examples: Examples) -> float:
        """Returns the loss of equal vectors."""
        if self._graded:
            return 1.0
        pairs = {p for p in examples.pairs_N if p}
        return float(np.log(max(len(pairs), 2)))

    def fit(self, predictions: Predictions, validation: Examples) -> dict[str, float]:
        """Fits the scale of the cosines, by up to 512 queries; of grades the line to them."""
        if not self._graded:
            chosen = validation.take(rows_of(validation, predictions.ids_N))
            pool, queries_NxE, passages_PxE = self._pool(predictions, chosen)
            rows = np.unique(np.linspace(0, len(chosen) - 1, _CHUNK).astype(int))
            rows = rows[pool.has_pair_N[rows]]
            cosines_RxP = queries_NxE[rows] @ passages_PxE.T
            found = minimize_scalar(
                lambda log: pool.losses(rows, np.exp(log) * cosines_RxP).mean(),
                bounds=np.log(_SCALES),
                method="bounded",
                options={"xatol": 0.01},
            )
            return {"scale": float(np.exp(found.x))}
        true_N = validation.numbers_N[rows_of(validation, predictions.ids_N)].astype(np.float64)
        return _line(_cosines(predictions), true_N)

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Returns how queries rank the passages of the split, or how cosines follow grades."""
        chosen = examples.take(rows_of(examples, predictions.ids_N))
        mean_cosine, rank = retrieval.spread(predictions["vectors_NxKxE"][:, 0])
        detail = {"mean_cosine": round(mean_cosine, 4), "effective_rank": round(rank, 1)}
        if self._graded:
            return self._graded_scores(chosen, _cosines(predictions), predictions.fitted, detail)
        pool, queries_NxE, passages_PxE = self._pool(predictions, chosen)
        _, ranked = retrieval.nearest(queries_NxE, passages_PxE, count=100)
        # Checkpoints of before 2026-12 have none.
        scale = predictions.fitted.get("scale", float(predictions["scale_N"][0]))
        parts = -(-len(chosen) // _CHUNK)
        losses_N = [
            pool.losses(part, scale * queries_NxE[part] @ passages_PxE.T)
            for part in np.array_split(np.arange(len(chosen)), parts)
        ]
        return self._ranking_scores(chosen, pool, ranked, np.concatenate(losses_N), detail)

    def _pool(
        self, predictions: Predictions, chosen: Examples
    ) -> tuple["PassagePool", np.ndarray, np.ndarray]:
        """Returns the passages of the examples, and normalised vectors of queries and passages."""
        vectors_NxKxE, rows = retrieval.normalised(predictions["vectors_NxKxE"]), len(chosen)
        pool = PassagePool(chosen, self.candidates(chosen, np.arange(rows), np.zeros(rows)))
        return pool, vectors_NxKxE[:, 0], vectors_NxKxE[pool.rows_P, 1 + pool.places_P]

    def _ranking_scores(
        self, chosen: Examples, pool: "PassagePool", ranked: np.ndarray, losses_N: Any, detail: dict
    ) -> Scores:
        """Scores ranked passages [N, 100]; each different query counts once."""
        first_N = pool.first_N
        statistics = {metric.name: np.full((len(chosen), 2), np.nan) for metric in self.metrics}
        relevant = Ragged.of([pool.relevant_N[row] for row in np.flatnonzero(first_N)], np.int64)
        for name, values in retrieval.ranking_statistics(ranked[first_N], relevant).items():
            statistics[name][first_N] = values
        if losses_N is not None:
            statistics["loss"] = about(pool.has_pair_N, one_each(losses_N))
        truth = digest(np.concatenate([np.zeros(1, np.int64), *pool.relevant_N]))
        detail = {"passages": len(pool.rows_P), **detail}
        groups_N = groups_of(chosen, chosen.ids_N)
        return Scores(self.metrics, chosen.ids_N, statistics, detail, truth, groups_N)

    def _graded_scores(
        self, chosen: Examples, values_N: np.ndarray, line: dict[str, float], detail: dict
    ) -> Scores:
        true_N = chosen.numbers_N.astype(np.float64)
        errors_N = (line["slope"] * values_N + line["intercept"] - true_N) ** 2
        statistics = {
            "spearman": products(rankdata(true_N), rankdata(values_N)),
            "pearson": products(true_N, values_N),
            "loss": one_each(errors_N / line["variance"]),
        }
        groups_N = groups_of(chosen, chosen.ids_N)
        return Scores(self.metrics, chosen.ids_N, statistics, detail, digest(true_N), groups_N)

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Scores BM25 (Robertson & Zaragoza 2009) on characters and on words."""
        examples, scores = examples.take(np.argsort(examples.ids_N, kind="stable")), {}
        for name, words in BM25.items():
            if self._graded:
                train, examples = (e.take(np.isfinite(e.numbers_N)) for e in (train, examples))
                values = [
                    lexical.bm25_scores(e.texts_N, e.pairs_N, words=words)
                    for e in (train, examples)
                ]
                line = _line(values[0], train.numbers_N.astype(np.float64))
                scores[name] = self._graded_scores(examples, values[1], line, {})
                continue
            rows = np.arange(len(examples))
            pool = PassagePool(examples, self.candidates(examples, rows, np.zeros(len(examples))))
            _, ranked = lexical.bm25(examples.texts_N, pool.texts, words=words, count=100)
            scores[name] = self._ranking_scores(examples, pool, ranked, None, {})
        return scores

    def arrays(self, predictions: Predictions) -> dict[str, np.ndarray]:
        """Returns the normalised vectors of the queries, float32 [N, E]."""
        return {"vectors": retrieval.normalised(predictions["vectors_NxKxE"][:, 0])}

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields text and pair with their cosine, and the grade, or the passage of the split that
        is nearest to the query; without pairs the text, whose vector is in `arrays`."""
        rows_N, shown = rows_of(examples, predictions.ids_N), examples.as_given()
        cosines_N = _cosines(predictions) if examples.pairs_N is not None else None
        if cosines_N is None or not any(examples.pairs_N):
            for row in rows_N:
                record = text_record(shown, int(row))
                record.pop("pair", None)
                yield record
            return
        chosen, nearest = examples.take(rows_N), None
        if not self._graded:
            pool, queries_NxE, passages_PxE = self._pool(predictions, chosen)
            scores_Nx1, nearest_Nx1 = retrieval.nearest(queries_NxE, passages_PxE, count=1)
            nearest = zip(scores_Nx1[:, 0], nearest_Nx1[:, 0], strict=True)
        for place, (row, cosine) in enumerate(zip(rows_N, cosines_N, strict=True)):
            record = text_record(shown, int(row)) | {"cosine": round(float(cosine), 6)}
            if nearest is not None:
                score, number = next(nearest)
                wrong = number not in pool.relevant_N[place]
                record |= {"nearest": pool.texts[number], "wrong": bool(wrong)}
                record |= {"confidence": round(float(score), 6)}
            elif examples.numbers_N is not None:
                line, true = predictions.fitted, float(examples.numbers_N[row])
                off = abs(line["slope"] * cosine + line["intercept"] - true)
                off /= np.sqrt(line["variance"])
                record |= {"label": true, "wrong": bool(off > 1), "confidence": float(off)}
            yield record


@functools.lru_cache(maxsize=4)  # training reads ahead while other splits are evaluated
def _numbers(examples: Examples) -> tuple[dict[str, int], dict[str, int]]:
    """Returns a number for each different query, and for each different passage, from 1 on."""
    pairs = () if examples.pairs_N is None else filter(None, examples.pairs_N)
    others = () if examples.negatives_N is None else examples.negatives_N
    texts = dict.fromkeys([*pairs, *(text for row in others for text in row)])
    queries = {text: i for i, text in enumerate(dict.fromkeys(examples.texts_N), start=1)}
    return queries, {text: i for i, text in enumerate(texts, start=1)}


def _cosines(predictions: Predictions) -> np.ndarray:
    vectors_NxKxE = retrieval.normalised(predictions["vectors_NxKxE"].astype(np.float64))
    return (vectors_NxKxE[:, 0] * vectors_NxKxE[:, 1]).sum(axis=-1)


def _line(values_N: np.ndarray, true_N: np.ndarray) -> dict[str, float]:
    """Returns the least-squares line from values to the truth, JSON-ready."""
    slope, intercept = 0.0, float(true_N.mean())
    if values_N.std() > 0:
        slope, intercept = map(float, np.polyfit(values_N, true_N, 1))
    return {"slope": slope, "intercept": intercept, "variance": float(true_N.var()) or 1.0}
