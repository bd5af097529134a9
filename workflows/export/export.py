"""--mode=export: a trained model in the forms that others load, each checked by reading it again.

    huggingface/  safetensors, config.json and tokeniser, as transformers loads them
    stablehlo/    a classifier or an embedding model as a jax.export artefact with parameters,
                  tokeniser and normaliser beside it, and serve.py (examples/serve.py), which needs
                  nothing of this code base
    peft/         the adapter alone, where one was trained

Not here: the names of tensors (models/pretrained/) and the files of transformers' classes
(huggingface.py).
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import alignment, records
from input_pipeline.batches.template import Encoder
from input_pipeline.corpus import normalization
from input_pipeline.corpus.preparation import load_split, prepare
from input_pipeline.eta import working
from input_pipeline.files import write_json
from input_pipeline.locking import in_use
from input_pipeline.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from models import adapters
from models.heads import Model
from models.pretrained import peft, safetensors
from tasks import contrastive, require
from training.experiment import Experiment, build
from training.state import merge
from workflows.export import huggingface
from workflows.restoring import read_meta, restore
from workflows.vectors import alone

_PLATFORMS = ("cpu", "cuda", "tpu")
_EXAMPLES = 8  # that a written model is compared on
_LENGTH_STEP = 16  # serve.py pads to multiples of this, where any length can be computed
# Largest difference from the trained model that passes, as a share of the largest logit.
_TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}
_ROOT = Path(__file__).parents[2]
_RESULT = "export.json"
_PROMPT = "backbone/embedder/prompt"


class Sample(NamedTuple):
    """Examples that a written model is compared on, one a row.

    Attributes:
        tokens_BxL, types_BxL: int32, 0 where padding.
        lengths_B: int32.
        source: what they are, for people.
    """

    tokens_BxL: np.ndarray
    types_BxL: np.ndarray
    lengths_B: np.ndarray
    source: str


@dataclasses.dataclass(frozen=True)
class Trained:
    """What is exported.

    Attributes:
        experiment: as built for the run.
        params: flat, of the checkpoint, with an adapter's leaves.
        merged: flat numpy float32, with the adapter folded in.
        title: names the checkpoint.
        sample: of the validation split; None of language models, compared by their parameters.
        logits_BxC: the predictions of the run's model for it; of an embedding model the vectors.
        fitted: what calibrates the logits.
    """

    experiment: Experiment
    params: Mapping[str, Any]
    merged: Mapping[str, np.ndarray]
    title: str
    sample: Sample | None
    logits_BxC: np.ndarray | None
    fitted: Mapping[str, Any]

    def difference(self, params: Mapping[str, Any], what: str) -> float:
        """Returns by how much the logits of other parameters differ; see `refuse_difference`."""
        logits_BxC = self._apply(dict(params), *self.sample[:3])
        return self.refuse_difference(logits_BxC, self.logits_BxC, what)

    @functools.cached_property
    def _apply(self) -> Callable[..., jax.Array]:
        return jax.jit(functools.partial(row_logits, self.experiment.model))

    def refuse_difference(self, actual: Any, expected: np.ndarray, what: str) -> float:
        """Returns the largest absolute difference.

        Raises:
            ValueError: it is larger than rounding explains.
        """
        difference = float(np.abs(np.asarray(actual, np.float32) - expected).max())
        limit = _TOLERANCES[self.experiment.config.model.dtype]
        # Not `>`: NaN must fail too.
        if not difference <= limit * max(1.0, float(np.abs(expected).max())):
            raise ValueError(
                f"{what}, read again, differs from the trained model by up to {difference:.2g} on "
                f"{self.sample.source}, more than rounding explains: don't use it; with "
                "config.model.dtype=float32 the difference should be below 1e-4"
            )
        return difference


@working("Exporting")
def export(config: ConfigDict, workdir: Path) -> Path:
    """Writes config.eval.checkpoint in config.export.formats; returns the folder.

    Raises:
        ValueError: a model that a format can't hold, or one that is another when it is read again.
        FileExistsError: a folder in the way that isn't an export.
    """
    output, writers = Path(config.export.output or workdir / "export"), _writers(config)
    _check(config, output, tuple(writers))
    config.model.attention = "plain"  # runs anywhere
    meta = read_meta(config, workdir)
    trained = _trained(build(config, workdir, meta["labels"], print), workdir)
    source = trained.sample.source if trained.sample else "none"
    result: dict[str, Any] = {
        "checkpoint": trained.title,
        "labels": meta["labels"],
        "compared_on": source,
    }
    with in_use(output, other="--config.export.output"):
        write_json(output / _RESULT, result)  # from here on the folder is known as an export
        for name in config.export.formats:
            partial, folder = output / f"{name}.partial", output / name
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            facts = writers[name](trained, partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
            result[name] = {**facts, "files": sizes}
            print(f"{folder} ({_size(sum(sizes.values()))}): {facts['form']}")
            print("  " + ", ".join(f"{file} {_size(size)}" for file, size in sizes.items()))
            print(
                f"  Read again, its {facts['compared']} differ by at most "
                f"{facts['difference']:.1e} from those of the {trained.title}, on "
                f"{'all of them' if facts['compared'] == 'parameters' else source}."
            )
        write_json(output / _RESULT, result)
    return output


def _check(config: ConfigDict, output: Path, known: tuple[str, ...]) -> None:
    """Raises before any work where the model or the folder does not suit the formats."""
    formats, kind = tuple(config.export.formats), config.adapt.kind
    if not formats or set(formats) - set(known):
        raise ValueError(f"config.export.formats is {formats}: name one or more of {known}")
    if config.features.use != "none":
        raise ValueError(
            "config.features.use='both': a head that reads features can't be exported, since what "
            "makes the features can't; export the run without them, in the folder encoder_alone of "
            "this workdir, with --config.features.use=none"
        )
    exports = require(config, "EXPORT", "--mode=export")
    if exports == "classifier" and config.model.pooling == "mask":
        raise ValueError(
            "config.model.pooling='mask': a head that reads where the template's masks are can't "
            "be exported, since a batch of an export does not say it; train with another pooling"
        )
    if "peft" in formats and kind not in peft.KINDS:
        raise ValueError(
            f"config.export.formats names 'peft', but config.adapt.kind={kind!r} makes no adapter "
            f"of its kinds {tuple(peft.KINDS)}: leave it out"
        )
    if "peft" in formats and config.model.keep_layers:
        raise ValueError(
            f"config.export.formats names 'peft', but config.model.keep_layers="
            f"{config.model.keep_layers}: an adapter's folder names the whole "
            "config.model.checkpoint, on which it would act on other layers: use 'huggingface'"
        )
    if "huggingface" in formats and kind == "prompt":
        raise ValueError(
            "config.export.formats names 'huggingface', but a trained prompt can't be merged into "
            "weights: use ('stablehlo', 'peft')"
        )
    for name in formats:
        if (output / name).exists() and not (output / _RESULT).exists():
            raise FileExistsError(
                f"{output / name} is there already, and no export (no {_RESULT} beside it): set "
                "config.export.output to another folder"
            )


def _trained(experiment: Experiment, workdir: Path) -> Trained:
    """Restores the checkpoint, folds its adapter, and predicts a few examples."""
    restored = restore(experiment, workdir)
    params = {**experiment.frozen, **restored.params}
    merged = _merged(experiment.config.adapt, params)
    sample = logits_BxC = None
    if experiment.task.EXPORT == "embedding":
        experiment = alone(experiment, passages=False)
    if experiment.task.EXPORT != "language_model":
        sample = _sample(experiment)
        outputs = jax.jit(experiment.apply)(params, _batch(*sample[:3]))
        logits_BxC = np.asarray(_predictions(outputs), np.float32)
    facts = (restored.name, sample, logits_BxC, restored.fitted)
    return Trained(experiment, params, merged, *facts)


def _merged(adapt: ConfigDict, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Folds the adapter into the weights; a prompt, which has no place in them, stays beside."""
    weights = {path: leaf for path, leaf in params.items() if path != _PROMPT}
    prompt = {_PROMPT: np.asarray(params[_PROMPT])} if _PROMPT in params else {}
    return adapters.merge(adapt, weights) | prompt


def _sample(experiment: Experiment) -> Sample:
    """Returns examples of the validation split, or made-up tokens where there are no data."""
    config = experiment.config
    try:
        prepared = prepare(config.data)
    except FileNotFoundError:
        size = min(experiment.tokenizer.vocab_size, experiment.model.config.vocab_size)
        lengths_B = np.minimum(np.arange(1, _EXAMPLES + 1) * 3, config.layout.max_length)
        tokens = np.random.default_rng(0).integers(0, size, lengths_B.sum())
        types, source = np.zeros_like(tokens), "made-up tokens (no data found)"
    else:
        examples = load_split(prepared, "validation", limit=_EXAMPLES)
        pairs_N = examples.pairs_N if experiment.task.EXPORT == "classifier" else None
        encoded = experiment.pipeline.encoder(examples.texts_N, pairs_N)
        tokens, types, lengths_B = encoded.tokens, encoded.types, encoded.lengths_B
        source = f"{len(lengths_B)} validation examples"
    tokens_BxL, types_BxL = np.zeros((2, len(lengths_B), lengths_B.max()), np.int32)
    filled_BxL = np.arange(lengths_B.max()) < lengths_B[:, None]
    tokens_BxL[filled_BxL], types_BxL[filled_BxL] = tokens, types
    return Sample(tokens_BxL, types_BxL, lengths_B.astype(np.int32), source)


def _batch(tokens_BxL: Any, types_BxL: Any, lengths_B: Any) -> dict[str, jax.Array]:
    """Returns the model's batch of one example a row, padded behind."""
    size, length = tokens_BxL.shape
    positions_BxL = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (size, length))
    real_BxL = positions_BxL < lengths_B[:, None]
    numbers_B = 1 + jnp.arange(size, dtype=jnp.int32)
    return {
        "tokens_RxL": tokens_BxL,
        "types_RxL": types_BxL,
        "positions_RxL": jnp.where(real_BxL, positions_BxL, 0),
        "segments_RxL": jnp.where(real_BxL, numbers_B[:, None], 0),
        "weights_B": jnp.ones(size, jnp.float32),
    }


def _predictions(outputs: Mapping[str, jax.Array]) -> jax.Array:
    """Returns a classifier's logits, or the vectors of an embedding model at length 1."""
    if "logits_BxC" in outputs:
        return outputs["logits_BxC"]
    return contrastive.unit(outputs["vectors_BxKxE"][:, 0])


def row_logits(model: Model, params: Mapping[str, Any], *sample: Any) -> jax.Array:
    """Returns the classifier's logits, or the vectors, for one example a row.

    Args:
        model: a classifier, or an embedding model of single texts.
        params: flat, without an adapter.
        sample: tokens_BxL, types_BxL and lengths_B.
    """
    variables = {"params": merge(params)}
    return _predictions(model.apply(variables, _batch(*sample), deterministic=True))


def _write_huggingface(trained: Trained, folder: Path) -> dict[str, Any]:
    form = huggingface.write(trained.experiment, trained.merged, folder, trained.title)
    difference = trained.difference(huggingface.read(form, folder), str(folder))
    return {"form": form.prose, "compared": "logits", "difference": difference}


def _write_stablehlo(trained: Trained, folder: Path) -> dict[str, Any]:
    """Writes the artefact and all that serve.py reads."""
    experiment, config = trained.experiment, trained.experiment.config
    exported, symbolic = _exported(trained)
    (folder / "model.stablehlo").write_bytes(exported.serialize())
    safetensors.write(folder / "params.safetensors", trained.merged)
    tokenizer, encoder, sides = experiment.tokenizer, experiment.pipeline.encoder, {}
    if vectors := experiment.task.EXPORT == "embedding":
        sides["around_passage"] = _ids(encoder.passage)
        encoder = encoder.query
    if isinstance(tokenizer, SentencePieceTokenizer):
        name, content = "tokenizer.model", tokenizer.model
    else:
        name, content = "tokenizer.json", tokenizer.json.encode()
    (folder / name).write_bytes(content)
    pair = len(encoder.fields) > 1
    setup = {
        "labels": list(experiment.task.labels),
        "normalization": list(config.data.normalization),
        "template": config.data.template,
        "fields": list(encoder.fields),
        "around": _ids(encoder),
        **sides,
        "between": len(tokenizer.between_ids) if pair else 0,
        "second_type": tokenizer.second_type if pair else 0,
        "max_length": config.layout.max_length,
        "length_step": _LENGTH_STEP if symbolic else config.layout.max_length,
        "tokenizer": name,
        "arguments": "params (flat, by name), tokens int32 [B, L], types int32 [B, L], "
        f"lengths int32 [B]; returns {'vectors' if vectors else 'probabilities'} float32 [B, C]",
        "platforms": list(_PLATFORMS),
        "jax": jax.__version__,
    }
    write_json(folder / "preprocessing.json", setup)
    for module in (normalization, alignment, records):
        copy = folder / Path(module.__file__).relative_to(_ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module.__file__, copy)
    shutil.copy(_ROOT / "examples" / "serve.py", folder)
    length = "any length" if symbolic else f"length {config.layout.max_length}"
    form = f"StableHLO for {', '.join(_PLATFORMS)}, any batch size and {length}; see serve.py"
    difference = _check_stablehlo(trained, folder)
    compared = "vectors" if vectors else "probabilities"
    return {"form": form, "compared": compared, "difference": difference}


def _ids(encoder: Encoder) -> list[list[int]]:
    """Returns what stands around the texts, with marks and prefix."""
    return [list(map(int, ids)) for ids in encoder.around]


def _exported(trained: Trained) -> tuple[Any, bool]:
    """Exports probabilities(params, tokens_BxL, types_BxL, lengths_B), or vectors of them, and
    whether L is symbolic.

    It is for one device, whatever the run was trained on. Parameters are arguments: an artefact
    holds less than 2 GB.
    """
    model, max_length = trained.experiment.model, trained.experiment.config.layout.max_length

    def probabilities(params: Mapping, *sample: jax.Array) -> jax.Array:
        return _calibrated(trained, row_logits(model, params, *sample))

    def attempt(length: str, *constraints: str) -> Any:
        shape = jax.export.symbolic_shape(f"b, {length}", constraints=constraints)
        like = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in trained.merged.items()}
        rows = jax.ShapeDtypeStruct(shape, np.int32)
        lengths = jax.ShapeDtypeStruct(shape[:1], np.int32)
        export_fn = jax.export.export(jax.jit(probabilities), platforms=_PLATFORMS)
        return export_fn(like, rows, rows, lengths)

    try:
        return attempt("l", f"l <= {max_length}"), True
    except jax.errors.InconclusiveDimensionOperation:  # a window that some lengths fill, others not
        return attempt(str(max_length)), False


def _calibrated(trained: Trained, logits_BxC: jax.Array) -> jax.Array:
    """Returns the probabilities that --mode=predict gives: see evaluation.calibration.calibrate;
    vectors as they are."""
    if trained.experiment.task.EXPORT == "embedding":
        return logits_BxC
    if fitted := trained.fitted:
        logits_BxC = logits_BxC / fitted["temperature"] + np.asarray(fitted["bias"], np.float32)
    return jax.nn.softmax(logits_BxC)


def _check_stablehlo(trained: Trained, folder: Path) -> float:
    """Reads the artefact again, pads as serve.py does, and returns the largest difference."""
    tokens_BxL, types_BxL, lengths_B, _ = trained.sample
    setup = json.loads((folder / "preprocessing.json").read_text("utf-8"))
    stored = safetensors.read(folder / "params.safetensors")
    params = {path: tensor.read() for path, tensor in stored.items()}
    step, length = setup["length_step"], tokens_BxL.shape[1]
    missing = min(-(-length // step) * step, setup["max_length"]) - length
    padded = (np.pad(x, ((0, 0), (0, missing))) for x in (tokens_BxL, types_BxL))
    artefact = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    probabilities_BxC = jax.jit(artefact.call)(params, *padded, lengths_B)
    expected_BxC = np.asarray(_calibrated(trained, trained.logits_BxC))
    return trained.refuse_difference(probabilities_BxC, expected_BxC, str(folder))


def _write_peft(trained: Trained, folder: Path) -> dict[str, Any]:
    config, backbone = trained.experiment.config, trained.experiment.model.config
    options = {"base": config.model.checkpoint, "pooling": config.model.pooling}
    form = peft.write_peft(folder, backbone, config.adapt, trained.params, **options)
    added = peft.read_peft(folder, backbone, config.adapt)
    again = _merged(config.adapt, {**trained.params, **added})
    form = form.rstrip(".").replace(str(folder), "an adapter that")
    difference = trained.difference(again, str(folder))
    return {"form": form, "compared": "logits", "difference": difference}


def _write_language_model(trained: Trained, folder: Path) -> dict[str, Any]:
    return huggingface.write_language_model(trained.experiment, trained.merged, folder)


def _write_embedding(trained: Trained, folder: Path) -> dict[str, Any]:
    return huggingface.write_embedding(trained.experiment, trained.merged, folder)


def _writers(config: ConfigDict) -> dict[str, Callable[[Trained, Path], dict[str, Any]]]:
    """Returns what writes a task's models, by format.

    Raises:
        ValueError: models of this task can't be exported.
    """
    if (kind := require(config, "EXPORT", "--mode=export")) != "classifier":
        if kind == "embedding":
            return {"huggingface": _write_embedding, "stablehlo": _write_stablehlo}
        return {"huggingface": _write_language_model}
    return {
        "huggingface": _write_huggingface,
        "stablehlo": _write_stablehlo,
        "peft": _write_peft,
    }


def _size(count: int) -> str:
    power = min(max(len(str(count)) - 1, 0) // 3, 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"
