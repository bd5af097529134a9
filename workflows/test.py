"""--mode=test: opens the test split for a finished run, and writes its results anew."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from workflows import results, robustness
from workflows.restoring import check_data, read_meta
from workflows.train import prepare_run


def test(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Tests a finished run once more, or for the first time; returns results.json.

    Raises:
      ValueError: the run is not finished, was of another model or other data, or the data have no
        test split.
    """
    if not (workdir / "results.json").exists():
        raise ValueError(
            f"--mode=test: {workdir} holds no results.json, so its training is not finished: run "
            "the same command with --mode=train first"
        )
    robustness.check(config)
    meta = read_meta(config, workdir)
    run = prepare_run(config, workdir)
    if "test" not in run.data.splits:
        raise ValueError(
            f"--mode=test: the data have the splits {sorted(run.data.splits)} and no 'test': set "
            "config.data.split.test, or config.data.test_files"
        )
    check_data(meta, run.data, config, workdir)
    return results.write(run, "test")
