"""What a model that computes in bfloat16 on an accelerator does in which dtype."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from models import layers
from models.backbone import make_backbone
from models.pretrained import load_pretrained, open_checkpoint

FAMILIES = Path(__file__).parents[1] / "fixtures/families"
LENGTH = 11  # of rows; no other axis has it


def equations(jaxpr):
    """Of a program and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def dtypes(variables):
    return {variable.aval.dtype.name for variable in variables if variable.aval.shape}


@pytest.mark.parametrize("remat", ["none", "dots"])
@pytest.mark.parametrize("family", ["bert", "llama3", "gemma2", "t5_v1_1"])
def test_products_take_bfloat16_and_statistics_float32(pack, monkeypatch, family, remat):
    """Forward and backward of the backbone and its logits; parameters and gradients are float32."""
    monkeypatch.setattr(layers, "is_narrow", lambda dtype: False)  # that is for CPUs
    folder = FAMILIES / family
    pretrained = load_pretrained(folder, parts=open_checkpoint(folder).parts)
    tokens, *places = pack([[6, 4], [7]], LENGTH)
    model = make_backbone(pretrained.config, dtype=jnp.bfloat16, remat=remat)

    def loss(params):
        batch = (tokens % pretrained.config.vocab_size, *places)
        hidden = model.apply({"params": params}, *batch)
        assert hidden.dtype == jnp.bfloat16
        return jnp.mean(model.apply({"params": params}, hidden, method="logits"))

    params = jax.tree.map(jnp.asarray, pretrained.params)
    program = jax.make_jaxpr(jax.grad(loss))(params)
    assert dtypes(program.jaxpr.outvars) == dtypes(program.jaxpr.invars) == {"float32"}
    of = {}
    for equation in equations(program.jaxpr):
        of.setdefault(equation.primitive.name, []).append(equation)
    assert all(dtypes(equation.invars) == {"bfloat16"} for equation in of["dot_general"])
    scores = [e for e in of["exp"] if e.outvars[0].aval.shape[-1] == LENGTH]
    logits = [e for e in of["dot_general"] if e.outvars[0].aval.shape[-1] == LENGTH]
    assert scores and logits
    for equation in (*scores, *of["rsqrt"], *of["reduce_max"]):
        assert dtypes(equation.outvars) == {"float32"}
    # Scores leave their product in float32; the gradients of that product do not.
    assert {"float32"} <= dtypes(e.outvars[0] for e in logits)
