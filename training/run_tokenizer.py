"""The tokeniser of a run: the checkpoint's, another, one trained here, or a changed one.

A trained or changed one is kept in the workdir, since the run's checkpoints depend on it.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.batches.augmentation_tables import MASK, PUNCTUATION
from input_pipeline.eta import working
from input_pipeline.examples import Examples
from input_pipeline.files import replacing
from input_pipeline.locking import in_use
from input_pipeline.tokenizers import vocabulary
from input_pipeline.tokenizers.gguf_tokenizers import tokenizer_from_gguf
from input_pipeline.tokenizers.loading import check_belongs, load_tokenizer
from input_pipeline.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from input_pipeline.tokenizers.tokenization import Tokenizer
from input_pipeline.tokenizers.tokenizer_files import TokenizerFiles
from input_pipeline.tokenizers.vocabulary import train_tokenizer
from models import pretrained
from models.backbone import BackboneConfig
from models.pretrained.vocabulary import follow_vocabulary
from tasks import task_class
from training.workdir import has_checkpoint

_SAMPLE = 10_000  # texts whose length in tokens is reported


def load_original(config: ConfigDict) -> Tokenizer:
    """Loads the tokeniser that config.tokenizer.model names, or the checkpoint's."""
    checkpoint = pretrained.resolve(config.model.checkpoint)
    file, marks = Path(config.tokenizer.model or checkpoint).expanduser(), config.tokenizer.marks
    if file.suffix in pretrained.READERS and file.is_file():
        metadata = pretrained.READERS[file.suffix].metadata(file)
        return tokenizer_from_gguf(metadata, file=str(file), marks=marks)
    return load_tokenizer(file, marks=marks, checkpoint=checkpoint)


def check_original(
    config: ConfigDict, checkpoint: pretrained.Checkpoint, original: Tokenizer
) -> str:
    """Checks that the tokeniser of `load_original` belongs to the weights. See check_belongs."""
    if config.tokenizer.model == "train":
        return ""
    named, ids = original.named_pieces, checkpoint.special_ids
    if config.tokenizer.model and checkpoint.path.is_dir():
        named = TokenizerFiles(checkpoint.path).named_pieces
    elif config.tokenizer.model:
        metadata = pretrained.READERS[checkpoint.path.suffix].metadata(checkpoint.path)
        tokens = metadata.get("tokenizer.ggml.tokens", ())
        named = {i: tokens[i] for i in ids.values() if 0 <= i < len(tokens)}
    return check_belongs(
        original,
        vocab_size=checkpoint.config.vocab_size,
        special_ids=ids,
        file=str(checkpoint.path),
        named_pieces=named,
        chosen=bool(config.tokenizer.model),
    )


def run_tokenizers(
    config: ConfigDict,
    workdir: Path,
    training: Examples | None,
    read_ids: Callable[[Tokenizer], Collection[int]],
) -> tuple[Tokenizer, Tokenizer]:
    """Returns the configured tokeniser and the run's, which is the same unless it is changed.

    Args:
      config: the whole config.
      workdir: a tokeniser that is trained or changed here is kept in it.
      training: the examples it is fitted on; None loads it from `workdir`.
      read_ids: what the model reads of them with a tokeniser, template and all.

    Raises:
      ValueError: options exclude each other or do not fit the checkpoint; or another process trains
        in the workdir.
      FileNotFoundError: the workdir has checkpoints, but not the tokeniser they were trained with.
    """
    options, path = config.tokenizer, workdir / "tokenizer.model"
    # A file that a failed start left may be another config's; only checkpoints depend on it.
    fresh = not has_checkpoint(workdir)
    changed = options.keep_others >= 0 or options.new_pieces
    original = None
    if options.model != "train":
        original = load_original(config)
        if not changed:
            return original, original
        if type(original) is not SentencePieceTokenizer:
            raise ValueError(
                "config.tokenizer.keep_others and new_pieces need a SentencePiece vocabulary, but "
                f"{config.model.checkpoint} has a {type(original).__name__}: set them to -1 and 0"
            )
    elif config.model.init != "scratch":
        raise ValueError(
            "config.tokenizer.model='train', but the weights are pretrained with another "
            "vocabulary: set config.model.init='scratch', or keep the checkpoint's tokeniser"
        )
    elif changed:
        raise ValueError(
            "config.tokenizer.keep_others and new_pieces change an existing vocabulary, but "
            "config.tokenizer.model='train' makes one: leave them out, and set vocab_size"
        )
    if fresh:
        texts = training.all_texts if training is not None else []
        with in_use(workdir), working("Fitting the tokeniser"), replacing(path) as partial:
            if original:
                partial.write_bytes(_fitted_model(config, original, texts, read_ids))
            else:
                train_tokenizer(texts, partial, vocab_size=options.vocab_size)
    elif not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the vocabulary that this run's checkpoints were trained with. Put "
            "it back, or train again in another --workdir"
        )
    tokenizer = load_tokenizer(path, marks=options.marks)
    return original or tokenizer, tokenizer


def follow(
    config: BackboneConfig,
    params: dict[str, Any],
    original: SentencePieceTokenizer,
    tokenizer: SentencePieceTokenizer,
    *,
    training: Examples | None,
    say: Callable[[str], None],
) -> tuple[BackboneConfig, dict[str, Any]]:
    """Rebuilds the embeddings for a changed tokeniser, and reports the change."""
    parts = vocabulary.parts(original.model, tokenizer.model)
    config, params = follow_vocabulary(config, params, parts)
    width = params["embedder"]["embedding"].shape[1]
    kept = sum(len(ids) == 1 for ids in parts)
    before, after = (v * width / 1e6 for v in (original.vocab_size, len(parts)))
    say(
        f"Vocabulary: {kept:,} of {original.vocab_size:,} pieces kept, {len(parts) - kept:,} added;"
        f" embeddings of {before:.1f}M parameters before, {after:.1f}M now."
    )
    if training is not None and len(training):
        say(lengths(training.all_texts, "training", original, tokenizer))
    return config, params


def lengths(texts: Sequence[str], split: str, original: Tokenizer, tokenizer: Tokenizer) -> str:
    """Returns a sentence on how many tokens a changed vocabulary makes of a split's texts."""
    sample = texts[:_SAMPLE]
    before, after = (
        sum(map(len, kind.encode_batch(sample))) / len(sample) for kind in (original, tokenizer)
    )
    return (
        f"The first {len(sample):,} {split} texts take {before:.1f} tokens on average with the "
        f"checkpoint's vocabulary and {after:.1f} with this one."
    )


def _fitted_model(
    config: ConfigDict,
    tokenizer: SentencePieceTokenizer,
    texts: Sequence[str],
    read_ids: Callable[[Tokenizer], Collection[int]],
) -> bytes:
    """Trims and extends a vocabulary, or reads that of the run in config.resume_from."""
    other_run = Path(config.resume_from, "tokenizer.model")
    if config.resume_from and other_run.is_file():
        return other_run.read_bytes()
    members = task_class(config).member_configs(config).values()
    words = (word for own in (config, *members) for word in own.model.label_words)
    texts, model = [*texts, *words, MASK, *PUNCTUATION], tokenizer.model
    if config.tokenizer.keep_others >= 0:
        ids = [i for i in read_ids(tokenizer) if i < tokenizer.vocab_size]  # no prompt tokens
        model = vocabulary.trim(model, texts, others=config.tokenizer.keep_others, ids=ids)
    if config.tokenizer.new_pieces:
        model = vocabulary.extend(model, texts, new_pieces=config.tokenizer.new_pieces)
    return model
