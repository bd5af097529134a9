"""Reading of config.json with errors that name the file and the field.

Called by the families beside this file.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any


class Fields:
    """The keys of a checkpoint's config.json.

    Attributes:
        found: all of them.
        file: the path, for messages.
    """

    def __init__(self, found: dict[str, Any], file: str):
        self.found, self.file = found, file

    @classmethod
    def read(cls, path: Path) -> "Fields":
        """Reads a config.json; ValueError where it is no JSON object."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}): fetch it again") from None
        if not isinstance(found, dict):
            raise ValueError(f"{path} holds no JSON object: use the one saved with the weights")
        return cls(found, str(path))

    def take(self, key: str) -> Any:
        """Returns the value of a key that must be there."""
        if key not in self.found:
            raise ValueError(
                f"{self.file} has no field {key!r}: use the config.json saved with the weights"
            )
        return self.found[key]

    def get(self, key: str, default: Any) -> Any:
        """Returns a value; `default` is what the reference implementation takes without it."""
        value = self.found.get(key)
        return default if value is None else value

    def expect(self, key: str, allowed: Collection, *, default: Any = None) -> Any:
        """Returns a value that must be one of `allowed`."""
        if (value := self.get(key, default)) not in allowed:
            raise ValueError(
                f"{self.file}: {key} is {value!r}, expected one of {list(allowed)}: this feature "
                "of the architecture is not implemented"
            )
        return value
