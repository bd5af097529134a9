"""What may be imported where."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_everything_but_the_pipeline_itself_imports_without_tensorflow():
    """All modules are imported where TensorFlow and TFDS are not to be found."""
    folders = ("input_pipeline", "models", "tasks", "training", "evaluation", "integration")
    folders += ("reporting", "workflows")
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "datasets" not in path.parts and path.name != "__init__.py"
    ]
    assert len(modules) > 30
    code = (
        "import sys, importlib\n"
        "sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_rooms_keep_to_themselves():
    """input_pipeline knows no model, models no task, tasks no trainer; one file each knows Orbax
    and flags."""
    forbidden = {
        "input_pipeline": ("models", "training", "tasks", "evaluation"),
        "models": ("tasks", "training", "evaluation", "input_pipeline"),
        "tasks": ("training",),
    }
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        if parts[0] in ("tests", "benchmarks", "build") or parts[0].startswith("."):
            continue
        text = path.read_text(encoding="utf-8")
        for room in forbidden.get(parts[0], ()):
            assert (
                f"\nfrom {room}" not in text.replace("\nfrom input_pipeline.files", "")
                and f"\nimport {room}" not in text
            ), (path, room)
        assert ("import orbax" in text) == (parts == ("training", "checkpoints.py")), path
        assert ("absl import app" in text) == (parts == ("main.py",)), path
        assert text.count("\n") <= 500, path


def test_every_text_file_is_opened_as_utf8():
    """Whatever the locale is: what takes text names the encoding."""
    names = ("open", "read_text", "write_text", "NamedTemporaryFile", "TextIOWrapper")
    # Of ours, which take an encoding by another way, or know it; and of archives, which are bytes.
    others = ("encodings.read_text", "write_text", "write_text", "archive.open", "gzip.open")
    missing = []
    for path in sorted(ROOT.rglob("*.py")):
        if path.relative_to(ROOT).parts[0] in ("tests", "build") or "/." in str(path):
            continue
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or ast.unparse(call.func) in others:
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            given = [
                ast.unparse(value) for value in (*call.args, *(k.value for k in call.keywords))
            ]
            keys = {keyword.arg for keyword in call.keywords}
            known = "encoding" in keys or any(
                re.fullmatch("'utf-8(-sig)?'|'[rwax]b'", v) for v in given
            )
            if (
                name in names or ("text" in keys and name in ("run", "Popen", "check_output"))
            ) and not known:
                missing.append(f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)[:60]}")
    assert not missing
