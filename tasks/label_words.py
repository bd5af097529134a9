"""Heads that start from words: the language model's own words stand for the labels.

Here: the token ids of the words, whether they fit model and template, and the head's first
parameters. The head itself is in models/heads.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.batches.template import MASK
from input_pipeline.tokenizers.tokenization import Tokenizer
from models.backbone import BackboneConfig
from models.bert import BertConfig
from models.decoder import DecoderConfig
from models.heads import label_word_kernel


def piece_ids(
    config: ConfigDict, labels: Sequence[str], *, tokenizer: Tokenizer, backbone: BackboneConfig
) -> list[list[int]]:
    """Returns the token ids of each label's word.

    Raises:
        ValueError: not one word for each label, two that are the same to the model, a model that
            has no output vectors where they are read, or, of masked language models, words of
            another number of pieces than the template has masks.
    """
    model, words = config.model, tuple(config.model.label_words)
    if len(words) != len(labels):
        raise ValueError(
            f"config.model.label_words: found {len(words)} words {words} for {len(labels)} labels "
            f"{tuple(labels)}; give one word per label, in this order"
        )
    masked = model.pooling == "mask"
    if not isinstance(backbone, BertConfig if masked else DecoderConfig):
        raise ValueError(
            "config.model.head='label_words' reads a decoder's output vectors, or with "
            f"pooling='mask' those of a masked language model, but {model.checkpoint} is a "
            f"{backbone.model_type} with pooling={model.pooling!r}: set the head to 'linear', or "
            f"pooling='mask' with {MASK} in data.template"
        )
    ids = [tokenizer.piece_ids(word) for word in words]
    known = all(pieces and tokenizer.unk_id not in pieces for pieces in ids)
    if not known or len({tuple(pieces) for pieces in ids}) < len(ids):
        raise ValueError(
            f"config.model.label_words: the tokeniser makes {ids} of {words}; give each label a "
            "word that it knows, with pieces of its own"
        )
    masks, lengths = config.data.template.count(MASK), [len(pieces) for pieces in ids]
    if masked and set(lengths) != {masks}:
        raise ValueError(
            f"config.data.template holds {masks} {MASK}, but the label words {words} take "
            f"{lengths} pieces: all need as many pieces as there are masks"
        )
    return ids


def start(
    heads: Mapping[str, np.ndarray], params: Mapping[str, Any], ids: Sequence[Sequence[int]]
) -> dict[str, np.ndarray]:
    """Returns the head's parameters that start from the model's own output vectors.

    Args:
        heads: as initialised; 'head/kernel' has three axes if each mask is read apart.
        params: see Task.start_head.
        ids: as `piece_ids` returned.
    """
    output_VxD = params["embedder"]["embedding"]
    if "lm_head" in params:
        output_VxD = params["lm_head"]["kernel"].T
    if heads["head/kernel"].ndim == 2:
        return {"head/kernel": label_word_kernel(output_VxD, ids)}
    ids_CxK = np.array(ids)
    started = {"head/kernel": np.moveaxis(output_VxD[ids_CxK], 0, -1).astype(np.float32)}
    if "head/bias" in heads:
        bias_C = params["mlm_head"]["bias"][ids_CxK].sum(axis=1)
        started["head/bias"] = bias_C.astype(np.float32)
    return started
