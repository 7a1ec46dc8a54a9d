"""Sources: where the parameters of q(z_n) come from.

A source answers `source(rows, index)` with one row of parameters a datum: rows (b, d) are the
data of the minibatch and index (b,) their places in the whole set, or None for all of it.
"""

from contextlib import contextmanager

import torch
from torch import nn

from zoo.errors import require
from zoo.nets import Convolutions, MultiInput, check_hidden, mlp


class Rows(nn.Embedding):
    """An embedding that leaves its start to the table that owns it.

    torch's own start, Normal(0, 1), would come after the table's whenever all modules are reset.
    """

    def reset_parameters(self):
        """Nothing: see `Table.reset_parameters`."""


class Table(nn.Module):
    """A free row per datum, looked up by index.

    `sparse()` makes its gradient sparse: only the rows of a minibatch are in it, so that a step
    costs O(batch) whatever the number of rows, under an optimizer that knows of it.
    """

    def __init__(self, num_data, initial_row):
        super().__init__()
        self.initial_row = initial_row
        self.taken = None
        self.rows = Rows(num_data, len(initial_row()))
        self.reset_parameters()

    def reset_parameters(self):
        """Every row at the family's start."""
        with torch.no_grad():
            self.rows.weight.copy_(self.initial_row(self.rows.num_embeddings))

    def sparse(self):
        """Make the gradient sparse."""
        self.rows.sparse = True

    @contextmanager
    def given(self, taken):
        """Inside, the table answers with these rows, which the caller looked up: (b, p).

        So a gradient is that of the batch's rows, and no tensor as long as the data is made.
        """
        self.taken = taken
        try:
            yield
        finally:
            self.taken = None

    def forward(self, rows, index):
        if self.taken is not None:
            return self.taken
        if index is not None:
            return self.rows(index)
        require(
            len(rows) == self.rows.num_embeddings,
            f"this guide's table has {self.rows.num_embeddings} rows, the data {len(rows)}; "
            "for other data fit new rows: experiments.fit_rows(problem, guide, x)",
        )
        every = torch.arange(len(rows), device=rows.device)
        return self.rows(every) if self.rows.sparse else self.rows.weight


class Encoder(nn.Module):
    """The parameters computed from the datum: a network on centered data, divided by one scale.

    beside: widths of what else the network is given, (..., width) each.  image_shape: (height,
    width) for a network of convolutions, which takes the place of the layers `hidden`.
    """

    def __init__(self, train, hidden, num_parameters, beside=(), image_shape=None):
        super().__init__()
        self.register_buffer("center", train.mean(0))
        self.register_buffer("spread", (train - self.center).square().mean().sqrt().clamp(min=1e-6))
        width = train.shape[-1]
        if image_shape is not None:
            self.network = Convolutions(image_shape, num_parameters)
        elif beside:
            self.network = MultiInput((width, *beside), hidden, num_parameters)
        else:
            self.network = mlp(width, hidden, num_parameters)

    def forward(self, rows, index, *beside):
        return self.network((rows - self.center) / self.spread, *beside)


class Shared(nn.Module):
    """One row: for a latent outside the plate, or for all data alike."""

    def __init__(self, initial_row):
        super().__init__()
        self.initial_row = initial_row
        self.row = nn.Parameter(initial_row())

    def reset_parameters(self):
        """The family's start."""
        with torch.no_grad():
            self.row.copy_(self.initial_row())

    def forward(self, rows, index):
        return self.row if rows is None else self.row.expand(len(rows), -1)


def by_table(problem):
    """What makes a latent's source: a free row for each training row of a problem."""
    num_data = len(problem.data.train)
    return lambda latent, family: Table(num_data, family.initial_row)


def by_encoder(problem, hidden):
    """What makes a latent's source: an encoder whose layers have widths `hidden`.

    Raises ZooError for widths that are none.
    """
    check_hidden(hidden)
    train, hidden = problem.data.train, tuple(hidden)
    return lambda latent, family: Encoder(train, hidden, family.num_parameters)


class ByLatent(nn.ModuleDict):
    """Modules under the names of latents, which may have dots, as a module's own name may not.

    In checkpoints a name without a dot is as it is.
    """

    def __getitem__(self, name):
        return super().__getitem__(_key(name))

    def __setitem__(self, name, module):
        super().__setitem__(_key(name), module)

    def __contains__(self, name):
        return super().__contains__(_key(name))


def _key(name):
    # Nor may it be an attribute of nn.ModuleDict, such as "type" or "values".
    return f"own/{name}" if hasattr(nn.ModuleDict, name) else name.replace(".", "/")
