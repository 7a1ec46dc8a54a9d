"""Which guide is nearer to the posterior, what does its family hold, and what does its source lose?

Models are trained once and then held still, so that all guides are compared on one posterior:

gaussian_lvm  at its oracle's optimum, one direction of z made weaker and both turned, so that the
              two numbers of z hang together given x.  The posterior is a normal with a covariance:
              families with one hold it.  What the best independent normals lose is known by
              algebra, 1/2 (sum log P_ii - log det P) with P the posterior's precision.
vae           two latents, the decoder that `amortized` trained; its posterior is no normal, and
              its evidence is known by quadrature.

log p(x) - ELBO = approximation gap (the family's) + amortization gap (the source's), on held-out
rows, for which free rows of parameters are searched.  Guides that compute q without parameters,
oracle and laplace, are measured as they are.
Source: Cremer, Li & Duvenaud 2018, Inference suboptimality in variational autoencoders; Kim,
    Wiseman, Miller, Sontag & Rush 2018, Semi-amortized variational autoencoders; Bishop 2006,
    section 10.1.2, for independent normals.
"""

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field

import experiments
import guides
import zoo
from experiments import studies
from experiments.measure.gaps import gap_values, own_and_best
from experiments.report.page import Table
from experiments.studies.parts.cells import number, over_seeds
from experiments.studies.parts.claims import above, mean_se, within
from experiments.studies.parts.rows import column, known
from experiments.studies.study import Study
from experiments.svi.config import Distinct, Settings
from guides.laplace import Laplace
from guides.oracle import Oracle

OPTIONS = {
    "oracle": {},
    "laplace": {},
    "full_rank": {},
    "low_rank": {"rank": 2},
    "flow": {},
    "amortized_full_rank": {"hidden": []},
    "amortized_flow": {"hidden": []},
    "mean_field": {},
    "linear": {},
    "semi_amortized": {},
    "importance": {},
    "amortized": {},
    "constant": {},
}
"""Of the guides of gaussian_lvm.  Its best encoder is linear, and the longer way to it with hidden
layers is what `amortized` shows."""
AS_THEY_ARE = {"oracle": Oracle, "laplace": Laplace}  # nothing of theirs is fitted
HOLD = ("oracle", "laplace", "full_rank", "low_rank", "flow", "amortized_full_rank",
        "amortized_flow")  # fmt: skip
INDEPENDENT = ("mean_field", "linear", "semi_amortized", "amortized")
ORDER = ("mean_field", "semi_amortized", "amortized", "constant")
BENT = {"rows": ("mean_field", "flow"), "encoder": ("amortized", "amortized_flow")}
"""Guides of the vae by the source of their parameters: a normal, and a flow."""
NO_GAP, ALGEBRA = 0.01, 0.005  # nats a datum that are none, and that a gap may be off its formula
SMALL = 0.001  # nats, to which the figure is linear
GAPS = ("total_gap", "approximation_gap", "amortization_gap")
UNIT = " nats a datum"
FIT = {"batch_size": 256, "row_learning_rate": 0.2}
RATES = {"gaussian_lvm": 0.02, "vae": 0.005}


class Own(Settings):
    """Settings: which guides of gaussian_lvm, how long all are trained, what is measured."""

    guides: Distinct[Literal[tuple(OPTIONS)]] = Field(tuple(OPTIONS), min_length=1)
    seeds: int = Field(5, ge=2)
    """Of the guides; a model is trained by the first."""
    steps: int = Field(1500, ge=1)
    rows: int = Field(120, ge=2)
    """Held-out rows at most, of the vae; of gaussian_lvm all."""
    sources: Distinct[Literal[tuple(BENT)]] = Field(tuple(BENT), min_length=1)
    """Of the parameters of the vae's guides."""
    restarts: int = Field(8, ge=0)
    """Of the searches for the best of a family, of the vae: at 3 they miss a mode of some rows."""
    draws: int = Field(2000, ge=2)
    """Of q for the ELBO of a row; at 100 their noise is near what a flow gains."""


QUICK = {
    "guides": ("oracle", "full_rank", "mean_field", "amortized"),
    "seeds": 3, "steps": 400, "rows": 20, "restarts": 0, "draws": 500, "sources": ("encoder",),
}  # fmt: skip


def measure(settings, device):
    """{"gaps": a row for each model, guide and seed; "exact": what independent normals lose}."""
    turned = correlated(settings, device)
    bent = decoder(settings, device)
    rows = [row for name in settings.guides for row in gaps(turned, name, settings, device)]
    names = [name for source in settings.sources for name in BENT[source]]
    rows += [row for name in names for row in gaps(bent, name, settings, device)]
    precision = turned.posterior(turned.data.test[:1]).precision_matrix[0]
    return {"gaps": rows, "exact": lost_by_independence(precision)}


def trained(case, guide, settings, device, seeds=1):
    """The Fit of a problem, or of one that is named."""
    problem = zoo.load(case) if isinstance(case, str) else case
    guide = guides.build(guide, problem, **_options(problem, guide))
    options = FIT | {"learning_rate": RATES[problem.name]}
    return experiments.fit(problem, guide, settings.steps, seeds, device, **options)


def _options(problem, guide):
    return OPTIONS.get(guide, {}) if problem.name == "gaussian_lvm" else {}


def correlated(settings, device):
    """gaussian_lvm whose posterior is correlated, held still."""
    fit = trained("gaussian_lvm", "oracle", settings, device)
    model = deepcopy(fit.models[0])
    half = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5
    with torch.no_grad():
        _, _, axes = torch.linalg.svd(model.weight, full_matrices=False)
        model.weight.copy_(model.weight @ axes.mT * torch.tensor([1.0, 0.3]) @ half)
    return fit.problems[0].having(model=model).frozen()


def decoder(settings, device):
    """The vae with the decoder that its amortized guide trained, held still."""
    return trained("vae", "amortized", settings, device).problems[0].frozen()


def lost_by_independence(precision):
    """Nats that the best independent normals lose on a normal posterior of that precision."""
    return 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()


def gaps(problem, name, settings, device):
    """A row of mean gaps for each seed of a guide; one row where nothing is fitted."""
    whole = problem.name == "gaussian_lvm"
    x = problem.data.test if whole else problem.data.test[: settings.rows]
    if name in AS_THEY_ARE:
        fitted = [AS_THEY_ARE[name](problem)]
    else:
        fitted = trained(problem, name, settings, device, settings.seeds).guides
    for seed, guide in enumerate(fitted):
        own, best = own_and_best(problem, guide, x, 0 if whole else settings.restarts)
        values = gap_values(problem, own, x, best and best.guide, settings.draws)
        means = {gap: values[gap].mean().item() if gap in values else None for gap in GAPS}
        yield {"model": problem.name, "guide": name, "seed": seed} | means


def named(results, model="gaussian_lvm"):
    """The guides of a model."""
    return known([row for row in results["gaps"] if row["model"] == model], "guide")


def gap(results, guide, key="total_gap", model="gaussian_lvm"):
    """The gaps of a guide: (seeds,), or one number where nothing is fitted."""
    return column(results["gaps"], key, model=model, guide=guide)


def claims(results):
    """What families hold, which guide is nearer, and what a flow gains."""
    here = named(results)
    holds, rest = ([g for g in names if g in here] for names in (HOLD, INDEPENDENT))
    if holds:
        yield within(
            f"gaussian_lvm: families that hold the posterior lose nothing ({', '.join(holds)})",
            np.concatenate([gap(results, guide) for guide in holds]), NO_GAP, UNIT,
        )  # fmt: skip
    if rest:
        off = [gap(results, guide, "approximation_gap") - results["exact"] for guide in rest]
        yield within(
            f"gaussian_lvm: the families of {', '.join(rest)} lose the {results['exact']:.3f} nats "
            "of algebra", np.concatenate(off), ALGEBRA, UNIT,
        )  # fmt: skip
    pairs = [(g, "mean_field") for g in holds if g not in AS_THEY_ARE] + [*pairwise(ORDER)]
    for better, worse in [*pairs, ("importance", "amortized")]:
        if {better, worse} <= {*here}:
            more = gap(results, worse) - gap(results, better)
            yield above(f"gaussian_lvm: {better} loses less than {worse}", more, UNIT)
    if {"semi_amortized", "amortized"} <= {*here}:
        refined, encoder = (
            gap(results, g, "amortization_gap") for g in ("semi_amortized", "amortized")
        )
        sentence = "gaussian_lvm: refinement closes more than half of the encoder's gap"
        yield above(sentence, encoder / 2 - refined, UNIT)
    for normal, flow in BENT.values():
        if flow in named(results, "vae"):
            yield _nearer(results, normal, flow)


def _nearer(results, normal, flow):
    """The claim that a flow is nearer than a normal with the same source, seed by seed."""
    gain = gap(results, normal, model="vae") - gap(results, flow, model="vae")
    claim = above(f"vae, one decoder: {flow} loses less than {normal}", gain, UNIT, 4)
    mean, se = mean_se(gain)
    times = f", {mean / se:.1f} standard errors" if se > 0 else ""
    return replace(claim, found=claim.found + times)


def tables(results):
    """The gaps of every guide, a table a model."""
    caption = (
        "Nats a held-out datum; one model, held still, and the same rows and noise of draws; ± is "
        "the standard error over seeds of the guide, which a search for free rows does not have. "
        "oracle, laplace: computed, not fitted. mean_field and amortized have one family: what "
        "their approximation gaps differ by is what a search for free rows misses."
    )
    found = []
    for model in known(results["gaps"], "model"):
        lines = [
            [guide, *(_cell(gap(results, guide, key, model)) for key in GAPS)]
            for guide in named(results, model)
        ]
        head = ["guide", *(key.replace("_", " ") for key in GAPS)]
        found.append(Table(f"Gaps of guides, {model}", head, lines, caption))
    return found


def _cell(values):
    """A mean over seeds; of what is computed the number, or that it is not split."""
    alone = None if np.isnan(values[0]) else float(values[0])
    return over_seeds(values, 4) if len(values) > 1 else number(alone, 4)


def draw(results):
    """The gaps of every guide, a panel a model."""
    models = known(results["gaps"], "model")
    heights = [len(named(results, model)) + 2 for model in models]
    figure = Figure(figsize=(7, 0.24 * sum(heights) + 1.2), layout="constrained")
    axes = figure.subplots(len(models), 1, height_ratios=heights, sharex=True)
    for axis, model in zip(axes, models, strict=True):
        _marks(axis, results, model)
    axes[-1].set_xlabel(f"gap, nats a held-out datum (logarithmic beyond {SMALL:g})")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _marks(axis, results, model):
    names = named(results, model)
    total, family = (
        [mean_se(gap(results, name, key, model)) for name in names]
        for key in ("total_gap", "approximation_gap")
    )
    means, errors = np.array(total).T
    axis.errorbar(
        means, names, xerr=np.nan_to_num(errors), fmt="o", color="#0072b2", capsize=2,
        label="total gap",
    )  # fmt: skip
    axis.plot(
        [mean for mean, _ in family], names, "o", color="#d55e00", mfc="none", ms=10,
        label="approximation gap: the family's part",
    )  # fmt: skip
    axis.set_xscale("symlog", linthresh=SMALL)
    axis.set_xlim(left=-SMALL / 2)
    axis.set_title(model, loc="left")
    axis.grid(axis="y", color="0.93")
    axis.set_axisbelow(True)
    axis.set_ylim(len(names) - 0.4, -0.6)


@studies.register
def build():
    """The study."""
    return Study(
        question="Which guide is nearer to the posterior, and what do its family and source lose?",
        answers=(
            "families that hold the posterior lose nothing",
            "vae, one decoder: flow loses less than mean_field",
        ),
        settings=Own,
        quick=QUICK,
        measure=measure,
        claims=lambda results: list(claims(results)),
        tables=tables,
        draw=draw,
        figure="Gaps of guides on one posterior, a correlated normal and that of a VAE, and "
        "the part of them that is the family's",
        reading={
            "total gap": "log p(x) - ELBO = KL(q, posterior); of importance the gap of its bound.",
            "approximation gap": "What the best member of the family for each datum loses.",
            "amortization gap": "What the source of the parameters loses against that.",
        },
    )
