"""How long do an autoregressive model's draws take, and how long a latent variable model's?

By the chain rule x_i is drawn from p(x_i given x_1 ... x_(i-1)), so that a draw of d pixels takes d
passes of the network, one after the other.  A latent variable model draws z and then all pixels of
p(x given z) at once, in one pass.  Draws side by side share the passes, but not their order.

Images of several sizes are drawn, all that are asked for at once, as a record's "seconds for 100
draws" has it.  The models have random parameters: a draw takes the same operations whatever these
are.  Data, resized digits, give a model its shape and nothing else.

operations  calls of torch's operators in a draw of one image: they do not hang on the machine
exponent    e where seconds grow as d^e: the slope of log seconds against log d, by least squares
A pass over the pixels so far, or over all, makes exponents above 1; the fixed cost of a call makes
them smaller, most of all where the pass itself is short.

A repetition times every model, size and number of draws by turns, a short draw several times, of
which the median counts; the first is left out.  Exponents and ratios are those within a repetition,
and the repetitions are the replicates.  Seconds on a CPU are those of the thread that draws.
Source: van den Oord, Kalchbrenner & Kavukcuoglu 2016, Pixel recurrent neural networks, sections 1
    and 3; Kingma & Welling 2014, Auto-encoding variational Bayes, section 2.
"""

import statistics
from itertools import pairwise, product
from typing import Annotated

import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from experiments import studies
from experiments.measure.streams import stream
from experiments.report.figures import GUIDE_COLORS
from experiments.report.page import Cell, Table
from experiments.studies.parts.cells import over_seeds, short
from experiments.studies.parts.claims import Claim, above
from experiments.studies.parts.rows import column, known
from experiments.studies.study import Study
from experiments.svi.config import Distinct, Settings
from experiments.svi.device import now
from zoo.errors import require

AUTOREGRESSIVE, LATENT = ("nade", "made", "pixel_cnn", "pixel_rnn"), ("vae", "bernoulli_mixture")
MODELS = *AUTOREGRESSIVE, *LATENT
COMPARED = "vae"  # the model to whose seconds those of the others are held
PROPORTIONAL = 0.8  # an exponent that counts as 1, less what the fixed cost of a call takes
ROWS = 100  # digits that are resized, of which a model takes the shape
ENOUGH, MOST = 0.1, 100  # seconds, and draws, after which a repetition times no further ones


class Own(Settings):
    """Settings: sizes of images, of batches and of networks, and how often a draw is timed."""

    sides: Distinct[Annotated[int, Field(ge=2)]] = (8, 14, 20, 28)
    """Pixels a side of the images."""
    batches: Distinct[Annotated[int, Field(ge=1)]] = Field((1, 100), min_length=1)
    """Numbers of images that are drawn at once."""
    repetitions: int = Field(10, ge=2)
    hidden: int = Field(100, ge=1)
    """Hidden units of nade, made and each of the vae's two layers, and the mixture's components."""
    channels: int = Field(8, ge=1)
    """Maps of pixel_cnn and pixel_rnn."""


QUICK = {"sides": (6, 9, 13), "batches": (1, 5), "repetitions": 6, "channels": 4}


def measure(settings, device):
    """{"times": a row for each model, size, number of draws and repetition; "operations": ...}."""
    require(len({*settings.sides}) > 1, "sides must name at least two sizes, for an exponent")
    problems = {
        (name, side): _problem(name, side, settings, device)
        for side, name in product(settings.sides, MODELS)
    }
    counted = [
        {"model": name, "side": side, "operations": operations(problem, device)}
        for (name, side), problem in problems.items()
    ]
    times = [
        {"model": name, "side": side, "draws": draws, "repetition": turn}
        | {"seconds": seconds_of_draws(problem, draws, device)}
        for turn in range(settings.repetitions + 1)
        for ((name, side), problem), draws in product(problems.items(), settings.batches)
    ]
    return {"times": [row for row in times if row["repetition"] > 0], "operations": counted}


def _problem(name, side, settings, device):
    """The model of images of side x side pixels, as it is made, on the device."""
    digits = zoo.data.load("digits").train[:ROWS].reshape(-1, 1, 8, 8)
    rows = torch.nn.functional.interpolate(digits, (side, side), mode="bilinear").flatten(1)
    rows = rows.round()
    options = {
        "nade": {"hidden": settings.hidden},
        "made": {"hidden": (settings.hidden,)},
        "pixel_cnn": {"channels": settings.channels},
        "pixel_rnn": {"channels": settings.channels},
        "vae": {"hidden": (settings.hidden, settings.hidden)},
        "bernoulli_mixture": {"num_components": settings.hidden},
    }[name]
    data = zoo.data.DataSet(f"digits of {side} pixels", rows, rows, image_shape=(side, side))
    problem = zoo.load(name, data=data, **options)
    problem.model.to(device)
    return problem


@torch.no_grad()
def seconds_of_draws(problem, draws, device):
    """Seconds to draw that many images from the model at once; of short draws the median."""
    found = []
    with stream(0, device), pyro.plate("draws", draws, dim=-2):
        while sum(found) < ENOUGH and len(found) < MOST:
            started = now(device)
            problem.model()
            found.append(now(device) - started)
    return statistics.median(found)


@torch.no_grad()
def operations(problem, device):
    """Calls of torch's operators while one image is drawn."""
    with stream(0, device), Counter() as counter:
        problem.model()
    return counter.calls


class Counter(TorchDispatchMode):
    """Counts the calls of operators while it is on."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def _seconds(results, model, side, draws):
    """Of every repetition, in order."""
    return column(results["times"], "seconds", model=model, side=side, draws=draws)


def exponents(results, model, draws):
    """Slopes of log seconds against log pixels, one a repetition."""
    sides = known(results["times"], "side")
    seconds = [_seconds(results, model, side, draws) for side in sides]
    return np.polyfit(2 * np.log(sides), np.log(seconds), 1)[0]


def _operations(results, model):
    """{pixels: operations of a draw}."""
    rows = [row for row in results["operations"] if row["model"] == model]
    return {row["side"] ** 2: row["operations"] for row in rows}


def added(results, model):
    """Operations that each further pixel adds to a draw, between one size and the next."""
    counts = sorted(_operations(results, model).items())
    return [(more - less) / (larger - d) for (d, less), (larger, more) in pairwise(counts)]


def claims(results):
    """What the texts say of draws."""
    found = [_order(results)]
    for draws in known(results["times"], "draws"):
        found += _of_seconds(results, draws)
    return found


def _of_seconds(results, draws):
    """The claims on seconds.

    "Every" and "any" are the extremes within each repetition, whichever models they are of: that
    makes a claim harder to support, not easier.
    """
    side = max(known(results["times"], "side"))
    seconds = {model: np.log10(_seconds(results, model, side, draws)) for model in MODELS}
    slopes = {model: exponents(results, model, draws) for model in MODELS}
    (fastest, slowest), (flattest, steepest) = _extremes(seconds), _extremes(slopes)
    what = f"{draws} image{'s' if draws > 1 else ''}"
    yield above(
        f"to draw {what} of {side} x {side} pixels, every autoregressive model takes longer than "
        "any latent variable model",
        fastest - slowest, " powers of ten", of="repetitions",
    )  # fmt: skip
    yield above(
        f"drawing {what}, seconds grow faster with the pixels for every autoregressive model than "
        "for any latent variable model",
        flattest - steepest, " between the exponents", of="repetitions",
    )  # fmt: skip
    yield above(
        f"drawing {what}, seconds of every autoregressive model grow as the pixels or faster, but "
        "for the fixed cost of a call",
        flattest, " the exponent", bound=PROPORTIONAL, of="repetitions",
    )  # fmt: skip


def _extremes(values):
    """(least of the autoregressive models, most of the latent variable models), by repetition."""
    least = np.min([values[model] for model in AUTOREGRESSIVE], 0)
    return least, np.max([values[model] for model in LATENT], 0)


def _order(results):
    """The claim on the number of operations, which is exact."""
    autoregressive = min(min(added(results, model)) for model in AUTOREGRESSIVE)
    latent = max(max(map(abs, added(results, model))) for model in LATENT)
    return Claim(
        "every further pixel adds operations to an autoregressive draw, and none to a latent "
        "variable model's",
        f"at least {autoregressive:.1f} a pixel, and at most {latent:g}",
        autoregressive >= 1 and latent == 0,
    )


def tables(results):
    """Growth by model, and the seconds behind it."""
    return [_growth(results), _times(results)]


def _growth(results):
    side, batches = max(known(results["times"], "side")), known(results["times"], "draws")
    pairs = [(f"exponent, {n} at once", f"times the {COMPARED}, {n} at once") for n in batches]
    head = ["model", "kind", "operations a pixel", *(text for pair in pairs for text in pair)]
    caption = (
        "operations a pixel: what a further pixel adds to the calls of operators of one draw, on "
        "average over sizes. exponent: of seconds against the number of pixels. times the "
        f"{COMPARED}: seconds over those of the {COMPARED} in the same repetition, images of "
        f"{side} x {side} pixels. ± is the standard error over repetitions."
    )
    lines = [_line(results, model, side, batches) for model in MODELS]
    return Table("How the time of a draw grows with the image", head, lines, caption)


def _line(results, model, side, batches):
    """A line of that table."""
    cells = [short(statistics.mean(added(results, model)))]
    for draws in batches:
        own, other = (_seconds(results, m, side, draws) for m in (model, COMPARED))
        ratio = over_seeds(own / other, 0 if own.mean() > 10 * other.mean() else 2)
        cells += [over_seeds(exponents(results, model, draws), 2), ratio]
    return [model, "autoregressive" if model in AUTOREGRESSIVE else "latent variable", *cells]


def _times(results):
    batches, lines = known(results["times"], "draws"), []
    for model, side in product(MODELS, known(results["times"], "side")):
        middle = [statistics.median(_seconds(results, model, side, n)) for n in batches]
        speed = batches[-1] / middle[-1]
        cells = [Cell(f"{side} x {side}", side), short(_operations(results, model)[side**2])]
        lines.append([model, *cells, *(short(1000 * m) for m in middle), short(speed)])
    heads = [f"ms for {n}" for n in batches]
    head = ["model", "image", "operations", *heads, f"images a second, {batches[-1]} at once"]
    caption = (
        "operations: calls of torch's operators in a draw of one image. ms: medians over "
        "repetitions, models and sizes by turns."
    )
    return Table("Milliseconds of draws", head, lines, caption)


def draw(results):
    """Seconds against pixels, a panel for each number of draws at once."""
    batches, sides = known(results["times"], "draws"), known(results["times"], "side")
    figure = Figure(figsize=(4.2 * len(batches), 3.8), layout="constrained")
    axes = figure.subplots(1, len(batches), squeeze=False, sharey=True)[0]
    for axis, draws in zip(axes, batches, strict=True):
        for model, color in zip(MODELS, GUIDE_COLORS, strict=True):
            times = np.array([_seconds(results, model, side, draws) for side in sides])
            style = "-" if model in AUTOREGRESSIVE else "--"
            middle = np.median(times, 1)
            off = np.abs([times.min(1), times.max(1)] - middle)
            axis.errorbar(
                np.square(sides), middle, off, color=color, fmt=f"o{style}", ms=3, lw=1.2,
                label=model,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="pixels", title=f"{draws} at once")
        axis.set_xticks(np.square(sides), [f"{side}²" for side in sides], minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("seconds (bars: all repetitions)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


@studies.register
def build():
    """The study."""
    return Study(
        question="Do autoregressive models draw pixel by pixel, latent variable models at once?",
        answers=("to draw 1 image", "drawing 1 image, seconds grow faster"),
        settings=Own,
        quick=QUICK,
        measure=measure,
        claims=claims,
        tables=tables,
        draw=draw,
        figure="Seconds of a draw against the number of pixels, for autoregressive and "
        "latent variable models",
        reading={
            "operations a pixel": "Operators that each further pixel adds to a draw; 0 where all "
            "pixels are drawn at once.",
            "exponent": "1 where twice as many pixels take twice as long, 0 where they take no "
            "longer.",
            f"times the {COMPARED}": f"How many draws of the {COMPARED} fit into the time of one.",
            "images a second": "Of a batch that is drawn at once.",
        },
    )
