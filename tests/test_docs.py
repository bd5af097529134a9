"""What README and docs name exists: links, files, config keys, modes, extras, quoted results."""

import re
import tomllib
from pathlib import Path

import pytest

from configs import common

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = READMES + sorted((ROOT / "docs").glob("*.md"))
FOLDERS = sorted({path.parent.name for path in ROOT.glob("*/*.py")})
FILES = {ROOT / "main.py", *(path for name in FOLDERS for path in (ROOT / name).rglob("*.*"))}
EXAMPLES = ("configs/mine.py", "data.bacth_size")  # a recipe to write, a misspelt key


def keys(config, prefix=""):
    for name, value in config.items():
        yield prefix + name
        if hasattr(value, "items"):
            yield from keys(value, f"{prefix}{name}.")


def anchors(page):
    titles = re.findall(r"^#+ (.*)", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_files_keys_modes_and_extras_exist(page):
    text = page.read_text("utf-8")
    for path, anchor in re.findall(r"\]\(([^)\s#]*)#?([^)\s]*)\)", text):
        target = page.parent / path if path else page
        assert target.exists() and (not anchor or anchor in anchors(target)), (path, anchor)
    for path in re.findall(rf"(?<![\w/.])(?:{'|'.join(FOLDERS)})/[\w/]+\.\w+", text):
        assert ROOT / path in FILES or path in EXAMPLES, path
    for name in re.findall(r"(?<![\w/.])\w+\.py\b", text):
        assert name in {path.name for path in FILES}, name
    for module in re.findall(r"python -m benchmarks\.(\w+)", text):
        assert ROOT / "benchmarks" / f"{module}.py" in FILES, module
    known = {*keys(common.get_config()), *EXAMPLES, "get_config", "data.update", "json"}
    for key in re.findall(r"\bconfig\.((?:\w+\.)*\w+)", text):
        assert re.sub(r"^multi\.members\.\w+\.", "", key) in known, key
    modes = set(re.findall(r"--mode=([a-z]+)", text))
    assert modes <= set(re.findall(r'"(\w+)"', (ROOT / "main.py").read_text("utf-8")))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for names in re.findall(r"'\.\[([\w,]+)\]'", text):
        assert {*names.split(",")} <= {*extras["optional-dependencies"]}, names


def test_readmes_are_short_and_quote_results_that_docs_hold():
    docs = "".join(page.read_text("utf-8") for page in PAGES[2:])
    recipes = [path.read_text("utf-8").split('"""')[1] for path in ROOT.glob("configs/*.py")]
    quoting = "".join([page.read_text("utf-8") for page in READMES] + recipes)
    for result in re.findall(r"[\d.]+ ± [\d.]+\d", quoting):
        assert result in docs, result
    assert all(page.stat().st_size <= 10_000 for page in READMES)
