"""Language models out: what is written is what another run starts from."""

import numpy as np
import pytest

from training.data import load_data
from training.experiment import build
from workflows.export.export import export
from workflows.restoring import restore
from workflows.train import train


def test_a_continued_model_is_the_checkpoint_of_the_next_run(tiny_config, tmp_path):
    """With LoRA folded in, the written model says what the trained one says."""
    config = tiny_config
    config.task = "causal_language_modelling"
    config.data.update(label_column="", template="{text}")
    config.model.update(head="linear", pooling="mean", label_words=())
    config.adapt.kind = "lora"
    config.train.update(duration="6 steps", integrate=False)
    config.export.formats = ("huggingface",)
    train(config, tmp_path / "run")
    folder = export(config, tmp_path / "run") / "huggingface"
    data = load_data(config)
    examples = data.split("validation")
    first = build(config, tmp_path / "run", data.labels, lambda _: None)
    trained = first.predict(restore(first, tmp_path / "run").params, examples, {})
    start = first.predict(first.put(first.initial), examples, {})
    config.adapt.kind = "full"
    config.model.checkpoint = str(folder)
    second = build(config, tmp_path / "next", data.labels, lambda _: None)
    found = second.predict(second.put(second.initial), examples, {})
    for name in ("log_probability_N",):
        all_of = [np.concatenate(list(each[name])) for each in (trained, start, found)]
        np.testing.assert_allclose(all_of[2], all_of[0], atol=1e-4)
        assert np.abs(all_of[1] - all_of[0]).max() > 1e-2


def test_a_task_without_a_form_is_refused(tiny_config, tmp_path):
    tiny_config.task = "tagging"
    with pytest.raises(ValueError, match="--mode=export: found the task 'tagging'"):
        export(tiny_config, tmp_path)
