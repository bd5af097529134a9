"""What may be imported where."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ORDER = (
    "configs",
    "input_pipeline",
    "models",
    "evaluation",
    "tasks",
    "training",
    "integration",
    "reporting",
    "workflows",
    "main",
)
# Within input_pipeline; the files at its root come first.
PIPELINE_ORDER = ("corpus", "tokenizers", "features", "batches")


def test_everything_but_the_pipeline_itself_imports_without_tensorflow():
    """All modules are imported where TensorFlow and TFDS are not to be found."""
    modules = [name for name in _modules() if ".datasets" not in name]
    assert len(modules) > 100
    code = (
        "import sys, importlib\n"
        "sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def _modules() -> dict[str, Path]:
    """Returns the project's own modules by name, without tests and benchmarks."""
    paths = [path for folder in ORDER[:-1] for path in sorted((ROOT / folder).rglob("*.py"))]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    modules = {name.removesuffix(".__init__"): path for path, name in names.items()}
    return modules | {"main": ROOT / "main.py"}


def _imports() -> dict[str, set[str]]:
    """Returns module -> the project's modules that it imports, inside functions too."""
    modules = _modules()
    graph = {}
    for module, path in modules.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in modules else node.module for name in full}
        graph[module] = (names & modules.keys()) - {module}
    return graph


def test_imports_run_down_only():
    """No folder imports one that comes later in ORDER, nor a part of input_pipeline a later part;
    models read of input_pipeline how files are written and who writes, and no more."""

    def level(module: str) -> tuple[int, int]:
        folder, *rest = module.split(".")
        inner = PIPELINE_ORDER.index(rest[0]) if rest and rest[0] in PIPELINE_ORDER else -1
        return ORDER.index(folder), inner if folder == "input_pipeline" else 0

    upward = []
    for module, names in _imports().items():
        upward += [f"{module} -> {name}" for name in names if level(name) > level(module)]
        if module.startswith("models."):
            pipeline = {name for name in names if name.startswith("input_pipeline")}
            upward += [
                f"{module} -> {name}"
                for name in pipeline - {"input_pipeline.files", "input_pipeline.hosts"}
            ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    graph = _imports()
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_one_file_each_knows_orbax_and_flags_and_none_is_long():
    for name, path in _modules().items():
        text = path.read_text(encoding="utf-8")
        assert ("import orbax" in text) == (name == "training.checkpoints"), path
        assert ("absl import app" in text) == (name == "main"), path
        longest = 570 if name == "configs.common" else 500  # a line for each knob
        assert text.count("\n") <= longest, path


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
