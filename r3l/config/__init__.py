"""Every setting of a run: the dataclasses, their presets and variants, and their JSON form."""

from r3l.config.convert import from_dict, nearest, to_dict
from r3l.config.errors import UserError
from r3l.config.presets import PRESETS, VARIANTS, preset_config
from r3l.config.schema import Config

__all__ = ["PRESETS", "VARIANTS", "Config", "UserError", "from_dict", "nearest", "preset_config", "to_dict"]
