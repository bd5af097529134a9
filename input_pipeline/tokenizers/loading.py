"""Loads the tokeniser that a folder holds, and checks that it belongs to some weights.

Not here: which one it is (tokenizer_files.py), and the kinds (sentencepiece_tokenizer.py,
huggingface_tokenizer.py). Imports no TensorFlow.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from input_pipeline.tokenizers import huggingface_tokenizer, sentencepiece_tokenizer
from input_pipeline.tokenizers.tokenization import Tokenizer, spelled_alike
from input_pipeline.tokenizers.tokenizer_files import MODEL_FILES, TokenizerFiles

_PADDING = 0.9  # least share of the embedding's rows that pieces take


def load_tokenizer(
    path: str | os.PathLike, *, marks: str = "auto", checkpoint: str | os.PathLike | None = None
) -> Tokenizer:
    """Loads the tokeniser of a folder, or of one of its files.

    Args:
        path: of a folder as a model hub has it, or of a SentencePiece model, tokenizer.json or
            vocab.txt.
        marks: config.tokenizer.marks.
        checkpoint: whose folder names the tokeniser's class where none is named beside `path`.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file is damaged or contradicts another, or of a kind that isn't implemented.
    """
    try:
        files = TokenizerFiles(Path(path), checkpoint and Path(checkpoint))
        files.choose()
        kind = sentencepiece_tokenizer if files.main in MODEL_FILES else huggingface_tokenizer
        tokenizer = kind.from_files(files)
        tokenizer.set_marks(marks, file=files.where)
        tokenizer.named_pieces, tokenizer.note = files.named_pieces, files.note
    except (AttributeError, KeyError, TypeError) as error:  # well-formed JSON of another form
        raise ValueError(
            f"{path}: a JSON file of the tokeniser there has another form than transformers gives "
            f"it ({type(error).__name__}: {error}): copy the files again"
        ) from error
    tokenizer.name_class(files.class_name)  # which may come from a file of the model
    return tokenizer


def check_belongs(
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    special_ids: Mapping[str, int | Sequence[int] | None],
    file: str,
    named_pieces: Mapping[int, str] = MappingProxyType({}),
    chosen: bool = True,
) -> str:
    """Checks that a tokeniser is the one which some weights were trained with.

    Args:
        tokenizer: of the run.
        vocab_size: rows of the token embedding.
        special_ids: the checkpoint's, by role; of several, one has to be the tokeniser's. Roles
            that either side lacks are not compared.
        file: the checkpoint's, for messages.
        named_pieces: spellings by id of the pieces to which the tokeniser's files in the
            checkpoint's folder give ids. These outrank `special_ids`: many a config.json has a
            pad_token_id that only its model class chose.
        chosen: whether config.tokenizer.model names the tokeniser.

    Returns:
        Sentences for the start-up log on what was guessed, on fields that contradict the
        tokeniser's own files and on rows without a piece; '' if there are none.

    Raises:
        ValueError: they do not belong together.
    """
    pieces = tokenizer.vocab_size
    remedy = "copy the folder's tokeniser files again, or name others by config.tokenizer.model"
    if chosen:
        remedy = "leave config.tokenizer.model empty to use the checkpoint's own tokeniser"
    # Embeddings are often padded to a round number of rows, so that fewer pieces are normal.
    if pieces > vocab_size or pieces < _PADDING * vocab_size:
        without = [tokenizer.piece(i) for i in range(vocab_size, min(pieces, vocab_size + 3))]
        listed = f", or {', '.join(map(repr, without))} without a row should not be in its files"
        raise ValueError(
            f"the tokeniser has {pieces:,} pieces but {file} has embeddings for {vocab_size:,} "
            "(vocab_size): it is damaged or not the one which the weights were trained with"
            f"{listed * bool(without)}; {remedy}"
        )
    for i, piece in named_pieces.items():
        if i < vocab_size and not spelled_alike(tokenizer.piece(i), piece):
            there = f"{tokenizer.piece(i)!r} there"
            if piece in tokenizer.special_pieces:
                there += f" and {piece!r} at {tokenizer.special_pieces[piece]}"
            raise ValueError(
                f"the files beside {file} give {piece!r} the id {i}, but the tokeniser has {there}:"
                f" it is not the one the weights were trained with; {remedy}"
            )
    notes = [tokenizer.note] if tokenizer.note else []
    for role, stored in special_ids.items():
        token_id = tokenizer.role_ids.get(role, -1)
        wanted = [stored] if isinstance(stored, int) else list(stored or ())
        if token_id < 0 or wanted in ([], [-1]) or token_id in wanted:
            continue
        claim = f"{file} has {role}_token_id={stored}, but that piece is {token_id} "
        claim += f"({tokenizer.piece(token_id)}) for the tokeniser"
        if token_id not in named_pieces:
            raise ValueError(
                f"{claim}: {remedy}; if the tokeniser is right, correct the field or, beside it, "
                "name the tokenizer_class in tokenizer_config.json"
            )
        notes.append(f"{claim}, as its own files have it: {token_id} is used.")
    if spare := vocab_size - pieces:
        if not tokenizer.files().get("vocab.txt", b"\n").endswith(b"\n"):
            raise ValueError(
                f"vocab.txt ends within a line, {spare:,} pieces before the {vocab_size:,} rows of "
                f"{file}: it was cut off; copy it again, or end it with a line break"
            )
        notes.append(
            f"The embedding has {spare:,} rows more than the tokeniser has pieces ({pieces:,}); no "
            "text reaches them."
        )
    return " ".join(notes)
