"""Captioned pictures, all in one form: a dictionary of splits, each with N images and their N captions.

`shapes` is drawn by rules and can be scored without a human eye; `openmoji` is real drawings by real artists.
"train" is the only split that any stage learns from (SPEC marks none of this: the data are this project's own, O).
"""

from minidalle.config import DATA, DataConfig
from minidalle.data import openmoji, shapes
from minidalle.data.pictures import Pictures

SOURCES = dict(zip(DATA, (shapes, openmoji)))


def load(config: DataConfig, seed: int) -> dict[str, Pictures]:
    """The splits of the pictures that `config` names, "train" first."""
    return SOURCES[config.name].load(config.height, config.width, config.pool, seed)
