"""`FitConfig`: every setting of an SVI run, frozen and validated."""

import textwrap
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from zoo.errors import ZooError, unknown

T = TypeVar("T")


def _distinct(values):
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise PydanticCustomError("twice", "{value} stands there twice", {"value": repr(twice[0])})
    return values


Distinct = Annotated[tuple[T, ...], AfterValidator(_distinct)]
"""Distinct[int]: the type of a setting that lists whole numbers, none of them twice."""


class Settings(BaseModel):
    """Base of the validated settings: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)
    LATER: ClassVar[tuple[str, ...]] = ()
    """Fields that came after there were records: left out of what is written where they have their
    default, so that the records from before stay those of the same runs."""

    @model_serializer(mode="wrap")
    def _as_before(self, handler):
        written = handler(self)
        for name in self.LATER:
            if name in written and getattr(self, name) == type(self).model_fields[name].default:
                del written[name]
        return written


class FitConfig(Settings):
    """Settings of one SVI run; losses are in nats a datum."""

    LATER: ClassVar = (
        "objective", "alpha", "beta", "annealing_steps", "free_bits", "temperature",
    )  # fmt: skip
    steps: int = Field(2000, ge=1)
    """Largest number of gradient steps."""
    batch_size: int | None = Field(128, ge=1)
    """Rows of a minibatch; None takes all rows at every step."""
    learning_rate: float = Field(0.01, gt=0)
    """Adam's rate at the first step."""
    row_learning_rate: float = Field(0.05, gt=0)
    """The same for a table's rows, which are touched once an epoch."""
    decay: float = Field(0.01, gt=0, le=1)
    """The rate at the last step over the rate at the first."""
    schedule: Literal["geometric", "cosine"] = "geometric"
    """How the rate falls between."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """What a step makes of the gradients."""
    weight_decay: float = Field(0.01, ge=0)
    """By how much adamw shrinks the parameters, a table's rows left out: times the rate a step."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of all gradients together, in nats; None leaves them as they are."""
    engine: Literal["auto", "compiled", "recorded", "eager"] = "auto"
    """What runs the steps: see experiments/svi/engine.py."""
    estimator: Literal[
        "auto", "pathwise", "score", "enumeration", "closed_form", "running_mean", "nvil", "vimco",
        "rws", "gumbel_softmax", "relax", "disarm",
    ] = "auto"  # fmt: skip
    """How gradients pass a latent: see experiments/svi/estimators.py."""
    objective: Literal["elbo", "iwae", "dreg", "renyi", "stl"] = "elbo"
    """What the gradient is of: see experiments/svi/objectives.py.  The losses that are noted, and
    that the stopping rule watches, are the plain -ELBO of the same draws, whatever it is."""
    alpha: float = Field(0.5, allow_inf_nan=False)
    """Order of Renyi's bound, not 1: 0 is IWAE, near 1 the ELBO; for renyi alone."""
    beta: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Weight of the KL part of elbo, which the noted losses leave at 1."""
    annealing_steps: int = Field(0, ge=0)
    """Steps over which that weight rises linearly from 0 to beta."""
    free_bits: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Nats a datum below which a latent site's KL, its mean over the minibatch, is not pressed;
    nats altogether for a site outside the plate of the data: see experiments/svi/kl.py."""
    num_particles: int | None = Field(None, ge=1)
    """Draws a datum and step; None takes 1, 8 for score, vimco, rws and the objectives iwae, dreg
    and renyi, and 2 for disarm."""
    temperature: float = Field(0.5, ge=1e-3, allow_inf_nan=False)
    """Of relaxed switches under gumbel_softmax; under relax that at the first step."""
    flat_window: int = Field(0, ge=0)
    """Epochs in a window of the stopping rule; 0 never stops before the last step."""
    flat_level: float = Field(0.05, gt=0, lt=1)
    """Level of the stopping rule's test."""
    flat_tolerance: float = Field(1e-4, ge=0)
    """A window that gains less than this counts as flat whatever the test says."""
    flat_drops: int = Field(0, ge=0)
    """How many flat windows divide the rate by ten before one stops the run."""
    checkpoint_seconds: float = Field(10.0, gt=0)
    """Seconds between checkpoints, where there is a place for them."""

    def takes_minibatches(self, num_data):
        """Whether a step takes fewer than all `num_data` rows."""
        return self.batch_size is not None and self.batch_size < num_data


def validated(settings, **values):
    """An instance of a Settings class, or a one-line ZooError."""
    for name in values:
        if name not in settings.model_fields:
            raise unknown("option", name, list(settings.model_fields))
    try:
        return settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        sentence = first["msg"].removeprefix("Value error, ")
        given = textwrap.shorten(repr(first["input"]), 80, placeholder=" ...")
        raise ZooError(f"{place}: {sentence[0].lower()}{sentence[1:]}, got {given}") from error
