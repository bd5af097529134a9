"""Examples as conversations: a prompt, the messages before it and the answer, that fit the model.

Here: what is dropped, cut or refused. Not here: tokens (chat.py).
"""

import numpy as np

from input_pipeline.batches.chat import ChatEncoder, pack_messages, unpack_messages
from input_pipeline.examples import Examples, object_array


def messages_of(examples: Examples, index: int) -> list[tuple[str, str]]:
    """Returns role and content of an example's messages; the last is the answer, '' without."""
    history = "" if examples.histories_N is None else examples.histories_N[index]
    answer = "" if examples.pairs_N is None else examples.pairs_N[index]
    before = unpack_messages(history) if history else []
    answer = answer if answer.strip() else ""
    return [*before, ("user", examples.texts_N[index]), ("assistant", answer)]


def name_of(examples: Examples, index: int) -> str:
    """Returns what identifies an example to people."""
    name = "" if examples.names_N is None else f"{examples.names_N[index]} "
    return f"{name}(id {examples.ids_N[index]}): {examples.texts_N[index][:40]!r}"


def fitting(
    examples: Examples, encoder: ChatEncoder, *, on_long: str, keep_prompts: bool
) -> Examples:
    """Packs each conversation that has room into one text, which `encoder` takes.

    Args:
        examples: as they were read.
        encoder: with the room.
        on_long: config.generation.on_long.
        keep_prompts: whether examples with an empty answer stay.

    Returns:
        Those that stay.

    Raises:
        ValueError: one is too long and `on_long` is 'stop', or none is left.
    """
    messages = [messages_of(examples, i) for i in range(len(examples))]
    kept = np.array([keep_prompts or bool(row[-1][1]) for row in messages], bool)
    lengths = [len(ids) for ids, _ in encoder.encode(messages)]
    too_long = [i for i, length in enumerate(lengths) if length > encoder.max_length and kept[i]]
    if too_long and on_long == "stop":
        raise ValueError(
            f"{len(too_long)} of {len(examples)} examples are longer than layout.max_length="
            f"{encoder.max_length}, the first is {name_of(examples, too_long[0])}, with "
            f"{lengths[too_long[0]]} tokens: raise it, or set config.generation.on_long to 'drop' "
            "or 'cut'"
        )
    for i in too_long:
        shorter = encoder.without_start(messages[i]) if on_long == "cut" else None
        kept[i] = shorter is not None
        messages[i] = shorter or messages[i]
    if not kept.any():
        raise ValueError(
            f"none of {len(examples)} examples has an answer and fits layout.max_length="
            f"{encoder.max_length}: raise it, or set config.generation.on_long='cut'"
        )
    packed = object_array([pack_messages(row) for row in messages])
    some = Examples(packed, examples.labels_N, examples.ids_N, leaked_N=examples.leaked_N)
    return some.take(kept)
