"""Captioned pictures, all in one form: a dictionary of splits, each with N images and their N captions.

`shapes` and `scenes` are drawn by rules and can be scored without a human eye; `openmoji` is real drawings by real
artists; `folder` is yours. "train" is the only split that any stage learns from (SPEC marks none of this: the data are
this project's own, O).
"""

from pathlib import Path

from minidalle.config import DATA, DRAWN, DataConfig
from minidalle.data import folder, openmoji, scenes, shapes
from minidalle.data.pictures import Pictures

SOURCES = dict(zip(DATA, (shapes, scenes, openmoji)))


def load(config: DataConfig, seed: int) -> dict[str, Pictures]:
    """The splits of the pictures that `config` names, "train" first."""
    size = config.height, config.width, config.pool, seed
    if config.name == "folder":
        return folder.load(Path(config.folder), *size)
    fold = (config.fold,) if config.name in DRAWN else ()
    return SOURCES[config.name].load(*size, *fold)
