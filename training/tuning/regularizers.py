"""Regularisers: what changes the gradient of a step. Each is one knob of config.regularize.

By the place where they act, in the order of a step:

    start       noisy_tune, reinit_layers: the weights before the first step
    weights     mixout: those of one forward pass
    inputs      neftune, mixup; and label_smoothing, which the tasks' losses read
    loss        r_drop, r3f: how far two predictions of a batch are apart; config.teach: how far
                they are from a teacher's
    embeddings  fgm, freelb: further passes with adversarial changes of the tokens' vectors
    ascent      sam: the gradient at weights of a higher loss (train_step.py)
    gradient    l2_sp, child_tuning

What is random is a function of the seed, the step and an example's number in it, or a parameter's
path: the same in every layout, however many microbatches and after a resume. Only dropout differs
between layouts. Dropout itself is in models/, weight decay in optimizers.py, averages of weights in
train_step.py.
"""

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from models.heads import partners
from training.state import Params, random_stream

Batch = Mapping[str, jax.Array]
Outputs = Mapping[str, jax.Array]
Value = tuple[jax.Array, dict[str, jax.Array]]  # the loss, summed, and the sums that are logged

WITH_PRETRAINED = ("mixout", "l2_sp", "noisy_tune")  # need the weights that a run started from
_TEACHER = "teacher/"  # before the paths of a teacher's parameters
_TINY = 1e-12  # what norms are divided by at least
_R3F_NOISE = 1e-5  # as in the paper
_FREELB_STEPS, _FREELB_RATE = 3, 0.5  # the rate is a share of the radius
_INIT_DEVIATION = 0.02  # of layers that are drawn anew: BERT's


class Passes(NamedTuple):
    """What is computed of a model and its task; parameters are flat, frozen ones included.

    Attributes:
      outputs: (params, batch, rng) -> the head's outputs, for each mask of its dropout.
      loss: (outputs, batch) -> (sum, weight, sums), see Task.loss.
      divergence: (outputs, others, batch, projections) -> sum, see Task.divergence.
      embed: (params, batch) -> the tokens' vectors [R, L, E].
      logits: (params, hidden) -> logits over the vocabulary.
      sequences: of each example.
      joint: whether the loss of an example reads the whole step, see Task.JOINT.
    """

    outputs: Callable[[Params, Batch, jax.Array], Sequence[Outputs]]
    loss: Callable[[Outputs, Batch], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]
    divergence: Callable[..., jax.Array] | None = None
    embed: Callable[[Params, Batch], jax.Array] | None = None
    logits: Callable[[Params, jax.Array], jax.Array] | None = None
    sequences: int = 1
    joint: bool = False


class Teacher(NamedTuple):
    """A trained model that a run learns from, see config.teach.run.

    Attributes:
      params: flat, on the devices, without those that are the run's frozen ones too.
      paths: of all.
      passes: of the model, without dropout.
      share: of its part in the loss.
    """

    params: Params
    paths: Sequence[str]
    passes: Passes
    share: float

    @property
    def held(self) -> Params:
        """The parameters as a train step gets them beside the frozen ones."""
        return {_TEACHER + path: value for path, value in self.params.items()}


class Place(NamedTuple):
    """Where in a run a microbatch is: its step, and its number in it; int32 scalars."""

    step: jax.Array
    index: jax.Array


class Regularizers:
    """The hooks of a train step.

    Args:
      config: config.regularize.
      passes: of the model.
      seed: of all that is random.
      teacher: whose predictions are learned beside the labels.
    """

    def __init__(
        self, config: ConfigDict, passes: Passes, *, seed: int, teacher: Teacher | None = None
    ):
        self._config, self._passes, self._seed = config, passes, seed
        self._teacher = teacher

    def weights(self, params: Params, pretrained: Params | None, step: jax.Array) -> Params:
        """Returns the weights of a step's passes: mixout (1909.11299).

        An entry is the pretrained one with probability p; the others are moved away from it by
        1 / (1 - p), so that the mean is what it was. One draw serves all microbatches.
        """
        share, mixed = self._config.mixout, dict(params)
        for path, start in pretrained.items() if share else ():
            kept = _kept(self._rng("mixout", step, path), share, start)
            mixed[path] = start + kept * (params[path] - start)
        return mixed

    def joined(self, params: Params, frozen: Params, batch: Batch, step: jax.Array) -> Batch:
        """Returns the microbatches with the slope of their joint loss in each output, if it is one.

        Cached gradients (2101.06983): the outputs of all microbatches are computed once without a
        gradient, so that the second pass, one microbatch at a time, has that of the large batch.
        """
        passes, count = self._passes, batch["weights_B"].shape[0]
        if not passes.joint or count == 1:
            return batch

        def outputs(indexed: tuple[jax.Array, Batch]) -> Outputs:
            index, part = indexed
            rng = self._dropout(Place(step, index))
            return passes.outputs({**frozen, **params}, part, rng)[0]

        def whole(parts: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            return {name: part.reshape(-1, *part.shape[2:]) for name, part in parts.items()}

        def loss(parts: Outputs) -> tuple[jax.Array, Any]:
            total, *others = passes.loss(whole(parts), whole(batch))
            return total, others

        parts = jax.lax.map(outputs, (jnp.arange(count, dtype=jnp.int32), dict(batch)))
        (total, others), slopes = jax.value_and_grad(loss, has_aux=True)(parts)
        shares = jax.tree.map(lambda sum_: jnp.full(count, sum_ / count), (total, *others))
        return {**batch, "joint": (slopes, shares)}

    def _dropout(self, place: Place) -> jax.Array:
        return jax.random.fold_in(random_stream(self._seed, "dropout", place.step), place.index)

    def gradient(
        self, params: Params, frozen: Params, batch: Batch, place: Place
    ) -> tuple[Value, Params]:
        """Returns the loss of a microbatch and its gradient."""
        config = self._config
        if config.mixup:
            batch = {**batch, "mix_B": self._mix(batch["weights_B"].shape[0], place)}
        if config.neftune:
            batch = _with_noise(batch, self._neftune({**frozen, **params}, batch, place))

        def loss(params: Params, noise_RxLxE: jax.Array | None = None) -> Value:
            return self._loss({**frozen, **params}, _with_noise(batch, noise_RxLxE), place)

        if config.fgm or config.freelb:
            return self._adversarial(loss, params, frozen, batch, place)
        return jax.value_and_grad(loss, has_aux=True)(params)

    def after(
        self,
        gradients: Params,
        params: Params,
        pretrained: Params | None,
        step: jax.Array,
        is_taught: jax.Array,
    ) -> Params:
        """Returns the gradients of a step's mean loss as the optimiser gets them.

        Where not `is_taught`, all labels being masked, zeros stay zeros.

        L2-SP (1802.01483) adds that of strength / 2 * |weights - pretrained|^2. Child-Tuning-F
        (2109.05687) drops each entry of the backbone's with probability p; the others are divided
        by 1 - p.
        """
        config, changed = self._config, dict(gradients)
        for path, start in pretrained.items() if config.l2_sp else ():
            changed[path] += config.l2_sp * is_taught * (params[path] - start)
        for path in changed if config.child_tuning else ():
            if path.startswith("backbone/"):
                rng = self._rng("child_tuning", step, path)
                changed[path] *= _kept(rng, config.child_tuning, changed[path])
        return changed

    def _loss(self, params: Params, batch: Batch, place: Place) -> Value:
        """Returns the loss of a microbatch with the divergence of further passes.

        R-Drop (2106.14448): with another dropout. The sum is half of the paper's, so that a weight
        means what it does there. R3F (2008.03156): also with noise of at most 1e-5. A teacher
        (1503.02531): the mean of both directions of the divergence from it has its share of the
        loss.
        """
        config, passes = self._config, self._passes
        loss = _joint_loss if "joint" in batch else passes.loss
        rng = self._dropout(place)
        first = samples = passes.outputs(params, batch, rng)

        def logits(hidden: jax.Array) -> jax.Array:
            return passes.logits(params, hidden)

        def apart(others: Sequence[Outputs], other_logits: Callable = logits) -> jax.Array:
            pairs, both = zip(first, others, strict=True), (logits, other_logits)
            return _mean([passes.divergence(*pair, batch, both) for pair in pairs])

        divergences = []
        if config.r_drop:
            others = passes.outputs(params, batch, jax.random.fold_in(rng, 1))
            divergences.append(config.r_drop / 4 * apart(others))
            samples = [*first, *others]
        if config.r3f:
            noise_RxLxE = _R3F_NOISE * self._noise("r3f", params, batch, place)
            noisy = _with_noise(batch, noise_RxLxE)
            others = passes.outputs(params, noisy, jax.random.fold_in(rng, 2))
            divergences.append(config.r3f * apart(others))
        total, weight, sums = _mean([_mixed_loss(loss, part, batch) for part in samples])
        if divergences:
            sums = {**sums, "divergence": sum(divergences)}
            total += sums["divergence"]
        if teacher := self._teacher:
            own = {path: params.get(_TEACHER + path, params.get(path)) for path in teacher.paths}
            plain = {name: array for name, array in batch.items() if name != "noise_RxLxE"}
            known = teacher.passes.outputs(own, plain, rng)[:1] * len(first)
            from_teacher = apart(known, functools.partial(teacher.passes.logits, own)) / 2
            sums = {**sums, "from_teacher": from_teacher}
            total = (1 - teacher.share) * total + teacher.share * from_teacher
        return total, {"weight": weight, **sums}

    def _adversarial(
        self, loss: Callable, params: Params, frozen: Params, batch: Batch, place: Place
    ) -> tuple[Value, Params]:
        """Returns the loss and its gradient under changes of the embeddings that raise it.

        FGM (1605.07725): the mean of the gradients without a change and with one along the
        gradient. FreeLB (1909.11764): the mean of three, of a random change and two from there.
        The size of a change is its norm over an example, as a share of that of its embeddings;
        Miyato et al. normalise these instead.
        """
        config, segments_RxL = self._config, batch["segments_RxL"]
        embedded_RxLxE = self._passes.embed({**frozen, **params}, batch)
        size_RxLx1 = _norm(embedded_RxLxE, segments_RxL)
        both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

        def along(slope_RxLxE: jax.Array) -> jax.Array:
            return slope_RxLxE / jnp.maximum(_norm(slope_RxLxE, segments_RxL), _TINY)

        def ascend(change_RxLxE: jax.Array, _: Any) -> tuple[jax.Array, Any]:
            value, (gradients, slope_RxLxE) = both(params, size_RxLx1 * change_RxLxE)
            change_RxLxE += rate * along(slope_RxLxE)
            over_RxLx1 = jnp.maximum(_norm(change_RxLxE, segments_RxL) / radius, 1.0)
            return change_RxLxE / over_RxLx1, (value, gradients)

        if radius := config.fgm:
            change_RxLxE, rate, count = jnp.zeros_like(embedded_RxLxE), radius, 2
        else:
            radius, rate, count = config.freelb, _FREELB_RATE * config.freelb, _FREELB_STEPS
            noise_RxLxE = self._noise("freelb", {**frozen, **params}, batch, place)
            change_RxLxE = radius * along(noise_RxLxE)
        _, (values, gradients) = jax.lax.scan(ascend, change_RxLxE, length=count)
        value = jax.tree.map(lambda leaf: leaf[0], values)
        return value, jax.tree.map(lambda leaf: leaf.mean(axis=0), gradients)

    def _neftune(self, params: Params, batch: Batch, place: Place) -> jax.Array:
        """Returns uniform noise of at most alpha / sqrt(tokens * width) (NEFTune, 2310.05914)."""
        segments_RxL = batch["segments_RxL"]
        noise_RxLxE = self._noise("neftune", params, batch, place)
        count_RxL = _sum_of_example(jnp.ones(segments_RxL.shape), segments_RxL)
        largest_RxL = self._config.neftune / jnp.sqrt(count_RxL * noise_RxLxE.shape[-1])
        return largest_RxL[..., None] * noise_RxLxE

    def _noise(self, name: str, params: Params, batch: Batch, place: Place) -> jax.Array:
        """Returns uniform noise in [-1, 1) for each token's vector, 0 for padding: [R, L, E]."""
        segments_RxL, rng = batch["segments_RxL"], random_stream(self._seed, name, place.step)
        width = jax.eval_shape(self._passes.embed, params, batch).shape[-1]
        # The sequence's number in the step: the same in every layout and division.
        before = place.index * batch["weights_B"].shape[0] * self._passes.sequences
        numbers_RxL = before + segments_RxL - 1

        def draw(number: jax.Array, position: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.fold_in(rng, number), position)
            return jax.random.uniform(key, (width,), minval=-1.0)

        noise_RxLxE = jax.vmap(jax.vmap(draw))(numbers_RxL, batch["positions_RxL"])
        return jnp.where(segments_RxL[..., None] > 0, noise_RxLxE, 0.0)

    def _mix(self, count: int, place: Place) -> jax.Array:
        """Returns each example's own share in mixup (1905.08941), the same for both of a pair."""
        rng, alpha = random_stream(self._seed, "mixup", place.step), self._config.mixup

        def draw(number: jax.Array) -> jax.Array:
            return jax.random.beta(jax.random.fold_in(rng, number // 2), alpha, alpha)

        return jax.vmap(draw)(place.index * count + jnp.arange(count))

    def _rng(self, name: str, step: jax.Array, path: str) -> jax.Array:
        return jax.random.fold_in(random_stream(self._seed, name, step), zlib.crc32(path.encode()))


def check(
    config: ConfigDict,
    *,
    pretrained: Iterable[str],
    mixes: bool,
    joint: bool,
    head_dropout: float,
) -> None:
    """Raises ValueError where a regulariser has nothing to act on, or two exclude each other.

    Args:
      config: the whole config.
      pretrained: trained paths that a checkpoint filled.
      mixes: whether the task can mix examples, see Task.MIXUP.
      joint: whether a loss reads the whole step, see Task.JOINT.
      head_dropout: of the head.
    """
    chosen, model, train = config.regularize, config.model, config.train
    problems = {
        "config.regularize.fgm and freelb both change the embeddings: set one to 0": (
            chosen.fgm and chosen.freelb
        ),
        "config.train.ema and swa_from are two averages of the weights: keep one": (
            train.ema and train.swa_from
        ),
        f"config.regularize.mixup: config.task={config.task!r} has no single vector per example to "
        "mix: set it to 0": chosen.mixup and not mixes,
        "config.regularize.mixup pairs neighbours, which needs an even number of examples in each "
        f"of the config.train.microbatches={train.microbatches} parts of "
        f"config.data.batch_size={config.data.batch_size}": (
            chosen.mixup
            and train.microbatches > 1
            and config.data.batch_size // train.microbatches % 2
        ),
        "config.regularize.r_drop compares two passes that dropout makes different, and there is "
        "none: set config.model.hidden_dropout, attention_dropout or dropout": (
            chosen.r_drop and not max(model.hidden_dropout, model.attention_dropout, head_dropout)
        ),
        f"config.model.dropout_samples={model.dropout_samples} needs dropout before the head, and "
        "there is none: set config.model.dropout (tagging: config.tagging.dropout), or it to 1": (
            model.dropout_samples > 1 and not head_dropout
        ),
    }
    problems |= {
        f"config.regularize.{name} has several passes of a microbatch, of which a joint loss knows "
        "one: set it to 0, or config.train.microbatches=1": (
            joint and train.microbatches > 1 and chosen[name]
        )
        for name in ("r_drop", "fgm", "freelb", "neftune")
    }
    problems |= {
        f"config.regularize.{name} needs trained weights that a checkpoint filled, and there are "
        "none: config.adapt.kind, optimizer.lr_table or model.init='scratch' leave new ones alone; "
        "set it to 0": chosen[name] and not pretrained
        for name in WITH_PRETRAINED
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ValueError(problem)


def first_weights(
    config: ConfigDict, params: Params, pretrained: Iterable[str], top: Iterable[str], *, seed: int
) -> dict[str, jax.Array]:
    """Returns the weights of the first step.

    NoisyTune (2202.12024) adds to each pretrained tensor uniform noise of at most intensity / 2
    times its deviation. Layers that are drawn anew (2006.05987) get BERT's initial weights.

    Args:
      config: config.regularize.
      params: the trained ones, as they were loaded.
      pretrained: their paths that a checkpoint filled.
      top: those of the layers to draw anew.
      seed: of the draws.
    """
    changed = dict(params)

    def rng(name: str, path: str) -> jax.Array:
        return jax.random.fold_in(random_stream(seed, name), zlib.crc32(path.encode()))

    for path in pretrained if config.noisy_tune else ():
        value = changed[path]
        reach = config.noisy_tune / 2 * jnp.std(value)
        changed[path] = value + reach * jax.random.uniform(
            rng("noisy_tune", path), value.shape, minval=-1.0
        )
    for path in top:
        shape, name = changed[path].shape, path.rsplit("/", 1)[-1]
        if name in ("bias", "scale"):
            changed[path] = jnp.full(shape, float(name == "scale"))
        else:
            noise = jax.random.normal(rng("reinit_layers", path), shape)
            changed[path] = _INIT_DEVIATION * noise
    return changed


def _kept(rng: jax.Array, share: float, like: jax.Array) -> jax.Array:
    """Returns 0 with probability `share`, else 1 / (1 - share), for each entry."""
    return jax.random.bernoulli(rng, 1 - share, like.shape) / (1 - share)


def _with_noise(batch: Batch, noise_RxLxE: jax.Array | None) -> Batch:
    """Returns the batch with noise of the tokens' vectors, added to any that it has."""
    if noise_RxLxE is None:
        return batch
    return {**batch, "noise_RxLxE": batch.get("noise_RxLxE", 0.0) + noise_RxLxE}


def _joint_loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array, dict]:
    """Returns a microbatch's share of a joint loss, with its gradient; see Regularizers.joined."""
    slopes, (total, weight, sums) = batch["joint"]
    pull = sum(jnp.vdot(outputs[name], slope) for name, slope in slopes.items())
    return total + pull - jax.lax.stop_gradient(pull), weight, sums


def _mixed_loss(loss: Callable, outputs: Outputs, batch: Batch) -> Any:
    """Returns the loss; where inputs are mixed, of both labels by their shares."""
    if "mix_B" not in batch:
        return loss(outputs, batch)
    mix_B, weights_B = batch["mix_B"], batch["weights_B"]
    order_B = partners(len(mix_B))
    mine = {**batch, "weights_B": mix_B * weights_B}
    targets = {name: x for name, x in batch.items() if name.rpartition("_")[2][0] == "B"}
    theirs = {**batch, **{name: x[order_B] for name, x in targets.items()}}
    theirs["weights_B"] *= 1 - mix_B
    return jax.tree.map(jnp.add, loss(outputs, mine), loss(outputs, theirs))


def _sum_of_example(values_RxL: jax.Array, segments_RxL: jax.Array) -> jax.Array:
    """Returns at each position the sum over its example's positions, which share its row."""
    same_RxLxL = (segments_RxL[:, :, None] == segments_RxL[:, None, :]).astype(values_RxL.dtype)
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("rlm,rm->rl", same_RxLxL, values_RxL, precision=highest)


def _norm(values_RxLxE: jax.Array, segments_RxL: jax.Array) -> jax.Array:
    """Returns at each position the norm over its example: [R, L, 1]; 0 for padding."""
    squares_RxL = jnp.where(segments_RxL > 0, jnp.sum(jnp.square(values_RxLxE), axis=-1), 0.0)
    return jnp.sqrt(_sum_of_example(squares_RxL, segments_RxL))[..., None]


def _mean(parts: Sequence[Any]) -> Any:
    """Returns the mean of trees."""
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *parts)
