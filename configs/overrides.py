"""Configs by name and by flag: loading, copies, and the nearest key of a misspelt override."""

import difflib
import importlib.util
import re
from pathlib import Path

from ml_collections import ConfigDict


def load_config(spec: str) -> ConfigDict:
    """Loads 'path/to/config.py:arg'.

    Raises:
      FileNotFoundError: there is no such file.
    """
    path, _, arg = spec.partition(":")
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config={spec}: there is no file {Path(path).absolute()}")
    module_spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.get_config(arg) if arg else module.get_config()


def companion(config: ConfigDict) -> ConfigDict:
    """Returns a copy for a run that the config's own is compared with.

    It is integrated by itself, without other runs, and its test split stays shut.
    """
    own = config.copy_and_resolve_references()
    own.integrate.update(methods=("interpolation",), runs=(), shifted_files="", targets="")
    own.eval.test = False
    return own


def key_paths(config: ConfigDict, prefix: str = "config") -> list[str]:
    """Lists every key as 'config.a.b', inner nodes included."""
    paths = []
    for key, value in config.items():
        paths.append(f"{prefix}.{key}")
        if isinstance(value, ConfigDict):
            paths += key_paths(value, f"{prefix}.{key}")
    return paths


def find_recipe(argv: list[str]) -> str:
    """Returns what a command line gives to --config: 'path/to/config.py:arg'; '' without it."""
    joined = re.search(r"(?:^|\0)--?config[=\0]([^\0]+)", "\0".join(argv))
    return joined[1] if joined else ""


def check_overrides(argv: list[str]) -> None:
    """Raises on an override whose key does not exist.

    Args:
      argv: the whole command line.

    Raises:
      ValueError: names the full path of the unknown key and the nearest one that exists.
    """
    recipe = find_recipe(argv)
    if not recipe:
        return  # absl reports the missing flag
    paths = key_paths(load_config(recipe))
    for argument in argv:
        match = re.match(r"--?(?:no)?(config\.[^=]+)", argument)
        if match and match[1] not in paths:
            # Compare the whole path first, then the last name alone: it may be in another group.
            last = match[1].rsplit(".", 1)[1]
            near = difflib.get_close_matches(match[1], paths, n=1, cutoff=0.75)
            near = near or [path for path in paths if path.rsplit(".", 1)[1] == last]
            near = near or difflib.get_close_matches(match[1], paths, n=1, cutoff=0.0)
            raise ValueError(f"--{match[1]}: there is no such key; the nearest is --{near[0]}")
