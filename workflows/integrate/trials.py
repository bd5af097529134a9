"""The candidates of one run: makes what each of config.integrate.methods names, and judges it.

Here: how trees, predictions and the validation split come together. Not here: the functions on
trees and predictions and the choice (integration/), and what is written (integrate.py).
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from evaluation.evaluate import Predictions
from evaluation.metrics import Scores, estimate
from input_pipeline.eta import track
from input_pipeline.files import write_jsonl
from integration import ensembles, methods, soups
from integration.candidates import Candidate, Judged
from integration.interpolation import compare, deciding, interpolate, mixed
from training.data import RunData
from training.experiment import Experiment
from workflows.integrate import ingredients
from workflows.integrate.ingredients import Ingredient
from workflows.integrate.shifted import shifted_examples
from workflows.restoring import restore

Params = dict[str, jax.Array]


class Trials:
    """Makes and judges the candidates of one run; all share the compiled forward pass.

    Attributes:
        restored: the checkpoint that all is compared with.
        record: of results.json: the curves, and where targets were written.
    """

    def __init__(
        self, experiment: Experiment, workdir: Path, data: RunData, name: str, *, alone: str
    ):
        config = experiment.config
        self._experiment, self._config, self._data = experiment, config, data
        self.restored, self.record = restore(experiment, workdir, name), {}
        split = data.split("validation")
        self._validation = split.first(config.integrate.max_examples or len(split))
        if len(self._validation) < len(split):
            print(
                f"Integration chooses by the first {len(self._validation):,} of {len(split):,} "
                "validation examples (config.integrate.max_examples)."
            )
        self._metric, self._evaluations = experiment.metric.name, 0
        self._methods = tuple(config.integrate.methods)
        if "interpolation" in self._methods and experiment.initial.keys() <= experiment.rootless:
            self._leave_out(
                ["interpolation"],
                f"what config.adapt.kind={config.adapt.kind!r} trains, a head drawn at random or a "
                "prompt, has no pretrained weights to go back to",
                alone,
            )
        available = ingredients.find(
            experiment, workdir, restored=self.restored, fingerprints=data.fingerprints
        )
        several = [m for m in self._methods if m != "interpolation"]
        # Of several runs each has one part, so that none weighs more.
        self._pool = [i for i in available if i.item == "params" or not config.integrate.runs]
        if len(self._pool) == 1 and several:
            self._leave_out(
                several,
                f"a single model, the {self.restored.name} of {workdir}: add workdirs to "
                f"config.integrate.runs (found {tuple(config.integrate.runs)}), or raise "
                "config.train.keep_latest or keep_best, or set config.train.ema",
                alone,
            )
            several = []
        own = [i for i in available if i.workdir == workdir and i.step == self.restored.step]
        self._singles = available if several else own
        self._judged: dict[str, Judged] = {}

    def _leave_out(self, names: list[str], why: str, alone: str) -> None:
        """Goes on without some methods, or raises with `alone` 'stop'."""
        message = f"config.integrate.methods: {', '.join(names)}: {why}"
        if alone == "stop":
            raise ValueError(message)
        print(f"Left out: {message}.")
        self._methods = tuple(name for name in self._methods if name not in names)

    def is_changed(self, candidate: Candidate) -> bool:
        """Whether a candidate has other weights than the checkpoint that all is compared with."""
        same = candidate.name == self.restored.name
        return not (same or (candidate.kind == "interpolation" and self.record["alpha"] == 1))

    def run(self) -> list[Candidate]:
        """Returns the candidates, the simple ones first."""
        singles = track(self._singles, len(self._singles), "Integration, models")
        candidates = [self._timed(self._single, ingredient) for ingredient in singles]
        if "interpolation" in self._methods:
            candidates.insert(0, self._timed(self._interpolation))
        if methods.given_alpha(self._config) is not None:
            return candidates[:1]
        for method in (m for m in self._methods if m != "interpolation"):
            print(f"Trying {method} of {len(self._pool)} models.")  # each may take minutes
            if method in methods.SOUPS:
                candidates.append(self._timed(self._soup, method))
            else:
                candidates.append(self._timed(self._ensemble))
        if self._config.integrate.targets:  # also of a single model, a left-out ensemble
            judged = [c.judged for c in candidates if c.kind == "ensemble"]
            self._write_targets(*judged or [self._judged[self._pool[0].name]])
        return candidates

    def _timed(self, make: Callable[..., Candidate], *args: Any) -> Candidate:
        """Returns a candidate with its costs."""
        start, before = time.perf_counter(), self._evaluations
        candidate = make(*args)
        seconds = round(time.perf_counter() - start, 3)
        evaluations = self._evaluations - before
        return dataclasses.replace(candidate, seconds=seconds, evaluations=evaluations)

    def _judge(self, params: Params, *, keep: bool = False) -> Judged:
        """Evaluates on the validation split; `keep` keeps the predictions."""
        self._evaluations += 1
        # Before an evaluation, what this run's checkpoint fitted holds.
        fitted = self.restored.fitted
        predictions = self._experiment.predict(params, self._validation, fitted)
        return self._judge_predictions(predictions, keep=keep)

    def _judge_predictions(self, predictions: Predictions, *, keep: bool = False) -> Judged:
        task = self._experiment.task
        fitted = task.fit(predictions, self._validation)  # as Experiment.score does
        scores = task.score(dataclasses.replace(predictions, fitted=fitted), self._validation)
        values = {m.name: estimate(scores, m.name)["value"] for m in task.metrics}
        rank = self._experiment.rank(values)
        if deciding(scores, self._metric) == "loss":
            rank = [-values["loss"], *rank]
        return Judged(scores, fitted, rank, predictions if keep else None)

    def _single(self, ingredient: Ingredient) -> Candidate:
        own = ingredient.name == self.restored.name
        params = self.restored.params if own else ingredient.load(self._experiment)
        judged = self._judge(params, keep="ensemble" in self._methods)
        self._judged[ingredient.name] = judged
        load = self._load(ingredient)
        return Candidate(ingredient.name, "single", judged, load, (ingredient.title,))

    def _load(self, ingredient: Ingredient) -> Callable[[], Params]:
        return functools.partial(ingredient.load, self._experiment)

    def _interpolation(self) -> Candidate:
        """Judges points between the pretrained weights and the checkpoint, and chooses one."""
        points, task, params = (
            self._config.integrate.points,
            self._experiment.task,
            self.restored.params,
        )
        last = self._judged[self.restored.name]
        judged: list[Judged] = []
        shifted_scores: list[Scores] = []
        shifted = shifted_examples(self._experiment, self._data)

        def score(mixture: Params) -> Scores:
            judged.append(last if len(judged) == points - 1 else self._judge(mixture))
            if shifted is not None:
                # Fitted on validation: the shifted set chooses nothing.
                predictions = self._experiment.predict(mixture, shifted, judged[-1].fitted)
                shifted_scores.append(task.score(predictions, shifted))
            return judged[-1].scores

        start = self._experiment.pretrained_end(params)
        alpha, curve, _ = interpolate(score, start, params, points=points, metric=self._metric)
        alphas = [point["alpha"] for point in curve]
        if (given := methods.given_alpha(self._config)) is not None:
            print(f"alpha {given:g} is taken as given; the lowest loss is at {alpha:g}.")
            alpha = given
        self.record |= {"alpha": alpha, "curve": curve}
        if shifted is not None:
            compared = compare(dict(zip(alphas, shifted_scores, strict=True)), metric=self._metric)
            self.record["shifted_curve"] = [{"alpha": a, **point} for a, point in compared.items()]

        def make() -> Params:
            return mixed(self._experiment.pretrained_end(params), params, alpha)

        name, members = f"interpolation, alpha {alpha:g}", (self._singles[0].title,)
        return Candidate(name, "interpolation", judged[alphas.index(alpha)], make, members)

    def _soup(self, method: str) -> Candidate:
        # The best first: the order of the greedy soup.
        pool = sorted(self._pool, key=lambda i: self._judged[i.name].rank, reverse=True)
        if method == "greedy_soup":
            loads, first = list(map(self._load, pool)), self._judged[pool[0].name]
            chosen, judged = soups.grow(loads, self._judge, first, rank=lambda j: j.rank)
            pool = [pool[i] for i in chosen]
        make = functools.partial(soups.soup, list(map(self._load, pool)))
        if method == "soup":
            judged = self._judge(make())
        name, members = f"{method.replace('_', ' ')} of {len(pool)}", tuple(i.title for i in pool)
        return Candidate(name, "soup", judged, make, members)

    def _ensemble(self) -> Candidate:
        predictions = [self._judged[ingredient.name].predictions for ingredient in self._pool]
        judged = self._judge_predictions(self._average(predictions))
        count, members = len(predictions), tuple(ingredient.title for ingredient in self._pool)
        return Candidate(f"ensemble of {count}", "ensemble", judged, None, members, count)

    def _average(self, predictions: list[Predictions]) -> Predictions:
        return ensembles.average(predictions, kind=self._experiment.task.AVERAGE)

    def _write_targets(self, judged: Judged) -> None:
        """Writes the ensemble's probabilities of the training texts."""
        experiment, train = self._experiment, self._data.split("train")
        mean = self._average(
            [
                experiment.predict(ingredient.load(experiment), train, judged.fitted)
                for ingredient in self._pool
            ]
        )
        path = self._config.integrate.targets
        count = write_jsonl(path, experiment.task.describe(mean, train))
        self.record["targets"] = {
            "path": path,
            "examples": count,
            "members": [ingredient.name for ingredient in self._pool],
            "fingerprint": self._data.fingerprints["train"],
        }
        print(f"The probabilities of {count:,} training texts are in {path}.")
