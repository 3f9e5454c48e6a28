"""Captioned pictures, all in one form: a dictionary of splits, each with N images and their N captions.

`shapes` is drawn by rules and can be scored without a human eye; `openmoji` is real drawings by real artists.
"train" is the only split that any stage learns from (SPEC marks none of this: the data are this project's own, O).
"""

from minidalle.config import DataConfig, nearest
from minidalle.data import openmoji, shapes
from minidalle.data.pictures import Pictures

SOURCES = {"shapes": shapes, "openmoji": openmoji}


def load(config: DataConfig, seed: int) -> dict[str, Pictures]:
    """The splits of the pictures that `config` names, "train" first. Raises ValueError for an unknown name."""
    if config.name not in SOURCES:
        raise ValueError(f"unknown data {config.name!r}{nearest(config.name, SOURCES)}; there are {', '.join(SOURCES)}")
    return SOURCES[config.name].load(config.height, config.width, config.pool, seed)
