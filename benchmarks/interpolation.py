"""What the line between pretrained and fine-tuned weights costs beside its evaluations alone.

    pip install -e '.[demo]' && python -m benchmarks.interpolation

Gemma 3 270M on reviews: N points of the line mixed, evaluated and compared (integration), against N
evaluations of one model that is there already, both through the run's own evaluation. They take
turns in one process; the ratio is of medians over the rounds. The fine-tuned end is the pretrained
one a little scaled, for the cost does not depend on the values.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags


def seconds_of(call: Callable[[], object]) -> float:
    """Returns the time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    from configs import reviews
    from integration.interpolation import interpolate
    from training.data import load_data
    from training.experiment import build

    options = flags.FLAGS
    config = reviews.get_config()
    config.data.max_validation_examples = options.examples
    data = load_data(config)
    with tempfile.TemporaryDirectory() as folder:
        experiment = build(config, Path(folder), data.labels, print)
    validation = data.split("validation")
    finetuned = experiment.put({p: 1.001 * value for p, value in experiment.initial.items()})
    pretrained = experiment.pretrained_end(finetuned)

    def score(params: dict[str, jax.Array]) -> object:
        return experiment.score(params, validation)[0]

    def line() -> None:
        interpolate(score, pretrained, finetuned, points=options.points, metric=config.eval.metric)

    def evaluations() -> None:
        for _ in range(options.points):
            score(finetuned)

    line()  # compiles
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, jax {jax.__version__}")
    times: dict[Callable, list[float]] = {line: [], evaluations: []}
    for number in range(options.rounds):
        for call in (line, evaluations) if number % 2 else (evaluations, line):
            times[call].append(seconds_of(call))
    ours, theirs = (statistics.median(times[call]) for call in (line, evaluations))
    pairs = [a / b for a, b in zip(times[line], times[evaluations], strict=True)]
    print(
        f"{options.points} points on {len(validation)} examples {ours:.1f} s, as many evaluations "
        f"{theirs:.1f} s: {ours / theirs:.3f} times (rounds: {min(pairs):.3f} to {max(pairs):.3f})"
    )


if __name__ == "__main__":
    flags.DEFINE_integer("examples", 32, "Of the validation split.")
    flags.DEFINE_integer("points", 11, "Points of the line.")
    flags.DEFINE_integer("rounds", 6, "Rounds in which each side measures once.")
    app.run(main)
