"""Configs by name and by flag: loading, copies, and the nearest key of a misspelt override."""

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.checks import MEMBERS, expected


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
    recipes = re.findall(r"(?:^|\0)--?config[=\0]([^\0]+)", "\0".join(argv))
    return recipes[-1] if recipes else ""


def check_keys(config: ConfigDict, keys: Iterable[str]) -> None:
    """Raises on a key, such as 'config.data.files', that the config does not have.

    Raises:
      ValueError: names the full path of the unknown key and the nearest one that exists.
    """
    paths = key_paths(config)
    for key in keys:
        if key in paths:
            continue
        name = re.match(rf"config\.{MEMBERS}\.(\w+)", key)
        if name and name[0] not in paths:
            raise ValueError(
                f"--{key}: the recipe has no member {name[1]!r}; a recipe makes members, as "
                f"configs/multi.py does; this one has {list(config.multi.members)}"
            )
        # Compare the whole path first, then the last name alone: it may be in another group.
        last = key.rsplit(".", 1)[1]
        near = difflib.get_close_matches(key, paths, n=1, cutoff=0.75)
        near = near or [path for path in paths if path.rsplit(".", 1)[1] == last]
        near = near or difflib.get_close_matches(key, paths, n=1, cutoff=0.0)
        raise ValueError(f"--{key}: there is no such key; the nearest is --{near[0]}")


def check_overrides(argv: list[str]) -> list[str]:
    """Checks the keys and types of overrides, and spells out those of whole groups.

    Args:
      argv: the whole command line.

    Returns:
      The command line with --config.a.b=1 in the place of --config.a="{'b': 1}": keys of a group
      that are not given keep their values.

    Raises:
      ValueError: a key that does not exist, or a value of another type.
    """
    recipe = find_recipe(argv)
    if not recipe:
        return argv  # absl reports the missing flag
    config = load_config(recipe)
    spelt, rest = [], list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.partition("=")
        match = re.fullmatch(r"--?(?:no)?(config\.\S+)", name)
        if not match:
            spelt.append(argument)
            continue
        check_keys(config, [match[1]])
        if not equals and not isinstance(_value(config, match[1]), bool) and rest:
            equals, text = "=", rest.pop(0)  # as in --config.seed 1
        spelt += _flags(config, match[1], text) if equals else [argument]
    return spelt


def _flags(config: ConfigDict, key: str, text: str) -> list[str]:
    """Returns --KEY=TEXT, or for the dict of a group the flags of all that it holds."""
    current = _value(config, key)
    if not isinstance(current, ConfigDict):
        _check_type(key, text, type(current))
        if isinstance(current, tuple) and not text:
            text = "()"  # absl makes it the tuple of one empty string
        return [f"--{key}={text}"]
    try:
        given = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        given = None
    if not isinstance(given, dict):
        name = next(iter(current), "NAME")
        raise ValueError(
            f"--{key}: found {text!r}, expected the keys of a group: --{key}.{name}=VALUE, or "
            f"--{key}=\"{{'{name}': VALUE}}\""
        )
    flags = []
    for name, value in given.items():
        check_keys(config, [f"{key}.{name}"])
        value = tuple(value) if isinstance(value, list) else value
        flags += _flags(config, f"{key}.{name}", value if isinstance(value, str) else repr(value))
    return flags


def _check_type(key: str, text: str, kind: type) -> None:
    """Raises where a number or a switch is spelt as none: absl does too, without what fits."""
    try:
        if kind in (int, float):
            kind(text)
        if kind is bool and text.lower() not in ("true", "t", "1", "false", "f", "0"):
            raise ValueError
    except ValueError:
        raise ValueError(f"{key}: found {text!r}, expected {expected(key)}") from None


def _value(config: ConfigDict, key: str) -> Any:
    for name in key.split(".")[1:]:
        config = config[name]
    return config
