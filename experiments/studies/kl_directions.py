"""Which posterior does each direction of the KL divergence choose, where there are two modes?

    z ~ Normal(0, 1),   x | z ~ Normal(4 z^2, noise)

has for x well above 0 a posterior with a mode near sqrt(x) / 2 and its mirror image.  A normal q
is fitted to it by SVI in two ways: by the ELBO, which minimizes KL(q, p), and by wake-sleep's wake
phase (estimator rws), which minimizes KL(p, q).  Both divergences of both fits are sums over a fine
grid, in double precision; so are the least that each can be: of KL(p, q) where q has the moments of
p, of KL(q, p) by searches that begin at a mode and between both.

KL(q, p) also has a local minimum astride the modes.  SVI begins near 0: at a rate of 0.05 some
seeds end in that minimum for x = 2.25 (`--set rate=0.05`), at 0.1 their noise carries them on.
Source: Bishop 2006, Pattern Recognition and Machine Learning, section 10.1.2; Minka 2005,
    Divergence measures and message passing, section 3.
"""

import math
from typing import Annotated

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pydantic import Field
from scipy.optimize import minimize

import experiments
import guides
import zoo
from experiments import studies
from experiments.report.page import Table
from experiments.studies.parts.cells import number, over_seeds
from experiments.studies.parts.claims import above, within
from experiments.studies.study import Study
from experiments.svi.config import Distinct, Settings
from zoo.errors import require

DIRECTIONS = {
    "KL(q, p)": {"num_particles": 16},
    "KL(p, q)": {"estimator": "rws", "num_particles": 64},
}
"""What each direction asks of a fit."""
GRID = torch.linspace(-7.0, 7.0, 14_001, dtype=torch.float64)
CURVATURE = 4.0
SIDE, EXCESS, SPREAD, BETWEEN = 0.01, 0.2, 0.05, 0.01
"""What the claims allow: a share, nats, a relative error, a ratio of densities."""


class Own(Settings):
    """Settings: the data, the noise, and how long q is fitted."""

    x: Distinct[Annotated[float, Field(ge=-100, le=100)]] = (0.0, 0.25, 1.0, 2.25, 4.0, 9.0)
    """Observations; each has a posterior of its own, which must lie on the grid."""
    two_modes: float = 2.0
    """From which x on the modes are so far apart that the claims are made."""
    noise: float = Field(0.5, ge=0.2)
    """Standard deviation of x given z; were it smaller, modes could be narrower than the grid."""
    seeds: int = Field(10, ge=2)
    steps: int = Field(4000, ge=1)
    rate: float = Field(0.1, gt=0)
    """Adam's, for the parameters of q."""


QUICK = {"seeds": 5, "steps": 2000}


def two_valued(settings):
    """The problem: z and its mirror image explain x alike."""
    noise = settings.noise

    def model(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            observed = None if rows is None else rows[:, 0]
            pyro.sample("x", dist.Normal(CURVATURE * z**2, noise), obs=observed)

    def log_joint(model, x, z):
        residual = (x[:, 0] - CURVATURE * z**2) / noise
        return -0.5 * (z**2 + residual**2) - math.log(2 * math.pi * noise)

    rows = torch.tensor(settings.x)[:, None]
    return zoo.Problem(model, zoo.data.as_dataset(rows), log_joint, name="two_valued")


def measure(settings, device):
    """{"fits": a row for each direction, seed and x; "best": for each x; "curves": densities}."""
    require(
        max(settings.x, default=-math.inf) >= settings.two_modes,
        f"x must name an observation from two_modes = {settings.two_modes:g} on",
    )
    problem = two_valued(settings)
    log_p = log_posterior(problem)
    rows, drawn = [], {}
    for direction, own in DIRECTIONS.items():
        fit = experiments.fit(
            problem,
            guides.build("mean_field", problem),
            steps=settings.steps,
            seeds=settings.seeds,
            device=device,
            batch_size=None,
            row_learning_rate=settings.rate,
            **own,
        )
        for seed, guide in zip(fit.seeds, fit.guides, strict=True):
            loc, scale = normals(guide, problem.data.train)
            drawn.setdefault(direction, [loc.tolist(), scale.tolist()])
            for x, *q, log_posterior_of_x in zip(settings.x, loc, scale, log_p, strict=True):
                found = compared(*q, log_posterior_of_x)
                rows.append({"fitted by": direction, "seed": seed, "x": x} | found)
    best = [{"x": x} | least(own) for x, own in zip(settings.x, log_p, strict=True)]
    return {"fits": rows, "best": best, "drawn": drawn, "noise": settings.noise,
            "two_modes": settings.two_modes}  # fmt: skip


def log_posterior(problem):
    """log p(z given x) of every x on the grid, normalized there: (n, points)."""
    x = problem.data.train.double()
    log_joint = problem.log_joint(problem.model, x, GRID[:, None]).T
    return log_joint - log_joint.logsumexp(-1, keepdim=True) - (GRID[1] - GRID[0]).log()


@torch.no_grad()
def normals(guide, x):
    """(loc, scale) of the guide's q of every row: (n,) each, in double precision."""
    q = guide.distribution("z", guide.rows(x)["z"])
    return q.mean.double().flatten(), q.stddev.double().flatten()


def compared(loc, scale, log_p):
    """Both divergences in nats, q's spread over that of p, its mass on the side of its mean."""
    share, width = log_p.exp(), GRID[1] - GRID[0]
    q = torch.distributions.Normal(loc, scale)
    log_q = q.log_prob(GRID)
    sd = (share * GRID**2).sum().mul(width).sqrt()  # the mean is 0 by symmetry
    return {
        "KL(q, p)": ((log_q.exp() * (log_q - log_p)).sum() * width).item(),
        "KL(p, q)": ((share * (log_p - log_q)).sum() * width).item(),
        "spread": (scale / sd).item(),
        "one side": q.cdf(torch.zeros_like(loc)).sub(0.5).abs().add(0.5).item(),
        "density": (log_p[(GRID - loc).abs().argmin()] - log_p.max()).exp().item(),
    }


def least(log_p):
    """The least of both divergences that a normal q can reach, nats, and its q as `compared`."""
    share, width = log_p.exp(), GRID[1] - GRID[0]
    spread = (share * GRID**2).sum().mul(width).sqrt()
    mode = GRID[log_p.argmax()].abs()

    def at(point):
        loc, log_scale = map(torch.tensor, point)
        return compared(loc, log_scale.exp(), log_p)

    starts = [(0.0, spread.log().item()), (mode.item(), -1.0), (mode.item(), -2.5)]
    ends = [minimize(lambda p: at(p)["KL(q, p)"], s, method="Nelder-Mead").x for s in starts]
    best = min(map(at, ends), key=lambda found: found["KL(q, p)"])
    return best | {"KL(p, q)": compared(torch.tensor(0.0), spread, log_p)["KL(p, q)"]}


def claims(results):
    """What the texts say of the two directions, where the posterior has two modes."""
    reverse, forward = DIRECTIONS
    apart = [row for row in results["fits"] if row["x"] >= results["two_modes"]]
    gain_q = _difference(apart, reverse, forward, reverse)
    gain_p = _difference(apart, forward, reverse, forward)
    own = {d: [r for r in apart if r["fitted by"] == d] for d in DIRECTIONS}
    best = {row["x"]: row for row in results["best"]}
    spread = [row["spread"] - 1 for row in own[forward]]
    excess = [row[reverse] - best[row["x"]][reverse] for row in own[reverse]]
    other = [1 - row["one side"] for x, row in best.items() if x >= results["two_modes"]]
    return [
        above(
            "Minimizing KL(q, p) leaves more of KL(p, q) than minimizing KL(p, q)", gain_p, " nats"
        ),
        above(
            "Minimizing KL(p, q) leaves more of KL(q, p) than minimizing KL(q, p)", gain_q, " nats"
        ),
        within(
            "The q of least KL(q, p) lies on one mode: its share on the other side", other, SIDE
        ),
        within(
            f"SVI comes within {EXCESS} nats of the least KL(q, p): the excess",
            excess,
            EXCESS,
            " nats",
        ),
        within(
            "The q that SVI fits by KL(p, q) covers both modes: its sd over that of p, less 1",
            spread,
            SPREAD,
        ),
        within(
            "The mean of the q that SVI fits by KL(p, q) lies between the modes: the density there "
            "over that at a mode",
            [row["density"] for row in own[forward]],
            BETWEEN,
        ),
    ]


def _difference(rows, divergence, fitted_by, than):
    """By how much a divergence is larger under one fit than another: (seeds,), means over x."""
    first, second = (
        _means([row for row in rows if row["fitted by"] == name], divergence)
        for name in (fitted_by, than)
    )
    return [a - b for a, b in zip(first, second, strict=True)]


def _means(rows, key):
    """Means over x, one a seed."""
    seeds = sorted({row["seed"] for row in rows})
    return [np.mean([row[key] for row in rows if row["seed"] == s]).item() for s in seeds]


def tables(results):
    """Both divergences of both fits for every x, beside the least possible."""
    lines = []
    for best in results["best"]:
        for direction in DIRECTIONS:
            rows = [
                row
                for row in results["fits"]
                if row["x"] == best["x"] and row["fitted by"] == direction
            ]
            cells = [over_seeds([row[key] for row in rows]) for key in (*DIRECTIONS, "spread")]
            side = over_seeds([row["one side"] for row in rows])
            lines.append([number(best["x"], 2), direction, *cells, side, number(best[direction])])
    head = ["x", "fitted by", *DIRECTIONS, "sd of q / sd of p", "q on one side", "least possible"]
    caption = (
        "Nats; ± is the standard error over seeds. least possible: of the divergence that the row "
        f"was fitted by. The noise of x is {results['noise']:g}."
    )
    return [Table("Both divergences of both fits", head, lines, caption)]


def draw(results):
    """The posterior and both fits of the first seed, a panel for each x."""
    xs = [best["x"] for best in results["best"]]
    problem = two_valued(Own(x=tuple(xs), noise=results["noise"]))
    log_p = log_posterior(problem)
    figure = Figure(figsize=(8, 2.3 * math.ceil(len(xs) / 3)), layout="constrained")
    axes = figure.subplots(math.ceil(len(xs) / 3), 3, squeeze=False).flatten()
    for place, (axis, x) in enumerate(zip(axes, xs, strict=False)):
        axis.fill_between(GRID, log_p[place].exp(), color="0.85", label="posterior p")
        for (direction, (loc, scale)), color in zip(
            results["drawn"].items(), ("#0072b2", "#d55e00"), strict=True
        ):
            density = torch.distributions.Normal(loc[place], scale[place]).log_prob(GRID).exp()
            axis.plot(GRID, density, color=color, label=f"q by {direction}")
        axis.set(title=f"x = {x:g}", xlim=(-2.5, 2.5), yticks=[], xlabel="z")
    for axis in axes[len(xs) :]:
        axis.set_visible(False)
    axes[0].legend(loc="upper left", fontsize=7)
    return figure


@studies.register
def build():
    """The study."""
    return Study(
        question="Which q does each direction of KL choose where the posterior has two modes?",
        answers=("The q of least KL(q, p) lies on one mode", "covers both modes"),
        settings=Own,
        quick=QUICK,
        measure=measure,
        claims=claims,
        tables=tables,
        draw=draw,
        figure="A posterior of two modes for six observations, and the normal q that each "
        "direction of KL fits to it",
        reading={
            "KL(q, p)": "What the ELBO minimizes: large where q has mass and the posterior none.",
            "KL(p, q)": "Large where the posterior has mass and q has none.",
            "sd of q / sd of p": "1 where q is as wide as the posterior, both modes together.",
            "q on one side": "The share of q on the side of its own mean: 1 where it has one mode "
            "for itself, 0.5 where it lies across both.",
        },
    )
