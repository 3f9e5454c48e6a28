"""Captioned pictures, all in one form: a dictionary of splits, each with N images and their N captions.

`shapes` and `scenes` are drawn by rules and can be scored without a human eye; `openmoji` is real drawings by real
artists; `folder` is yours. "train" is the only split that any stage learns from (SPEC marks none of this: the data are
this project's own, O).
"""

from pathlib import Path

from minidalle.config import DATA, DRAWN, DataConfig
from minidalle.data import folder, openmoji, scenes, shapes
from minidalle.data.filter import rules_for
from minidalle.data.pictures import Pictures

SOURCES = dict(zip(DATA, (shapes, scenes, openmoji)))


def load(config: DataConfig, seed: int, counts: dict | None = None) -> dict[str, Pictures]:
    """The splits of the pictures that `config` names, "train" first. counts: a dictionary to put into how many pictures of
    a folder the captions filter kept, and dropped by reason; stays empty without the filter."""
    size = config.height, config.width, config.pool, seed
    if config.name == "folder":
        return folder.load(Path(config.folder), *size, rules_for(config.filter, config.blocklist), counts)
    if config.filter or config.blocklist:
        raise ValueError(f"data.filter and data.blocklist are for a folder of pictures; got --data {config.name}")
    fold = (config.fold,) if config.name in DRAWN else ()
    return SOURCES[config.name].load(*size, *fold)
