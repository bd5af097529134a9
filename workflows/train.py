"""--mode=train: from the data to results.json, with the runs that this one is compared with.

Not here: training itself (training/train.py), the table of results (results.py).
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.overrides import companion
from input_pipeline.eta import phase, time_spent, working
from input_pipeline.files import remove, write_json
from input_pipeline.locking import in_use
from input_pipeline.tokenizers import silent_loss
from integration import methods
from reporting import report
from training import run_probe
from training.compilation import resolve_dtype
from training.data import load_data
from training.experiment import build
from training.run_features import run_features
from training.train import OnEvaluation, Run
from training.tuning import optimizers
from training.workdir import check_workdir
from workflows import marks, results, robustness, teacher
from workflows.integrate import integrate, shifted
from workflows.results import Prepared


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    on_evaluation: OnEvaluation | None = None,
    compare: bool = True,
) -> dict[str, Any]:
    """Runs a config from its data to the report in `workdir`; a run that was stopped goes on.

    Args:
      config: the whole config.
      workdir: the run's folder.
      on_evaluation: called after each evaluation of the training but the last, when its checkpoint
        is saved; an exception from it ends the run, which can go on later.
      compare: also train the runs that this one is compared with.

    Returns:
      The contents of results.json.

    Raises:
      Interrupted: a signal came while training; everything is saved.
      ValueError: bad input, a loss that is not finite, or another process trains in `workdir`.
      OSError: a file could not be read or written.
    """
    with in_use(workdir):
        resolve_dtype(config, workdir, print)
        # What can fail without data or a model fails first.
        check_workdir(workdir, config)
        if methods.apply(config):
            integrate.check(config, workdir)
        shifted.check(config)
        robustness.check(config)
        run_probe.check(config)
        teacher.check(config)
        optimizers.check(config)
        run = prepare_run(config, workdir, compare=compare)
        shifted.shifted_examples(run.experiment, run.data)
        with phase("data"), working("Measuring what the tokeniser loses"):
            loss = silent_loss.measure(run.train_split.all_texts, run.experiment.tokenizer)
        print(loss.prose())
        write_json(workdir / "silent_loss.json", loss.to_json())
        with phase("steps"):
            Run(run.experiment, workdir, run.data, run.train_split, on_evaluation).train()
        results = _finish(run)
        print(time_spent())
        return results


def _finish(run: Prepared) -> dict[str, Any]:
    """Integrates and reports, on the test split if config.eval.test; does nothing twice."""
    workdir, config = run.workdir, run.experiment.config
    if (workdir / "results.json").exists():
        print(f"This run is finished; its results are in {workdir / 'results.json'}:")
        return report.show_results(workdir)
    remove(workdir / "integrated")  # of a shorter training
    if methods.apply(config):
        with phase("integration"):
            integrate.integrate_run(run.experiment, workdir, run.data)
    split = "test" if config.eval.test and "test" in run.data.splits else "validation"
    with phase(split):
        return results.write(run, split)


def prepare_run(config: ConfigDict, workdir: Path, *, compare: bool = True) -> Prepared:
    """Prepares the data, finishes the runs to compare with, and builds the experiment."""
    with phase("data"):
        data = load_data(config)
        train_split = data.split("train")
    print(data.prose())
    train_split = teacher.with_targets(config, train_split, data.labels)
    others = {}
    if everything := marks.all_examples(config, workdir):
        train_split, excluded = marks.exclude(train_split, config.review.exclude)
        if compare:
            print("First the model of all examples, to compare with.")
            train(*everything, compare=False)
            others[report.ALL_EXAMPLES] = everything
        print(f"Without {excluded:,} training examples that {config.review.exclude} marks.")
    if (alone := encoder_alone(config, workdir)) and compare:
        run_features(config, workdir, train_split)  # so that it fails before the other run trains
        print("First the encoder alone, to compare with.")
        train(*alone, compare=False)
        print("Now the encoder with features.")
        others[report.ENCODER] = alone
    with phase("model"):
        experiment = build(config, workdir, data.labels, print, train_split)
        teacher.load(experiment, data.labels)
    with phase("data"):
        experiment.check(train_split, "train", training=True)
        experiment.check(data.split("validation"), "validation")
    return Prepared(experiment, workdir, data, train_split, others)


def encoder_alone(config: ConfigDict, workdir: Path) -> tuple[ConfigDict, Path] | None:
    """Returns the run that features are compared with: the same without, its test split shut."""
    if config.features.use == "none":
        return None
    if config.resume_from:
        raise ValueError(
            "config.resume_from: a head on features cannot start from another run, whose features "
            "are others; set config.features.use='none', or leave resume_from empty"
        )
    if not config.features.compare:
        return None
    alone = companion(config)
    alone.features.use = "none"
    return alone, workdir / "encoder_alone"
