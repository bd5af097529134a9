"""The families of checkpoints that can be read and written: one table file each, registered here.

A new family is one file beside this one that defines FAMILY, and one entry in FAMILIES.
"""

from models.backbone import BackboneConfig
from models.pretrained.bert import FAMILY as ENCODERS
from models.pretrained.decoder import FAMILY as DECODERS
from models.pretrained.t5 import FAMILY as ENCODER_DECODERS
from models.pretrained.tables import Family

FAMILIES: tuple[Family, ...] = (ENCODERS, DECODERS, ENCODER_DECODERS)


def family_of(config: BackboneConfig) -> Family:
    """Returns the family that writes checkpoints of a config."""
    return next(family for family in FAMILIES if isinstance(config, family.config_class))


def supported() -> str:
    """Returns a sentence for messages that lists every checkpoint that can be read."""
    types = [f"{key} ({name})" for family in FAMILIES for key, name in family.model_types.items()]
    gguf = [f"{key} ({name})" for family in FAMILIES for key, name in family.gguf.items()]
    return f"Supported model_type: {', '.join(types)}. Supported GGUF: {', '.join(gguf)}."
