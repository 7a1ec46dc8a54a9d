"""`DataSet`: the rows that a problem is trained and tested on, checked once."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from zoo.errors import ZooError, require


@dataclass(frozen=True, eq=False)
class DataSet:
    """Rows to train on and rows held out, with what is known of them.

    train, test, valid: (n, d) float tensors; labels: (n,) int tensors or None.
    image_shape: (height, width) where a row is an image.
    """

    name: str
    train: torch.Tensor
    test: torch.Tensor
    valid: torch.Tensor | None = None
    train_labels: torch.Tensor | None = None
    test_labels: torch.Tensor | None = None
    image_shape: tuple[int, int] | None = None
    licence: str = "unknown"
    source: str = "given by the user"

    @property
    def width(self):
        """Number of columns of a row."""
        return self.train.shape[-1]

    @cached_property
    def digest(self):
        """A short hash of the rows to train on and those held out."""
        blocks = (self.train, self.test)
        content = b"".join(block.cpu().contiguous().numpy().tobytes() for block in blocks)
        return hashlib.sha256(content).hexdigest()[:16]

    def map(self, function):
        """The same set with `function` applied to every block of rows."""
        valid = None if self.valid is None else function(self.valid)
        return replace(self, train=function(self.train), test=function(self.test), valid=valid)

    def to(self, device):
        """The same set with its tensors on a device."""
        fields = {name: value.to(device) for name, value in vars(self).items() if _is_tensor(value)}
        return replace(self, **fields)

    def binarized(self):
        """Pixels at least 0.5 become 1, the others 0."""
        return self.map(lambda rows: (rows >= 0.5).to(rows.dtype))


def check_latent_dim(latent_dim, data):
    """Refuse a latent dimension that is no whole number from 1 to the data's width."""
    require(
        type(latent_dim) is int and 1 <= latent_dim <= data.width,
        f"latent_dim must be a whole number from 1 to the data's {data.width}, got {latent_dim!r}",
    )


def check_rows(rows, what, at_least=1):
    """Refuse anything but a finite block of at least `at_least` rows."""
    require(rows.dim() == 2, f"{what} data must be rows (n, d), got shape {tuple(rows.shape)}")
    count = f"{len(rows)} row{'' if len(rows) == 1 else 's'}"
    require(len(rows) >= at_least, f"{what} data: {count}, but at least {at_least} needed")
    require(rows.shape[1] >= 1, f"{what} data has no columns")
    finite = torch.isfinite(rows)
    if not finite.all():
        row, column = (~finite).nonzero()[0].tolist()
        raise ZooError(
            f"{what} data holds {rows[row, column].item()} at row {row}, column {column}; "
            "every value must be finite"
        )


def subset(x, count):
    """Which rows of x stand for all where all are too many: (count,) or fewer, always the same."""
    if len(x) <= count:
        return torch.arange(len(x), device=x.device)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return order[:count].sort().values.to(x.device)


def as_rows(values):
    """A tensor of torch's default type from a tensor, an array, or lists of numbers."""
    try:
        return torch.as_tensor(values).to(torch.get_default_dtype())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ZooError(
            f"data must be a set's name or rows of numbers, got {values!r:.60}"
        ) from error


def _is_tensor(value):
    return isinstance(value, torch.Tensor)
