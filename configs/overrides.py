"""Configs by name and by flag: loading, copies, and the nearest key of a misexpanded override."""

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.checks import MEMBERS, expected
from configs.stored import RENAMED


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
    """Returns a copy for a run that this config's run is compared with.

    It is only interpolated, without other runs, and does not open its test split.
    """
    copy = config.copy_and_resolve_references()
    copy.integrate.update(methods=("interpolation",), runs=(), shifted_files="", targets="")
    copy.eval.test = False
    return copy


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
    """Raises if the config does not have a key such as 'config.data.files'.

    Raises:
      ValueError: with the full path of the unknown key, and the nearest existing one.
    """
    paths = key_paths(config)
    for key in keys:
        if key in paths:
            continue
        name = re.match(rf"config\.{MEMBERS}\.(\w+)", key)
        if name and name[0] not in paths:
            raise ValueError(
                f"--{key}: the recipe has no member {name[1]!r} but {list(config.multi.members)}; "
                "members are made by a recipe: see configs/multi.py"
            )
        if new := RENAMED.get(key.removeprefix("config.")):
            raise ValueError(f"--{key}: no such key any more; it is --config.{new} now")
        # Compare the whole path first, then the last name alone: it may be in another group.
        last = key.rsplit(".", 1)[1]
        near = difflib.get_close_matches(key, paths, n=1, cutoff=0.75)
        near = near or [path for path in paths if path.rsplit(".", 1)[1] == last]
        near = near or difflib.get_close_matches(key, paths, n=1, cutoff=0.0)
        raise ValueError(f"--{key}: no such key; the nearest is --{near[0]}")


def check_overrides(argv: list[str]) -> list[str]:
    """Checks the keys and types of overrides, and expands those of whole groups.

    Args:
      argv: the whole command line.

    Returns:
      The command line with --config.a.b=1 instead of --config.a="{'b': 1}", so that the other keys
      of the group keep their values.

    Raises:
      ValueError: a key that does not exist, or a value of another type.
    """
    recipe = find_recipe(argv)
    if not recipe:
        return argv  # absl reports the missing flag
    config = load_config(recipe)
    expanded, rest = [], list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.partition("=")
        match = re.fullmatch(r"--?(?:no)?(config\.\S+)", name)
        if not match:
            expanded.append(argument)
            continue
        check_keys(config, [match[1]])
        if not equals and not isinstance(read_key(config, match[1]), bool) and rest:
            equals, text = "=", rest.pop(0)  # as in --config.seed 1
        expanded += _flags(config, match[1], text) if equals else [argument]
    return expanded


def _flags(config: ConfigDict, key: str, text: str) -> list[str]:
    """Returns --KEY=TEXT; of a group's dict, the flags of all its keys."""
    current = read_key(config, key)
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
    """Raises if TEXT is no number or bool where one is expected; absl would not name the range."""
    try:
        if kind in (int, float):
            kind(text)
        if kind is bool and text.lower() not in ("true", "t", "1", "false", "f", "0"):
            raise ValueError
    except ValueError:
        raise ValueError(f"{key}: found {text!r}, expected {expected(key)}") from None


def read_key(config: ConfigDict, key: str) -> Any:
    """Returns the value, or the group, of a key such as 'config.data.files'."""
    for name in key.split(".")[1:]:
        config = config[name]
    return config
