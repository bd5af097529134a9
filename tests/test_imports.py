"""What may be imported where."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_everything_but_the_pipeline_itself_imports_without_tensorflow():
    """All modules are imported where TensorFlow and TFDS are not to be found."""
    folders = ("input_pipeline", "models", "tasks", "training", "evaluation", "integration")
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
            assert f"\nfrom {room}" not in text and f"\nimport {room}" not in text, (path, room)
        assert ("import orbax" in text) == (parts == ("training", "checkpoints.py")), path
        assert ("absl import app" in text) == (parts == ("main.py",)), path
        assert text.count("\n") <= 500, path
