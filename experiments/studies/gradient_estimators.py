"""Pathwise against likelihood-ratio gradients: how noisy is each, and what do baselines save?

A gradient of E_q f(z), f = log p(x, z) - log q(z), is estimated by N = 8 evaluations of the model
along the path of the draws, z = loc + sd * noise, or by the likelihood ratio, also called score,
(f(z) - baseline) d log q(z).  What is compared is the trace of the gradient's covariance over the
squared norm of the exact gradient, each datum's own q free (mean field) and the model held still.

Gaussian latents.  In probabilistic PCA with maximum likelihood the posterior is a diagonal normal.
Let q have its sd and be off by delta sd in each of k dimensions, so that f is the ELBO less
delta times a sum of k standard normal numbers.  With loc counted in posterior sd the traces are
    score, no baseline      k (3 ELBO^2 + delta^2 (3 k + 9)) / N
    score, leave-one-out    k delta^2 (3 k + 9 - 8 / N) / (N - 1)
    pathwise                k (3 + delta^2) / N
    path derivative         k delta^2 / N
and the squared norm is k delta^2.  The ELBO is in the units of the data; were it near 0, the score
would do better without a baseline.  Far from the posterior the score is the noisier one, the more
so the more dimensions there are.  At the posterior f is a constant: the score with a baseline and
the path derivative vanish, while the pathwise gradient keeps the score of log q (Roeder et al.
2017).  There the likelihood ratio is the less noisy one, against what the texts say.

Bernoulli latents.  No path leads through a switch, and the posterior is no independent switches, so
that nothing vanishes.  q stands part of the way from the best q to fair switches; the exact
gradient is a sum over all states.  Relaxed switches (gumbel_softmax) have a path, and a bias.  What
an estimator learns it has learned there before.  vimco has another objective and is left out.

Race.  Which comes to the best q first: see gradient_race.py.
Source: Mohamed, Rosca, Figurnov & Mnih 2020, Monte Carlo gradient estimation in machine learning,
    sections 4, 5 and 7; Roeder, Wu & Duvenaud 2017, Sticking the landing; Mnih & Gregor 2014,
    Neural variational inference and learning in belief networks.
"""

from itertools import product
from typing import Annotated

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import nn

from experiments import studies
from experiments.measure.streams import stream
from experiments.report.figures import GUIDE_COLORS
from experiments.report.page import Table
from experiments.studies.parts.cells import over_seeds
from experiments.studies.parts.claims import above, near
from experiments.studies.parts.gradient_places import (
    BASELINE,
    CUT,
    ESTIMATORS,
    EVALUATIONS,
    PATH,
    PLAIN,
    RELAXED,
    bernoulli,
    config_for,
    copies,
    drawn,
    gaussian,
    trained,
)
from experiments.studies.parts.gradient_race import (
    CHUNK,
    TARGET,
    median_gaps,
    race,
    race_claims,
    race_table,
    racers,
)
from experiments.studies.parts.rows import column
from experiments.studies.study import Study
from experiments.svi import discrete
from experiments.svi.config import Distinct, Settings
from experiments.svi.estimators import elbo
from zoo.errors import require

FAR = {"gaussian": 1.0, "bernoulli": 1.0}  # distance at which dimensions are compared
SENSE = {
    "gaussian": "posterior sd off in each dimension",
    "bernoulli": "share of the way to fair switches",
}
OWN_COPIES, OWN_RATE = 10, 0.01  # of the rows, and of Adam, by which an estimator learns its own
AGREE = 0.1  # powers of ten by which a variance may be off the theory's
TENS = " powers of ten"
Size = Annotated[int, Field(ge=1)]
Switches = Annotated[int, Field(ge=1, le=12)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class Own(Settings):
    """Settings: which dimensions and distances, and what is spent on each."""

    gaussian_latents: Distinct[Size] = Field((1, 2, 4, 8, 16, 32), min_length=2)
    bernoulli_latents: Distinct[Switches] = Field((2, 4, 8, 11), min_length=2)
    """Numbers of switches, over whose states the exact gradient sums."""
    gaussian_distances: Distinct[Positive] = Field((0.1, 0.3, 1.0, 3.0), min_length=1)
    """Posterior sd by which q is off in each dimension."""
    bernoulli_distances: Distinct[Share] = Field((0.05, 0.2, 0.5, 1.0), min_length=1)
    """Shares of the way from the best q, 0, to fair switches, 1."""
    latents: int = Field(8, ge=1, le=12)
    """Dimension at which distances are compared and the races are run."""
    seeds: int = Field(8, ge=2)
    """Each has its own rows, directions and noise, and its own model of switches; in the race, its
    own starts and noise."""
    rows: int = Field(4, ge=1)
    """Held-out rows whose gradients are taken, so many `draws` of each."""
    draws: int = Field(1000, ge=10)
    own_steps: int = Field(100, ge=1)
    """In which an estimator learns what is its own, q held still."""
    steps: int = Field(1000, ge=1)
    """Of SVI, in which the models of switches are trained before."""
    race_all: bool = True
    """Whether all estimators race, or only those of the claims."""
    race_rows: int = Field(50, ge=2)
    race_steps: int = Field(1000, ge=CHUNK)
    """Of each run; at least CHUNK times the seeds."""
    rates: Distinct[Positive] = Field((0.01, 0.03, 0.1, 0.3), min_length=1)


QUICK = {
    "gaussian_latents": (1, 4, 16), "bernoulli_latents": (2, 4),
    "gaussian_distances": (0.1, 1.0), "bernoulli_distances": (0.1, 0.5),
    "latents": 4, "seeds": 5, "rows": 3, "draws": 300, "own_steps": 15, "steps": 200,
    "race_rows": 30, "race_steps": 80, "rates": (0.1,), "race_all": False,
}  # fmt: skip


def learned(place, own, parameters, steps):
    """What an estimator learns or keeps itself, q held still: a ModuleDict, empty for most."""
    config, model = config_for(own), place.problem.model
    module = discrete.module(config, place.problem)
    if module is None:
        return nn.ModuleDict()
    x, guide = copies(place, parameters, OWN_COPIES)
    modules = nn.ModuleDict({"estimator": module.to(x.device)})
    trainable = list(module.parameters())
    optimizer = torch.optim.Adam(trainable, OWN_RATE) if trainable else None
    for _ in range(steps):
        elbo(config, place.problem, modules).loss_and_grads(model, guide, x)
        if optimizer is not None:
            optimizer.step()
    return modules


def spread(place, name, distance, exact, seed, settings):
    """An estimator's noise and squared bias there; the trace is a datum's."""
    own, parameters = ESTIMATORS[place.kind][name], place.at(distance)
    with stream(seed, place.x.device):
        modules = learned(place, own, parameters, settings.own_steps)
        gradients = drawn(place, own, parameters, settings.draws, name, modules).double()
    trace, size = gradients.var(0).sum().item(), exact.square().sum().item()
    off = (gradients.mean(0) - exact).square().sum().item() - trace / len(gradients)
    return {
        "kind": place.kind, "estimator": name, "distance": distance, "seed": seed,
        "latents": place.problem.latents[0].event_shape[0], "trace": trace / len(exact),
        "relative": trace / size, "bias": off / size,
        "theory": theory(place, name, distance) if place.kind == "gaussian" else None,
    }  # fmt: skip


def theory(place, name, distance):
    """The relative variance that the formulas above foretell."""
    k, n, square = place.best.shape[-1] // 2, EVALUATIONS, distance**2
    bound = place.problem.log_evidence(place.x).double() - k * square / 2
    return {
        PLAIN: (3 * bound.square().mean().item() / square + 3 * k + 9) / n,
        BASELINE: (3 * k + 9 - 8 / n) / (n - 1),
        PATH: (3 + square) / square / n,
        CUT: 1 / n,
    }[name]


def places(settings):
    """{kind: {"dimension": (latents, distance) pairs, "distance": such pairs}}."""
    return {
        kind: {
            "dimension": [(k, FAR[kind]) for k in sorted(getattr(settings, f"{kind}_latents"))],
            "distance": [
                (settings.latents, d) for d in sorted(getattr(settings, f"{kind}_distances"))
            ],
        }
        for kind in ESTIMATORS
    }


def measure(settings, device):
    """ "places"; "variance": a row for each estimator, place and seed; "race": one for each run."""
    require(
        settings.race_steps >= CHUNK * settings.seeds,
        f"race_steps must be at least {CHUNK} times seeds: each seed has chunks of its own timed",
    )
    wanted, variance, races = places(settings), [], []
    for kind, pairs in wanted.items():
        near = sorted({*pairs["dimension"], *pairs["distance"]})
        for latents in sorted({k for k, _ in near}):
            fitted = trained(latents, settings, device) if kind == "bernoulli" else None
            for seed in range(settings.seeds):
                if fitted is None:
                    place = gaussian(latents, seed, settings, device)
                else:
                    place = bernoulli(fitted[seed], seed, settings, device)
                here = [d for k, d in near if k == latents]
                exact = {distance: place.exact(distance).double() for distance in here}
                variance += [
                    spread(place, name, distance, exact[distance], seed, settings)
                    for name, distance in product(ESTIMATORS[kind], here)
                ]
                if latents == settings.latents and seed == 0:
                    races += race(place, settings, device)
    return {"places": wanted, "variance": variance, "race": races}


def _values(results, kind, name, key, which):
    """Values of a key at the places of a comparison: (places, seeds)."""
    return _at(results, kind, name, key, results["places"][kind][which])


def _at(results, kind, name, key, places):
    """Values of a key at (latents, distance) pairs: (places, seeds)."""
    where = {"kind": kind, "estimator": name}
    return np.array(
        [column(results["variance"], key, latents=k, distance=d, **where) for k, d in places]
    )


def _over(results, kind, name, other, which="dimension"):
    """log10 of an estimator's variance over another's: (places, seeds)."""
    own, others = (np.log10(_values(results, kind, n, "trace", which)) for n in (name, other))
    return own - others


def _exponents(results, kind, values):
    """Slopes of values (places, seeds) against log10 of the dimension: (seeds,)."""
    return np.polyfit(np.log10([k for k, _ in results["places"][kind]["dimension"]]), values, 1)[0]


def claims(results):
    """What the texts say of the estimators."""
    return [*_gaussian_claims(results), *_bernoulli_claims(results), *race_claims(results)]


def _gaussian_claims(results):
    kind, ((latents, near), *_) = "gaussian", results["places"]["gaussian"]["distance"]
    for name in (PLAIN, BASELINE):
        yield above(
            f"Gaussian latents, {FAR[kind]:g} posterior sd off: the variance of {name} is above "
            f"that of {PATH} at every dimension",
            _over(results, kind, name, PATH).min(0), TENS,
        )  # fmt: skip
    growth = _exponents(results, kind, _over(results, kind, BASELINE, PATH))
    yield above(
        f"Gaussian latents: the ratio of {BASELINE} to {PATH} grows with the dimension (exponent)",
        growth,
    )
    saved = _over(results, kind, PLAIN, BASELINE).min(0)
    yield above(
        "Gaussian latents: the baseline lowers the score's variance at every dimension", saved, TENS
    )
    yield above(
        f"near the optimum too ({near:g} posterior sd off, {latents} dimensions) the variance of "
        f"{BASELINE} is above that of {PATH}",
        _over(results, kind, BASELINE, PATH, "distance")[0], TENS,
    )  # fmt: skip
    left = _over(results, kind, PATH, CUT, "distance")[0]
    yield above(f"near the optimum the variance of {PATH} is above that of the {CUT}", left, TENS)
    yield _as_foretold(results, kind)


def _as_foretold(results, kind):
    """That all variances are those of the formulas: of all places the one that says so least."""
    sentence = "all four variances are those of the formulas at every place (the worst of them)"
    every = []
    for name, which in product(ESTIMATORS[kind], ("dimension", "distance")):
        own, told = (_values(results, kind, name, key, which) for key in ("relative", "theory"))
        every += [
            near(sentence, values, 0, AGREE, TENS, texts=False)
            for values in np.log10(own) - np.log10(told)
        ]
    return max(every, key=lambda claim: claim.p)


def _bernoulli_claims(results):
    kind = "bernoulli"
    unbiased = [name for name in ESTIMATORS[kind] if name != RELAXED]
    saved = np.min([_over(results, kind, PLAIN, name) for name in unbiased[1:]], (0, 1))
    yield above(
        "Bernoulli latents: every baseline or control lowers the score's variance at every number "
        "of switches",
        saved, TENS,
    )  # fmt: skip
    most = np.min([_over(results, kind, name, RELAXED) for name in unbiased], (0, 1))
    yield above(f"the path of relaxed switches, {RELAXED}, has the smallest variance", most, TENS)
    bias = _values(results, kind, RELAXED, "bias", "dimension").min(0)
    yield above(
        f"{RELAXED} has a bias at every number of switches (its square, in squared norms)", bias
    )


def tables(results):
    """Variances of both kinds of latents, and the races."""
    return [*(_variances(results, kind) for kind in ESTIMATORS), race_table(results)]


def _variances(results, kind):
    pairs = sorted({(k, d) for which in results["places"][kind].values() for k, d in which})
    heads = [f"{k} latents, {d:g}" for k, d in pairs]
    lines = []
    for name in ESTIMATORS[kind]:
        relative, bias = (_at(results, kind, name, key, pairs) for key in ("relative", "bias"))
        cells = [over_seeds(own, 3 if own.mean() < 10 else 0) for own in relative]
        lines.append([name, *cells, over_seeds(bias.mean(0))])
    caption = (
        "Trace of the covariance over the squared norm of the exact gradient, at so many latents "
        f"and so far from the best q: {SENSE[kind]}. A gradient takes {EVALUATIONS} evaluations "
        "of the model. bias: squared norm of mean less exact gradient over that of the exact "
        "one, less what noise adds, mean over the columns: 0 but for noise where there is none. "
        "± is the standard error over seeds."
    )
    title = f"Relative variance of gradients, {kind} latents"
    return Table(title, ["estimator", *heads, "bias"], lines, caption)


def draw(results):
    """A row for each kind of latents: variance by dimension and by distance, and the race."""
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    for axes, (kind, names) in zip(figure.subplots(2, 3), ESTIMATORS.items(), strict=True):
        for name, color in zip(names, (*GUIDE_COLORS, "black"), strict=False):
            for axis, which, key in (
                (axes[0], "dimension", "relative"),
                (axes[1], "distance", "trace"),
            ):
                x = [place[which == "distance"] for place in results["places"][kind][which]]
                y = _values(results, kind, name, key, which)
                error = y.std(1, ddof=1) / np.sqrt(y.shape[1])
                axis.errorbar(x, y.mean(1), error, color=color, fmt="o-", ms=3, lw=1.2, label=name)
            if name in racers(results, kind):
                gaps = median_gaps(results, kind, name)
                axes[2].plot(CHUNK * np.arange(len(gaps)), gaps, color=color, lw=1.2)
        dimensions, (here, *_) = zip(*results["places"][kind]["dimension"], strict=True)
        axes[0].set(
            xscale="log", yscale="log", xlabel=f"latents ({SENSE[kind]}: {here:g})",
            title=f"{kind}: relative variance",
        )  # fmt: skip
        axes[0].set_xticks(dimensions, dimensions, minor=False)
        axes[0].minorticks_off()
        axes[2].legend(
            *axes[0].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(1, 1),
            fontsize=7,
        )  # fmt: skip
        (latents, *_), distances = zip(*results["places"][kind]["distance"], strict=True)
        axes[1].set(xscale="log", yscale="log", xlabel=SENSE[kind])
        axes[1].set_title(f"variance, {latents} latents")
        axes[1].set_xticks(distances, distances, minor=False)
        axes[1].minorticks_off()
        axes[2].axhline(TARGET, color="gray", lw=0.8, ls=":")
        axes[2].set(
            yscale="log",
            xlabel="steps, each at its best rate",
            title="gap to the best q, nats a datum",
        )
    return figure


@studies.register
def build():
    """The study."""
    return Study(
        question="Pathwise against likelihood-ratio gradients: how noisy is each, and where?",
        answers=(
            "score, leave-one-out is above that of pathwise at every dimension",
            "near the optimum too",
        ),
        settings=Own,
        quick=QUICK,
        measure=measure,
        claims=claims,
        tables=tables,
        draw=draw,
        figure="Variance of gradients against dimension and distance from the best q, and "
        "the way there, medians over seeds down to 0.0001, for Gaussian and Bernoulli latents",
        reading={
            "score": "The likelihood ratio, (f - baseline) d log q: it needs no path.",
            "pathwise": "The gradient along z = loc + sd * noise.",
            "path derivative": "Pathwise without the score of log q, whose mean is 0.",
            "relative variance": "Trace of a gradient's covariance over the squared norm of the "
            "exact one: above 1, a single gradient is mostly noise.",
            "variance": "The trace itself: what is left of it at the optimum keeps a fit moving.",
            "bias": "How far the mean gradient is off, squared; 0 but for relaxed switches.",
            "gap": "ELBO of the best q less that of the one so far, summed out exactly.",
            "arrived": "Seeds that came to the target within the steps.",
        },
    )
