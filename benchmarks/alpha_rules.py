"""Which rule should choose alpha, judged on examples that chose nothing.

    python -m benchmarks.alpha_rules --workdir=runs/rules/reviews --config=configs/reviews.py
    python -m benchmarks.alpha_rules --workdir=runs/rules

The first command trains a recipe with several seeds, each with a split of its own, and scores the
line between the pretrained and the fine-tuned weights on the recipe's validation examples and on
further ones of that split; the test split stays shut. What a workdir holds is not measured again.
The second prints the table over all recipes in a folder.

The examples of a run are dealt out a hundred times: as many as the recipe validates on choose by
each rule, the others judge the choice. A figure is what the chosen alpha scores on those minus what
the fine-tuned model scores there, in points; the error is over the runs. Of tasks without a loss in
their metrics, whose loss is known as a mean alone, the division that was measured is used.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from evaluation.metrics import Scores, estimate, one_each, paired_difference
from reporting.stored_scores import read_scores, write_scores

Line = Mapping[float, Scores]  # by alpha, all of the same examples
_FILE = "alpha_line.npz"
_DIVISIONS = 100


def best(line: Line, metric: str, among: Sequence[float] = ()) -> float:
    """Returns the alpha of the best value; of equals the greatest."""
    sign = 1 if line[1.0].metric(metric).higher_is_better else -1
    values = {alpha: sign * estimate(line[alpha], metric)["value"] for alpha in among or line}
    return max(values, key=lambda alpha: (values[alpha], alpha))


def best_of_cubic(line: Line, metric: str, among: Sequence[float] = ()) -> float:
    """Returns the alpha of the best value of a cubic that is fitted to the curve."""
    alphas = sorted(line)
    sign = 1 if line[1.0].metric(metric).higher_is_better else -1
    values = [sign * estimate(line[alpha], metric)["value"] for alpha in alphas]
    fitted = np.polyval(np.polyfit(alphas, values, min(3, len(alphas) - 1)), alphas)
    return max(among or alphas, key=lambda alpha: fitted[alphas.index(alpha)])


def ties(line: Line, metric: str) -> list[float]:
    """Returns the alphas whose paired difference from the best is within one error."""
    top, sign = line[best(line, metric)], 1 if line[1.0].metric(metric).higher_is_better else -1
    found = []
    for alpha, scores in line.items():
        behind = paired_difference(top, scores, metric=metric)
        if sign * behind["value"] <= np.nan_to_num(behind["standard_error"]) + 1e-12:
            found.append(alpha)
    return found


# From the line, the line with a loss (the same where the task has one), and the metric's name.
Rule = Callable[[Line, Line, str], float]
RULES: dict[str, Rule | None] = {
    "alpha 1, no integration": lambda line, losses, metric: 1.0,
    "best by the metric": lambda line, losses, metric: best(line, metric),
    "smallest within one error": lambda line, losses, metric: min(ties(line, metric)),
    "greatest within one error": lambda line, losses, metric: max(ties(line, metric)),
    "best by log loss": lambda line, losses, metric: best(losses, "loss"),
    "smallest within one error of log loss": (
        lambda line, losses, metric: min(ties(losses, "loss"))
    ),
    "cubic through the metric": lambda line, losses, metric: best_of_cubic(line, metric),
    "cubic through log loss": lambda line, losses, metric: best_of_cubic(losses, "loss"),
    "cubic through log loss, within one error of log loss": (
        lambda line, losses, metric: best_of_cubic(losses, "loss", ties(losses, "loss"))
    ),
    "cubic through the metric, within one error": (
        lambda line, losses, metric: best_of_cubic(line, metric, ties(line, metric))
    ),
    "log loss, within one error": (
        lambda line, losses, metric: best(losses, "loss", ties(line, metric))
    ),
    "cubic through log loss, within one error": (
        lambda line, losses, metric: best_of_cubic(losses, "loss", ties(line, metric))
    ),
    "best by the judging examples (a bound)": None,
}


def measure(config, workdir: Path, *, judging: int) -> None:
    """Trains one seed and writes the scores of its line on both sets of examples."""
    from input_pipeline.corpus.preparation import load_split
    from integration.interpolation import mixed
    from tasks.classification import LOSS
    from training.data import load_data
    from training.experiment import build
    from training.train import train
    from workflows.restoring import restore

    config.eval.test, config.train.integrate = False, False
    train(config, workdir)
    data = load_data(config)
    experiment = build(config, workdir, data.labels, lambda line: None)
    restored = restore(experiment, workdir, "best")
    choosing = data.split("validation")
    more = load_split(data.prepared, "validation", limit=len(choosing) + judging)
    judges = more.take(np.arange(len(choosing), len(more)))
    start = experiment.pretrained_end(restored.params)
    has_loss = "loss" in [metric.name for metric in experiment.task.metrics]
    loss_of = (
        {}
        if has_loss
        else {
            "choose": validation_loss(experiment, choosing),
            "judge": validation_loss(experiment, judges),
        }
    )
    rows: dict[str, Scores] = {}
    for alpha in np.linspace(0, 1, config.integrate.points).round(6).tolist():
        params = mixed(start, restored.params, alpha)
        for name, examples in (("choose", choosing), ("judge", judges)):
            predictions = experiment.predict(params, examples)
            if name == "choose":
                experiment.task.fitted = experiment.task.fit(predictions, examples)
            scores = experiment.task.score(predictions, examples)
            rows[f"{name} {alpha:g}"] = scores
            if not has_loss:
                one = {"loss": one_each(np.array([loss_of[name](params)]))}
                rows[f"loss-{name} {alpha:g}"] = Scores((LOSS,), np.zeros(1, int), one)
        values = {
            name: [
                round(estimate(rows[row + f"{name} {alpha:g}"], m)["value"], 4)
                for row, m in (("", "auto"), ("" if has_loss else "loss-", "loss"))
            ]
            for name in ("choose", "judge")
        }
        print(f"alpha {alpha:g}: {values}", flush=True)
    write_scores(workdir / _FILE, rows)


def validation_loss(experiment, examples) -> Callable[[Mapping], float]:
    """Returns a function of parameters to the mean of the run's loss over a split.

    Dropout and augmentation are off. Sums over batches are divided once, by the total weight.
    """
    import jax

    from training.compilation import PerShape
    from training.sharding import put_batch

    windows = experiment.windows(examples, training=True)

    def total(frozen, params, batch):
        return experiment.task.loss(experiment.apply({**frozen, **params}, batch), batch)[:2]

    compiled = PerShape(total, "the validation loss", experiment.say)

    def call(params) -> float:
        parts = [
            compiled(experiment.frozen, params, put_batch(batch, experiment.mesh))
            for batch in experiment.pipeline.evaluate(windows)
        ]
        losses, weights = np.array(jax.device_get(parts), np.float64).sum(axis=0)
        return float(losses / weights)

    return call


def lines_of(path: Path) -> tuple[Line, Line, Line]:
    """Returns the lines of choosing examples, of judging ones, and the former's with a loss."""
    rows = read_scores(path)
    choosing, judging, losses = (
        {float(row.split()[1]): s for row, s in rows.items() if row.startswith(name)}
        for name in ("choose", "judge", "loss-choose")
    )
    return choosing, judging, losses or choosing


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


def gains_of(choosing: Line, judging: Line, losses: Line) -> dict[str, tuple[float, float]]:
    """Returns of each rule its alpha, and what it gains over alpha 1 on the judging examples.

    Both are means over divisions of all examples into those that choose and those that judge; where
    the loss is known as a mean alone, of the one division that was measured.
    """
    if losses is not choosing:
        return _gains(choosing, judging, losses)
    rng, found = np.random.default_rng(0), []
    for _ in range(_DIVISIONS):
        line, judges = divided(choosing, judging, rng)
        found.append(_gains(line, judges, line))
    return {rule: tuple(np.mean([gains[rule] for gains in found], axis=0)) for rule in RULES}


def _gains(choosing: Line, judging: Line, losses: Line) -> dict[str, tuple[float, float]]:
    metric = choosing[1.0].metrics[0]
    sign = 100 if metric.higher_is_better else -100
    values = {alpha: sign * estimate(s, metric.name)["value"] for alpha, s in judging.items()}
    gains = {}
    for name, rule in RULES.items():
        if rule is None:
            alpha = max(values, key=values.__getitem__)
        else:
            alpha = rule(choosing, losses, metric.name)
        gains[name] = alpha, values[alpha] - values[1.0]
    return gains


def show(folder: Path) -> None:
    """Prints the table of all recipes in a folder."""
    recipes: dict[str, list] = {}
    for path in sorted(folder.rglob(_FILE)):
        recipes.setdefault(path.parent.parent.name, []).append(gains_of(*lines_of(path)))
    names = list(recipes)
    print("| rule | " + " | ".join(f"{n} ({len(recipes[n])} seeds)" for n in names) + " | all |")
    print("|---" * (len(names) + 2) + "|")
    for rule in RULES:
        cells, every = [], []
        for name in names:
            gains = np.array([run[rule][1] for run in recipes[name]])
            alphas = " ".join(f"{run[rule][0]:g}" for run in recipes[name])
            cells.append(f"{_mean(gains)} (alpha {alphas})")
            every.append(gains)
        print(f"| {rule} | " + " | ".join(cells) + f" | {_mean(np.concatenate(every))} |")
    rules = [rule for rule in RULES if RULES[rule]]
    runs = [run for name in names for run in recipes[name]]
    top = max(rules, key=lambda rule: np.mean([run[rule][1] for run in runs]))
    print(f"Behind the best rule, {top}, paired over {len(runs)} runs:")
    for rule in rules:
        behind = np.array([run[top][1] - run[rule][1] for run in runs])
        print(f"- {rule}: {_mean(behind)}")


def _mean(values: np.ndarray) -> str:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():+.2f} ± {error:.2f}"


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
                print(
                    f"{workdir} seed {seed}: "
                    + str(gains_of(*lines_of(workdir / f"seed_{seed}" / _FILE))),
                    flush=True,
                )
        workdir = workdir.parent
    show(workdir)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Recipe to measure; none prints the table.")
    flags.DEFINE_string("workdir", None, "Folder of the runs of one recipe, or of several.")
    flags.DEFINE_integer("seeds", 5, "Runs of the recipe.")
    flags.DEFINE_integer("judge", 600, "Validation examples that judge, beyond those that choose.")
    flags.mark_flag_as_required("workdir")
    app.run(main)
