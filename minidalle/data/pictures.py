"""The one type that every data set hands on: pictures with their captions."""

from typing import NamedTuple

import torch


class Pictures(NamedTuple):
    images: torch.Tensor  # (N, 3, height, width) uint8
    captions: list[str]  # N captions
