"""The modes from a config to files, and what a user's mistake looks like."""

import html
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags

import main as program
from configs.overrides import check_overrides
from input_pipeline.corpus.preparation import load_split, prepare
from input_pipeline.features.features import load as load_features
from input_pipeline.locking import in_use
from training import compilation
from training.checkpoints import Checkpoints
from workflows.evaluate import evaluate
from workflows.integrate.integrate import integrate
from workflows.predict import predict
from workflows.test import test as open_test
from workflows.train import train

FLAGS = program.FLAGS
ROOT = Path(__file__).parents[1]


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory, figures):
    folder = tmp_path_factory.mktemp("finished")
    config = make_config()
    return config, folder / "run", train(config, folder / "run")


@pytest.fixture
def trained(finished, tmp_path):
    """A finished run's config, a copy of its workdir, and what the run returned."""
    config, workdir, results = finished
    shutil.copytree(workdir, tmp_path / "run")
    return config.copy_and_resolve_references(), tmp_path / "run", results


def test_the_main_job_learns_integrates_tests_and_reports(trained):
    _, workdir, results = trained
    assert results == json.loads((workdir / "results.json").read_text())
    models = list(results["models"])
    assert models[:3] == ["majority class", "TF-IDF + logistic regression", "fine-tuned"]
    accuracy = results["models"][models[2]]["accuracy"]
    majority = results["models"]["majority class"]["accuracy"]
    assert accuracy["value"] > majority["value"] + 0.2
    assert accuracy["count"] == majority["count"] >= 30
    assert [point["alpha"] for point in results["integration"]["curve"]] == [0, 0.5, 1]
    assert len(lines(workdir / "test_openings.jsonl")) == 1
    assert json.loads((workdir / "config.json").read_text())["data"]["batch_size"] == 8
    assert (workdir / "curves.png").stat().st_size > 5000
    assert results["manifest"][""]["splits"]["test"]["examples"] == 36
    assert "<h2>Data manifest and audit</h2>" in (workdir / "report.html").read_text("utf-8")
    losses = [line["loss"] for line in lines(workdir / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 48
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) / 2


def test_a_finished_run_shows_its_results_and_leaves_the_test_split_shut(trained):
    config, workdir, results = trained
    assert train(config, workdir) == results
    assert len(lines(workdir / "test_openings.jsonl")) == 1


def test_a_second_look_at_the_test_split_gives_the_same_and_is_counted(trained):
    config, workdir, results = trained
    again = open_test(config, workdir)
    assert again["models"] == results["models"]
    assert again["integration"] == results["integration"]
    assert len(again["test_openings"]) == 2
    assert again["test_openings"][:1] == results["test_openings"]


def test_the_test_split_has_one_door(trained):
    config, workdir, _ = trained
    config.eval.split = "test"
    with pytest.raises(ValueError, match="only --mode=test"):
        evaluate(config, workdir)
    with pytest.raises(ValueError, match="its training is not finished"):
        open_test(config, workdir.parent / "elsewhere")
    config.data.split.seed += 1
    with pytest.raises(ValueError, match=r"was chosen on other data: the splits \['train'"):
        open_test(config, workdir)
    assert len(lines(workdir / "test_openings.jsonl")) == 1


def test_evaluate_gives_the_numbers_of_training(trained):
    config, workdir, _ = trained
    logged = {
        line["step"]: line["validation/accuracy"]
        for line in lines(workdir / "metrics.jsonl")
        if "validation/accuracy" in line
    }
    config.eval.checkpoint = "latest"
    result = evaluate(config, workdir)
    assert result["accuracy"]["value"] == logged[48]
    assert result["accuracy"]["count"] == 24
    assert sum(map(sum, result["confusion_matrix"])) == 24
    wrong = 24 - sum(np.diag(result["confusion_matrix"]))
    assert len(lines(workdir / "errors_validation.jsonl")) == wrong


def test_integrated_checkpoint_gives_the_curve_of_its_point(trained):
    config, workdir, results = trained
    config.eval.checkpoint = "integrated"
    result = evaluate(config, workdir)
    chosen = results["integration"]
    value = {point["alpha"]: point["value"] for point in chosen["curve"]}[chosen["alpha"]]
    assert result["accuracy"]["value"] == value


def test_integrate_mode_repeats_what_the_main_job_chose(trained):
    config, workdir, results = trained
    result = integrate(config, workdir)
    assert result["alpha"] == results["integration"]["alpha"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_predict_keeps_every_line_and_agrees_with_evaluate(trained, reviews, tmp_path, suffix):
    config, workdir, _ = trained
    texts = [text for text, _ in reviews[:50]]
    source = tmp_path / f"input{suffix}"
    source.write_text(
        {
            ".txt": "\n".join(texts) + "\n",
            ".jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts),
            ".csv": "text\n" + "".join(f'"{text}"\n' for text in texts),
        }[suffix],
        encoding="utf-8",
    )
    config.predict.input = str(source)
    rows = lines(predict(config, workdir))
    assert [row["text"] for row in rows] == texts
    for row in rows:
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    right = [row["prediction"] == label for row, (_, label) in zip(rows, reviews, strict=False)]
    assert np.mean(right) > 0.7


def test_predict_says_which_texts_it_cannot_read_whole(trained, tmp_path, capsys):
    config, workdir, _ = trained
    texts = ["好" * 500, "价格很满意", " ", "差" * 300]
    (tmp_path / "input.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8"
    )
    config.predict.input = str(tmp_path / "input.jsonl")
    assert len(lines(predict(config, workdir))) == 4
    said = capsys.readouterr().out
    assert "2 of 4 given examples are longer than config.layout.max_length=64" in said
    assert "1 of 4 texts are empty" in said


def test_other_config_in_a_workdir_is_refused_with_the_difference(trained):
    config, workdir, _ = trained
    config.optimizer.learning_rate = 1e-3
    with pytest.raises(ValueError, match="learning_rate: 0.003 there, 0.001 now") as error:
        train(config, workdir)
    assert "--config.train.on_config_change=overwrite" in str(error.value)
    assert (workdir / "results.json").exists()


def test_another_batch_size_continues_at_the_same_example(tiny_config, tmp_path):
    tiny_config.train.update(duration="48 examples", integrate=False)
    before = train(tiny_config, tmp_path / "run")
    tiny_config.train.update(duration="96 examples", on_config_change="continue")
    tiny_config.data.batch_size = 16
    tiny_config.eval.metric = "loss"
    after = train(tiny_config, tmp_path / "run")
    assert before["checkpoint"] == "best checkpoint, step 6"
    assert after["checkpoint"] == "best checkpoint, step 9"
    assert len(after["test_openings"]) == 2
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    optimizer = checkpoints._manager.restore(checkpoints.latest()).optimizer
    assert int(optimizer["examples"]) == 96
    assert int(optimizer["step"]) == 48 // 8 + 48 // 16


def test_a_stopped_run_keeps_its_dtype_on_another_machine_and_resumes_exactly(
    tiny_config, tmp_path, monkeypatch
):
    tiny_config.train.update(duration="12 steps", checkpoint_every="4 steps", integrate=False)
    tiny_config.train.log_every = "1 step"
    tiny_config.eval.update(every="4 steps", test=False)
    tiny_config.adapt.kind = "lora"

    def run(name, features, on_evaluation=None):
        monkeypatch.setattr(compilation, "cpu_features", lambda: features)
        config = tiny_config.copy_and_resolve_references()
        config.model.dtype = "auto"
        train(config, tmp_path / name, on_evaluation=on_evaluation)
        return [row["loss"] for row in lines(tmp_path / name / "metrics.jsonl") if "loss" in row]

    def stop(step, _):
        raise KeyboardInterrupt

    whole = run("whole", "flags : avx512_bf16")
    with pytest.raises(KeyboardInterrupt):
        run("parts", "flags : avx512_bf16", stop)
    assert run("parts", "flags : avx2") == whole
    checkpoints = Checkpoints(tmp_path / "parts/checkpoints", read_only=True)
    assert checkpoints.meta(checkpoints.latest())["config"]["model"]["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "parts/config.json").read_text())["model"]["dtype"] == "bfloat16"


def test_a_head_that_the_checkpoint_lacks_is_refused(trained):
    config, workdir, _ = trained
    config.model.head = "linear"
    with pytest.raises(ValueError, match="model.head: 'label_words' in the checkpoint, 'linear'"):
        evaluate(config, workdir)


def test_an_absent_checkpoint_is_named_with_those_that_are_there(trained):
    config, workdir, _ = trained
    config.eval.checkpoint = "5"
    with pytest.raises(ValueError, match=r"'5' is not in .* holds the steps \[.*48\]"):
        evaluate(config, workdir)


def test_a_failed_start_leaves_the_workdir_free(tiny_config, tmp_path):
    tiny_config.schedule.warmup = "100%"
    with pytest.raises(ValueError, match="schedule.warmup covers"):
        train(tiny_config, tmp_path / "run")
    tiny_config.schedule.warmup = "0%"
    tiny_config.train.update(duration="1 step", integrate=False)
    train(tiny_config, tmp_path / "run")


def test_overwrite_starts_again_and_keeps_the_record_of_test_openings(trained):
    config, workdir, _ = trained
    config.train.update(duration="2 steps", integrate=False, on_config_change="overwrite")
    results = train(config, workdir)
    assert results["checkpoint"] == "best checkpoint, step 2"
    assert len(results["test_openings"]) == 2


def test_changed_data_under_the_same_path_is_refused(tiny_config, tmp_path):
    path = tmp_path / "reviews.csv"
    shutil.copy(tiny_config.data.files, path)
    tiny_config.data.files = str(path)
    tiny_config.train.update(duration="2 steps", integrate=False)
    train(tiny_config, tmp_path / "run")
    path.write_text(path.read_text("utf-8") + "完全不同的一条评论,positive\n", "utf-8")
    with pytest.raises(ValueError, match="checkpoint 2 of .* was trained with another"):
        train(tiny_config, tmp_path / "run")


def test_a_sweep_can_leave_the_test_split_shut(tiny_config, tmp_path):
    tiny_config.train.update(duration="2 steps", integrate=False)
    tiny_config.eval.test = False
    results = train(tiny_config, tmp_path / "run")
    assert results["split"] == "validation"
    assert results["models"]["fine-tuned"]["accuracy"]["count"] == 24
    assert not (tmp_path / "run/test_openings.jsonl").exists()


@pytest.mark.parametrize("kind", ["pad", "bucket", "pack"])
def test_a_run_compiles_at_most_four_programs(tiny_config, tmp_path, capsys, kind):
    tiny_config.layout.kind = kind
    tiny_config.train.duration = "1 epoch"
    train(tiny_config, tmp_path / "run")
    compiled = capsys.readouterr().out.count("Compiled the")
    assert 2 <= compiled <= 4


def test_a_diverged_run_stops_and_names_the_steps(tiny_config, tmp_path):
    tiny_config.optimizer.update(learning_rate=1e30, clip_norm=0.0)
    tiny_config.schedule.warmup = "0%"
    with pytest.raises(ValueError, match=r"not finite at steps \[\d+"):
        train(tiny_config, tmp_path / "run")


def test_early_stopping_ends_a_run_that_gains_nothing(tiny_config, tmp_path):
    tiny_config.train.update(duration="40 steps", early_stopping=2, integrate=False)
    tiny_config.eval.every = "1 step"
    tiny_config.optimizer.learning_rate = 0.0
    train(tiny_config, tmp_path / "run")
    steps = [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")]
    assert max(steps) == 3


def test_scratch_must_be_asked_for_and_takes_a_new_tokenizer(tiny_config, tmp_path):
    tiny_config.tokenizer.update(model="train", vocab_size=400)
    with pytest.raises(ValueError, match="init='scratch'"):
        train(tiny_config, tmp_path / "run")
    tiny_config.model.init = "scratch"
    results = train(tiny_config, tmp_path / "scratch")
    assert results["integration"] is None
    assert (tmp_path / "scratch" / "tokenizer.model").exists()


def test_weights_of_another_run_are_a_start(tiny_config, tmp_path):
    tiny_config.train.integrate = False
    train(tiny_config, tmp_path / "first")
    tiny_config.resume_from = str(tmp_path / "first")
    tiny_config.data.labels = ("positive", "negative")
    with pytest.raises(ValueError, match="set config.data.labels to the former"):
        train(tiny_config, tmp_path / "second")
    tiny_config.data.labels = ()
    tiny_config.optimizer.learning_rate = 0.0
    train(tiny_config, tmp_path / "second")
    values = [
        [row["validation/loss"] for row in lines(path) if "validation/loss" in row]
        for path in (tmp_path / "first/metrics.jsonl", tmp_path / "second/metrics.jsonl")
    ]
    assert values[1][0] in values[0]


@pytest.fixture
def main(monkeypatch):
    """A function of flags that runs main.py in this process; they are forgotten afterwards."""
    known = set(FLAGS)
    if "showtrace" not in FLAGS:  # which main.py defines when it is the program
        flags.DEFINE_bool("showtrace", False, "")
    monkeypatch.setattr(program, "set_up_output", lambda: None)

    def run(*values):
        monkeypatch.setattr(sys, "argv", ["main.py", *values])
        program.main(program.parse_flags(sys.argv))

    yield run
    FLAGS.unparse_flags()
    for name in set(FLAGS) - known:
        delattr(FLAGS, name)
    for name in known:
        FLAGS[name].unparse()


def start(*flags, kilobytes_a_file="unlimited", **environment):
    command = f'ulimit -f {kilobytes_a_file}; exec "$0" main.py "$@"'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, *flags],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--config.optimizer.learning_rat=1", "--config.optimizer.learning_rate"),
        ("--config.data.bacth_size=8", "--config.data.batch_size"),
        ("--config.optimiser.learning_rate=1", "--config.optimizer.learning_rate"),
        ("--config.batch_size=8", "--config.data.batch_size"),
        ("--config.sed=8", "--config.seed"),
        ("--noconfig.train.integrat", "--config.train.integrate"),
    ],
)
def test_a_misspelt_key_at_any_depth_names_the_nearest(flag, nearest):
    with pytest.raises(ValueError, match="no such key") as error:
        check_overrides(["main.py", "--config=configs/reviews.py:runlocal", flag])
    assert str(error.value).endswith(f"the nearest is {nearest}")


def test_known_keys_pass():
    check_overrides(["main.py", "--config", "configs/reviews.py", "--config.data.batch_size=8"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.bacth_size=8"], "the nearest is --config.data.batch_size"),
        (["--config.data.batch_size=many"], "config.data.batch_size: found 'many', expected a"),
        (["--config.optimizer.learning_rate=-1"], "learning_rate: found -1.0, expected a finite"),
        (["--config.data.cleaning=5"], "config.data.cleaning: found '5', expected the keys of a"),
        (["--config.model.checkpoint=/nowhere"], "Checkpoint '/nowhere' doesn't exist"),
        (["--mode=predict"], "--config.predict.input=FILE"),
        (["--workdir=gs://bucket/run"], "no folder of a disk"),
    ],
)
def test_mistakes_end_as_one_message(main, tiny_config, write_config, tmp_path, flags, message):
    config = write_config(tiny_config, tmp_path / "config.py")
    with pytest.raises(SystemExit) as ended:
        main(f"--config={config}", f"--workdir={tmp_path / 'run'}", *flags)
    assert str(ended.value).startswith("Error: ") and message in str(ended.value)


def test_a_process_ends_with_the_message_and_without_a_trace(tmp_path):
    run = start("--config=configs/reviews.py", f"--workdir={tmp_path}", "--config.sed=8")
    assert run.returncode == 1
    assert run.stderr.endswith("the nearest is --config.seed\n")
    assert "Traceback" not in run.stderr + run.stdout


def test_a_command_says_once_how_a_table_is_read(
    main, tiny_config, write_config, tmp_path, reviews, capsys
):
    """A table of pandas with its index and float labels, saved with tabs in GB18030."""
    rows = [f'{i}\t"{text}""好"""\t{i % 2}.0' for i, (text, _) in enumerate(reviews)]
    path = tmp_path / "reviews.tsv"
    path.write_text("\ttext\tlabel\n" + "\n".join(rows), "gb18030")
    tiny_config.data.files = str(path)
    tiny_config.inspect.examples = 1
    config = write_config(tiny_config, tmp_path / "config.py")
    main(f"--config={config}", f"--workdir={tmp_path / 'run'}", "--mode=inspect")
    shown = capsys.readouterr().out
    decision = rf"Read {path}: tab, quoted fields, \n line ends, gb18030, 2 columns (text, label), "
    assert shown.count(decision + "1 without a name not read.\n") == 1
    said = f"{len(reviews)} labels or groups written as floats are read as whole numbers, 1.0 as 1"
    assert shown.count(f"{said}, the first at {path}:2.\n") == 1


def test_a_workdir_in_use_is_refused_and_named_with_its_first_command(
    tiny_config, write_config, tmp_path
):
    config = write_config(tiny_config, tmp_path / "config.py")
    with in_use(tmp_path / "run"):
        run = start(f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.seed=5")
        assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock"}
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert f"run is in use by process {os.getpid()} on " in run.stderr
    assert f"`{shlex.join(['python', *sys.argv])}`: wait for its end" in run.stderr


def test_every_option_of_the_step_trains(tiny_config, tmp_path):
    """bfloat16, rematerialisation, microbatches, augmentation, dropout, decay by layer, wsd."""
    tiny_config.model.update(dtype="bfloat16", remat="dots", dropout=0.1, head="linear")
    tiny_config.train.update(microbatches=2, integrate=True)
    tiny_config.augmentation.update(deletion_rate=0.05, punctuation_rate=0.1)
    tiny_config.optimizer.update(
        layer_decay=0.9, lr_table=(("backbone/embedder/.*", None), ("head/.*", 5.0), (".*", 1.0))
    )
    tiny_config.schedule.update(name="wsd", warmup="5 steps", cooldown="25%")
    tiny_config.layout.kind = "bucket"
    results = train(tiny_config, tmp_path / "run")
    losses = [row["loss"] for row in lines(tmp_path / "run/metrics.jsonl") if "loss" in row]
    assert np.mean(losses[-8:]) < np.mean(losses[:8])
    model = list(results["models"].values())[-1]
    assert model["accuracy"]["value"] > 0.7


@pytest.mark.long
def test_a_failed_write_ends_as_one_message_and_the_run_goes_on_later(
    tiny_config, write_config, tmp_path
):
    tiny_config.train.integrate = False
    config = write_config(tiny_config, tmp_path / "config.py")
    flags = (f"--config={config}", f"--workdir={tmp_path / 'run'}")
    prepare(tiny_config.data)
    run = start(*flags, kilobytes_a_file=40)  # less than the embedding, whatever Orbax splits
    assert run.returncode == 1
    assert "a checkpoint could not be written to" in run.stderr
    assert "start the same command again" in run.stderr
    assert "Traceback" not in run.stderr + run.stdout
    run = start(*flags)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run/results.json").exists()
    assert (tmp_path / "run/command.txt").read_text() == shlex.join(
        ["python", "main.py", *flags]
    ) + "\n"


def test_what_is_left_out_is_said_once_and_kept_whatever_the_terminal_can_show(
    tiny_config, write_config, tmp_path
):
    """Examples that are too long, not used or not written, in a folder with a Chinese name, on a
    terminal and in a locale that know ASCII alone."""
    folder = tmp_path / "数据"
    folder.mkdir()
    rows = [
        {"text": f"第{i}次，房间怎么样😀", "pair": "好" * (60 if i % 3 == 0 else 4)}
        for i in range(96)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "问答.jsonl").write_text(text, encoding="utf-8")
    tiny_config.task = "generation"
    tiny_config.data.update(files=str(folder / "问答.jsonl"), pair_column="pair", label_column="")
    tiny_config.data.update(template="问：{text}\n答：{pair}", max_validation_examples=6)
    tiny_config.data.split.update(validation=0.2, test=0.2)
    tiny_config.data.audit.kind = "off"
    tiny_config.layout.update(max_length=48, row_length=48)
    tiny_config.generation.update(max_tokens=3, examples=4)
    tiny_config.train.update(duration="1 step", integrate=False)
    config = write_config(tiny_config, tmp_path / "config.py")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = start(f"--config={config}", f"--workdir={folder / '跑'}", **ascii_only)
    assert run.returncode == 0, run.stderr
    results = json.loads((folder / "跑/results.json").read_text(encoding="utf-8"))
    page = (folder / "跑/report.html").read_text(encoding="utf-8")
    notes = [line.removeprefix("Note: ") for line in run.stdout.splitlines() if "Note: " in line]
    left_out = {(each["split"], each["sentence"]): each for each in results["left_out"]}
    assert len(notes) == len(set(notes)) and {said for _, said in left_out} <= set(notes)
    for split, part in results["manifest"][""]["splits"].items():
        [long] = [v for key, v in left_out.items() if key[0] == split and "dropped" in key[1]]
        assert 0 < long["count"] < long["total"] == part["used"]
        assert long["sentence"] in html.unescape(page)
    for said in (
        "validation answers are longer than config.generation.max_tokens=3",
        "test answers have no written one beside them: 4 are compared",
        "written answers reach config.generation.max_tokens=3 and stop there",
    ):
        assert sum(said in note for note in notes) == 1, said
    assert "leave 6 of 1" in run.stdout and r"\u6570\u636e" in run.stdout
    assert "Traceback" not in run.stderr


def test_pairs_train_are_split_by_group_and_predicted(tiny_config, tmp_path):
    """Whether the second text answers the first: only both together tell."""
    things, rows = ("房间", "早餐", "快递", "电池", "包装", "价格"), []
    for i in range(60):
        for thing in things:
            same = (i + things.index(thing)) % 2
            other = thing if same else things[things.index(thing) - 1]
            row = {"a": f"第{i}次说的是{thing}", "b": f"说{other}吗", "label": same, "group": i}
            rows.append(json.dumps(row, ensure_ascii=False))
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(rows), "utf-8")
    tiny_config.data.update(
        files=str(path),
        text_column="a",
        pair_column="b",
        group_column="group",
        template="{text}\n{pair}：",
    )
    tiny_config.data.split.kind = "group"
    tiny_config.train.update(duration="16 steps", checkpoint_every="100%")
    tiny_config.eval.every = "100%"
    results = train(tiny_config, tmp_path / "run")
    prepared = prepare(tiny_config.data)
    texts = {}
    for name in prepared.manifest["splits"]:
        examples = load_split(prepared, name)
        texts[name] = {text.partition("次")[0] for text in examples.texts_N}
    assert not texts["train"] & texts["test"] and not texts["validation"] & texts["test"]
    assert results["models"]["fine-tuned"]["accuracy"]["count"] >= 30
    tiny_config.predict.input = str(path)
    assert len(lines(predict(tiny_config, tmp_path / "run"))) == 360


def test_data_without_class_labels_are_refused_before_any_training(tiny_config, tmp_path):
    tiny_config.data.label_column = ""
    with pytest.raises(ValueError, match=r"set config\.data\.label_column"):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_test_number_is_given_with_and_without_leaks(tiny_config, reviews, tmp_path):
    path = tmp_path / "copies.csv"
    rows = [f"{text}{end},{label}" for text, label in reviews for end in ("", "！！")]
    path.write_text("text,label\n" + "\n".join(rows), "utf-8")
    tiny_config.data.files = str(path)
    tiny_config.train.update(duration="8 steps", checkpoint_every="100%", integrate=False)
    tiny_config.eval.every = "100%"
    results = train(tiny_config, tmp_path / "run")
    leaked = prepare(tiny_config.data).manifest["splits"]["test"]["leaked"]
    for row in results["models"].values():
        assert row["leak_free"]["accuracy"]["count"] == row["accuracy"]["count"] - leaked
    assert 0 < leaked < results["models"]["fine-tuned"]["accuracy"]["count"]
    assert json.loads((tmp_path / "run" / "silent_loss.json").read_text())["texts"] == 96


def test_a_failed_start_leaves_no_features_for_another_config(tiny_config, tmp_path):
    features = {"use": "both", "compare": False, "extractors": ("character_tfidf",)}
    tiny_config.features.update(features, svd=4)
    tiny_config.optimizer.lr_table = (("head/feature_kernel", None), (".*", 1.0))
    with pytest.raises(ValueError, match="freezes head/feature_kernel"):
        train(tiny_config, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()  # as a start leaves that is killed a little later
    tiny_config.features.svd = 8
    tiny_config.optimizer.lr_table = ((".*", 1.0),)
    tiny_config.train.update(duration="2 steps", checkpoint_every="100%", integrate=False)
    tiny_config.eval.every = "100%"
    train(tiny_config, tmp_path / "run")
    assert load_features(tmp_path / "run" / "features.safetensors").names[-1].endswith("svd_7")
    tiny_config.features.svd = 6
    tiny_config.train.on_config_change = "continue"
    with pytest.raises(ValueError, match="features or a vocabulary other than"):
        train(tiny_config, tmp_path / "run")
