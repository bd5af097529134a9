"""The features of a run: fitted on its training split once, and kept in its workdir."""

from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.eta import working
from input_pipeline.examples import Examples
from input_pipeline.features import features
from input_pipeline.features.features import FeaturePipeline
from input_pipeline.files import replacing
from training.workdir import has_checkpoint


def run_features(
    config: ConfigDict, workdir: Path, training: Examples | None
) -> FeaturePipeline | None:
    """Fits the features on the training split, or loads those that the run fitted."""
    if config.features.use == "none":
        return None
    path = workdir / "features.safetensors"
    if training is not None and not has_checkpoint(workdir):
        with working("Fitting the features"):
            fitted = features.fit(training, config.features, value_names=config.data.value_columns)
        with replacing(path) as partial:
            fitted.save(partial)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the features that this run's checkpoints were trained with. Put "
            "it back, or train again in another --workdir"
        )
    return features.load(path)
