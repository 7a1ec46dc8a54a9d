"""A family of a user's own: one file, and everything runs on it."""

import math

import pytest
import torch

import experiments
import guides
import zoo
from experiments.measure.gaps import gaps, own_and_best

FILE = '''"""Double exponential: sharp peaks and heavier tails, independent numbers.

Family: q(z) = prod_i Laplace(z_i; loc_i, scale_i).
Cannot represent: correlation, or latents with bounds.
Needs: one continuous latent a datum, of numbers without bounds.  New data need new rows.
Source: Bishop 2006, exercise 2.
"""

import math

import pyro.distributions as dist
import torch

import guides
from guides.families import is_identity
from guides.guide import Guide
from guides.sources import Table
from zoo.errors import require


class DoubleExponential:
    """A row is (loc, log scale)."""

    def __init__(self, latent):
        require(
            is_identity(latent.support),
            f"double_exponential does not suit latent {latent.name!r}: take mean_field",
        )
        self.size = math.prod(latent.event_shape)
        self.num_parameters = 2 * self.size

    def initial_row(self, *batch):
        """A small random loc, unit scale."""
        loc = 0.1 * torch.randn(*batch, self.size)
        return torch.cat([loc, torch.zeros_like(loc)], -1)

    def __call__(self, rows):
        """The distribution of each row."""
        loc, log_scale = rows.chunk(2, -1)
        return dist.Laplace(loc, log_scale.exp()).to_event(1)


@guides.register
def build(problem):
    """The guide, for the training rows of the problem."""
    num_data = len(problem.data.train)

    def table(latent, q):
        return Table(num_data, q.initial_row)

    return Guide("double_exponential", problem, table, DoubleExponential)
'''


@pytest.fixture
def path(tmp_path):
    """A file with a family and a guide, away from the package."""
    path = tmp_path / "double_exponential.py"
    path.write_text(FILE)
    return str(path)


def test_conformance_of_a_family_in_one_file(path):
    results = experiments.check(zoo.load("gaussian_lvm"), path)
    assert {r.subject for r in results} == {"model", "double_exponential"}
    assert [r.sentence for r in results if not r.ok] == []


def test_gap_of_a_family_in_one_file(path):
    """It is fitted and searched as any other: its gap is what the best Laplace has to a normal.

    KL(Laplace(0, b), Normal(0, 1)) = b^2 - log(2 b) - 1 + log(2 pi) / 2, least at b = 1 / sqrt 2.
    """
    problem = zoo.load("gaussian_lvm")
    with torch.no_grad():
        problem.model.weight.copy_(0.5 * torch.eye(64, 2))  # of two pixels: independent, not sharp
    problem.model.requires_grad_(False)
    x = problem.data.test[:30]
    guide = guides.build(path, problem)
    own, best = own_and_best(problem, guide, x)
    found = gaps(problem, own, x, best.guide, 2000)
    one = 0.5 - math.log(2**0.5) - 1 + math.log(2 * math.pi) / 2
    se = found["total_gap_per_datum_se"]
    assert abs(found["total_gap_per_datum"] - 2 * one) < 0.02 + 4 * se


def test_family_in_one_file_is_compared(path, tmp_path):
    found = experiments.compare(
        ["gaussian_lvm"],
        [path],
        seeds=2,
        out=tmp_path / "out",
        fit={"steps": 100},
        measure={"restarts": 0, "pareto_rows": 20, "simulations": 20, "rank_draws": 19},
    )
    assert not found.failed
    assert "double_exponential" in found.table


def test_family_as_an_argument_of_other_sources(path):
    """A class is a family for any source: here an encoder's."""
    problem = zoo.load("gaussian_lvm")
    guides.build(path, problem)
    family = type(guides.build(path, problem).families["z"])
    fit = experiments.fit(problem, guides.build("amortized", problem, family=family), steps=50)
    assert torch.isfinite(fit.elbo).all()


def test_unsuited_latents_get_one_line(path):
    with pytest.raises(zoo.ZooError, match="double_exponential does not suit latent 'z'"):
        guides.build(path, zoo.load("bernoulli_mixture"))
