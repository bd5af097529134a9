"""What each method of configs/tuning_bench.py is worth, at equal steps and at equal compute.

    python -m benchmarks.tuning --workdir=runs/tuning --config=configs/tuning_bench.py:eprstmt \\
        --config.data.files=DIR/train_{fold}.json \\
        --config.data.validation_files=DIR/test_public.json [--methods=FGM,R-Drop]
    python -m benchmarks.tuning --workdir=runs/tuning

The first command trains a set by every method, each as often as --repeats; what is finished is not
trained again. The second prints the tables of all sets in the folder: mean and deviation over the
repeats, and the difference to plain training of as many steps, and of as many passes of the model.
A difference is paired by repeat. Its error joins the scatter over repeats with that over examples;
intervals are of 95 %, p values are Holm's over the methods.
"""

import contextlib
import io
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from ml_collections import config_flags
from scipy import stats

from benchmarks.timing import show_table
from configs import fewclue, tuning_bench
from configs.ranges import read_duration
from evaluation.metrics import Scores, estimate, paired_difference
from evaluation.significance import holm, pooled
from input_pipeline.files import write_json
from reporting.stored_scores import read_scores

_RUNS = "bench.json"  # method -> folders of its runs, in the order of the repeats


class Difference(NamedTuple):
    """A mean difference in points, its standard error and degrees of freedom."""

    value: float
    error: float
    freedom: float

    @property
    def p(self) -> float:
        """Of Student's t test."""
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))

    @property
    def reach(self) -> float:
        """Half of the interval of 95 %."""
        return float(stats.t.ppf(0.975, self.freedom)) * self.error


class _Tee(io.TextIOBase):
    """Writes to several streams."""

    def __init__(self, *streams: Any):
        self._streams = streams

    def write(self, text: str) -> int:
        """Writes to all."""
        for stream in self._streams:
            stream.write(text)
            stream.flush()
        return len(text)


def longer(passes: int) -> str:
    """Returns the name of plain training of so many passes a step's worth."""
    return tuning_bench.PLAIN if passes == 1 else f"{tuning_bench.PLAIN}, {passes} x as long"


def entries(
    name: str, config: Any, repeats: int, chosen: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (method, overrides) of all runs of a set: first all methods of the first repeat.

    Raises:
        ValueError: a method of `chosen` that there is not; () is all.
    """
    methods, rate = tuning_bench.methods(name), config.optimizer.learning_rate
    if unknown := [method for method in chosen if method not in methods]:
        raise ValueError(f"--methods: {unknown[0]!r} is none of {', '.join(methods)}")
    kept = {tuning_bench.PLAIN, *(chosen or methods)}
    methods = {method: value for method, value in methods.items() if method in kept}
    number, unit = read_duration(config.train.duration)
    changes = {
        method: {k: rate * v if k == tuning_bench.RATE else v for k, v in changed.items()}
        for method, (_, changed) in methods.items()
    }
    for passes in sorted({passes for passes, _ in methods.values()} - {1}):
        changes[longer(passes)] = {"train.duration": f"{number * passes:g} {unit}s"}
    for repeat in range(repeats):
        fold = {"data.split.fold": repeat} if name in fewclue.TASKS else {}
        for method, changed in changes.items():
            yield method, {**changed, "seed": repeat, **fold}


def run(
    config: Any, workdir: Path, *, recipe: str, repeats: int, chosen: Sequence[str] = ()
) -> None:
    """Trains a set, and writes which runs are of which method."""
    from workflows.planning import plan
    from workflows.runs import run_one

    name = recipe.partition(":")[2]
    methods, overrides = zip(*entries(name, config, repeats, chosen), strict=True)
    runs = plan(config, workdir / name, list(overrides), recipe=recipe)
    folders: dict[str, list[str]] = {}
    for number, (method, planned) in enumerate(zip(methods, runs, strict=True), start=1):
        print(f"{name}, run {number} of {len(runs)}: {method}", flush=True)
        planned.workdir.mkdir(parents=True, exist_ok=True)
        with (
            open(planned.workdir / "log.txt", "a", encoding="utf-8") as log,
            contextlib.redirect_stdout(_Tee(sys.stdout, log)),
        ):
            record = run_one(planned)
        if record["status"] != "finished":
            raise ValueError(f"{planned.workdir}: {record['message']}")
        folders.setdefault(method, []).append(planned.name)
        write_json(workdir / name / _RUNS, folders)


class Method(NamedTuple):
    """The runs of a method on a set, in the order of the repeats."""

    scores: list[Scores]
    values: np.ndarray
    speeds: np.ndarray  # tokens a second
    mebibytes: int

    @classmethod
    def read(cls, folders: Sequence[Path]) -> "Method":
        """Reads what the runs wrote."""
        scores = [list(read_scores(f / "scores_validation.npz").values())[-1] for f in folders]
        speeds, sizes = [], [0]
        for folder in folders:
            lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            records = [json.loads(line).get("tokens_per_second") for line in lines]
            speeds.append(np.median([speed for speed in records if speed]))
            log = (folder / "log.txt").read_text(encoding="utf-8")
            sizes += re.findall(r"Compiled the train step .* temporaries ([0-9,]+) MiB", log)
        values = np.array([100 * estimate(s, s.metrics[0].name)["value"] for s in scores])
        size = max(int(str(size).replace(",", "")) for size in sizes)
        return cls(scores, values, np.array(speeds), size)


def difference(first: Method, second: Method) -> Difference:
    """Returns the mean difference of two methods over the repeats that both have."""
    count = min(len(first.values), len(second.values))
    apart_R = first.values[:count] - second.values[:count]
    metric = first.scores[0].metrics[0].name
    sides = (pooled(method.scores[:count], metric) for method in (first, second))
    paired = paired_difference(*sides, metric=metric)
    squares = [np.var(apart_R, ddof=1) / count, (100 * paired["standard_error"]) ** 2]
    return _joined(float(apart_R.mean()), squares, [count - 1, paired["count"] - 1])


def _joined(value: float, squares: Sequence[float], freedoms: Sequence[float]) -> Difference:
    """Returns a difference whose squared error is the sum of `squares` (Welch-Satterthwaite)."""
    total = max(float(sum(squares)), 1e-12)
    parts = sum(square**2 / freedom for square, freedom in zip(squares, freedoms, strict=True))
    return Difference(value, math.sqrt(total), total**2 / max(parts, 1e-24))


def over_sets(differences: Sequence[Difference]) -> Difference:
    """Returns the mean over sets, of which each counts alike."""
    count = len(differences)
    squares = [(part.error / count) ** 2 for part in differences]
    mean = float(np.mean([part.value for part in differences]))
    return _joined(mean, squares, [part.freedom for part in differences])


def show(workdir: Path) -> None:
    """Prints the table of each set, and that of all."""
    sets: dict[str, dict[str, Method]] = {}
    for path in sorted(workdir.glob(f"*/{_RUNS}")):
        folders = json.loads(path.read_text(encoding="utf-8"))
        sets[path.parent.name] = {
            method: Method.read([path.parent / run for run in runs])
            for method, runs in folders.items()
        }
    if not sets:
        raise ValueError(f"{workdir} holds no */{_RUNS}: name a set by --config first")
    both = [_compared(methods) for methods in sets.values()]
    for (name, methods), compared in zip(sets.items(), both, strict=True):
        count = len(methods[tuning_bench.PLAIN].values)
        metric = methods[tuning_bench.PLAIN].scores[0].metrics[0].title
        print(f"\n{name}: {metric}, {count} repeats")
        _show_set(methods, compared)
    if len(sets) > 1:
        print(f"\nMean over the sets that a method was measured on, of {', '.join(sets)}")
        pairs = {m: [c[m] for c in both if m in c] for m in tuning_bench.METHODS}
        means = {m: tuple(map(over_sets, zip(*p, strict=True))) for m, p in pairs.items() if p}
        rows = [(m, len(pairs[m]), *cells) for m, cells in _cells(means).items()]
        show_table(("method", "sets", *_COLUMNS), rows)


def _compared(methods: Mapping[str, Method]) -> dict[str, tuple[Difference, Difference]]:
    """Returns of each method its difference to plain training, at equal steps and compute."""
    plain = methods[tuning_bench.PLAIN]
    if len(plain.values) < 2:
        raise ValueError("one repeat shows no spread: --repeats=5 or more")
    return {
        name: (
            difference(method, plain),
            difference(method, methods[longer(tuning_bench.METHODS[name][0])]),
        )
        for name, method in methods.items()
        if name in tuning_bench.METHODS and name != tuning_bench.PLAIN
    }


_COLUMNS = ("equal steps", "95 %", "p", "equal compute", "95 %", "p")


def _cells(compared: Mapping[str, tuple[Difference, Difference]]) -> dict[str, list[str]]:
    """Returns the cells of both differences of each method, with Holm's p values."""
    cells: dict[str, list[str]] = {name: [] for name in compared}
    for side in range(2):
        p_values = holm([pair[side].p for pair in compared.values()])
        for name, p in zip(compared, p_values, strict=True):
            part = compared[name][side]
            cells[name] += [f"{part.value:+.1f}", f"± {part.reach:.1f}", f"{p:.2g}"]
    return cells


def _show_set(
    methods: Mapping[str, Method], compared: Mapping[str, tuple[Difference, Difference]]
) -> None:
    plain, cells, rows = methods[tuning_bench.PLAIN], _cells(compared), []
    for name, method in methods.items():
        mean = f"{method.values.mean():.1f} ({np.std(method.values, ddof=1):.1f})"
        count = min(len(plain.speeds), len(method.speeds))  # repeats: ratios within one
        speed = np.median(plain.speeds[:count] / method.speeds[:count])
        passes = tuning_bench.METHODS[name][0] if name in tuning_bench.METHODS else 1
        cost = (passes, f"{speed:.2f}", method.mebibytes)
        rows.append((name, *cost, mean, *cells.get(name, [""] * len(_COLUMNS))))
    show_table(("method", "passes", "time", "MiB", "mean (deviation)", *_COLUMNS), rows)
    error = float(np.median([pair[0].error for pair in compared.values()]))
    count = len(plain.values)
    print(
        f"With {count} repeats a difference of {2.8 * error:.1f} points would be significant in 80 "
        f"of 100 benches before Holm's correction; 1 point needs about "
        f"{max(count, math.ceil(count * (2.8 * error) ** 2)):,} repeats, if examples do not limit."
    )


def main(argv: Sequence[str]) -> None:
    """Trains and prints."""
    options = flags.FLAGS
    if options.repeats < 2:
        sys.exit(f"Error: --repeats={options.repeats}: one run shows no spread; 5 or more")
    try:
        if options.config is not None:
            recipe = config_flags.get_config_filename(flags.FLAGS["config"])
            how = {"repeats": options.repeats, "chosen": options.methods}
            run(options.config, Path(options.workdir), recipe=recipe, **how)
        show(Path(options.workdir))
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A set of configs/tuning_bench.py.")
    flags.DEFINE_string("workdir", None, "Folder of all sets.")
    flags.DEFINE_integer("repeats", 5, "Runs of each method: seeds, or the five splits.")
    flags.DEFINE_list("methods", [], "What to measure beside plain training; all by default.")
    flags.mark_flag_as_required("workdir")
    app.run(main)
