"""What tasks about whole texts, or pairs of them, share: pooling, the template's masks, the head.

The head itself is in models/heads.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from evaluation import baselines
from evaluation.metrics import Scores
from input_pipeline.batches.template import MASK, Encoded
from input_pipeline.examples import Examples
from models.heads import ClassifierHead
from tasks.task import Task

_LOSS_OPTIONS = ("class_weights", "focal_gamma")


class WholeText(Task):
    """A task of config.classification: each text is pooled to one vector, which a head reads.

    Attributes:
        OPTIONS: knobs of config.classification that change the loss of this kind.
        WORDS: whether config.model.head='label_words' has a meaning.
        FLOORS: names of the baselines that predict without the text, and from its characters.
    """

    FEATURES = True
    ROBUSTNESS = True
    PROBE = True
    MIXUP = True
    BOUND = ("classification.kind",)
    OPTIONS: ClassVar[tuple[str, ...]] = ()
    WORDS: ClassVar[bool] = False
    FLOORS: ClassVar[tuple[str, str]] = (baselines.MAJORITY, baselines.TFIDF)

    def __init__(self, config: ConfigDict, labels: Sequence[str], **parts: Any):
        """Checks the options.

        Raises:
            ValueError: options of config.classification or config.model that this kind has no use
                for, or a template without the mask that is pooled.
        """
        super().__init__(config, labels, **parts)
        options, model = config.classification, config.model
        unused = [name for name in _LOSS_OPTIONS if options[name] and name not in self.OPTIONS]
        useless = [f"config.classification.{name}={options[name]!r}" for name in unused]
        if model.head == "label_words" and not self.WORDS:
            useless.append("config.model.head='label_words'")
        if useless:
            raise ValueError(
                f"{useless[0]} means nothing for config.classification.kind={options.kind!r}: "
                "leave it at its default"
            )
        self.parts = ("pooler",) if model.pooling == "pooler" else ()
        self.positions = ("mask_RxL",) if model.pooling == "mask" else ()
        if self.positions and MASK not in config.data.template:
            raise ValueError(
                f"config.model.pooling='mask' pools where config.data.template has {MASK}, found "
                f"{config.data.template!r}: write {MASK} into it, such as '{{text}} {MASK}'"
            )

    def mask_positions(self, encoded: Encoded) -> dict[str, np.ndarray]:
        """Returns mask_RxL: 1 + the number of each mask of the template within its example."""
        if not self.positions:
            return {}
        here = (encoded.tokens == self.tokenizer.mask_id) & (encoded.fields < 0)
        count = np.cumsum(here)
        before = (count - here)[encoded.starts_B]
        return {"mask_RxL": np.where(here, count - np.repeat(before, encoded.lengths_B), 0)}

    def linear_head(
        self, columns: int, kind: type[ClassifierHead] = ClassifierHead, **options: Any
    ) -> nn.Module:
        """Returns a head as config.model describes it; `options` are attributes of its kind."""
        model = self.config.model
        shared = {"pooling": model.pooling, "dropout": model.dropout, "bias": model.head_bias}
        return kind(columns, **shared | options)

    def linear_baselines(
        self, train: Examples, examples: Examples, score: Callable[..., Scores]
    ) -> dict[str, Scores]:
        """Scores linear models of no column, of TF-IDF and, if there are features, of these.

        Args:
            train: what they learn from.
            examples: what they predict, in any order.
            score: of (train, examples by id, columns): predicts and scores; see
                evaluation.baselines.classes.
        """
        examples = examples.take(np.argsort(examples.ids_N))
        columns = dict(zip(self.FLOORS, (None, baselines.tfidf_columns), strict=True))
        if train.features_NxK is not None:
            columns[baselines.FEATURES] = baselines.feature_columns
        return {name: score(train, examples, made) for name, made in columns.items()}
