"""Which families can be read and written, each a module beside this file.

A family says how its config.json reads, how it is written, and where each parameter is stored.
Called by `open_checkpoint`, `write_pretrained` and peft.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from models.backbone import BackboneConfig
from models.pretrained.fields import Fields
from models.pretrained.tables import Format, Rows


class Family(NamedTuple):
    """One architecture and the checkpoints that hold it.

    Attributes:
        config_class: of its module.
        model_types: `model_type` of config.json -> the family's name for people.
        read_config: fields of config.json -> config.
        write_config: config -> contents of config.json, without "architectures".
        table: (config, format) -> rows; ValueError for a format the family doesn't come in.
        gguf: `general.architecture` of GGUF files -> the name for people.
        read_gguf: (metadata, stored tensors, file) -> config; None without GGUF files.
    """

    config_class: type
    model_types: Mapping[str, str]
    read_config: Callable[[Fields], BackboneConfig]
    write_config: Callable[[Any], dict[str, Any]]
    table: Callable[[Any, Format], Rows]
    gguf: Mapping[str, str] = {}
    read_gguf: Callable[..., BackboneConfig] | None = None
