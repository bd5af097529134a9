"""Reads config.json with errors that name the file and the field."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any


class Fields:
    """The keys of a checkpoint's config.json.

    Attributes:
        values: all of them.
        file: the path, for messages.
    """

    def __init__(self, values: dict[str, Any], file: str):
        self.values, self.file = values, file

    @classmethod
    def read(cls, path: Path) -> "Fields":
        """Reads a config.json; ValueError if it holds no JSON object."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}): fetch it again") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds no JSON object: use the one saved with the weights")
        return cls(values, str(path))

    def take(self, key: str) -> Any:
        """Returns the value of a required key."""
        if key not in self.values:
            raise ValueError(
                f"{self.file} has no field {key!r}: use the config.json saved with the weights"
            )
        return self.values[key]

    def get(self, key: str, default: Any) -> Any:
        """Returns a value; `default` is that of the reference implementation, also for null."""
        value = self.values.get(key)
        return default if value is None else value

    def expect(self, key: str, allowed: Collection, *, default: Any = None) -> Any:
        """Returns a value that must be one of `allowed`."""
        if (value := self.get(key, default)) not in allowed:
            raise ValueError(
                f"{self.file}: {key} is {value!r}, expected one of {list(allowed)}: this feature "
                "of the architecture is not implemented"
            )
        return value
