"""Is log p(x) = ELBO + KL(q, posterior) at every step of SVI, and when does the bound touch?

Three models whose log p(x) and posterior are known are trained by SVI from several seeds; at some
steps the three terms are computed in double precision, each by itself: the ELBO as an expectation
under q, the KL from q and the posterior, log p(x) by the model's own truth.

For a normal q and a Gaussian model the ELBO is exact by 2 k points, since log p(x, z) is quadratic;
a finite latent is summed out; for the VAE it is a Gauss-Hermite rule of NODES x NODES points.  Its
KL is a sum over a grid around q, against a posterior that another grid, around it, normalizes: were
it normalized by the truth's log p(x), that would cancel, and the identity hold whatever it is.

SVI raises the bound by either term: where the model changes too, the KL need not fall.  The VAE's
is as small before training, when its posterior is close to the prior and so to q, as after it.
Source: Jordan et al. 1999, An introduction to variational methods for graphical models, section 6;
    Kingma & Welling 2014, eq. 1.
"""

import math
from copy import deepcopy
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch.distributions import Categorical, MultivariateNormal, kl_divergence

import guides
import zoo
from experiments import studies
from experiments.report.page import Table
from experiments.studies.parts.cells import over_seeds, short
from experiments.studies.parts.claims import above, within
from experiments.studies.parts.rows import known
from experiments.studies.study import Study
from experiments.svi.config import Distinct, FitConfig, Settings
from experiments.svi.engine import train
from experiments.svi.estimators import resolve
from experiments.svi.run import Run
from zoo.truth import TOLERANCE

NODES, GRID, REACH = 32, 73, 9.0  # of the rules for the VAE: points an axis; sd on either side
EXACT = 1e-8  # nats that the identity may be off, by rounding; by quadrature it is TOLERANCE
ON_AVERAGE = 1e-3  # nats a datum that the mean over rows may be off by quadrature
GUIDE = "amortized"
KNOWN = ("bernoulli_mixture", "gaussian_lvm", "vae")


class Own(Settings):
    """Settings: which models, how long they are trained, and when the terms are taken."""

    models: Distinct[Literal[KNOWN]] = Field(KNOWN, min_length=1)
    seeds: int = Field(8, ge=2)
    steps: int = Field(1000, ge=1)
    looks: int = Field(12, ge=2)
    """How many steps are looked at, from the first to the last, evenly in their logarithm."""
    rows: int = Field(60, ge=1)
    """Rows of the training data on which the terms are taken."""


QUICK = {"seeds": 5, "steps": 200, "looks": 3, "rows": 20}


def measure(settings, device):
    """{"curves": a row for each model, seed and step; "touching": one for each model and seed}."""
    curves, touching = [], []
    for name in settings.models:
        problem = zoo.load(name)
        x = problem.data.train[: settings.rows].double()
        for seed, taken in trajectories(problem, settings, device).items():
            for step, (model, guide) in taken.items():
                terms = dict(three(problem, model, guide, x))
                off = terms["log_evidence"] - terms["elbo"] - terms["kl"]
                row = {"model": name, "seed": seed, "step": step, "off": off.abs().max().item()}
                curves.append(row | {key: value.mean().item() for key, value in terms.items()})
            if name != "vae":  # whose posterior has no ELBO but by the rule that defines it
                touching.append({"model": name, "seed": seed, "gap": touch(problem, model, x)})
    return {"curves": curves, "touching": touching}


def trajectories(problem, settings, device):
    """{seed: {step: (model, guide)}} in double precision, as SVI has them after those steps."""
    config = resolve(FitConfig(steps=settings.steps, engine="eager"), problem)
    guide = guides.build(GUIDE, problem)
    runs = [Run.start(problem, guide, config, seed, device) for seed in range(settings.seeds)]
    wanted = {*np.geomspace(1, settings.steps, settings.looks).round().astype(int).tolist()}
    found = {run.seed: {0: _copied(run)} for run in runs}

    def look(group):
        for run in group:
            if run.step in wanted:
                found[run.seed].setdefault(run.step, _copied(run))

    train(runs, problem, look)
    return found


def _copied(run):
    modules = deepcopy(run.modules).cpu().double()
    return modules["model"], modules["guide"].eval()


@torch.no_grad()
def three(problem, model, guide, x):
    """Pairs of "log_evidence", "elbo", "kl" and their values a datum, (n,) nats each."""
    problem = problem.having(model=model)
    (name,) = guide.rows(x)
    q, posterior = guide.distribution(name, guide.rows(x)[name]), problem.posterior(x)
    yield "log_evidence", problem.log_evidence(x)
    if isinstance(q, Categorical):
        yield "elbo", _finite_elbo(problem, q, x)
        yield "kl", kl_divergence(Categorical(logits=q.logits), posterior)
    elif isinstance(posterior, MultivariateNormal):
        q = MultivariateNormal(q.mean, covariance_matrix=torch.diag_embed(q.variance))
        yield "elbo", _normal_elbo(problem, q, x)
        yield "kl", kl_divergence(q, posterior)
    else:
        yield "elbo", _hermite_elbo(problem, q, x)
        yield "kl", _grid_kl(problem, q, posterior, x)


@torch.no_grad()
def touch(problem, model, x):
    """The largest distance over data of log p(x) from the ELBO of the exact posterior, nats."""
    problem = problem.having(model=model)
    q = problem.posterior(x)
    by = _finite_elbo if isinstance(q, Categorical) else _normal_elbo
    return (problem.log_evidence(x) - by(problem, q, x)).abs().max().item()


def _finite_elbo(problem, q, x):
    """sum_k q_k (log p(x, k) - log q_k) of every row: (n,)."""
    values = torch.arange(q.logits.shape[-1])[:, None].expand(-1, len(x))
    log_joint = torch.stack([problem.log_joint(problem.model, x, z) for z in values], -1)
    return (q.probs * log_joint).sum(-1) + q.entropy()


def _normal_elbo(problem, q, x):
    """The ELBO of a normal q where log p(x, z) is quadratic in z: (n,).

    Its mean is that over the points loc ± sqrt(k) times a column of the covariance's factor.
    """
    k = q.loc.shape[-1]
    columns = math.sqrt(k) * q.scale_tril.movedim(-1, 0)
    points = torch.cat([q.loc + columns, q.loc - columns])
    return problem.log_joint(problem.model, x, points).mean(0) + q.entropy()


def _hermite_elbo(problem, q, x):
    """The ELBO of a diagonal normal q of two numbers by Gauss-Hermite points: (n,)."""
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(NODES))
    points = torch.cartesian_prod(nodes, nodes)[:, None]
    shares = torch.outer(weights, weights).flatten() / (2 * math.pi)
    log_joint = problem.log_joint(problem.model, x, q.mean + q.stddev * points)
    return shares @ log_joint + q.entropy()


def _grid_kl(problem, q, posterior, x):
    """KL(q, p(z given x)) of two numbers: (n,).

    The mean under q of log q(z) - log p(x, z), plus the logarithm of the integral of p(x, z); of
    the posterior's truth this takes the place and the spread, where to integrate.
    """
    z, cell = _grid(q.mean, q.stddev)
    log_q = q.log_prob(z)
    share = log_q.exp() * cell
    apart = (share * (log_q - problem.log_joint(problem.model, x, z))).sum(0)
    loc, square = posterior.expect(lambda z: torch.cat([z, z.square()], -1)).chunk(2, -1)
    z, cell = _grid(loc, (square - loc.square()).sqrt())
    return apart + problem.log_joint(problem.model, x, z).logsumexp(0) + cell.log()


def _grid(loc, scale):
    """Points around loc (n, 2), (GRID^2, n, 2), and the area that each stands for, (n,)."""
    axis = torch.linspace(-REACH, REACH, GRID, dtype=loc.dtype)
    steps = torch.cartesian_prod(axis, axis)[:, None]
    return loc + scale * steps, scale.prod(-1) * (axis[1] - axis[0]).square()


def claims(results):
    """What the texts say of the identity."""
    found = []
    here = _models(results)
    for models, allowed, how in (
        ([name for name in here if name != "vae"], EXACT, "to float error"),
        ([name for name in here if name == "vae"], TOLERANCE, "within the errors of quadrature"),
    ):
        rows = [row for row in results["curves"] if row["model"] in models]
        if rows:
            sentence = f"log p = ELBO + KL for every row at every look {how} ({', '.join(models)})"
            found.append(within(sentence, [row["off"] for row in rows], allowed, " nats"))
    means = [
        r["log_evidence"] - r["elbo"] - r["kl"] for r in results["curves"] if r["model"] == "vae"
    ]
    if means:
        sentence = "log p = ELBO + KL on average over rows at every look (vae)"
        found.append(within(sentence, means, ON_AVERAGE, " nats a datum"))
    gaps = [row["gap"] for row in results["touching"]]
    if gaps:
        sentence = "the bound touches log p for every row where q is the posterior"
        models = known(results["touching"], "model")
        found.append(within(f"{sentence} ({', '.join(models)})", gaps, EXACT, " nats"))
    for model in here:
        rises = [_end(run, "elbo") - _end(run, "elbo", 0) for run in _runs(results, model)]
        falls = [_end(run, "kl", 0) - _end(run, "kl") for run in _runs(results, model)]
        found.append(above(f"SVI raises the ELBO of {model}", rises, " nats a datum"))
        found.append(
            above(f"SVI brings the q of {model} nearer to the posterior", falls, " nats a datum")
        )
    return found


def _models(results):
    return known(results["curves"], "model")


def _runs(results, model):
    """The rows of a model, a list for each seed."""
    rows = [row for row in results["curves"] if row["model"] == model]
    return [[r for r in rows if r["seed"] == seed] for seed in sorted({r["seed"] for r in rows})]


def _end(run, key, place=-1):
    return run[place][key]


def tables(results):
    """The terms at the start and at the end, and how far the identity is off."""
    lines = []
    for model in _models(results):
        runs = _runs(results, model)
        off = max(row["off"] for run in runs for row in run)
        for place in (0, -1):
            cells = [
                over_seeds([_end(run, key, place) for run in runs])
                for key in ("log_evidence", "elbo", "kl")
            ]
            lines.append([model, short(runs[0][place]["step"]), *cells, short(off)])
    caption = (
        "Nats a datum on training rows, under the parameters at that step; ± is the standard error "
        "over seeds. off: the largest distance of log p from ELBO + KL of any row, look and seed."
    )
    head = ["model", "step", "log p(x)", "ELBO", "KL(q, posterior)", "off"]
    return [Table("The three terms before and after training", head, lines, caption)]


def draw(results):
    """The curves of each model, means and ranges over seeds: log p and ELBO, and below them KL."""
    models = _models(results)
    figure = Figure(figsize=(3.4 * len(models), 5.4), layout="constrained")
    panels = figure.subplots(2, len(models), squeeze=False, sharex="col", height_ratios=(3, 2))
    for (upper, lower), model in zip(panels.T, models, strict=True):
        runs = _runs(results, model)
        _curve(upper, runs, "log_evidence", "log p(x)", color="black", linestyle="--")
        _curve(upper, runs, "elbo", "ELBO", color="#0072b2")
        _curve(lower, runs, "kl", "KL(q, posterior)", color="#d55e00")
        upper.set(title=model)
        lower.set(xscale="log", yscale="log", xlabel="step of SVI (0 at the left end)")
    for axis in panels[:, 0]:
        axis.set_ylabel("nats a datum")
        axis.legend()
    return figure


def _curve(axis, runs, key, label, **style):
    """The mean over seeds of a term after every step that was looked at, and its range."""
    steps = np.array([row["step"] for row in runs[0]]).clip(min=0.5)
    values = np.array([[row[key] for row in run] for run in runs])
    axis.fill_between(
        steps, values.min(0), values.max(0), color=style["color"], alpha=0.2, linewidth=0
    )
    axis.plot(steps, values.mean(0), label=label, **style)


@studies.register
def build():
    """The study."""
    return Study(
        question="Is log p(x) = ELBO + KL(q, posterior), and when does the bound touch?",
        answers=(
            "log p = ELBO + KL for every row at every look to float error",
            "the bound touches log p",
        ),
        settings=Own,
        quick=QUICK,
        measure=measure,
        claims=claims,
        tables=tables,
        draw=draw,
        figure="log p(x) and the ELBO during training, and below them their distance, "
        "KL(q, posterior)",
        reading={
            "log p(x)": "The exact log evidence under the parameters at that step.",
            "ELBO": "What SVI maximizes: the mean of log p(x, z) - log q(z) under q.",
            "KL(q, posterior)": "How far q is from the posterior, 0 where they are one.",
            "off": "log p(x) - ELBO - KL: 0 but for rounding, of the vae but for quadrature.",
        },
    )
