"""What does an encoder lose against free parameters for every datum, and when does it lose nothing?

A model is trained and then held still, so that all guides are compared on one posterior and one
family, a diagonal normal.  The best member of that family is searched for every datum, and the gap
splits exactly: log p - ELBO = approximation gap (the family's) + amortization gap (the encoder's).

1. VAE of two latents: encoders of several widths, trained on the first N rows; on rows that they
   were trained on and on held-out ones.  Beside them stand free parameters, searched for each row.
   The generalization gap is the amortization gap on held-out rows less that on training rows.
2. Where it must be zero: in a Gaussian LVM at its maximum likelihood the posterior's mean is linear
   in x and its spread the same for all x, so that a linear encoder can be the best there is.
3. Where it never closes: in a chain of states the posterior of z_t hangs on all of x, so that an
   encoder that sees x_t alone cannot compute its mean, however wide (tried at two widths).  A
   linear encoder of all of x can: that mean is linear in x.

Source: Cremer, Li & Duvenaud 2018, Inference suboptimality in variational autoencoders; Tipping &
    Bishop 1999, Probabilistic principal component analysis, eq. 12; Margossian & Blei 2024,
    Amortized variational inference: when and why?
"""

from copy import deepcopy
from dataclasses import replace
from itertools import product
from typing import Annotated

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import nn

import experiments
import guides
import zoo
from experiments import studies
from experiments.measure.cost import clock, seconds_per_new_datum
from experiments.measure.gaps import gap_values
from experiments.report.page import Cell, Table
from experiments.studies.parts.cells import over_seeds
from experiments.studies.parts.claims import above, mean_se, within
from experiments.studies.parts.rows import column, known
from experiments.studies.study import Study
from experiments.svi.config import Distinct, Settings
from guides.guide import Guide
from zoo.gaussian_lvm import maximum_likelihood
from zoo.nets import mlp

CASES = {
    "vae": "VAE, two latents",
    "gaussian_lvm": "Gaussian LVM",
    "linear_gaussian_ssm": "chain of states",
}
LINEAR = 0  # the width of an encoder without hidden layers
POINT = "encoder of one point"
NO_GAP = 0.01  # nats a datum that are none
RESTARTS = 8  # of the search for the best of the family: the vae's posterior may have several modes
UNIT = " nats a datum"
PARTS = ("train", "new")  # of the rows on which gaps are measured
FIT = {"learning_rate": 0.03, "objective": "stl"}
"""Of encoders.  Slower ones arrive late: Adam long remembers the steep start.  The path derivative
(Roeder et al. 2017) has no noise where q is the posterior, so that a gap of 0 is within reach."""


class Own(Settings):
    """Settings: encoders, numbers of rows, and how long each is trained."""

    rows: Distinct[Annotated[int, Field(ge=2, le=1347)]] = Field((100, 400, 1347), min_length=2)
    """Training rows, of the 1,347 digits."""
    widths: Distinct[Annotated[int, Field(ge=LINEAR)]] = Field((LINEAR, 8, 32, 128), min_length=2)
    """Of an encoder's two hidden layers; 0 for a linear one."""
    seeds: int = Field(5, ge=2)
    steps: int = Field(2000, ge=1)
    exact_steps: int = Field(2500, ge=1)
    """Of the encoder whose gap is to be 0."""
    batch_size: int = Field(128, ge=1)
    model_steps: int = Field(4000, ge=1)
    judged: int = Field(100, ge=2)
    """Rows of the training data, and held-out ones, on which gaps are measured, at most."""


QUICK = {
    "rows": (100, 1347), "widths": (LINEAR, 32), "steps": 250, "exact_steps": 800,
    "model_steps": 250, "seeds": 4, "judged": 50,
}  # fmt: skip


class Pointwise(nn.Module):
    """A source for a chain: the parameters of z_t are computed from x_t and t alone.

    train: (n, steps w) rows, one step after the other; num_parameters: of all steps together.
    """

    def __init__(self, train, steps, width, num_parameters):
        super().__init__()
        self.steps = steps
        self.register_buffer("center", train.mean(0))
        self.register_buffer("spread", (train - self.center).square().mean().sqrt())
        size = train.shape[-1] // steps + steps
        self.network = mlp(size, layers(width), num_parameters // steps)

    def forward(self, rows, index):
        x = ((rows - self.center) / self.spread).unflatten(-1, (self.steps, -1))
        time = torch.eye(self.steps).to(x).expand(*x.shape[:-1], self.steps)
        both = self.network(torch.cat([x, time], -1)).unflatten(-1, (2, -1))
        return both.movedim(-2, -3).flatten(-2).flatten(-2)  # all means, then all log sds


def measure(settings, device):
    """A row for each case, source, width, number of rows and seed."""
    return {"rows": [row for case in CASES for row in measured(case, settings, device)]}


def measured(case, settings, device):
    """The rows of one case: its model as trained, and every guide on it."""
    problem = still(case, settings, device)
    judged, many = min(settings.judged, *settings.rows), max(settings.rows)
    new, old = problem.data.test[:judged], problem.data.train[:judged]
    family = guides.build("mean_field", problem)
    restarts = RESTARTS if case == "vae" else 0  # the others' posteriors are normal
    best = {
        which: (x, experiments.fit_rows(problem, family, x, restarts=restarts).guide)
        for which, x in (("train", old), ("new", new))
    }
    steps = settings.exact_steps if case == "gaussian_lvm" else settings.steps
    if case == "vae":
        yield from searched(problem, best, many, settings.seeds, device)
    for num_rows in sorted(settings.rows) if case == "vae" else [many]:
        some = problem.having(data=replace(problem.data, train=problem.data.train[:num_rows]))
        for source, width, guide in contenders(case, some, settings):
            options = {"device": device, "batch_size": min(settings.batch_size, num_rows), **FIT}
            fit = experiments.fit(some, guide, steps, settings.seeds, **options)
            for seed, own in zip(fit.seeds, fit.guides, strict=True):
                found = {"case": case, "source": source, "width": width, "rows": num_rows}
                timed = seconds(problem, own, new, device)
                yield found | {"seed": seed} | gaps(problem, own, best) | timed


def still(case, settings, device):
    """The problem of a case with a model that no fit changes any more.

    The chain is trained by its exact posterior: independent q of its states would teach it that
    they hardly hang together.
    """
    problem = zoo.load(case)
    if case == "gaussian_lvm":
        model = maximum_likelihood(deepcopy(problem.model), problem.data.train)
        return problem.having(model=model).frozen()
    guide = guides.build("amortized" if case == "vae" else "oracle", problem)
    return experiments.fit(problem, guide, settings.model_steps, device=device).problems[0].frozen()


def contenders(case, problem, settings):
    """Triples of a source's name, a width, and the guide: all widths where the case is about it."""
    for width in settings.widths if case == "vae" else [LINEAR]:
        yield "encoder", width, guides.build("amortized", problem, hidden=layers(width))
    if case == "linear_gaussian_ssm":
        for width in sorted({LINEAR, max(settings.widths)}):
            yield POINT, width, pointwise(problem, width)


def layers(width):
    """Widths of an encoder's hidden layers."""
    return (width, width) if width else ()


def pointwise(problem, width):
    """A diagonal normal whose parameters at every step come from that step's data alone."""
    train, steps = problem.data.train, problem.model.steps
    return Guide(
        "pointwise",
        problem,
        lambda latent, family: Pointwise(train, steps, width, family.num_parameters),
        "diagonal_normal",
    )


def gaps(problem, guide, best):
    """Means of the gaps of a guide on training and new rows, nats a datum."""
    found = {}
    for which, (x, top) in best.items():
        values = gap_values(problem, guide, x, top)
        for gap in ("amortization_gap", "approximation_gap"):
            found[f"{which} {gap}"] = values[gap].mean().item()
    return found


def searched(problem, best, num_rows, times, device):
    """Rows of free parameters: their gaps are those of the best, and a search is timed anew."""
    facts = {"case": problem.name, "source": "table", "width": None, "rows": num_rows}
    x, table = best["new"]
    found = gaps(problem, table, {"new": best["new"]})
    found |= gaps(problem, best["train"][1], {"train": best["train"]})
    for seed in range(times):
        yield facts | {"seed": seed} | found | seconds(problem, table, x, device)


def seconds(problem, guide, x, device):
    """{"seconds_per_new_datum"}: of a table a search for the rows x, else a pass of the guide."""
    moved = problem.having(model=deepcopy(problem.model).to(device), data=problem.data.to(device))
    answer, x = deepcopy(guide).to(device), x.to(device)
    timed = clock(answer, x, True)
    if guide.tabular:
        with timed.searching():
            experiments.fit_rows(moved, answer, x)
    timed.take()
    return seconds_per_new_datum(timed, len(x))


def claims(results):
    """What the texts say of amortization, and that the best is the best."""
    return [*_of_vae(results), *_of_lvm(results), *_of_chain(results), _best(results)]


def _best(results):
    """That no encoder, which is of the same family, is above what the searches found."""
    every = [row[f"{which} amortization_gap"] for row in results["rows"] for which in PARTS]
    sentence = "no fit is above the best q that the searches found, on training rows or new ones"
    return within(sentence, np.minimum(every, 0), NO_GAP, UNIT, texts=False)


def gap(results, which, case, width, rows=None, source="encoder"):
    """The amortization gaps of one guide, nats a datum: (seeds,)."""
    wanted = {"case": case, "source": source, "width": width}
    wanted |= {} if rows is None else {"rows": rows}
    return column(results["rows"], f"{which} amortization_gap", **wanted)


def _of_vae(results):
    rows = [row for row in results["rows"] if (row["case"], row["source"]) == ("vae", "encoder")]
    widths, counts = (sorted(known(rows, key)) for key in ("width", "rows"))
    narrow, wide, few, many = widths[0], widths[-1], counts[0], counts[-1]
    train, new = (
        {place: gap(results, which, "vae", *place) for place in product(widths, counts)}
        for which in ("train", "new")
    )
    found = {
        f"an encoder of {_width(wide)} loses less than one of {_width(narrow)} on its {many:,} "
        "training rows": train[narrow, many] - train[wide, many],
        f"an encoder of {_width(wide)} that learned from {few:,} rows loses more on new ones than "
        "on its own": new[wide, few] - train[wide, few],
        f"{many:,} rows instead of {few:,} bring that encoder nearer to the best on new ones": (
            new[wide, few] - new[wide, many]
        ),
    }
    for sentence, values in found.items():
        yield above(f"VAE: {sentence}", values, UNIT)
    sentence = f"VAE: an encoder of {_width(wide)} still loses on new rows"
    yield above(sentence, new[wide, many], UNIT, bound=NO_GAP)
    table, passes = (
        column(results["rows"], "seconds_per_new_datum", case="vae", rows=many, width=width)
        for width in (None, wide)
    )
    yield above(
        "VAE: a new datum costs a table more than ten times a pass of the encoder (log10 of both)",
        np.log10(table / passes), "", 2, bound=1.0, of="repetitions",
    )  # fmt: skip


def _of_lvm(results):
    own = gap(results, "train", "gaussian_lvm", LINEAR)
    sentence = f"Gaussian LVM: a linear encoder loses at most {NO_GAP} nats on its training rows"
    yield within(sentence, own, NO_GAP, UNIT)


def _of_chain(results):
    case = "linear_gaussian_ssm"
    widths = known([row for row in results["rows"] if row["source"] == POINT], "width")
    blind = np.min([gap(results, "new", case, width, source=POINT) for width in widths], 0)
    sentence = "Chain: an encoder that sees one point at a time keeps a gap, whether linear or wide"
    yield above(sentence, blind, UNIT, bound=NO_GAP)
    less = blind - gap(results, "new", case, LINEAR)
    yield above(
        "Chain: its gap is larger than that of a linear encoder that sees all points", less, UNIT
    )


def _width(width):
    return "no hidden layer" if width == LINEAR else f"width {width}"


def tables(results):
    """A table for each case."""
    return [_table(results, case) for case in CASES]


def _table(results, case):
    keys = ("source", "width", "rows")
    groups = {}
    for row in results["rows"]:
        if row["case"] == case:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    lines = []
    for (source, width, rows), group in groups.items():
        train, new, family = (
            [row[key] for row in group]
            for key in ("train amortization_gap", "new amortization_gap", "new approximation_gap")
        )
        micro = [1e6 * row["seconds_per_new_datum"] for row in group]
        generalization = [b - a for a, b in zip(train, new, strict=True)]
        lines.append(
            [source, Cell("–" if width is None else _width(width), width)]
            + [Cell(f"{rows:,}", rows)]
            + [over_seeds(values) for values in (train, new, generalization, family)]
            + [over_seeds(micro, 1)]
        )
    head = ["source", "width", "rows", "amortization gap, training rows",
            "amortization gap, new rows", "generalization gap", "approximation gap",
            "µs per new datum"]  # fmt: skip
    caption = (
        "Nats a datum; one model, held still, and the same rows; ± is the standard error over "
        "seeds of the guide. table: free parameters, searched for each row, of the VAE from "
        f"{RESTARTS + 1} starts, the best by definition; its time is that of one search. A pass of "
        "an encoder is timed in Pyro."
    )
    return Table(CASES[case], head, lines, caption)


def draw(results):
    """Amortization gap against width, a panel a case; a curve for each number of rows."""
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    for axis, case in zip(figure.subplots(1, len(CASES), sharey=True), CASES, strict=True):
        rows = [r for r in results["rows"] if r["case"] == case and r["width"] is not None]
        widths = sorted(known(rows, "width"))
        curves = dict.fromkeys((row["source"], row["rows"]) for row in rows)
        for place, (source, count) in enumerate(curves):
            own = [r for r in rows if (r["source"], r["rows"]) == (source, count)]
            _curves(axis, own, widths, f"{source}, {count:,} rows", f"C{place}")
        axis.set(title=CASES[case], xticks=range(len(widths)), xlabel="width")
        axis.set_xticklabels(["linear" if width == LINEAR else width for width in widths])
        axis.set_yscale("symlog", linthresh=NO_GAP)
        axis.axhline(NO_GAP, color="gray", lw=0.8, ls=":")
        axis.margins(x=0.15)
        axis.legend(fontsize=6.5)
    figure.axes[0].set_ylim(bottom=-NO_GAP)
    figure.axes[0].set_ylabel("amortization gap, nats a datum")
    figure.suptitle(
        "Solid, filled: held-out rows; dotted, hollow: rows that the guide was trained on", size=9
    )
    return figure


def _curves(axis, rows, widths, name, color):
    """The gaps of one source at its widths, on training and on new rows."""
    own = known(rows, "width")
    places = [widths.index(width) for width in own]
    for which, face, label in (("train", "white", None), ("new", color, name)):
        values = [mean_se(column(rows, f"{which} amortization_gap", width=w)) for w in own]
        means, errors = zip(*values, strict=True)
        style = ":" if which == "train" else "-"
        axis.errorbar(
            places, means, errors, fmt=f"o{style}", label=label, color=color, mfc=face, capsize=2,
            ms=4, lw=1.2,
        )  # fmt: skip


@studies.register
def build():
    """The study."""
    return Study(
        question="What does an encoder lose against free parameters a datum, and when nothing?",
        answers=("still loses on new rows", "a linear encoder loses at most"),
        settings=Own,
        quick=QUICK,
        measure=measure,
        claims=claims,
        tables=tables,
        draw=draw,
        figure="Amortization gaps against the width of the encoder, for three models; 0 is "
        "the best q of the family for each datum",
        reading={
            "amortization gap": "What the source of the parameters loses against the best member "
            "of the family for each datum; 0 for the best.",
            "generalization gap": "The amortization gap on new rows less that on training rows.",
            "approximation gap": "What the family loses: no encoder can win it back.",
            "µs per new datum": "Until a new datum has its q, batches of held-out rows: a pass of "
            "the encoder, or the search for a table's row.",
        },
    )
