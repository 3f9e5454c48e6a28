"""What the lessons draw with, so that their cells can be about something else: rows of pictures, and our colours."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap

from minidalle.plots import BLUE, GREY, ORANGE, VERMILION, to_array  # noqa: F401, for the lessons


def pictures(rows, titles=None, labels=None, size: float = 1.1):
    """A figure of pictures: `rows` is a list of tensors (n, 3, height, width) in [0, 1], each one row of the figure.

    titles: a string over each picture of the first row, or a list of such lists, one for each row. labels: a string at
    the left of each row. size: inches of a picture's side.
    """
    height, width = rows[0].shape[2:]
    columns = max(len(row) for row in rows)
    each = titles if titles and isinstance(titles[0], (list, tuple)) else [titles]
    lines = max([str(t).count("\n") + 1 for row in each for t in row or []], default=0)
    wide = size * columns + 0.075 * max((len(line) for label in labels or [] for line in label.split("\n")), default=0)
    tall = size * height / width + 0.16 * lines * len(each) / len(rows) + 0.06
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(wide, tall * len(rows)), layout="constrained", squeeze=False
    )
    for i, row in enumerate(axes):
        for k, axis in enumerate(row):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color(GREY)
            if k >= len(rows[i]):
                axis.set_axis_off()
                continue
            axis.imshow(to_array(rows[i][k : k + 1])[0], interpolation="nearest")
            if i < len(each) and each[i] and k < len(each[i]):
                axis.set_title(each[i][k], fontsize=8)
        if labels:
            row[0].set_ylabel(labels[i], fontsize=8, rotation=0, ha="right", va="center")
    plt.show()


def strip(values, colours, texts=None, height: float = 0.6):
    """A figure of one strip of coloured cells: values (n,) are indices into `colours`; `texts` (n,) stand in the cells."""
    values = torch.as_tensor(values)
    figure, axis = plt.subplots(figsize=(min(0.5 * len(values) + 0.5, 12), height + 0.3), layout="constrained")
    axis.imshow(np.array(values)[None], cmap=ListedColormap(colours), vmin=0, vmax=len(colours) - 1, aspect="auto")
    for i, text in enumerate(texts or []):
        axis.text(i, 0, text, ha="center", va="center", fontsize=8)
    axis.set(yticks=[], xticks=range(len(values)))
    axis.tick_params(labelsize=7)
    plt.show()
