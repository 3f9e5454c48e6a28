"""Without a GPU, Triton's kernels run in its interpreter; it has to be told so before anything imports Triton. Property tests
draw the same examples every time."""

import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("same examples", derandomize=True, deadline=None)
settings.load_profile("same examples")
