"""Is the latent space of an autoencoder full of holes, and that of a VAE not?

The texts say: an autoencoder's latent space is not continuous, so that samples and interpolations
fail; a VAE's work.  Both are trained here with the same networks, data, steps and rate; they differ
in the prior of z (flat, or standard normal) and in q(z given x) (a point, or a normal).

Samples are E[x given z] at z from p(z).  An autoencoder has no p(z), so that it is given three: the
standard normal, as the texts would have it; a normal with the mean and covariance of its codes; and
a mixture of normals fitted to its codes.  The VAE is given the same, its codes then being draws
from q(z) = mean_n q(z given x_n).  Lines lead straight from the code of a held-out image to that of
one of another class, where the code of a VAE is the mean of q.  An independent judge scores all:
experiments/studies/parts/judge.py.

How well q(z) is the prior: z is standardized by the prior, u = L^-1 (z - m), so that Phi(u_i) is
uniform where it is; coverage is the share of the cells of equal prior mass, CELLS x CELLS of every
two axes, that hold a code; and a classifier is asked to tell codes from draws of the prior.
Source: Kingma & Welling 2014, Auto-encoding variational Bayes, section 5; Hinton & Salakhutdinov
    2006, Reducing the dimensionality of data with neural networks; Ghosh et al. 2020, From
    variational to deterministic autoencoders, section 4, for densities fitted to codes.
"""

from itertools import combinations, product
from typing import Annotated

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.mixture import GaussianMixture

from experiments import studies
from experiments.measure.elbo import draw as draws_of
from experiments.report.page import Table
from experiments.studies.parts import judge as judges
from experiments.studies.parts.cells import number, over_seeds, percent
from experiments.studies.parts.claims import above
from experiments.studies.parts.rows import column, known
from experiments.studies.study import Study
from experiments.svi.config import Distinct

MODELS = ("autoencoder", "vae")
CELLS = 10  # cells of an axis
COMPONENTS = 10  # of the mixture that is fitted to codes
INSIDE = (0.25, 0.5, 0.75)  # places on a line that are judged
MOST = 5000  # codes at most that a density is fitted to
SHOWN, PLACES = 3, 7  # lines of a sheet of pictures, and columns

KINDS = {
    "standard": "from a standard normal",
    "normal": "from a fitted normal",
    "mixture": "from a fitted mixture",
    "line": "lines between codes",
    "reconstruction": "reconstructions",
}
SCORES = ("confidence", "information", "away")
JUDGED = {
    "confidence": "show the judge surer digits than",
    "information": "tell more of digits than",
    "away": "are more like real images in their distance to such than",
}
UNITS = {"confidence": "", "information": " nats", "away": " of log distance"}
SOURCES = {
    "standard": "a standard normal",
    "normal": "a normal fitted to codes",
    "mixture": "a mixture fitted to codes",
}
FITTED = ("normal", "mixture")
DRAWN = {"autoencoder": ("standard", "normal"), "vae": ("standard",)}  # samples in the figure
MATCH = ("coverage", "told apart")
PARTS = {"train": "training", "held out": "held-out"}


class Own(judges.Training):
    """Settings: those of training, and what is judged."""

    latent_dims: Distinct[Annotated[int, Field(ge=2)]] = Field((2, 10), min_length=1)
    rows: int = Field(1000, ge=100)
    """Pictures of each kind that are judged, lines, and codes held against the prior."""
    judge_rows: int = Field(10000, ge=500)
    """Images at most that the judge learns from."""


QUICK = {
    "data": "digits",
    "latent_dims": (10,),
    "hidden": (100, 100),
    "steps": 600,
    "batch_size": 64,
    "learning_rate": 0.01,
    "rows": 600,
}


def measure(settings, device):
    """{"judge"; "fits": a row for each model, size and seed; "scores": one for each kind too}."""
    data, apart = judges.halves(settings.data, settings.judge_rows)
    data, judge = judges.thinned(data, settings.rows, "test"), judges.Judge(apart)
    pairs = ends(data)
    scores = [key | judge.scores(found) for key, found in references(data, pairs)]
    fits, shown = [], {}
    for latent_dim, name in product(settings.latent_dims, MODELS):
        each = judges.trained(name, data, settings, device, latent_dim=latent_dim)
        for seed, problem, guide in each:
            key = {"model": name, "latent_dim": latent_dim, "seed": seed}
            z = aggregate(problem, guide, seed)
            found = pictures(problem, guide, z, pairs, settings.rows, seed)
            fits.append(key | rebuilt(problem, guide) | matched(z[: settings.rows], seed))
            scores += [key | {"kind": kind} | judge.scores(found[kind]) for kind in found]
            if seed == 0:
                shown[f"{name} {latent_dim}"] = sheets(problem, guide, found, pairs)
    return {
        "judge": judge.quality(),
        "fits": fits,
        "scores": scores,
        "shown": shown,
        "shape": list(data.image_shape),
    }


def aggregate(problem, guide, seed):
    """A draw from q(z given x) of every training row, for a point the point: (n, k) array."""
    drawn = draws_of(problem.model, guide, problem.data.train, 1, seed, need_log_q=False)
    return drawn.latents["z"][0].double().numpy()


def ends(data):
    """Pairs of held-out images that differ in their label: two tensors (m, d), m near 0.9 n."""
    x, labels = data.test, data.test_labels
    other = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    differ = labels != labels[other]
    return x[differ], x[other[differ]]


def line(first, last, places):
    """Points between (m, k) and (m, k) at shares of the way: (m, places, k)."""
    share = torch.as_tensor(places)[:, None]
    return first[:, None] + share * (last - first)[:, None]


def references(data, pairs):
    """What scores mean: those of held-out images, and of lines between their pixels."""
    key = {"model": "images", "latent_dim": None, "seed": 0}
    yield key | {"kind": "held out"}, data.test
    yield key | {"kind": "line"}, line(*pairs, INSIDE).flatten(0, 1)


def pictures(problem, guide, z, pairs, rows, seed):
    """{kind: pictures (., d)}: samples from each prior, lines, and reconstructions."""
    drawn = {prior: source(z, rows, seed) for prior, source in PRIORS.items()}
    drawn["line"] = line(*(judges.codes(guide, x) for x in pairs), INSIDE).flatten(0, 1)
    drawn["reconstruction"] = judges.codes(guide, problem.data.test)
    return {k: judges.decoded(problem, torch.as_tensor(v).float()) for k, v in drawn.items()}


def standard(z, rows, seed):
    """Draws of the standard normal as wide as z (n, k): (rows, k)."""
    return np.random.default_rng(seed).standard_normal((rows, z.shape[1]))


def fitted(components):
    """What draws from a mixture of so many normals, fitted to codes."""

    def drawn(z, rows, seed):
        found = GaussianMixture(components, max_iter=1000, random_state=seed).fit(z[:MOST])
        return found.sample(rows)[0]

    return drawn


PRIORS = {"standard": standard, "normal": fitted(1), "mixture": fitted(COMPONENTS)}


def matched(z, seed):
    """How well a prior fits codes z (n, k), as numbers: of the standard and of a fitted normal."""
    below = np.linalg.cholesky(np.cov(z.T))
    whitened = np.linalg.solve(below, (z - z.mean(0)).T).T
    return {
        f"{measure} {prior}": by(u, seed)
        for prior, u in (("standard", z), ("normal", whitened))
        for measure, by in (("coverage", coverage), ("told apart", told_apart))
    }


def coverage(u, seed=None):
    """The share of cells of equal mass under the standard normal that hold a row of u (n, k).

    Cells are CELLS x CELLS over two axes; the mean over all pairs of axes.
    """
    cells = np.minimum((norm.cdf(u) * CELLS).astype(int), CELLS - 1)
    pairs = combinations(cells.T, 2)
    return float(np.mean([len(np.unique(CELLS * a + b)) / CELLS**2 for a, b in pairs]))


def told_apart(u, seed):
    """Accuracy with which a classifier tells unseen rows of u (n, k) from standard normal draws.

    It is 1/2 where they are of one distribution.  It learns from half of both.
    """
    rows = np.concatenate([u, np.random.default_rng(seed + 10**6).standard_normal(u.shape)])
    which = np.repeat([0, 1], len(u))
    learn = np.arange(len(rows)) % 2 == 0
    found = HistGradientBoostingClassifier(max_iter=60, early_stopping=False, random_state=seed)
    return float(found.fit(rows[learn], which[learn]).score(rows[~learn], which[~learn]))


def rebuilt(problem, guide):
    """Errors of reconstructions, a datum: squared, summed over pixels, and in nats."""
    found = {}
    for part, x in (("train", problem.data.train), ("held out", problem.data.test)):
        p = judges.decoded(problem, judges.codes(guide, x))
        found[f"squares {part}"] = (p - x).square().sum(-1).mean().item()
        nats = torch.nn.functional.binary_cross_entropy(p, x, reduction="none")
        found[f"nats {part}"] = nats.sum(-1).mean().item()
    return found


def sheets(problem, guide, found, pairs):
    """{what: pictures (SHOWN, PLACES, d)} for the figure."""
    first, last = (judges.codes(guide, x[:SHOWN]) for x in pairs)
    between = judges.decoded(problem, line(first, last, np.linspace(0, 1, PLACES)).float())
    drawn = {
        k: found[k][: SHOWN * PLACES].unflatten(0, (SHOWN, PLACES)) for k in DRAWN[problem.name]
    }
    return {kind: judges.packed(images) for kind, images in (drawn | {"line": between}).items()}


def sizes(results):
    """The numbers of latents."""
    return known(results["fits"], "latent_dim")


def claims(results):
    """What the texts say of both, for each number of latents."""
    return [
        claim
        for k in sizes(results)
        for of in (of_samples, of_lines, of_codes, of_reconstructions)
        for claim in of(results, k)
    ]


def of_samples(results, k):
    """Those of samples: the VAE's from its prior, the autoencoder's from two that it is given."""
    for prior, words in SOURCES.items():
        for key in ("information", "away"):
            sentence = (
                f"samples of a VAE of {k} latents {JUDGED[key]} an autoencoder's from {words}"
            )
            own = prior != "mixture"
            gain = better(results, k, key, "standard", prior)
            yield above(sentence, gain, UNITS[key], texts=own)
    sentence = f"samples of an autoencoder of {k} latents from a fitted mixture tell more than"
    own = [
        column(results["scores"], "information", model="autoencoder", latent_dim=k, kind=f)
        for f in FITTED
    ]
    yield above(
        f"{sentence} those from a fitted normal", own[1] - own[0], UNITS["information"], texts=False
    )


def of_lines(results, k):
    """Those of lines between codes."""
    for key in ("confidence", "away"):
        sentence = f"lines between a VAE's codes of {k} latents {JUDGED[key]} an autoencoder's"
        yield above(sentence, better(results, k, key, "line", "line"), UNITS[key])
    less = grows(results, k, "autoencoder") - grows(results, k, "vae")
    sentence = f"from reconstructions to lines the distance grows less for a VAE of {k} latents"
    yield above(sentence, less, UNITS["away"], texts=False)


def better(results, k, key, kind, other):
    """By how much a VAE's pictures are better than an autoencoder's of another kind: (seeds,).

    A distance is best where it is that of real images, 0: below it pictures are all too typical.
    """
    ours = column(results["scores"], key, model="vae", latent_dim=k, kind=kind)
    theirs = column(results["scores"], key, model="autoencoder", latent_dim=k, kind=other)
    return np.abs(theirs) - np.abs(ours) if key == "away" else ours - theirs


def grows(results, k, model):
    """The distance of pictures on lines less that of reconstructions: (seeds,)."""
    inside, ends = (
        column(results["scores"], "away", model=model, latent_dim=k, kind=kind)
        for kind in ("line", "reconstruction")
    )
    return inside - ends


def of_codes(results, k):
    """Those of q(z) and the prior."""

    def at(key, model):
        return column(results["fits"], key, model=model, latent_dim=k)

    more = at("coverage standard", "vae") - at("coverage normal", "autoencoder")
    sentence = (
        f"a VAE's codes of {k} latents cover more of its prior than an autoencoder's of a normal "
        "fitted to them"
    )
    yield above(sentence, 100 * more, " points", 1)
    less = at("told apart normal", "autoencoder") - at("told apart standard", "vae")
    sentence = (
        f"its prior fits q(z) of a VAE of {k} latents better than a normal fitted to them fits an "
        "autoencoder's codes"
    )
    yield above(sentence, 100 * less, " points of a classifier that tells them apart", 1)
    more = at("told apart standard", "vae") - 0.5
    sentence = f"q(z) of a VAE of {k} latents is not its prior: a classifier tells them apart"
    yield above(sentence, 100 * more, " points above chance", 1, texts=False)


def of_reconstructions(results, k):
    """Those of reconstructions, where the autoencoder has no KL to pay for."""
    for part in PARTS:
        less = column(results["fits"], f"squares {part}", model="vae", latent_dim=k)
        less = less - column(results["fits"], f"squares {part}", model="autoencoder", latent_dim=k)
        sentence = f"an autoencoder of {k} latents restores {PARTS[part]} images better than a VAE"
        yield above(sentence, less, " squared errors an image")


def tables(results):
    """Pictures as the judge sees them, the codes, reconstructions, and the judge."""
    return [of_pictures(results), of_fits(results), judges.quality_table(results["judge"])]


def of_pictures(results):
    """What the judge says of each kind of pictures."""
    rows, lines = results["scores"], []
    for kind, words in (("held out", "held-out images"), ("line", "lines between their pixels")):
        cells = [
            over_seeds(column(rows, key, model="images", latent_dim=None, kind=kind))
            for key in SCORES
        ]
        lines.append(["real images", "–", words, *cells])
    for k, model, kind in product(sizes(results), MODELS, KINDS):
        cells = [
            over_seeds(column(rows, key, model=model, latent_dim=k, kind=kind)) for key in SCORES
        ]
        lines.append([model, number(k, 0), KINDS[kind], *cells])
    caption = (
        "Expected pixels E[x given z], made black and white and judged. confidence: the mean of "
        "the judge's largest probability. information: what a picture says of the digit, in "
        "nats, at most log 10 = 2.30; it is low where pictures are unsure, and where they are "
        "all alike. distance: log distance to the nearest real images, 0 for real ones, below 0 "
        "for the typical or smooth. ± is the standard error over seeds, which share data and "
        "judge."
    )
    head = ["model", "latents", "pictures", "confidence", "information", "distance"]
    return Table("Pictures, judged", head, lines, caption)


def of_fits(results):
    """Codes against the prior, and errors of reconstructions."""
    keys = {f"{what} {prior}": percent for what in MATCH for prior in ("standard", "normal")}
    keys |= {f"{error} {part}": over_seeds for error in ("squares", "nats") for part in PARTS}
    lines = []
    for k, model in product(sizes(results), MODELS):
        cells = [
            by(column(results["fits"], key, model=model, latent_dim=k)) for key, by in keys.items()
        ]
        lines.append([model, number(k, 0), *cells])
    caption = (
        f"coverage: share of {CELLS} x {CELLS} cells of equal prior mass over two latents in which "
        "there is a code, the mean over all pairs of latents; told apart: accuracy of a classifier "
        "of codes and draws of the prior, 50 % where they are alike; both for a standard normal as "
        "the prior and for a normal fitted to the codes. squares, nats: error of the "
        "reconstruction, an image, on training and held-out images. ± is the standard error over "
        "seeds, which share their data."
    )
    head = ["model", "latents", *keys]
    return Table("Codes against a prior, and reconstructions", head, lines, caption)


def draw(results):
    """Sheets of samples and of lines, a row for each number of latents."""
    kinds = [(model, kind) for model in MODELS for kind in (*DRAWN[model], "line")]
    dims = sizes(results)
    figure = Figure(figsize=(2.6 * len(kinds), 1.7 * len(dims) + 0.2), layout="constrained")
    figure.get_layout_engine().set(wspace=0.08)  # between sheets more than between pictures
    axes = figure.subplots(len(dims), len(kinds), squeeze=False)
    for row, k in zip(axes, dims, strict=True):
        for axis, (model, kind) in zip(row, kinds, strict=True):
            title = f"{model} of {k}\n{KINDS[kind]}"
            judges.show(axis, results["shown"][f"{model} {k}"][kind], results["shape"], title)
    return figure


@studies.register
def build():
    """The study."""
    return Study(
        question="Is the latent space of an autoencoder full of holes, and that of a VAE not?",
        answers=(
            "tell more of digits than an autoencoder's from a standard normal",
            "tell more of digits than an autoencoder's from a mixture fitted to codes",
            "show the judge surer digits than an autoencoder's",
        ),
        settings=Own,
        quick=QUICK,
        measure=measure,
        claims=claims,
        tables=tables,
        draw=draw,
        figure="Samples and lines between codes of an autoencoder and of a VAE with the "
        "same networks",
        reading={
            "confidence": "How sure the judge is of the digit it sees; real images are the scale.",
            "distance": "Log distance to the nearest real images: 0 for a real one, above 0 for "
            "pictures apart from all, below for those that are smoother or more typical.",
            "information": "What a picture says of the digit, high where sure and of all kinds.",
            "coverage": "Share of the prior's mass where codes are, near 100 % without holes.",
            "told apart": "50 % where codes are distributed as the prior, 100 % where never.",
        },
    )
