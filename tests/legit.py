"""Models and guides without a fault, of unusual make, which no check may refuse."""

from functools import partial

import broken
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import nn

import guides
import zoo

ENTRIES = {}


def legit(build):
    """Decorator: a function that returns (problem, guide), neither with a fault."""
    ENTRIES[build.__name__] = build
    return build


def normal(x=None, index=None, width=2):
    """A guide for `z` of that width: one normal for all rows."""
    loc = pyro.param("q_loc", lambda: torch.zeros(width))
    with zoo.datum(x, index):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


@legit
def deterministic_sites():
    def model(x=None, index=None):
        weight = pyro.param("weight", lambda: torch.ones(3))
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = pyro.deterministic("mean", z.sum(-1, keepdim=True) * weight)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=rows)

    def guide(x=None, index=None):
        slope = pyro.param("slope", lambda: 0.1 * torch.ones(3, 2))
        with zoo.datum(x, index) as rows:
            loc = pyro.deterministic("q_loc", rows @ slope)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return broken.program(model), guide


@legit
def masked_observations():
    def model(x=None, index=None):
        loc = pyro.param("loc", lambda: torch.zeros(3))
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            q = dist.Normal(loc + z.sum(-1, keepdim=True), 1.0)
            q = q if rows is None else q.mask(rows > -1)
            pyro.sample("x", q.to_event(1), obs=rows)

    return broken.program(model), normal


class Regression(PyroModule):
    """Its weight has a prior, and the name of that site a dot."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        prior = dist.Normal(torch.zeros(1, 2), torch.ones(())).to_event(2)
        self.linear.weight = PyroSample(prior)

    def forward(self, x=None, index=None):
        weight = self.linear.weight  # outside the plate
        with zoo.datum(x, index) as rows:
            inputs = torch.ones(1, 2) if rows is None else rows[:, :2]
            mean = (inputs * weight.squeeze(-2)).sum(-1) + self.linear.bias
            pyro.sample("x", dist.Normal(mean, 1.0), obs=None if rows is None else rows[:, 2])


@legit
def pyro_sample_in_a_nested_module():
    problem = zoo.Problem(Regression(), zoo.data.as_dataset(broken.ROWS.clone()))
    return problem, guides.build("mean_field", problem)


@legit
def two_rows():
    problem = broken.problem_of(truth=broken.TRUTH, rows=broken.ROWS[:2])
    return problem, guides.build("mean_field", problem)


def jump(rows, where):
    """A problem with a parameter that is in the density only of a batch with such a row."""

    def model(x=None, index=None):
        loc = pyro.param("loc", lambda: torch.zeros(3))
        high = pyro.param("high", lambda: torch.zeros(3))
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = loc + z.sum(-1, keepdim=True)
            if rows is not None and where(rows).any():
                mean = mean + where(rows)[:, None] * high
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=rows)

    return broken.program(model, rows)


@legit
def sorted_rows():
    rows = broken.ROWS[broken.ROWS[:, 0].argsort()]
    return jump(rows, lambda rows: rows[:, 0] > 1.5), normal


@legit
def a_parameter_of_one_row():
    rows = broken.ROWS.clone()
    rows[17] += 50  # neither among the first rows nor among those spread over all
    return jump(rows, lambda rows: rows[:, 0] > 20), normal


@legit
def own_encoder():
    """A plain network, which the guide holds as it likes."""

    class Own(PyroModule):
        def __init__(self):
            super().__init__(zoo.unique("own"))
            self.network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

        def forward(self, x=None, index=None):
            with zoo.datum(x, index) as rows:
                pyro.sample("z", dist.Normal(self.network(rows), 1.0).to_event(1))

    return broken.right_problem(), Own()


@legit
def network_of_no_data():
    """A registered network that makes one location for all rows: no encoder."""
    network = nn.Linear(1, 2)

    def guide(x=None, index=None):
        pyro.module("network", network)
        with zoo.datum(x, index):
            pyro.sample("z", dist.Normal(network(torch.ones(1)), 1.0).to_event(1))

    return broken.right_problem(), guide


@legit
def network_of_another_latent():
    """Two latents, one given the other by a network that sees no data."""

    def model(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            w = pyro.sample("w", dist.Normal(z, 1.0).to_event(1))
            mean = w.sum(-1, keepdim=True).expand(*w.shape[:-1], 3)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=rows)

    network = nn.Linear(2, 2)

    def guide(x=None, index=None):
        pyro.module("network", network)
        loc = pyro.param("q_loc", lambda: torch.zeros(2))
        with zoo.datum(x, index):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("w", dist.Normal(network(z), 1.0).to_event(1))

    return broken.program(model), guide


@legit
def function_with_an_argument_filled_in():
    def model(x=None, index=None, width=None):
        loc = pyro.param("loc", lambda: torch.zeros(width))
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = loc + z.sum(-1, keepdim=True)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=rows)

    return broken.program(partial(model, width=3)), partial(normal, width=2)


@legit
def masked_rows():
    """Rows that count for nothing, by a handler."""

    def model(x=None, index=None):
        loc = pyro.param("loc", lambda: torch.zeros(3))
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with poutine.mask(mask=torch.tensor(True) if rows is None else rows[:, 0] > -1):
                mean = loc + z.sum(-1, keepdim=True)
                pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=rows)

    return broken.program(model), normal
