"""Independence, Markov, tree, full joint: how many parameters, and how good a fit?

Every model gives the exact log p(x) of binary rows of d = 16 columns.  The ladder of assumptions:

    independent_bernoulli   d numbers     p(x) = prod_i p(x_i)
    markov_chain          2 d - 1         p(x_1) prod_i p(x_i given x_(i-1))
    chow_liu              2 d - 1         p(x_root) prod_i p(x_i given x_parent(i)), the best tree
    full_joint            2^d - 1         p(x), a number for each vector

and beside it stand models with more parameters than a tree and fewer than the table: a mixture,
NADE, and a VAE of two latents, whose p(x) is by quadrature, to 0.01 nats.
Data: nltcs, 16 answers of a survey, its parts pooled; and the central 4 x 4 of the digits' 8 x 8
pixels (rows and columns 3 to 6), black where at least half.  For every seed a quarter of the pooled
rows, drawn at random, is held out; all models get the same split, so that differences are paired.
Splits share rows: errors and tests are widened as Nadeau & Bengio do, the variance of a mean over J
splits being (1/J + held out/trained on) times that of one, not 1/J times.
Smoothing: s imagined rows of each value (coins), pair of values (tree), vector (table).  The lower
rungs do not feel it: between 0 and 1 their fits differ by less than 0.001 nats.  The table does,
by nats: s = 1 adds four rows to each of nltcs, and s = 0 has no answer to a vector that it has
not seen (here the share of e^-30 rows).  So it stands there three times: 0, 1, and "chosen", the
best of SMOOTHINGS for a quarter of its own training rows, kept apart.  What is said of training
rows is said of s = 0, maximum likelihood; there a rung that contains another cannot be worse.
Source: Koller & Friedman 2009, Probabilistic graphical models, section 3.1; Chow & Liu 1968,
    Approximating discrete probability distributions with dependence trees; Larochelle & Murray
    2011, The neural autoregressive distribution estimator; Nadeau & Bengio 2003, Inference for the
    generalization error.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field

import guides
import zoo
from experiments import studies
from experiments.report.page import Cell, Table
from experiments.studies.parts.cells import number, over_seeds
from experiments.studies.parts.claims import Claim, above, mean_se
from experiments.studies.parts.rows import column, known
from experiments.studies.study import Study
from experiments.svi.config import Distinct, Settings
from experiments.svi.fit import fit

PATCH = slice(2, 6)  # of the digits' rows and columns: the central ones
SMOOTHINGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
LADDER = ("independent_bernoulli", "markov_chain", "chow_liu", "full_joint")
SHARING = {"bernoulli_mixture": "oracle", "nade": "empty", "vae": "amortized"}
COLORS = ("#d55e00", "#0072b2")  # of the models that share parameters, and of the ladder
TO_THE_LEFT = ("full_joint", "bernoulli_mixture")  # of its point stands the name
LIKELIEST, ONE, CHOSEN = "0", "1", "chosen"
WORDS = {"digits_patch": "the digits' central 4 x 4", "nltcs": "nltcs"}


class Own(Settings):
    """Settings: which data, how often they are split, and the models that share parameters."""

    data: Distinct[Literal["digits_patch", "nltcs"]] = Field(tuple(WORDS), min_length=1)
    seeds: int = Field(10, ge=2)
    """Splits of the rows; a model that is trained step by step starts from the same seed."""
    held_out: float = Field(0.25, gt=0, le=0.9)
    """Share of the rows."""
    steps: int = Field(2000, ge=1)
    """Of SVI, for the models that have no closed form."""
    learning_rate: float = Field(0.03, gt=0)
    """Of the same: at 0.01 they need four times the steps for the same training log p."""
    num_components: int = Field(20, ge=1)
    """Of the mixture."""
    hidden: int = Field(50, ge=1)
    """Units in the one hidden layer of NADE and of the VAE's decoder."""


QUICK = {"data": ("digits_patch",), "seeds": 4, "steps": 400}


def measure(settings, device):
    """{"fits": a row for each data set, split, model and smoothing; log p in nats a row}."""
    found = []
    for name in settings.data:
        pool = _pool(name)
        for seed in range(settings.seeds):
            data = split(pool, settings.held_out, seed)
            facts = {"data": name, "seed": seed, "train_rows": len(data[0])} | unseen(*data)
            rows = [*ladder(data, settings, seed), *sharing(data, settings, seed, device)]
            found += [facts | row for row in rows]
    return {"fits": found, "held_out": settings.held_out, "steps": settings.steps}


def _pool(name):
    """All rows of a set, (n, 16)."""
    data = zoo.data.load("digits" if name == "digits_patch" else name).binarized()
    pool = torch.cat([rows for rows in (data.train, data.valid, data.test) if rows is not None])
    if name == "digits_patch":
        pool = pool.unflatten(1, data.image_shape)[:, PATCH, PATCH].flatten(1)
    return pool


def split(pool, share, seed):
    """(train, held out), of which the second is that share of the rows."""
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    count = max(1, round(share * len(pool)))
    return pool[order[count:]], pool[order[:count]]


def unseen(train, test):
    """The share of the held-out rows whose vector no training row has."""
    known = set(map(tuple, train.int().tolist()))
    new = [tuple(row) not in known for row in test.int().tolist()]
    return {"unseen": sum(new) / len(new)}


def ladder(data, settings, seed):
    """Rows of the four rungs, each by maximum likelihood and smoothed."""
    for model in LADDER:
        for label, smoothing in ((LIKELIEST, 0.0), (ONE, 1.0)):
            yield _row(_rung(model, data, smoothing), label, smoothing)
    best = chosen_smoothing(data[0], settings.held_out, seed)
    yield _row(_rung("full_joint", data, best), CHOSEN, best)


def chosen_smoothing(train, share, seed):
    """The smoothing of the table that is best for a part of the training rows, kept apart."""
    inner = split(train, share, seed)
    scores = [_rung("full_joint", inner, s).log_evidence(inner[1]).mean() for s in SMOOTHINGS]
    return SMOOTHINGS[int(torch.stack(scores).argmax())]


def _rung(model, data, smoothing):
    problem = zoo.load(model, data=data, smoothing=smoothing)
    return fit(problem, guides.build("empty", problem)).problems[0]


def sharing(data, settings, seed, device):
    """Rows of the models that share parameters, trained by SVI."""
    options = {
        "bernoulli_mixture": {"num_components": settings.num_components},
        "nade": {"hidden": settings.hidden},
        "vae": {"latent_dim": 2, "hidden": [settings.hidden]},
    }
    for model, guide in SHARING.items():
        problem = zoo.load(model, data=data, **options[model])
        guide = guides.build(guide, problem)
        run = fit(
            problem, guide, settings.steps, [seed], device, learning_rate=settings.learning_rate
        )
        yield _row(run.problems[0])


def _row(problem, label=None, smoothing=None):
    """What is kept of a fitted problem."""
    ends = problem.data.train, problem.data.test
    train, test = (problem.log_evidence(x).mean().item() for x in ends)
    return {
        "model": problem.name,
        "label": label,
        "smoothing": smoothing,
        "parameters": problem.num_parameters,
        "train": train,
        "test": test,
    }


def claims(results):
    """What the texts say of the ladder, for each data set."""
    found = []
    for data in names(results):
        found += [counts(results, data), *_climbing(results, data), *_held_out(results, data)]
    return found


def names(results):
    """The data sets."""
    return known(results["fits"], "data")


def fitted(results, key, data, model, label=None):
    """The values of every split: (J,)."""
    return column(results["fits"], key, data=data, model=model, label=label)


def widened(values, share):
    """Values of one a split whose spread is widened, so that a t test allows for shared rows.

    values: (J,); share: of the rows that are held out.  Nadeau & Bengio 2003.
    """
    factor = np.sqrt(1 + len(values) * share / (1 - share))
    return values.mean() + factor * (values - values.mean())


def gains(results, data, upper, lower, key):
    """By how much a model is better than another, nats a row, one a split, widened."""
    upper, lower = (fitted(results, key, data, *each) for each in (upper, lower))
    return widened(upper - lower, results["held_out"])


def counts(results, data):
    """The claim that the rungs have as many parameters as the texts say."""
    have = [int(fitted(results, "parameters", data, model, ONE)[0]) for model in LADDER]
    d, rows = have[0], fitted(results, "train_rows", data, LADDER[0], ONE)[0]
    return Claim(
        f"the rungs have d, 2 d - 1, 2 d - 1 and 2^d - 1 parameters ({data})",
        f"{', '.join(f'{count:,}' for count in have)} for d = {d}, and {rows:,} training rows",
        have == [d, 2 * d - 1, 2 * d - 1, 2**d - 1],
        certain=True,
    )


def _climbing(results, data):
    """The claims on training rows, under maximum likelihood: each rung contains the one before."""
    for lower, upper in pairwise(LADDER):
        values = gains(results, data, (upper, LIKELIEST), (lower, LIKELIEST), "train")
        sentence = f"{upper} fits the training rows better than {lower} ({data})"
        yield replace(above(sentence, values, " nats a row", of="splits"), certain=True)


def _held_out(results, data):
    """The claims on held-out rows; only there may the best rung be known."""
    tree, tables = ("chow_liu", ONE), [("full_joint", ONE), ("full_joint", CHOSEN)]
    rungs = [*((model, ONE) for model in LADDER), tables[1]]
    best = max(rungs, key=lambda rung: fitted(results, "test", data, *rung).mean())
    pairs = [("with as many parameters", tree, ("markov_chain", ONE))]
    pairs += [("with far fewer parameters", tree, table) for table in tables]
    how = f"with far fewer than 2^d parameters, after {results['steps']:,} steps of SVI,"
    pairs += [(how, (model, None), best) for model in SHARING]
    for how, upper, lower in pairs:
        values = gains(results, data, upper, lower, "test")
        sentence = f"on held-out rows, {how} {upper[0]} is better than {called(*lower)} ({data})"
        yield above(sentence, values, " nats a row", of="splits")


def called(model, label):
    """The name of a model, with its smoothing where that matters."""
    return f"{model}, smoothing {label}" if model == "full_joint" else model


def entries(results, data):
    """(model, label) of what was fitted, in order."""
    rows = [row for row in results["fits"] if row["data"] == data]
    return list(dict.fromkeys((row["model"], row["label"]) for row in rows))


def tables(results):
    """A table a data set: parameters, training and held-out log p."""
    return [table(results, data) for data in names(results)]


def table(results, data):
    """A line a model and smoothing."""
    lines = []
    for entry in entries(results, data):
        logs = [fitted(results, key, data, *entry) for key in ("train", "test")]
        cells = [over_seeds(widened(values, results["held_out"])) for values in logs]
        count = int(fitted(results, "parameters", data, *entry)[0])
        lines.append(
            [entry[0], Cell(f"{count:,}", count), _smoothing(results, data, entry), *cells]
        )
    rows, new = (fitted(results, key, data, LADDER[0], ONE) for key in ("train_rows", "unseen"))
    caption = (
        f"Nats a row; {rows[0]:,} training rows; ± is the standard error over {len(rows)} splits, "
        f"widened since they share rows. {new.mean():.1%} of the held-out rows have a vector that "
        "no training row has: a table without smoothing gives it the share of e^-30 rows. chosen: "
        "the smoothing that is best for a part of the training rows, its median over splits."
    )
    head = ["model", "parameters", "smoothing", "training log p", "held-out log p"]
    return Table(f"Parameters and fit: {WORDS[data]}", head, lines, caption)


def _smoothing(results, data, entry):
    """What a table says of the smoothing of an entry."""
    if entry[1] is None:
        return number(None)
    median = np.median(fitted(results, "smoothing", data, *entry))
    return Cell(f"{median:g}" + " (chosen)" * (entry[1] == CHOSEN), float(median))


def draw(results):
    """Training and held-out log p against the number of parameters, a panel a data set."""
    found = names(results)
    figure = Figure(figsize=(5.2 * len(found), 3.8), layout="constrained")
    for axis, data in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        for entry in entries(results, data):
            if entry[1] != LIKELIEST:  # whose held-out log p would leave the picture
                point(axis, results, data, entry)
        axis.set(xscale="log", xlabel="parameters", title=WORDS[data])
        axis.margins(x=0.12, y=0.1)
    for words, face in (("training rows", "white"), ("held-out rows", "gray")):
        figure.axes[0].plot([], [], "o", color="gray", mfc=face, label=words)
    figure.axes[0].set_ylabel("log p(x), nats a row")
    figure.axes[0].legend(loc="upper left")
    return figure


def point(axis, results, data, entry):
    """An entry's two means with their errors, and its name."""
    count = fitted(results, "parameters", data, *entry)[0]
    color = COLORS[entry[0] in LADDER]
    for key, face in (("train", "white"), ("test", color)):
        mean, se = mean_se(widened(fitted(results, key, data, *entry), results["held_out"]))
        axis.errorbar(count, mean, se, fmt="o", color=color, mfc=face, capsize=2)
    left = entry[0] in TO_THE_LEFT
    axis.annotate(
        called(*entry), (count, mean), xytext=(-6 if left else 6, 0), textcoords="offset points",
        ha="right" if left else "left", va="center", fontsize=7,
    )  # fmt: skip


@studies.register
def build():
    """The study."""
    return Study(
        question="Independence, Markov, full joint: how many parameters, how good a fit?",
        answers=(
            "with as many parameters chow_liu is better than markov_chain",
            "chow_liu is better than full_joint, smoothing chosen",
            "nade is better than full_joint, smoothing chosen",
        ),
        settings=Own,
        quick=QUICK,
        measure=measure,
        claims=claims,
        tables=tables,
        draw=draw,
        figure="Training and held-out log p(x) against the number of parameters, full_joint only "
        "smoothed",
        reading={
            "parameters": "Numbers that the model learns from data; its guide's are not counted.",
            "smoothing": "Imagined rows of each value, pair of values or vector.",
            "training log p": "The mean of the exact log p(x) of the rows that it was fitted to.",
            "held-out log p": "The same of rows that it has not seen: how good the fit is.",
        },
    )
