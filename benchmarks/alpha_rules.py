"""Which rule should choose alpha, judged on examples that chose nothing.

    python -m benchmarks.alpha_rules --workdir=runs/rules/reviews \\
        --config=configs/reviews_decoder.py
    python -m benchmarks.alpha_rules --workdir=runs/rules

The first command trains a recipe with several seeds, each with a split of its own, and scores the
line between the pretrained and the fine-tuned weights on the recipe's validation examples and on
further ones of that split; the test split stays shut. What a workdir holds is not measured again.
The second prints the table over all recipes in a folder.

The examples of a run are dealt out a hundred times: as many as the recipe validates on choose by
each rule, the others judge the choice. A figure is what the chosen alpha scores on those minus what
the fine-tuned model scores there, in points; the error is over the runs. The task must have a loss
among its metrics, as those of whole texts do.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from benchmarks.timing import show_table
from evaluation.metrics import Scores, estimate, paired_difference
from integration.interpolation import mixed
from reporting.stored_scores import read_scores, write_scores

Line = Mapping[float, Scores]  # by alpha, all of the same examples
_FILE = "alpha_line.npz"
_DIVISIONS = 100


class Curve:
    """A metric along the line.

    Attributes:
        values: by alpha; greater is better.
    """

    def __init__(self, line: Line, name: str):
        """Reads the values of the metric `name`."""
        self._line, self._name = line, name
        self._sign = 1 if line[1.0].metric(name).higher_is_better else -1
        self.values = {a: self._sign * estimate(s, name)["value"] for a, s in line.items()}

    def best(self, among: Sequence[float] = ()) -> float:
        """Returns the alpha of the best value; of equals the greatest."""
        return max(among or self.values, key=lambda alpha: (self.values[alpha], alpha))

    def cubic(self, among: Sequence[float] = ()) -> float:
        """Returns the alpha of the best value of a cubic that is fitted to the curve."""
        alphas = sorted(self.values)
        values, degree = [self.values[alpha] for alpha in alphas], min(3, len(alphas) - 1)
        fitted = np.polyval(np.polyfit(alphas, values, degree), alphas)
        return max(among or alphas, key=lambda alpha: fitted[alphas.index(alpha)])

    def ties(self) -> list[float]:
        """Returns the alphas whose paired difference from the best is within one error."""
        top, ties = self._line[self.best()], []
        for alpha, scores in self._line.items():
            behind = paired_difference(top, scores, metric=self._name)
            if self._sign * behind["value"] <= np.nan_to_num(behind["standard_error"]) + 1e-12:
                ties.append(alpha)
        return ties


BOUND = "best by the judging examples (a bound)"
RULES: dict[str, Callable[[Curve, Curve], float]] = {  # from the curves of metric and loss
    "alpha 1, no integration": lambda metric, loss: 1.0,
    "best by the metric": lambda metric, loss: metric.best(),
    "smallest within one error": lambda metric, loss: min(metric.ties()),
    "greatest within one error": lambda metric, loss: max(metric.ties()),
    "best by log loss": lambda metric, loss: loss.best(),
    "smallest within one error of log loss": lambda metric, loss: min(loss.ties()),
    "cubic through the metric": lambda metric, loss: metric.cubic(),
    "cubic through log loss": lambda metric, loss: loss.cubic(),
    "cubic through log loss, within one error of log loss": (
        lambda metric, loss: loss.cubic(loss.ties())
    ),
    "cubic through the metric, within one error": lambda metric, loss: metric.cubic(metric.ties()),
    "log loss, within one error": lambda metric, loss: loss.best(metric.ties()),
    "cubic through log loss, within one error": lambda metric, loss: loss.cubic(metric.ties()),
}


def measure(config: Any, workdir: Path, *, judging: int) -> None:
    """Trains one seed and writes the scores of its line on both sets of examples."""
    from input_pipeline.corpus.preparation import load_split
    from training.data import load_data
    from training.experiment import build
    from workflows.restoring import restore
    from workflows.train import train

    config.eval.test, config.train.integrate = False, False
    train(config, workdir)
    data = load_data(config)
    experiment = build(config, workdir, data.labels, lambda line: None)
    finetuned = restore(experiment, workdir, "best")
    choosing = data.split("validation")
    more = load_split(data.prepared, "validation", limit=len(choosing) + judging)
    sets = {"choose": choosing, "judge": more.take(np.arange(len(choosing), len(more)))}
    start, rows = experiment.pretrained_end(finetuned.params), {}
    for alpha in np.linspace(0, 1, config.integrate.points).round(6).tolist():
        params, fitted = mixed(start, finetuned.params, alpha), finetuned.fitted
        for name, examples in sets.items():
            predictions = experiment.predict(params, examples, fitted)
            if name == "choose":
                fitted = experiment.task.fit(predictions, examples)
                predictions = dataclasses.replace(predictions, fitted=fitted)
            scores = rows[f"{name} {alpha:g}"] = experiment.task.score(predictions, examples)
            values = [round(estimate(scores, metric)["value"], 4) for metric in ("auto", "loss")]
            print(f"alpha {alpha:g}, {name}: metric and loss {values}", flush=True)
    write_scores(workdir / _FILE, rows)


def lines_of(path: Path) -> tuple[Line, Line]:
    """Returns the lines of choosing examples and of judging ones."""
    rows = read_scores(path)
    return tuple(
        {float(row.split()[1]): s for row, s in rows.items() if row.startswith(name)}
        for name in ("choose", "judge")
    )


def divided(choosing: Line, judging: Line, rng: np.random.Generator) -> tuple[Line, Line]:
    """Returns both lines with their examples dealt out anew, as many to each as before."""
    count = len(choosing[1.0].ids_N)
    order = rng.permutation(count + len(judging[1.0].ids_N))
    lines: tuple[dict, dict] = {}, {}
    for alpha, first in choosing.items():
        both = {
            name: np.concatenate([first.statistics[name], judging[alpha].statistics[name]])
            for name in first.statistics
        }
        for line, rows in zip(lines, (order[:count], order[count:]), strict=True):
            statistics = {name: values[rows] for name, values in both.items()}
            line[alpha] = Scores(first.metrics, rows, statistics)
    return lines


def gains_of(choosing: Line, judging: Line) -> dict[str, tuple[float, float]]:
    """Returns of each rule its alpha, and what it gains over alpha 1 on the judging examples.

    Both are means over divisions of all examples into those that choose and those that judge.
    """
    rng, gains = np.random.default_rng(0), {name: [] for name in (*RULES, BOUND)}
    for _ in range(_DIVISIONS):
        line, judges = divided(choosing, judging, rng)
        metric, loss = (Curve(line, name) for name in ("auto", "loss"))
        judged = Curve(judges, "auto")
        alphas = {name: rule(metric, loss) for name, rule in RULES.items()}
        for name, alpha in {**alphas, BOUND: judged.best()}.items():
            gains[name].append((alpha, 100 * (judged.values[alpha] - judged.values[1.0])))
    return {name: tuple(np.mean(pairs, axis=0)) for name, pairs in gains.items()}


def show(folder: Path) -> None:
    """Prints the table of all recipes in a folder."""
    recipes: dict[str, list] = {}
    for path in sorted(folder.rglob(_FILE)):
        recipes.setdefault(path.parent.parent.name, []).append(gains_of(*lines_of(path)))
    runs = [run for of_recipe in recipes.values() for run in of_recipe]
    top = max(RULES, key=lambda rule: np.mean([run[rule][1] for run in runs]))
    rows = []
    for rule in (*RULES, BOUND):
        cells = [
            f"{_mean([run[rule][1] for run in of_recipe])} (alpha "
            f"{' '.join(f'{run[rule][0]:g}' for run in of_recipe)})"
            for of_recipe in recipes.values()
        ]
        behind = [run[top][1] - run[rule][1] for run in runs]
        rows.append((rule, *cells, _mean([run[rule][1] for run in runs]), _mean(behind)))
    names = [f"{name} ({len(of_recipe)} seeds)" for name, of_recipe in recipes.items()]
    show_table(("rule", *names, "all", f"behind: {top}"), rows)


def _mean(values: Sequence[float]) -> str:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{np.mean(values):+.2f} ± {error:.2f}"


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    options = flags.FLAGS
    workdir = Path(options.workdir)
    if options.config is not None:
        for seed in range(options.seeds):
            if not (workdir / f"seed_{seed}" / _FILE).exists():
                config = options.config.copy_and_resolve_references()
                config.seed = config.data.split.seed = seed  # other examples choose and judge
                measure(config, workdir / f"seed_{seed}", judging=options.judge)
        workdir = workdir.parent
    show(workdir)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Recipe to measure; none prints the table.")
    flags.DEFINE_string("workdir", None, "Folder of the runs of one recipe, or of several.")
    flags.DEFINE_integer("seeds", 5, "Runs of the recipe.")
    flags.DEFINE_integer("judge", 600, "Validation examples that judge, beyond those that choose.")
    flags.mark_flag_as_required("workdir")
    app.run(main)
