"""What the line between pretrained and fine-tuned weights costs beside its evaluations alone.

    pip install -e '.[demo]' && python -m benchmarks.interpolation

Gemma 3 270M on `--examples` reviews: `--points` points of the line mixed, evaluated and compared
(integration), against as many evaluations of one model that is there already, both through the
run's evaluation. They take turns in one process; the ratio is of medians over the rounds. The
fine-tuned end is the pretrained one a little scaled, for the cost does not depend on the values.
"""

import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.timing import arguments, seconds_of, show_machine, take_turns
from configs import reviews_decoder
from integration.interpolation import interpolate
from training.data import load_data
from training.experiment import build


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__, examples=32, points=11, rounds=6)
    config = reviews_decoder.get_config()
    config.data.max_validation_examples = options.examples
    data = load_data(config)
    with tempfile.TemporaryDirectory() as folder:
        experiment = build(config, Path(folder), data.labels, print)
    validation = data.split("validation")
    finetuned = experiment.put({p: 1.001 * value for p, value in experiment.initial.items()})
    pretrained = experiment.pretrained_end(finetuned)

    def score(params: dict) -> object:
        return experiment.score(params, validation)[0]

    def line() -> None:
        interpolate(score, pretrained, finetuned, points=options.points, metric=config.eval.metric)

    score(finetuned)  # compiles
    show_machine()
    sides = {"line": partial(seconds_of, line)}
    sides["alone"] = lambda: options.points * seconds_of(partial(score, finetuned), options.points)
    times = take_turns(sides, options.rounds)
    ours, alone = (statistics.median(times[name]) for name in sides)
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    print(
        f"{options.points} points on {len(validation)} examples {ours:.1f} s, as many evaluations "
        f"{alone:.1f} s: {ours / alone:.3f} times (rounds: {min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
