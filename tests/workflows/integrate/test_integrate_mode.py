"""--mode=integrate on the checkpoints of a run, and on several runs: from folders to the winner."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest

from evaluation.metrics import estimate
from integration import methods
from training.checkpoints import Checkpoints
from training.data import load_data
from training.experiment import build
from workflows import restoring
from workflows.integrate import ingredients
from workflows.integrate import integrate as run
from workflows.integrate.trials import Trials
from workflows.train import train

OWN = ("interpolation", "soup", "greedy_soup", "ensemble")
SEVERAL = ("soup", "ensemble")


def save_run(workdir, params, meta):
    """Makes a finished run of parameters."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save_params(params, meta)
    checkpoints.close()


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory, reviews):
    """A trained run, two others a little beside it, and a shifted set in a CSV file."""
    folder = tmp_path_factory.mktemp("integrate")
    config = make_config()
    config.train.update(duration="16 steps", ema=0.9, keep_latest=2, integrate=False)
    config.train.checkpoint_every = config.eval.every = "8 steps"
    config.eval.test = False
    with (folder / "shifted.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(f"昨天{text}真的", label) for text, label in reviews[:20]]
        csv.writer(file).writerows([("text", "label"), *rows])
    config.integrate.shifted_files = str(folder / "shifted.csv")
    train(config, folder / "run")
    config.integrate.shifted_files = ""
    data = load_data(config)
    experiment = build(config, folder / "run", data.labels, lambda _: None)
    restored = restoring.restore(experiment, folder / "run", "best")
    for name in ("seed_1", "seed_2"):
        rng = np.random.default_rng(len(name) + ord(name[-1]))
        params = {
            path: leaf + 0.01 * rng.normal(size=leaf.shape).astype(np.float32)
            for path, leaf in jax.device_get(restored.params).items()
        }
        save_run(folder / "sweep" / name, params, restored.meta)
    return config, folder, experiment, data, restored


@pytest.fixture
def parts(finished, tmp_path):
    """The run's config, a copy of its workdir, and the rest as `finished` made it."""
    config, folder, experiment, data, restored = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    copied = config.copy_and_resolve_references()
    experiment.config = copied
    yield copied, tmp_path / "run", folder, experiment, data, restored
    experiment.config = config


def test_the_mode_compares_all_methods_and_writes_an_ordinary_checkpoint(parts, capsys):
    config, workdir, _, experiment, data, _ = parts
    config.integrate.update(methods=OWN, targets=str(workdir / "targets.jsonl"))
    results = run.integrate(config, workdir)
    output = capsys.readouterr().out
    assert output.count("Compiled the evaluation step") == 1
    rows = {row["name"]: row for row in results["candidates"]}
    kinds = [row["kind"] for row in rows.values()]
    assert kinds == ["interpolation", *["single"] * 3, *["soup"] * 2, "ensemble"]
    assert rows["ensemble of 3"]["inference_cost"] == 3
    assert rows["ensemble of 3"]["evaluations"] == 0  # its members have spoken already
    assert {row["count"] for row in rows.values()} == {24}
    assert all(name in output for name in rows)
    assert json.loads(json.dumps(results))["chosen"] in rows
    assert rows["soup of 3"]["members"] == rows["ensemble of 3"]["members"]
    assert f"{workdir}, step 16 (running average)" in rows["soup of 3"]["members"]
    config.eval.checkpoint = "integrated"
    meta = restoring.read_meta(config, workdir)
    assert run.stored(meta) == json.loads(json.dumps(results))
    assert meta["of"].startswith("best checkpoint, step")
    written = restoring.restore(experiment, workdir, "integrated")
    scores, fitted = experiment.score(written.params, data.split("validation"))
    assert estimate(scores, "accuracy")["value"] == rows[results["written"]]["value"]
    assert fitted == meta["fitted"]
    records = [json.loads(line) for line in (workdir / "targets.jsonl").open(encoding="utf-8")]
    assert len(records) == 96 == results["targets"]["examples"]
    for record in records:
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert record["text"] and record["label"] in record["probabilities"]


def test_runs_of_a_sweep_are_averaged_and_asked_together(parts):
    config, workdir, folder, experiment, data, _ = parts
    config.integrate.update(methods=SEVERAL, runs=(str(folder / "sweep" / "*"),), points=3)
    trials = Trials(experiment, workdir, data, "best", alone="stop")
    found = {candidate.name.split(",")[0]: candidate for candidate in trials.run()}
    singles = {name for name, candidate in found.items() if candidate.kind == "single"}
    assert {"seed_1", "seed_2"} < singles and len(singles) == 4  # the run's, and its average
    soup = found["soup of 3"].make()
    several = [found[name].make() for name in ("best checkpoint", "seed_1", "seed_2")]
    path = "backbone/layer_0/attention/query/kernel"
    mean = np.mean([params[path] for params in several], axis=0)
    np.testing.assert_allclose(soup[path], mean, atol=1e-6)
    assert found["ensemble of 3"].make is None


def test_the_shifted_set_has_a_column_without_any_integration(parts):
    results = json.loads((parts[1] / "results.json").read_text("utf-8"))
    assert "integrated" not in results["models"]
    for name, row in results["models"].items():
        assert row["shifted"]["accuracy"]["count"] == 20, name
    assert "On 20 shifted examples, the fine-tuned model" in results["conclusion"]


def test_the_shifted_set_has_its_own_curve_and_chooses_nothing(parts):
    config, workdir, folder, experiment, data, _ = parts
    plain = run.integrate_run(experiment, workdir, data)
    config.integrate.shifted_files = str(folder / "shifted.csv")
    shifted = run.integrate_run(experiment, workdir, data)
    assert shifted["curve"] == plain["curve"] and shifted["alpha"] == plain["alpha"]
    assert [point["alpha"] for point in shifted["shifted_curve"]] == [0, 0.5, 1]
    assert {point["count"] for point in shifted["shifted_curve"]} == {20}
    assert min(point["behind_best"] for point in shifted["shifted_curve"]) == 0
    assert shifted["changed"] == (shifted["alpha"] < 1)
    text = (folder / "shifted.csv").read_text(encoding="utf-8").replace("positive", "好评")
    (workdir / "other.csv").write_text(text, encoding="utf-8")
    config.integrate.shifted_files = str(workdir / "other.csv")
    with pytest.raises(ValueError, match=r"shifted_files: .*'好评' is not in"):
        run.integrate_run(experiment, workdir, data)


def test_a_given_point_of_the_line_is_taken(parts, capsys):
    config, workdir, _, experiment, data, restored = parts
    config.integrate.alpha = "0.5"
    found = run.integrate_run(experiment, workdir, data)
    assert "alpha 0.5 is taken as given; the lowest loss is at" in capsys.readouterr().out
    assert found["written"] == "interpolation, alpha 0.5" and found["changed"]
    written = restoring.restore(experiment, workdir, "integrated").params
    for path, start in experiment.pretrained_end(restored.params).items():
        np.testing.assert_allclose(written[path], (start + restored.params[path]) / 2, atol=1e-6)
    for options in ({"alpha": "0.3"}, {"alpha": "0.5", "methods": OWN}):
        config.integrate.update(options)
        with pytest.raises(ValueError, match=r"name one of 0, 0.5, 1 .*'interpolation' alone"):
            run.check(config, workdir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta.update(labels=["bad", "good"]), r"labels \['bad', 'good'\], this run"),
        (
            lambda meta: meta["fingerprints"].update(validation="0000"),
            r"do not share their validation: its fingerprint is there 0000, here",
        ),
        (
            lambda meta: meta["fingerprints"].update(pretrained="0000"),
            "do not share their pretrained",
        ),
        (lambda meta: meta["config"].update(task="tagging"), "task: 'tagging' in the checkpoint"),
        (
            lambda meta: meta["config"]["model"].update(init="scratch"),
            "model.init: 'scratch' in the checkpoint, 'pretrained' now",
        ),
    ],
    ids=["labels", "data", "pretrained", "task", "scratch"],
)
def test_runs_that_do_not_belong_together_are_refused_naming_both(parts, change, message):
    config, workdir, _, experiment, data, restored = parts
    meta = json.loads(json.dumps(restored.meta))
    change(meta)
    save_run(workdir.parent / "other", {"x": np.zeros(2, np.float32)}, meta)
    config.integrate.update(methods=("soup",), runs=(str(workdir.parent / "other"),))
    with pytest.raises(ValueError, match=r"config\.integrate\.runs: ") as error:
        Trials(experiment, workdir, data, "best", alone="stop")
    assert error.match(message)


def test_unlike_trees_are_refused_naming_checkpoint_and_parameters(parts):
    config, workdir, _, experiment, data, restored = parts
    params = {**restored.params, "head/extra": np.zeros(2, np.float32)}
    save_run(workdir.parent / "other", params, restored.meta)
    config.integrate.update(methods=("soup",), runs=(str(workdir.parent / "other"),))
    trials = Trials(experiment, workdir, data, "best", alone="stop")
    with pytest.raises(ValueError, match=r"other/checkpoints does not fit (.|\n)*head/extra: only"):
        trials.run()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "data.split.seed",
            3,
            r"chosen on other data: the splits \['train', 'validation', 'test'\]",
        ),
        (
            "data.labels",
            ("positive", "negative"),
            r"labels \['positive', 'negative'\], but the run",
        ),
    ],
)
def test_a_run_is_joined_on_its_own_data_alone(parts, key, value, message):
    config, workdir, *_ = parts
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        run.integrate(config, workdir)


def test_the_model_that_is_judged_is_the_one_that_is_loaded(parts):
    """Also by another metric than chose while training, whose best may be another step."""
    config, workdir, _, experiment, data, _ = parts
    config.integrate.methods = ("soup",)
    for metric in ("accuracy", "loss"):
        config.eval.metric = metric
        for name in ("8", "16"):
            trials = Trials(experiment, workdir, data, name, alone="stop")
            first = trials._singles[0]
            loaded = first.load(experiment)
            assert first.name == trials.restored.name and first.step == int(name)
            assert all(np.array_equal(loaded[p], v) for p, v in trials.restored.params.items())
            assert len({i.title for i in trials._singles}) == len(trials._singles) == 3


def test_a_folder_with_glob_characters_is_a_run(parts):
    config, workdir, *_ = parts
    folder = workdir.parent / "[a] 1"
    shutil.copytree(workdir, folder)
    config.integrate.runs = (str(folder),)
    assert ingredients.find_runs(config, workdir) == [folder.resolve()]


def test_shifted_files_that_are_not_there_are_told_before_the_training(parts):
    config, workdir, *_ = parts
    config.integrate.shifted_files = str(workdir / "absent*.csv")
    with pytest.raises(FileNotFoundError, match=r"integrate\.shifted_files: no file matches"):
        run.check(config, workdir)


def test_what_has_no_pretrained_side_is_not_interpolated(make_config, tmp_path, capsys):
    config = make_config()
    config.train.update(duration="2 steps", checkpoint_every="1 step")
    config.eval.update(every="2 steps", test=False)
    config.adapt.kind = "head"
    config.model.update(head="linear", label_words=())
    results = train(config, tmp_path / "run")
    assert "what config.adapt.kind='head' trains" in capsys.readouterr().out
    assert [row["kind"] for row in results["integration"]["candidates"]] == ["single"]
    assert list(results["models"])[-1] == "fine-tuned"
    with pytest.raises(ValueError, match="has no pretrained weights to go back to"):
        run.integrate(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("init", "chosen", "applies"),
    [
        ("pretrained", ("interpolation",), True),
        ("scratch", ("interpolation",), False),
        ("scratch", ("soup",), True),
    ],
)
def test_what_was_asked_for_is_not_silently_skipped(tiny_config, init, chosen, applies):
    tiny_config.model.init = init
    tiny_config.integrate.methods = chosen
    assert methods.apply(tiny_config) == applies


def test_a_glob_without_runs_is_refused(parts):
    config, workdir, folder, *_ = parts
    config.integrate.update(methods=("soup",), runs=(str(folder / "prepared*"),))
    with pytest.raises(ValueError, match=r"prepared\*' matches \d+ folders, none of them"):
        run.check(config, workdir)
    config.integrate.runs = (str(folder / "sweep" / "*"), str(folder / "nothing"))
    with pytest.raises(ValueError, match="nothing' matches 0 folders"):
        run.check(config, workdir)
    config.integrate.runs = (str(folder / "sweep" / "*"), str(folder / "sweep" / "seed_1"))
    assert [path.name for path in ingredients.find_runs(config, workdir)] == ["seed_1", "seed_2"]


def test_a_soup_of_one_stops_the_mode_and_is_left_out_after_training(parts, capsys):
    config, workdir, _, experiment, data, _ = parts
    config.integrate.update(methods=("interpolation", "soup"), runs=(str(workdir),))
    with pytest.raises(ValueError, match=r"soup: a single model, the best checkpoint"):
        Trials(experiment, workdir, data, "best", alone="stop")
    candidates = Trials(experiment, workdir, data, "best", alone="skip").run()
    assert [c.kind for c in candidates] == ["interpolation", "single", "single"]
    assert "Left out: config.integrate.methods: soup: a single model" in capsys.readouterr().out
