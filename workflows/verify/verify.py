"""The parity certificate: does a checkpoint compute here what it computes where it comes from?

--mode=verify needs config.model.checkpoint and nothing trained. It compares, on the same texts,
this model with

1. the reference: config.verify.golden, else golden.npz in the checkpoint's folder, else PyTorch
   live, whose outputs are then left as golden.npz in the workdir for machines without it;
2. itself with several texts packed in a row;
3. itself in bfloat16, which is reported and not judged;
4. itself with a random adapter beside the weights against the same merged into them.
"""

import dataclasses
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.corpus.sources import read_unlabelled
from input_pipeline.eta import working
from input_pipeline.files import write_json
from models import adapters
from models.backbone import flatten, make_backbone
from models.pretrained import Checkpoint, open_checkpoint, resolve
from models.t5 import T5Config, shift_right
from reporting import report
from training.run_tokenizer import load_original
from workflows.verify import reference as references
from workflows.verify.agreement import Row, compare, compare_logits
from workflows.verify.reference import Inputs, Logits, Reference

TEXTS = (
    "好",
    "中国的首都是北京。",
    "这家酒店的服务非常好，下次还会再来！",
    "房间有点小，但是离地铁站只有５分钟。",
    "ＡＢＣ公司２０２３年营收增长12.5%，净利润达到3.4亿元。",
    "他说：“今天的 iPhone 15 Pro 卖完了，明天再来吧。”",
    "電影很精彩，演員的演技也很好，就是片長太長了。",
    "快递三天才到，包装破损，客服一直不回复；差评！！！",
    "《红楼梦》是清代作家曹雪芹所著的长篇小说，被誉为中国古典小说的巅峰之作。",
    "Deep learning models 在中文 NLP 任务上（如分词、命名实体识别）取得了很大进展。",
    "会议定于2024年3月15日（星期五）下午14:30在3号楼201室召开，请各部门负责人准时参加。",
    "昨天晚上我们一家人去吃了那家新开的火锅店，味道不错，服务员也很热情，不过等位的时间太长，"
    "足足排了一个半小时；结账的时候还发现多算了两份羊肉，好在经理马上道歉并且退了款。",
)
_EXAMPLES = 8  # texts
_MAX_LENGTH = 512  # tokens of a text
_TARGETS = 16  # tokens of a target, for encoder-decoders


class Outputs(NamedTuple):
    """What this model computes of all texts, one behind the other.

    Attributes:
        hidden_PxD: last hidden states, in the compute dtype.
        decoded_QxD: of an encoder-decoder's decoder; else the same as hidden_PxD.
        pooled_BxD: behind the pooler; None without.
    """

    hidden_PxD: np.ndarray
    decoded_QxD: np.ndarray
    pooled_BxD: np.ndarray | None


class Model:
    """A checkpoint's model, and how it is run over texts; parameters come with each call."""

    def __init__(self, checkpoint: Checkpoint, *, dtype: Any = jnp.float32):
        self.module = make_backbone(checkpoint.config, dtype=dtype)
        self.has_head = references.has_head(checkpoint)
        self.has_pooler = "pooler" in checkpoint.parts
        self._config = checkpoint.config

    def apply(self, params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Runs the whole model on rows; pure, with the tree that Module.apply takes."""

        def call(*args: Any, method: str | None = None) -> jax.Array:
            return self.module.apply({"params": params}, *args, method=method)

        source = (batch["positions"], batch["segments"])
        hidden = call(batch["tokens"], *source, batch.get("types"))
        results = {"hidden": hidden}
        if "targets" in batch:
            positions, segments = batch["target_positions"], batch["target_segments"]
            start = shift_right(batch["targets"], segments, start_id=self._config.start_id)
            results["decoded"] = call(
                start, positions, segments, hidden, batch["segments"], method="decode"
            )
        if self.has_pooler:
            results["pooled"] = call(hidden, method="pooled")
        return results

    def run(
        self,
        params: Any,
        inputs: Inputs,
        *,
        packed: bool = False,
        apply: Callable[[Any, Any], dict[str, jax.Array]] | None = None,
    ) -> Outputs:
        """Runs all texts, one or several in a row, by `apply`."""
        groups = _groups([len(tokens) for tokens in inputs.tokens], packed=packed)
        batch = _rows(inputs.tokens, groups)
        if inputs.types is not None:
            batch["types"] = _rows(inputs.types, groups)["tokens"]
        if inputs.targets is not None and self.has_head:
            targets = _rows(inputs.targets, groups)
            batch["targets"] = targets.pop("tokens")
            batch |= {f"target_{name}": array for name, array in targets.items()}
        # Indexing on the device would compile once per shape.
        outputs = jax.device_get(jax.jit(apply or self.apply)(params, batch))
        real = batch["segments"] > 0
        first = real & (batch["positions"] == 0)
        hidden_PxD = decoded_QxD = outputs["hidden"][real]
        if "decoded" in outputs:
            decoded_QxD = outputs["decoded"][batch["target_segments"] > 0]
        pooled_BxD = outputs["pooled"][first] if self.has_pooler else None
        return Outputs(hidden_PxD, decoded_QxD, pooled_BxD)

    def scores(self, params: Any, hidden_PxD: np.ndarray) -> Callable[[slice], Logits]:
        """Returns a function from positions to their logits, so that few are held at once."""

        @jax.jit
        def project(params: Any, hidden_PxD: jax.Array) -> jax.Array:
            return self.module.apply({"params": params}, hidden_PxD, method="logits")

        return lambda part: Logits(project(params, hidden_PxD[part]))


@working("Verifying")
def verify(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Prints the parity certificate of config.model.checkpoint and writes verification.json.

    Returns:
        What verification.json holds.

    Raises:
        ValueError: a difference exceeds config.verify.tolerance; names each.
        FileNotFoundError: the checkpoint or config.verify.golden doesn't exist.
    """
    checkpoint = open_checkpoint(resolve(config.model.checkpoint))
    reference, without = _reference(config, checkpoint, workdir)
    inputs = reference.inputs if reference else _inputs(config, checkpoint)
    tree = checkpoint.read(checkpoint.parts)
    size = sum(value.size for value in jax.tree.leaves(tree))
    rows = _rows_of_certificate(config, checkpoint, jax.device_put(tree), inputs, reference)
    tolerance = config.verify.tolerance
    failed = [row for row in rows if row.judged and not row.maximum <= tolerance]
    result = {
        "checkpoint": str(checkpoint.path),
        "model_type": checkpoint.config.model_type,
        "parts": list(checkpoint.parts),
        "parameters": size,
        "fingerprint": checkpoint.fingerprint,
        "dtype": "float32",
        "reference": reference.name if reference else "no reference",
        "without_reference": without,
        "versions": {name: version(name) for name in ("jax", "flax", "numpy")}
        | {"python": platform.python_version(), "platform": jax.devices()[0].platform},
        "texts": len(inputs.tokens),
        "tokens": sum(map(len, inputs.tokens)),
        "tolerance": tolerance,
        "passed": not failed,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_json(workdir / "verification.json", result)
    _show(result, rows)
    if failed:
        parts = [f"{row.quantity}, {row.name}, differ by up to {row.maximum:.3g}" for row in failed]
        raise ValueError(
            f"{checkpoint.path} does not compute what its reference does: {'; '.join(parts)}, more "
            f"than config.verify.tolerance={tolerance:g}. Compare the files with their origin; all "
            "measurements are in verification.json in the workdir"
        )
    return result


def _rows_of_certificate(
    config: ConfigDict,
    checkpoint: Checkpoint,
    params: Any,
    inputs: Inputs,
    reference: Reference | None,
) -> list[Row]:
    """Returns all comparisons."""
    model, half = Model(checkpoint), Model(checkpoint, dtype=jnp.bfloat16)
    plain, packed = model.run(params, inputs), model.run(params, inputs, packed=True)
    in_half = (half, half.run(params, inputs))
    return [
        *(against_reference(model, params, plain, reference) if reference else []),
        _compare("packed against unpacked", params, (model, packed), (model, plain)),
        _compare("bfloat16 against float32", params, in_half, (model, plain), judged=False),
        _merged_row(config, model, params, inputs),
    ]


def _compare(
    name: str,
    params: Any,
    actual: tuple[Model, Outputs],
    expected: tuple[Model, Outputs],
    *,
    judged: bool = True,
) -> Row:
    """Compares logits of two models with outputs; hidden states where they have no head."""
    if not actual[0].has_head:
        hidden = (outputs.hidden_PxD for _, outputs in (actual, expected))
        return compare(name, "hidden states", *hidden, judged=judged)
    scores = (model.scores(params, outputs.decoded_QxD) for model, outputs in (actual, expected))
    return compare_logits(name, *scores, count=len(expected[1].decoded_QxD), judged=judged)


def against_reference(model: Model, params: Any, plain: Outputs, reference: Reference) -> list[Row]:
    """Compares logits, else hidden states; and pooled outputs."""
    rows, name = [], "against the reference"
    if reference.logits is not None and model.has_head:
        actual, expected = model.scores(params, plain.decoded_QxD), reference.logits.of
        count = len(reference.logits.values_PxC)
        rows.append(compare_logits(name, actual, expected, count=count))
    elif reference.hidden_PxD is not None:
        rows.append(compare(name, "hidden states", plain.hidden_PxD, reference.hidden_PxD))
    if reference.pooled_BxD is not None and plain.pooled_BxD is not None:
        rows.append(compare(name, "pooled output", plain.pooled_BxD, reference.pooled_BxD))
    if not rows:
        raise ValueError(
            f"{reference.name} has outputs that this checkpoint doesn't compute: it may be of "
            "another checkpoint"
        )
    return rows


def _merged_row(config: ConfigDict, model: Model, params: Any, inputs: Inputs) -> Row:
    """Compares a random adapter at work beside the weights with the same merged into them."""
    adapt = config.adapt.copy_and_resolve_references()
    if adapt.kind not in (*adapters.LORA_KINDS, "ia3"):
        adapt.kind, adapt.targets = "lora", ""
    flat = {f"backbone/{path}": value for path, value in flatten(params).items()}
    added = adapters.init(adapt, flat, jax.random.key(0), params=flat)
    rng = np.random.default_rng(0)
    for path, leaf in added.items():  # as drawn an adapter changes nothing
        if path.endswith(("lora_b", "magnitude", "ia3")):
            noise = rng.standard_normal(leaf.shape).astype(np.float32)
            added[path] = 0.02 * noise if path.endswith("lora_b") else leaf * (1 + 0.02 * noise)
    apply = adapters.adapted(adapt, lambda tree, batch: model.apply(tree["backbone"], batch))
    merged, unmerged = (
        model.run(leaves, inputs, apply=apply)
        for leaves in (adapters.merge(adapt, {**flat, **added}), {**flat, **added})
    )
    name = f"merged against unmerged {adapt.kind} adapter"
    return _compare(name, params, (model, merged), (model, unmerged))


def _reference(
    config: ConfigDict, checkpoint: Checkpoint, workdir: Path
) -> tuple[Reference | None, str]:
    """Returns the reference, or None and why there is none."""
    beside = checkpoint.path / "golden.npz"
    if config.verify.golden or (checkpoint.path.is_dir() and beside.is_file()):
        return references.read_golden(Path(config.verify.golden or beside)), ""
    if why := references.why_not_live(checkpoint):
        return None, why
    reference = references.ask_pytorch(checkpoint, _inputs(config, checkpoint))
    references.write_golden(workdir / "golden.npz", reference)
    print(
        f"PyTorch's outputs are in {workdir / 'golden.npz'}, for --config.verify.golden where it "
        "isn't installed."
    )
    return reference, ""


def _inputs(config: ConfigDict, checkpoint: Checkpoint) -> Inputs:
    """Tokenises _EXAMPLES texts of config.data.files, or those that are built in."""
    texts: Sequence[str] = TEXTS
    if config.data.files:
        records = read_unlabelled(config.data.files, config.data)
        texts = [record.text for record in islice(records, _EXAMPLES)]
    config = config.copy_and_resolve_references()
    config.tokenizer.model = ""  # of the checkpoint, whatever the run has
    room = checkpoint.config.max_length or _MAX_LENGTH
    try:
        tokenizer = load_original(config)
    except (FileNotFoundError, ValueError) as error:  # weights can be verified without one
        missing = isinstance(error, FileNotFoundError)
        print(
            f"{'The checkpoint has no tokeniser' if missing else error}: random ids are compared."
        )
        rng, size = np.random.default_rng(0), checkpoint.config.vocab_size
        tokens = [rng.integers(3, size, min(3 * i + 2, room)).astype(np.int32) for i in range(8)]
    else:
        start, end = tokenizer.start_ids, tokenizer.end_ids
        room = min(room, _MAX_LENGTH) - len(start) - len(end)
        encoded = ([*start, *ids[:room], *end] for ids in tokenizer.encode_batch(list(texts)))
        tokens = [np.array(ids, np.int32) for ids in encoded if ids]
    targets = None
    if isinstance(checkpoint.config, T5Config):
        targets = [ids[:_TARGETS] for ids in [*tokens[1:], tokens[0]]]
    return Inputs(tokens, None, targets)


def _groups(lengths: Sequence[int], *, packed: bool) -> list[list[int]]:
    """Returns the texts of each row: one, or as many as fit, in order."""
    if not packed:
        return [[index] for index in range(len(lengths))]
    groups, room, size = [], 0, max(256, 2 * max(lengths))
    for index, length in enumerate(lengths):
        if not groups or length > room:
            groups.append([])
            room = size
        groups[-1].append(index)
        room -= length
    return groups


def _rows(arrays: Sequence[np.ndarray], groups: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Lays texts out in rows: tokens, positions and segments [R, L]."""
    width = max(sum(len(arrays[index]) for index in group) for group in groups)
    names = ("tokens", "positions", "segments")
    batch = {name: np.zeros((len(groups), width), np.int32) for name in names}
    for row, group in enumerate(groups):
        start = 0
        for segment, index in enumerate(group, 1):
            place = slice(start, start + len(arrays[index]))
            batch["tokens"][row, place] = arrays[index]
            batch["positions"][row, place] = np.arange(len(arrays[index]))
            batch["segments"][row, place] = segment
            start = place.stop
    return batch


def _show(result: dict[str, Any], rows: Sequence[Row]) -> None:
    """Prints the certificate."""
    cells = [("against the reference", "no reference")] * (result["reference"] == "no reference")
    for row in rows:
        verdict = "passed" if row.maximum <= result["tolerance"] else "FAILED"
        cells.append(
            (
                row.name,
                row.quantity,
                f"{row.maximum:.2e}",
                f"{row.mean:.2e}",
                "-" if row.kl is None else f"{row.kl:.1e}",
                *("-" if share is None else f"{share:.1%}" for share in (row.top1, row.top5)),
                f"{row.positions:,}",
                verdict if row.judged else "not judged",
            )
        )
    columns = ("", "of", "max |Δ|", "mean |Δ|", "KL", "top 1", "top 5", "positions", "")
    why = f" ({result['without_reference']})" if result["without_reference"] else ""
    report.show(
        f"Parity of {result['checkpoint']} ({result['model_type']}, "
        f"{result['parameters'] / 1e6:,.1f}M parameters, sha256 {result['fingerprint'][:16]}), "
        f"computed in {result['dtype']} by jax {result['versions']['jax']} on "
        f"{result['versions']['platform']}",
        f"Reference: {result['reference']}{why}",
        f"{result['texts']} texts, {result['tokens']:,} tokens; tolerance {result['tolerance']:g}",
        report.table(columns, cells, text=2),
    )
