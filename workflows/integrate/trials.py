"""The candidates of one run: what each of config.integrate.methods makes, and what it is worth.

Here: how trees, predictions and the validation split come together. Not here: the functions on
trees and predictions (interpolation.py, soups.py, merging.py, ensembles.py), the choice
(candidates.py), and what is written (run.py, which calls this).
"""

from collections.abc import Callable
from pathlib import Path

import jax

from evaluation.metrics import Scores
from input_pipeline.eta import track
from input_pipeline.files import write_jsonl
from integration import ensembles, merging, methods, soups
from integration.candidates import Candidate, Judge, Judged, Stopwatch
from integration.interpolation import compare, interpolate, mixed
from training.data import RunData
from training.experiment import Experiment
from workflows.integrate import ingredients
from workflows.integrate.ingredients import Ingredient
from workflows.integrate.shifted import shifted_examples
from workflows.restoring import restore

Params = dict[str, jax.Array]

_MOST = {"add": 1.0, "ties": 2.0}  # greatest scale tried: of a mean more than of a sum


class Trials:
    """Makes and judges the candidates of one run.

    Attributes:
        restored: the checkpoint that all is compared with.
        told: of results.json: the curves, and where targets were written.
    """

    def __init__(
        self, experiment: Experiment, workdir: Path, data: RunData, name: str, *, alone: str
    ):
        config = experiment.config
        self._experiment, self._config, self._data = experiment, config, data
        self.restored, self.told = restore(experiment, workdir, name), {}
        split = data.split("validation")
        self._validation = split.first(config.integrate.max_examples or len(split))
        if len(self._validation) < len(split):
            print(
                f"Integration chooses by the first {len(self._validation):,} of {len(split):,} "
                "validation examples (config.integrate.max_examples)."
            )
        self._judge = Judge(experiment, self._validation, self.restored.fitted)
        self._metric = experiment.metric.name
        self._methods = tuple(config.integrate.methods)
        rooted = [m for m in self._methods if m in methods.ROOTED]
        if rooted and experiment.initial.keys() <= experiment.rootless:
            self._leave_out(
                rooted,
                f"{', '.join(rooted)}: what config.adapt.kind={config.adapt.kind!r} trains, a head "
                "drawn at random or a prompt, has no pretrained weights to go back to",
                alone,
            )
        found = ingredients.find(
            experiment, workdir, restored=self.restored, fingerprints=data.fingerprints
        )
        several = [m for m in self._methods if m != "interpolation"]
        # Of several runs each has one part, so that none weighs more.
        pool = [i for i in found if i.item == "params" or not config.integrate.runs]
        if len(pool) == 1 and several:
            self._leave_out(
                several,
                f"{', '.join(several)} of one model, the {self.restored.name} of {workdir}: add "
                f"workdirs to config.integrate.runs (found {tuple(config.integrate.runs)}), or "
                f"raise config.train.keep_latest (found {config.train.keep_latest}) or set "
                "config.train.ema",
                alone,
            )
            several = []
        own = [i for i in found if i.workdir == workdir and i.step == self.restored.step]
        self._singles, self._pool = (found if several else own), pool
        self._judged: dict[str, Judged] = {}

    def _leave_out(self, names: list[str], why: str, alone: str) -> None:
        """Goes on without some methods, or raises with `alone` 'stop'."""
        if alone == "stop":
            raise ValueError(f"config.integrate.methods: {why}")
        print(f"Left out: config.integrate.methods: {why}.")
        self._methods = tuple(name for name in self._methods if name not in names)

    def is_changed(self, candidate: Candidate) -> bool:
        """Whether a candidate has other weights than the checkpoint that all is compared with."""
        same = candidate.name == self.restored.name
        return not (same or (candidate.kind == "interpolation" and self.told["alpha"] == 1))

    def run(self) -> list[Candidate]:
        """Returns the candidates, the simple ones first."""
        singles = track(self._singles, len(self._singles), "Integration, models")
        found = [self._single(ingredient) for ingredient in singles]
        if "interpolation" in self._methods:
            found.insert(0, self._interpolation())
        for method in (m for m in self._methods if m != "interpolation"):
            print(f"Trying {method} of {len(self._pool)} models.")  # each may take minutes
            if method in methods.SOUPS:
                found.append(self._soup(method))
            elif method in methods.MERGES:
                found.append(self._merge(method))
            else:
                found.append(self._ensemble())
        return found

    def _single(self, ingredient: Ingredient) -> Candidate:
        watch = Stopwatch(self._judge)
        own = ingredient.name == self.restored.name
        params = self.restored.params if own else ingredient.load(self._experiment)
        judged = self._judge(params, keep="ensemble" in self._methods)
        self._judged[ingredient.name] = judged
        facts = {"members": (ingredient.title,), **watch.cost()}
        return Candidate(ingredient.name, "single", judged, self._load(ingredient), **facts)

    def _load(self, ingredient: Ingredient) -> Callable[[], Params]:
        return lambda: ingredient.load(self._experiment)

    def _line(self, start: Params, end: Params, last: Judged | None = None) -> tuple:
        """Judges points between two trees; returns the chosen place, its result, the curves.

        Args:
            start: at 0.
            end: at 1.
            last: the result at 1, if it is known.
        """
        points, task = self._config.integrate.points, self._experiment.task
        found: list[Judged] = []
        elsewhere: list[Scores] = []
        shifted = shifted_examples(self._experiment, self._data) if last else None

        def score(params: Params) -> Scores:
            known = last if len(found) == points - 1 else None
            found.append(known or self._judge(params))
            if shifted is not None:
                # Fitted on validation: the shifted set chooses nothing.
                predictions = self._experiment.predict(params, shifted, found[-1].fitted)
                elsewhere.append(task.score(predictions, shifted))
            return found[-1].scores

        alpha, curve, _ = interpolate(score, start, end, points=points, metric=self._metric)
        alphas = [point["alpha"] for point in curve]
        compared = compare(dict(enumerate(elsewhere)), metric=self._metric) if elsewhere else {}
        other = [{"alpha": alphas[place], **point} for place, point in compared.items()]
        return alpha, found[alphas.index(alpha)], curve, other

    def _interpolation(self) -> Candidate:
        watch, params = Stopwatch(self._judge), self.restored.params
        start = self._experiment.pretrained_end(params)
        last = self._judged[self.restored.name]
        alpha, judged, curve, shifted_curve = self._line(start, params, last)
        self.told |= {"alpha": alpha, "curve": curve}
        if shifted_curve:
            self.told["shifted_curve"] = shifted_curve

        def make() -> Params:
            return mixed(self._experiment.pretrained_end(params), params, alpha)

        name, members = f"interpolation, alpha {alpha:g}", (self._singles[0].title,)
        return Candidate(name, "interpolation", judged, make, members=members, **watch.cost())

    def _soup(self, method: str) -> Candidate:
        watch = Stopwatch(self._judge)
        # The best first: the order of the greedy soup.
        pool = sorted(self._pool, key=lambda i: self._judged[i.name].rank, reverse=True)
        loads = [self._load(ingredient) for ingredient in pool]
        count, weights, judged = len(loads), [1.0] * len(loads), None
        if method == "greedy_soup":
            first = self._judged[pool[0].name]
            chosen, judged = soups.grow(loads, self._judge, first, rank=lambda j: j.rank)
            weights = [float(place in chosen) for place in range(count)]
            count = len(chosen)

        def make() -> Params:
            return soups.soup(loads, weights)

        judged = judged or self._judge(make())
        name = f"{method.replace('_', ' ')} of {count}"
        members = tuple(i.title for i, weight in zip(pool, weights, strict=True) if weight)
        return Candidate(name, "soup", judged, make, members=members, **watch.cost())

    def _merge(self, method: str) -> Candidate:
        """Adds what the trainings changed, by a scale that the validation split chooses.

        Paths without a common start, such as drawn heads, take their mean at any scale.
        """
        watch, experiment = Stopwatch(self._judge), self._experiment
        loads = [self._load(ingredient) for ingredient in self._pool]

        def ends() -> tuple[Params, Params]:
            start = experiment.pretrained_end(self.restored.params)
            rootless = experiment.rootless
            rooted = {path: leaf for path, leaf in start.items() if path not in rootless}
            parts = [lambda load=load: {p: load()[p] for p in rootless} for load in loads]
            kept = soups.soup(parts) if rootless else {}
            vector = getattr(merging, method)(loads, rooted)
            return kept | rooted, kept | merging.scaled(rooted, vector, _MOST[method])

        place, judged, _, _ = self._line(*ends())
        name = f"{method.upper()} of {len(loads)}, scale {place * _MOST[method]:g}"
        facts = {"members": tuple(i.title for i in self._pool), **watch.cost()}
        return Candidate(name, "merging", judged, lambda: mixed(*ends(), place), **facts)

    def _ensemble(self) -> Candidate:
        watch, kind = Stopwatch(self._judge), self._experiment.task.AVERAGE
        members = [self._judged[i.name].predictions for i in self._pool]
        judged = self._judge.of(ensembles.average(members, kind=kind))
        facts = {"inference_cost": len(members), "members": tuple(i.title for i in self._pool)}
        name = f"ensemble of {len(members)}"
        candidate = Candidate(name, "ensemble", judged, None, **watch.cost(), **facts)
        if self._config.integrate.targets:
            self._write_targets(judged)
        return candidate

    def _write_targets(self, judged: Judged) -> None:
        """Writes what the ensemble says of the training texts."""
        experiment, train = self._experiment, self._data.split("train")
        predictions = [
            experiment.predict(ingredient.load(experiment), train, judged.fitted)
            for ingredient in self._pool
        ]
        mean = ensembles.average(predictions, kind=experiment.task.AVERAGE)
        path = self._config.integrate.targets
        count = write_jsonl(path, experiment.task.describe(mean, train))
        self.told["targets"] = {
            "path": path,
            "examples": count,
            "members": [ingredient.name for ingredient in self._pool],
            "fingerprint": self._data.fingerprints["train"],
        }
        print(f"The probabilities of {count:,} training texts are in {path}.")
