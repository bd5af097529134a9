"""Labels or vectors of the lines of standard input: python serve.py [passage] < texts.txt"""

import json
import sys
from pathlib import Path

import numpy as np
from jax import export, jit
from safetensors.numpy import load_file

# It lies in this folder, like all that is read here.
from input_pipeline.corpus.normalization import Normalizer

here = Path(__file__).parent
setup = json.loads((here / "preprocessing.json").read_text("utf-8"))
normalizer = Normalizer(setup["normalization"])
around = setup["_".join(["around", *sys.argv[1:]])]
room = (size := setup["max_length"]) - sum(map(len, around))  # between marks and template
if setup["tokenizer"] == "tokenizer.json":
    tokenizer = __import__("tokenizers").Tokenizer.from_file(str(here / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # '[SEP]' in a text is five characters
    pieces = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
else:
    sentencepiece = __import__("sentencepiece")
    pieces = sentencepiece.SentencePieceProcessor(str(here / "tokenizer.model")).encode
model = jit(export.deserialize(bytearray((here / "model.stablehlo").read_bytes())).call)
params, lines = load_file(here / "params.safetensors"), [line.strip("\n") for line in sys.stdin]
for batch in (lines[first : first + 32] for first in range(0, len(lines), 32)):
    (tokens, types), lengths = np.zeros((2, len(batch), size), "i4"), np.zeros(len(batch), "i4")
    for row, line in enumerate(batch):
        texts = dict(zip(("text", "pair"), line.split("\t"), strict=False))  # of a pair two
        a, *b = (pieces(normalizer.text(texts[name]).strip()) for name in setup["fields"])
        ids = around[0] + a[: max(room - room // 2, room - sum(map(len, b)))]
        second = len(ids) + setup["between"]  # where the second text of a pair begins
        ids += around[1] + (b[0][: max(room // 2, room - len(a))] + around[2] if b else [])
        tokens[row, : len(ids)], lengths[row] = ids, len(ids)
        types[row, second : len(ids)] = setup["second_type"]
    width = min(size, -(-lengths.max() // setup["length_step"]) * setup["length_step"])
    for found in np.asarray(model(params, tokens[:, :width], types[:, :width], lengths)):
        label = setup["labels"][found.argmax() :][:1]  # none of a vector
        print(*label, *(f"{share:.6f}" for share in found), sep="\t")
