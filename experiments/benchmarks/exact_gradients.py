"""Gradients of estimators for discrete latents against exact ones: 2^10 states are summed over.

The model is bernoulli_lvm with ten switches and the guide a linear encoder; both are trained for a
while and then held still.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

import experiments
import guides
import zoo
from experiments.svi import discrete
from experiments.svi.config import FitConfig
from experiments.svi.estimators import elbo, resolve
from experiments.svi.loop import isolated
from zoo.densities import log_bernoulli
from zoo.distributions import all_vectors

SWITCHES, PIXELS, BATCH = 10, 8, 5
BLOCKS, COPIES = 200, 500
"""Gradients of an estimator: means of COPIES independent draws each, all in one pass."""
DIRECTIONS = 200
OWN_STEPS = 500
"""Of Adam, in which an estimator learns what is its own, the model and the guide held still."""


@dataclass(frozen=True, eq=False)
class Contender:
    """An estimator with its settings; evaluations: of the model, for one gradient of a datum."""

    name: str
    settings: dict
    evaluations: int
    objective: str = "elbo"

    @property
    def biased(self):
        return self.settings["estimator"] in discrete.BIASED

    @property
    def random(self):
        return self.settings["estimator"] != "enumeration"


def _contender(estimator, num_particles, evaluations=None, objective="elbo", **settings):
    settings |= {"estimator": estimator, "num_particles": num_particles}
    words = f", temperature {settings['temperature']}" if "temperature" in settings else ""
    name = f"{estimator}, K = {num_particles}{words}"
    return Contender(name, settings, evaluations or num_particles, objective)


CONTENDERS = [
    _contender("enumeration", 1, 2**SWITCHES),
    _contender("score", 2),
    _contender("score", 8),
    _contender("running_mean", 1),
    _contender("nvil", 1),
    _contender("relax", 1, 2),
    _contender("disarm", 2),
    _contender("vimco", 2, objective="pairs"),
    _contender("rws", 2, objective="wake"),
    _contender("rws", 8, objective="wake"),
    _contender("gumbel_softmax", 1, 2, temperature=0.5),
    _contender("gumbel_softmax", 1, 2, temperature=0.1),
]


class Case:
    """The model, guide and batch of which gradients are taken, in float64.

    x: (BATCH, PIXELS).  The gradients are those of losses, nats of the batch together, one vector
    over all parameters, those of the model first.
    """

    def __init__(self, steps=60):
        data = zoo.load("bernoulli_lvm").data.train
        pixels = data.var(0).topk(PIXELS).indices
        rows = data[:200, pixels]
        problem = zoo.load("bernoulli_lvm", data=(rows, rows), latent_dim=SWITCHES)
        guide = guides.build("amortized", problem, hidden=())
        settings = {"estimator": "enumeration", "batch_size": None, "engine": "eager"}
        fit = experiments.fit(problem, guide, steps=steps, learning_rate=0.05, **settings)
        self.x = rows[:BATCH].double()
        self.model, self.guide = fit.models[0].double(), fit.guides[0].double()
        self.problem = problem.having(model=self.model, data=problem.data.map(torch.Tensor.double))
        self.parameters = [*self.model.parameters(), *self.guide.parameters()]
        self.num_model = self.problem.num_parameters

    @cached_property
    def exact(self):
        """{objective: the exact gradient of its loss, (p,)}, by sums over all states."""
        states = all_vectors(SWITCHES, like=self.x)
        log_p = zoo.bernoulli_lvm.cross_log_joint(self.model, self.x, states)
        log_q = log_bernoulli(states, self.guide.rows(self.x)["z"][:, None])
        log_weight, q = log_p - log_q, log_q.exp()
        elbo = (q * log_weight).sum()
        pairs = sum(_pairs(each, own) for each, own in zip(log_weight, q, strict=True))
        posterior = log_p.softmax(-1).detach()
        wake = log_p.logsumexp(-1).sum() + (posterior * log_q).sum()
        return {
            name: self._flat(torch.autograd.grad(-total, self.parameters, retain_graph=True))
            for name, total in (("elbo", elbo), ("pairs", pairs), ("wake", wake))
        }

    def drawn(self, contender, blocks=BLOCKS, copies=COPIES):
        """Mean gradients over `copies` draws each of the whole batch: (blocks, p)."""
        config = resolve(FitConfig(batch_size=None, **contender.settings), self.problem)
        modules = nn.ModuleDict({"model": self.model, "guide": self.guide})
        own = discrete.module(config, self.problem)
        if own is not None:
            modules["estimator"] = own.double()
            self._train_own(config, modules)
        return torch.stack([self._gradient(config, modules, copies) for _ in range(blocks)])

    def _gradient(self, config, modules, copies):
        """One block.  A datum that stands in the batch again has draws of its own."""
        with isolated():
            bound = elbo(config, self.problem, modules)
            _, surrogate = bound.terms(self.model, self.guide, self.x.repeat(copies, 1))
        return self._flat(torch.autograd.grad(surrogate / copies, self.parameters))

    def _train_own(self, config, modules):
        own = modules["estimator"]
        optimizer = torch.optim.Adam(own.parameters(), 0.01) if list(own.parameters()) else None
        for _ in range(OWN_STEPS):
            with isolated():
                bound = elbo(config, self.problem, modules)
                bound.loss_and_grads(self.model, self.guide, self.x.repeat(10, 1))
            if optimizer is not None:
                optimizer.step()

    def _flat(self, gradients):
        return torch.cat([gradient.flatten() for gradient in gradients])


def _pairs(log_weight, q):
    """E log of the mean of two weights, over all pairs of states: log_weight, q (g,)."""
    both = torch.logaddexp(log_weight[:, None], log_weight) - math.log(2)
    return q @ both @ q


def compared(gradients, exact, case, copies=COPIES):
    """What block means of gradients, (blocks, p), say of an estimator of `exact`, (p,).

    z: standard errors by which a mean is off.  For the model's and for the guide's parameters:
    bias, |mean - exact| / |exact|; floor, its root mean square if there were none; variance of one
    draw's gradient, its trace over the square of the ELBO's exact gradient, so that all compare.
    """
    off, variance = gradients.mean(0) - exact, gradients.var(0)
    z = _in_se(off, variance, len(gradients))
    directions = torch.randn(DIRECTIONS, len(exact), dtype=exact.dtype)
    along = gradients @ directions.T
    slanted = _in_se(along.mean(0) - directions @ exact, along.var(0), len(gradients))
    found = {
        "coordinates": len(exact),
        "largest_z": z.abs().max().item(),
        "share_beyond_4": (z.abs() > 4).double().mean().item(),
        "mean_square_z": z.square().mean().item(),
        "largest_z_of_directions": slanted.abs().max().item(),
    }
    for name, part in (("model", slice(case.num_model)), ("guide", slice(case.num_model, None))):
        size, total = exact[part].norm(), variance[part].sum()
        scale = case.exact["elbo"][part].square().sum()
        found |= {
            f"bias_{name}": (off[part].norm() / size).item(),
            f"floor_{name}": ((total / len(gradients)).sqrt() / size).item(),
            f"variance_{name}": (copies * total / scale).item(),
        }
    return found


def _in_se(off, variance, count):
    """Differences in standard errors; 0 where both vanish to rounding, as without draws."""
    se = (variance / count).sqrt()
    return torch.where(off.abs() < 1e-10, 0.0, off / se)


def row(case, contender, blocks=BLOCKS, copies=COPIES):
    """What is measured of a contender but its time; the draws are the same at every call."""
    if not contender.random:
        blocks, copies = 2, 1
    torch.manual_seed(0)
    gradients = case.drawn(contender, blocks, copies)
    found = compared(gradients, case.exact[contender.objective], case, copies)
    return vars(contender) | {"biased": contender.biased, "draws": blocks * copies} | found
