"""Where components of a mixture begin: at rows of the data, so that none begins where no data are.

A row far from all components would have nearly the same density under each, and a component far
from all rows would never be moved; rows of the data are neither (Bishop 2006, section 9.1).
"""

import torch
from torch import nn

from zoo.data.dataset import subset

KEPT = 1000  # rows to choose from, so that a copy of the model is no copy of the data
NOISE = 0.1  # of a column's standard deviation


class Starts(nn.Module):
    """Rows of the training data to begin at; not in a model's checkpoint.

    rows: (n, d), of which at most KEPT stay.
    """

    def __init__(self, rows):
        super().__init__()
        self.register_buffer("rows", rows[subset(rows, KEPT)].clone(), persistent=False)

    @property
    def spread(self):
        """Standard deviation of every column: (d,)."""
        return self.rows.std(0, correction=0)

    def draw(self, count):
        """Random rows, each moved by a little noise: (count, d)."""
        replacement = count > len(self.rows)
        chosen = torch.ones(len(self.rows)).multinomial(count, replacement)
        rows = self.rows[chosen.to(self.rows.device)]
        return rows + NOISE * self.spread * torch.randn_like(rows)
