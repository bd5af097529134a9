"""Every recipe loads, has values that can work, and says how it is run."""

import importlib
from pathlib import Path

import pytest

from configs.checks import check_values
from tasks import KINDS

NOT_RECIPES = ("__init__", "common", "checks", "overrides", "ranges", "stored", "sweeping")
RECIPES = sorted(
    path.stem
    for path in (Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem not in NOT_RECIPES
)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_its_docstring_holds_its_command(name):
    recipe = importlib.import_module(f"configs.{name}")
    check_values(recipe.get_config(), tasks=KINDS)
    if name not in (
        "clue",
        "fewclue",
        "tuning_bench",
    ):  # which have a variant for each data set instead
        check_values(recipe.get_config("runlocal"), tasks=KINDS)
    assert f"--config=configs/{name}.py" in recipe.__doc__
    with pytest.raises(ValueError, match=f"configs/.*:{'nonsense'}"):
        recipe.get_config("nonsense")
