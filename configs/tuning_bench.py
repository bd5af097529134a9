"""What each regulariser and optimiser is worth on Chinese data, at equal steps and equal compute.

    python -m benchmarks.tuning --workdir=runs/tuning --config=configs/tuning_bench.py:eprstmt \\
        --config.data.files=DIR/train_{fold}.json \\
        --config.data.validation_files=DIR/test_public.json

trains multilingual-e5-small by each method of METHODS with five repeats; the same command continues
a stopped bench. The argument is a set: eprstmt and bustm (five splits of 32 examples, judged by the
public test), reviews_128, reviews_1280, reviews_all (five seeds), or weibo (names; five seeds).
Nothing is chosen: each run ends at its last step, which is judged once.

Every method has the value that its paper recommends, and the schedule of plain training. (The sizes
of adversarial changes are theirs for 128 tokens of BERT, whose embeddings have a norm of about 15.)
A method whose steps take k times as long is also compared with plain training k times as long.
Methods are dropped by a rule that stood here before any result was looked at: all are measured on
eprstmt; the twelve with the greatest gain at equal compute go on to bustm and reviews_128, of them
the six with the greatest mean gain to reviews_1280 and weibo, and the three best of these to
reviews_all. Products are in bfloat16 where the processor has them (plain training on the first
split: 68.4 % at a loss of 0.699, float32 68.2 at 0.704). On two cores a run of eprstmt then takes
45 seconds (54 in float32) and the whole bench about 11 hours.

Results: docs/tuning.md.
"""

from ml_collections import ConfigDict

from configs import fewclue, reviews, weibo

SETS = ("eprstmt", "bustm", "reviews_128", "reviews_1280", "reviews_all", "weibo")
PLAIN = "plain"
RATE = "optimizer.learning_rate"
_DROPOUT = {"model.hidden_dropout": 0.1, "model.attention_dropout": 0.1}
# name -> (passes of a step, in those of plain training; what it changes; RATE times the set's rate)
METHODS = {
    PLAIN: (1, {}),
    "dropout": (1, _DROPOUT),
    "multi-sample dropout": (1, {"model.dropout": 0.5, "model.dropout_samples": 4}),
    "label smoothing": (1, {"regularize.label_smoothing": 0.1}),
    "R-Drop": (2, {"regularize.r_drop": 1.0, **_DROPOUT}),
    "R3F": (2, {"regularize.r3f": 1.0, **_DROPOUT}),
    "NEFTune": (1, {"regularize.neftune": 5.0}),
    "FGM": (2, {"regularize.fgm": 0.03}),
    "FreeLB": (3, {"regularize.freelb": 0.02}),
    "SAM": (2, {"regularize.sam": 0.05}),
    "mixout": (1, {"regularize.mixout": 0.5}),
    "L2-SP": (1, {"regularize.l2_sp": 0.01}),
    "Child-Tuning": (1, {"regularize.child_tuning": 0.7}),
    "mixup": (1, {"regularize.mixup": 0.4}),
    "NoisyTune": (1, {"regularize.noisy_tune": 0.15}),
    "two new layers": (1, {"regularize.reinit_layers": 2}),
    "weight decay 0.1": (1, {"optimizer.weight_decay": 0.1}),
    "layer decay 0.9": (1, {"optimizer.layer_decay": 0.9}),
    "Adafactor": (1, {"optimizer.name": "adafactor", RATE: 10.0}),
    "Lion": (1, {"optimizer.name": "lion", RATE: 0.2}),
    "Muon": (1, {"optimizer.name": "muon"}),
    "schedule-free": (1, {"optimizer.name": "schedule_free", "schedule.name": "constant"}),
}
_NOT_FOR = {"weibo": ("mixup", "multi-sample dropout")}  # its head reads tokens, and drops already


def get_config(arg: str | None = "reviews_128") -> ConfigDict:
    """Returns plain training on the set `arg`, one of SETS."""
    if arg not in SETS:
        raise ValueError(f"configs/tuning_bench.py:{arg}: expected one of {', '.join(SETS)}")
    if arg in fewclue.TASKS:
        config = fewclue.get_config(f"{arg}:fine_tuning")
        # The public test judges; 32 examples to validate on would judge nothing.
        config.data.validation_files = config.data.test_files
        config.data.test_files = ""
    elif arg == "weibo":
        config = weibo.get_config()
        config.data.max_validation_examples = 0
    else:
        config = reviews.get_config()
        count = arg.removeprefix("reviews_")
        config.data.max_train_examples = 0 if count == "all" else int(count)
        config.data.max_validation_examples = 600 if count == "128" else 0
        config.train.duration = {"128": "5 epochs", "1280": "2 epochs", "all": "1 epoch"}[count]
    config.model.dtype = "auto"
    config.train.update(integrate=False, collapse="ignore")
    config.eval.update(every="100%", test=False, calibration="none")
    config.train.checkpoint_every = "100%"
    return config


def methods(name: str) -> dict[str, tuple[int, dict]]:
    """Returns METHODS as far as they mean something for a set."""
    return {k: v for k, v in METHODS.items() if k not in _NOT_FOR.get(name, ())}
