"""The contract: a problem is a model, its data, and what is known of the answer."""

import json
import re
import textwrap
from collections.abc import Callable
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import nn
from torch.distributions import constraints

from zoo.data.dataset import DataSet, as_rows, check_rows
from zoo.distributions import entry_values, is_improper
from zoo.errors import TruthUnavailable, ZooError, explained, require
from zoo.program import Program

ROWS_AT_ONCE = 2048
_numbers = count()


def unique(name):
    """`name` with a number that no other module of this process has.

    Parameters of two models or guides never meet in Pyro's global store when each gives its
    module such a name.
    """
    return f"{name}_{next(_numbers)}"


@contextmanager
def datum(x=None, index=None, name="datum"):
    """The plate of independent data; yields the rows of x in it, None where x is None.

    x: (n, d) all rows; index: (b,) the rows of this minibatch, whose bound is scaled to n.
    """
    size = 1 if x is None else len(x)
    with pyro.plate(name, size, subsample=index, dim=-1):
        yield x if x is None or index is None else x[index]


@dataclass(frozen=True)
class Latent:
    """What a guide must know of a latent site: its name, support, event shape and plates."""

    name: str
    support: Any
    event_shape: tuple[int, ...]
    plates: tuple[str, ...]
    values: torch.Tensor | None = field(default=None, compare=False)
    """All values of a latent that can be enumerated, (num_values, *event_shape), in order; else
    None."""
    length: int | None = None
    """Number of steps, side by side, of a latent whose prior is a chain; None for any other."""

    @property
    def num_values(self):
        """Number of values of a latent that can be enumerated, None for any other."""
        return None if self.values is None else len(self.values)

    @property
    def entry_values(self):
        """K where each of its numbers is one of 0, 1, ..., K - 1; None where it is not."""
        return entry_values(self.support)

    def places(self, value):
        """Where values (..., *event_shape) stand among all `values`: (...), whole numbers.

        A vector's values are in the order of their numbers, the last running fastest.
        """
        first, last = self.values.min().item(), self.values.max().item()
        digits = value.long() - int(first)
        digits = digits.flatten(-len(self.event_shape)) if self.event_shape else digits[..., None]
        powers = (int(last - first) + 1) ** torch.arange(digits.shape[-1] - 1, -1, -1)
        return (digits * powers.to(digits.device)).sum(-1)

    @property
    def proper(self):
        """Whether its prior is a density, over which a guide may spread; else it is a point."""
        return not is_improper(self.support)

    @property
    def local(self):
        """Whether there is one such latent a datum."""
        return bool(self.plates)


@dataclass(frozen=True)
class Truth:
    """What is known of the answer, at one of the levels T0 to T4.

    log_evidence(model, x) -> (n,) nats; posterior(model, x) -> a distribution over the local
    latents; evidence_error(model, x) -> (n,) nats, the stated error of the evidence.  For a joint
    problem, whose rows share a latent, the evidence and its error are of all rows together, (),
    and the posterior is that of the shared latents.
    """

    level: str
    how: str
    log_evidence: Callable | None = None
    posterior: Callable | None = None
    evidence_error: Callable | None = None


NO_TRUTH = Truth("T4", "nothing is known of the exact evidence")
NO_LATENTS = "no latents: the density itself"
BOUNDED = Truth(
    "T2",
    "two-sided bounds: importance weighting or annealing below, bidirectional Monte Carlo above "
    "on simulated data, by experiments.evidence_interval",
)


@dataclass(frozen=True, eq=False)
class Problem:
    """A Pyro model, its data, and what is known of the answer.

    model: a Pyro program `model(x=None, index=None)`, a module or a plain function.
    data: a DataSet.  log_joint(model, x, **latents): the density written a second time, (..., n),
    or (...) for a joint problem.
    predictive_mean(model, **latents): E[x given the latents], for pictures; optional.
    maximum_likelihood(model, x): puts the parameters that make x (n, d) likeliest into the model,
    where they have a closed form; optional, for models without latents.
    label: name of the finite latent that is a row's label, as data.test_labels has it, if there is
    one.  The last column of a row tells it, or holds its number of values where it is not told.
    A problem that states no truth is at level T2 where its latents are continuous, or some a datum
    beside finite ones; at T0 without latents where it states log_joint, which then is its evidence.
    """

    model: nn.Module
    data: DataSet
    log_joint: Callable | None = None
    truth: Truth = NO_TRUTH
    predictive_mean: Callable | None = None
    maximum_likelihood: Callable | None = None
    label: str | None = None
    name: str = "own_problem"
    options: dict = field(default_factory=dict)
    latents: tuple[Latent, ...] = field(init=False)
    plate: str = field(init=False)

    def __post_init__(self):
        require(
            re.fullmatch(r"[A-Za-z0-9_-]+", self.name),
            f"a problem's name is letters, digits, '_' and '-', got {self.name!r}",
        )
        if not isinstance(self.model, nn.Module):
            rows = self.data.train[:2]
            with explained(f"the model does not run on rows of shape {tuple(rows.shape)}"):
                object.__setattr__(self, "model", Program(self.model, rows))
        latents, plate = _structure(_trace(self.model, self.data.train[:2]))
        object.__setattr__(self, "latents", latents)
        object.__setattr__(self, "plate", plate)
        finite = [la.name for la in latents if la.local and la.num_values and not la.event_shape]
        require(
            self.label is None or self.label in finite,
            "label must name a finite latent in the plate of the data "
            f"({', '.join(finite) or 'there is none'}), got {self.label!r}",
        )
        if self.truth is NO_TRUTH:
            object.__setattr__(self, "truth", _known_without_being_told(latents, self.log_joint))
        self.check_support(self.data.train, "train")
        self.check_support(self.data.test, "test")

    @property
    def num_parameters(self):
        """How many numbers the model learns from data."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def joint(self):
        """Whether the rows share a latent, so that evidence and gaps are of all rows together."""
        return not all(latent.local for latent in self.latents)

    def log_evidence(self, x):
        """Exact log p(x) of every row under the model's parameters as they are: (n,) nats.

        For a joint problem that of all rows together: ().

        Raises TruthUnavailable where the problem does not know it, ZooError for unfit rows.
        """
        return self._truth("log_evidence", x)

    def posterior(self, x):
        """Exact posterior over the local latents of every row, a distribution.

        Raises TruthUnavailable where the problem does not know it, ZooError for unfit rows.
        """
        return self._truth("posterior", x)

    def evidence_error(self, x):
        """Stated error of `log_evidence` for every row: (n,) nats, zero at T0."""
        if self.truth.level == "T0":
            return torch.zeros(() if self.joint else len(x))
        return self._truth("evidence_error", x)

    def having(self, **fields):
        """The same problem with some fields replaced, its structure and data taken as checked."""
        other = copy(self)
        for name, value in fields.items():
            object.__setattr__(other, name, value)
        return other

    def frozen(self):
        """The same problem with a copy of its model that no fit changes: it has buffers alone.

        `requires_grad_(False)` would not do: Pyro's store undoes it, and a fit draws anew what a
        model's `reset_parameters` draws.
        """
        model = deepcopy(self.model)
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
            module.reset_parameters = _nothing
        return self.having(model=model, maximum_likelihood=None)

    @property
    def identity(self):
        """What tells this problem from another: name, options and a hash of its data."""
        plain = (str, int, float, bool, list, tuple, type(None))
        options = {
            name: value if isinstance(value, plain) else f"<{type(value).__name__}>"
            for name, value in self.options.items()
        }
        identity = {"model": self.name, "options": options, "data": self.data.digest}
        return json.loads(json.dumps(identity, default=str))

    def check_support(self, x, what="x"):
        """The rows as a tensor (n, d).

        Raises ZooError for rows of another width, non-finite ones, or values outside the
        likelihood's support.
        """
        x = self._as_taken(x)
        check_rows(x, what)
        width = self.data.width
        require(x.shape[-1] == width, f"{what} has {x.shape[-1]} columns, {self.name} has {width}")
        for rows in x.split(ROWS_AT_ONCE):
            _trace(self.model, rows)
        return x

    def _as_taken(self, x):
        """Rows as a tensor of the type that the model's parameters have."""
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            x = as_rows(x)
        return x.to(next((p.dtype for p in self.model.parameters()), x.dtype))

    def _truth(self, which, x):
        function = getattr(self.truth, which)
        if function is None:
            raise TruthUnavailable(
                f"{self.name} knows no exact {which} (truth level {self.truth.level}: "
                f"{self.truth.how})"
            )
        x = self.check_support(x)
        with torch.no_grad():
            if which == "posterior" or self.joint:
                return function(self.model, x)
            return torch.cat([function(self.model, rows) for rows in x.split(ROWS_AT_ONCE)])


def _nothing():
    """What a frozen module does where it would draw its parameters anew."""


def sample_sites(trace):
    """The sample sites of a trace, but for the draws of plates' minibatches."""
    sites = trace.nodes.values()
    return [s for s in sites if s["type"] == "sample" and not site_is_subsample(s)]


def _trace(model, x):
    """A trace of the model on the rows, after checking each observed value's support."""
    store = pyro.get_param_store().scope()
    wrong = explained(f"the model does not run on rows of shape {tuple(x.shape)}")
    unchecked, gpus = pyro.validation_enabled(False), [x.device] if x.is_cuda else []
    with wrong, torch.random.fork_rng(gpus), store, torch.no_grad(), unchecked:
        trace = poutine.trace(model).get_trace(x)
    observed = [site for site in sample_sites(trace) if site["is_observed"]]
    require(observed, "the model observes no data: give its likelihood site obs=")
    for site in observed:
        support = site["fn"].support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        inside = support.check(site["value"])
        if not inside.all():
            value = site["value"][~inside].flatten()[0].item()
            raise ZooError(
                f"site {site['name']!r} observes {value:g}, outside the support {support} of its "
                f"{type(base_distribution(site['fn'])).__name__} likelihood"
            )
    return trace


def _structure(trace):
    """The latents of a trace, and the one plate that holds the data."""
    latents, plates = [], set()
    for site in sample_sites(trace):
        frames = tuple(frame.name for frame in site["cond_indep_stack"] if frame.vectorized)
        plates |= set(frames)
        if not site["is_observed"]:
            latents.append(_latent(site["name"], site["fn"], frames))
    require(plates, "the data stand in no plate: open one with zoo.datum(x, index)")
    require(
        len(plates) == 1,
        f"data and latents stand in several plates ({', '.join(sorted(plates))}); one is possible",
    )
    return tuple(latents), next(iter(plates))


def _latent(name, fn, plates):
    values = None
    if fn.has_enumerate_support:
        values = fn.enumerate_support(expand=False)
        values = values.reshape(len(values), *fn.event_shape)
    length = getattr(fn, "chain_length", None)
    return Latent(name, fn.support, tuple(fn.event_shape), plates, values, length)


def require_problem(taker, thing):
    """Raise ZooError, in the name of what takes it, unless it is a Problem."""
    given = textwrap.shorten(repr(thing), 80, placeholder=" ...")
    require(
        isinstance(thing, Problem),
        f"{taker} takes a Problem, as zoo.load makes it of a name, got {given}",
    )


def _known_without_being_told(latents, log_joint):
    """What is known of a model that states no truth."""
    if not latents and log_joint is not None:
        return Truth("T0", NO_LATENTS, log_joint)
    discrete = [latent for latent in latents if latent.support.is_discrete]
    summed = all(la.num_values for la in discrete) and all(la.local for la in latents)
    proper = all(latent.proper for latent in latents)
    bounded = proper and len(discrete) < len(latents) and (summed or not discrete)
    return BOUNDED if bounded else NO_TRUTH


def base_distribution(fn):
    """The distribution under event dimensions, masks and transforms."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn
