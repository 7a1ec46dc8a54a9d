"""Does fixing some latents change what is generated, as it should?

Three ways to ask for a digit:

cluster    a Gaussian mixture VAE with y fixed: z ~ p(z given y).  What is asked for is the label
           that is commonest among the training images whose likeliest component is y.
label      a semi-supervised VAE with y fixed, z ~ p(z).
direction  a VAE: to the code z of a held-out image of label a is added t (m_b - m_a), where m is
           the mean code of the training images of a label; b, drawn anew for every image, is asked
           for.  The control goes as far the way from one random training code to another, so that
           it stays, as m_b - m_a does, among the latents that codes make use of.

What is measured is the share of the pictures E[x given the latents] in which a classifier that
learned from images no model saw (parts/judge.py) sees what was asked for.  By chance
it sees that as often as the labels asked for occur among samples with nothing fixed, or among the
pictures of the codes before they are moved.
Source: Kingma, Rezende, Mohamed & Welling 2014, Semi-supervised learning with deep generative
    models, section 4.4; Dilokthanakul et al. 2016, Deep unsupervised clustering with Gaussian
    mixture variational autoencoders, section 4; Larsen, Sonderby, Larochelle & Winther 2016,
    Autoencoding beyond pixels using a learned similarity metric, section 3.3, for directions.
"""

from dataclasses import replace

import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from pydantic import Field
from pyro import poutine

from experiments import studies
from experiments.measure.labels import likeliest
from experiments.measure.purity import cluster_latent
from experiments.measure.streams import stream
from experiments.report.page import Table
from experiments.studies.parts import judge as judges
from experiments.studies.parts.cells import number, over_seeds, percent
from experiments.studies.parts.claims import above
from experiments.studies.parts.rows import column
from experiments.studies.study import Study
from zoo.ss_vae import with_reports

LENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # t
ASKED, FAR = 1.0, 2.0  # t at which the means meet, and twice as far
SHOWN = 7  # pictures in a line


class Own(judges.Training):
    """Settings: those of training, and what is told and judged."""

    latent_dim: int = Field(10, ge=1)
    num_labels: int = Field(1000, ge=10, multiple_of=10)
    """Training images whose label the semi-supervised VAE is told."""
    label_weight: float = Field(50.0, ge=0)
    """Weight of what is told in the training of its classifier."""
    steps: int = Field(1500, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(0.01, gt=0)
    """More small steps than the other studies take: a decoder heeds the label late."""
    rows: int = Field(2000, ge=100)
    """Pictures that are drawn of a kind, and held-out images at most that are moved."""
    judge_rows: int = Field(10000, ge=500)
    """Images at most that the judge learns from."""


QUICK = {
    "data": "digits",
    "num_labels": 100,
    "hidden": (50, 50),
    "steps": 300,
    "batch_size": 64,
    "learning_rate": 0.01,
    "rows": 300,
}


def measure(settings, device):
    """{"judge"; "drawn": a row for each way and seed; "moved": one for each length too; ...}."""
    data, apart = judges.halves(settings.data, settings.judge_rows)
    with_reports(data, settings.num_labels)  # in time: refused where there are too few labels
    data, judge = judges.thinned(data, settings.rows, "test"), judges.Judge(apart)
    drawn, moved, shown = [], [], {}
    for way, models in (("cluster", by_cluster), ("label", by_label)):
        for seed, problem, asked in models(data, settings, device):
            drawn.append({"way": way, "seed": seed} | judged(judge, problem, asked, settings, seed))
            if seed == 0:
                shown[way] = judges.packed(sheet(problem, asked, seed))
    for seed, problem, guide in vaes(data, settings, device):
        found = list(shifted(problem, guide, data, seed))
        moved += [{"seed": seed} | scores(judge, *one) for one in found]
        if seed == 0:
            lines = [pictures[:SHOWN] for kind, *_, pictures in found if kind == "means"]
            shown["direction"] = judges.packed(torch.stack(lines, 1))
    return {
        "judge": judge.quality(),
        "drawn": drawn,
        "moved": moved,
        "shown": shown,
        "shape": list(data.image_shape),
    }


def vaes(data, settings, device):
    """(seed, problem, guide) of the VAE."""
    return judges.trained("vae", data, settings, device, latent_dim=settings.latent_dim)


def by_cluster(data, settings, device):
    """(seed, problem, asked) of the mixture: asked {component: label}, of those that are used."""
    fits = judges.trained("gmvae", data, settings, device, latent_dim=settings.latent_dim)
    for seed, problem, guide in fits:
        found = likeliest(problem, guide, cluster_latent(problem), data.train)
        used = found.unique().tolist()
        yield seed, problem, {y: data.train_labels[found == y].mode().values.item() for y in used}


def by_label(data, settings, device):
    """(seed, problem, asked) of the semi-supervised VAE: asked {label: label}."""
    told = with_reports(data, settings.num_labels)
    how = {"guide": "semi_supervised", "guide_options": {"weight": settings.label_weight}}
    fits = judges.trained("ss_vae", told, settings, device, latent_dim=settings.latent_dim, **how)
    for seed, problem, _ in fits:
        yield seed, problem, {label: label for label in range(problem.model.num_classes)}


def expected(problem, count, seed, **fixed):
    """E[x given the latents] of draws of the model with some sites fixed: (count, d).

    fixed: {site: values (count, ...)}; the other latents are drawn given them.
    """

    def several():
        with pyro.plate("draws", count, dim=-2):
            problem.model()

    values = {name: value[:, None] for name, value in fixed.items()}
    with stream(seed, torch.device("cpu")), torch.no_grad():
        trace = poutine.trace(pyro.condition(several, values)).get_trace()
        return trace.nodes["x"]["fn"].mean.reshape(count, -1)


def fixing(problem, y):
    """{site: values} that fix the finite latent y at values (n,)."""
    if problem.label is None:
        return {"y": y}
    nothing_told = torch.full_like(y, problem.model.num_classes)  # so that it is y that counts
    return {"y": y, "report": nothing_told}


def judged(judge, problem, asked, settings, seed):
    """Shares of pictures that show what was asked for, with y fixed and by chance, as numbers."""
    y = torch.tensor(list(asked)).repeat_interleave(settings.rows // len(asked))
    wanted = np.array([asked[value] for value in y.tolist()])
    seen = judge.labels(expected(problem, len(y), seed, **fixing(problem, y)))
    unasked = judge.labels(expected(problem, settings.rows, seed))
    return {
        "share": float((seen == wanted).mean()),
        "chance": float(np.mean([(unasked == label).mean() for label in asked.values()])),
        "values": len(asked),
        "labels": len(set(asked.values())),
    }


def sheet(problem, asked, seed):
    """Pictures (values, SHOWN, d) with y fixed: a line for each value, by the label asked for."""
    values = torch.tensor(sorted(asked, key=asked.get)).repeat_interleave(SHOWN)
    pictures = expected(problem, len(values), seed, **fixing(problem, values))
    return pictures.unflatten(0, (-1, SHOWN))


@torch.no_grad()
def shifted(problem, guide, data, seed):
    """Codes of held-out images moved towards another label, and as far at random.

    Yields (kind, t, label asked for (n,), own label (n,), pictures (n, d)).
    """
    z, own = judges.codes(guide, data.test), data.test_labels
    train, labels = judges.codes(guide, data.train), data.train_labels
    means = torch.stack([train[labels == label].mean(0) for label in labels.unique()])
    luck = torch.Generator().manual_seed(seed)
    asked = (own + torch.randint(1, len(means), own.shape, generator=luck)) % len(means)
    step = means[asked] - means[own]
    first = torch.randint(len(train), own.shape, generator=luck)
    second = first + torch.randint(1, len(train), own.shape, generator=luck)  # never the same image
    other = train[second % len(train)] - train[first]
    other = (
        other * step.norm(dim=-1, keepdim=True) / other.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    )
    for kind, way in (("means", step), ("random", other)):
        for t in LENGTHS:
            yield kind, t, asked, own, judges.decoded(problem, z + t * way)


def scores(judge, kind, t, asked, own, pictures):
    """Shares of moved pictures in which the judge sees the label asked for, and the old one."""
    seen = judge.labels(pictures)
    return {
        "kind": kind,
        "t": t,
        "asked": float((seen == asked.numpy()).mean()),
        "own": float((seen == own.numpy()).mean()),
        "away": float(judge.away(pictures).mean()) if kind == "means" else None,
    }


def claims(results):
    """What the texts say of fixing latents, and two controls."""
    drawn, moved = results["drawn"], results["moved"]

    def at(t, kind="means", key="asked"):
        return column(moved, key, t=t, kind=kind)

    found = [
        fixed(drawn, way, f"with its {way} fixed, {sentence} more often than chance")
        for way, sentence in (
            ("cluster", "a mixture VAE draws the cluster's digit"),
            ("label", "a semi-supervised VAE draws that digit"),
        )
    ]
    moved_to = "codes moved by the difference of two digits' means are seen as the other digit"
    return [
        *found,
        above(f"{moved_to} more often than unmoved", 100 * (at(ASKED) - at(0.0)), " points", 1),
        above(
            f"{moved_to} more often than moved as far at random",
            100 * (at(ASKED) - at(ASKED, "random")), " points", 1,
        ),
        above(
            "moved twice as far, pictures are further from real images",
            at(FAR, key="away") - at(ASKED, key="away"), " of log distance", texts=False,
        ),
    ]  # fmt: skip


def fixed(drawn, way, sentence):
    """The claim that what was asked for is seen more often than by chance."""
    share, chance = (100 * column(drawn, key, way=way) for key in ("share", "chance"))
    claim = above(sentence, share - chance, " points", 1)
    return replace(claim, found=f"{share.mean():.1f} % against {chance.mean():.1f}: {claim.found}")


def tables(results):
    """What is seen where a latent is fixed, where codes are moved, and the judge."""
    return [of_drawn(results["drawn"]), of_moved(results), judges.quality_table(results["judge"])]


def of_drawn(drawn):
    """Samples with y fixed."""
    lines = []
    for way, model in (("cluster", "gmvae"), ("label", "ss_vae")):
        shares = [percent(column(drawn, key, way=way)) for key in ("share", "chance")]
        counts = [over_seeds(column(drawn, key, way=way), 1) for key in ("values", "labels")]
        lines.append([f"{way} ({model})", *shares, *counts])
    caption = (
        "as asked: pictures in which the judge sees the label asked for, as many of each value of "
        "y; by chance: the same among samples with nothing fixed. values: those of y that some "
        "training image has; labels: different ones among those asked for. ± is the standard error "
        "over seeds, which share data and judge."
    )
    head = ["fixed", "as asked", "by chance", "values", "labels"]
    return Table("Samples with a latent fixed", head, lines, caption)


def of_moved(results):
    """Codes of held-out images, moved."""
    lines = []
    for t in LENGTHS:
        shares = [
            percent(column(results["moved"], key, t=t, kind=kind))
            for kind in ("means", "random")
            for key in ("asked", "own")
        ]
        away = over_seeds(column(results["moved"], "away", t=t, kind="means"))
        lines.append([number(t, 2), *shares, away])
    caption = (
        "t: length in units of the difference of two labels' mean codes. Shares of pictures of "
        "moved codes of held-out images in which the judge sees the label asked for, or the old "
        "one. distance: log distance to the nearest real images, 0 for real ones. ± is the "
        "standard error over seeds, which share data and judge."
    )
    head = ["t", "asked for", "old", "asked for, at random", "old, at random", "distance"]
    return Table("Codes moved by a difference of means", head, lines, caption)


def draw(results):
    """A sheet of pictures for each way, and what is seen against the length of the step."""
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.3))
    titles = {
        "cluster": "cluster fixed, one a line",
        "label": "label fixed, one a line",
        "direction": f"codes moved, t = {LENGTHS[0]:g} to {LENGTHS[-1]:g}",
    }
    for axis, (way, title) in zip(axes, titles.items(), strict=False):
        judges.show(axis, results["shown"][way], results["shape"], title)
    styles = {"means": ("#0072b2", "difference of means"), "random": ("#d55e00", "at random")}
    for kind, (color, words) in styles.items():
        values = np.array([column(results["moved"], "asked", t=t, kind=kind) for t in LENGTHS])
        axes[-1].errorbar(
            LENGTHS, 100 * values.mean(1), 100 * values.std(1, ddof=1) / values.shape[1] ** 0.5,
            color=color, label=words, marker="o", markersize=3,
        )  # fmt: skip
    axes[-1].set(xlabel="t", ylabel="label asked for is seen, %", ylim=(0, 100))
    axes[-1].legend(loc="upper left")
    return figure


@studies.register
def build():
    """The study."""
    return Study(
        question="Does fixing some latents change what is generated, as it should?",
        answers=(
            "with its cluster fixed",
            "with its label fixed",
            "more often than moved as far at random",
        ),
        settings=Own,
        quick=QUICK,
        measure=measure,
        claims=claims,
        tables=tables,
        draw=draw,
        figure="Digits with a cluster or a label fixed, codes moved towards another digit, "
        "and how often that digit is then seen",
        reading={
            "as asked": "Share of the pictures in which the judge sees what was asked for.",
            "by chance": "The same share where nothing was fixed: what asking has to beat.",
            "labels": "How many different digits can be asked for; by cluster, not all may be.",
            "distance": "Log distance to the nearest real images: 0 for a real one, above 0 for "
            "pictures apart from all, below for those that are smoother or more typical.",
        },
    )
