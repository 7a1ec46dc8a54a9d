"""Does a latent space, learned without labels, group what is alike?

Models that see no label are trained on images; their codes z (the mean of q(z given x), for an
autoencoder its point) are then held against the labels, beside principal components of the same
number and the pixels themselves.  All is learned on the codes of training images and taken on those
of held-out images:

groups      k-means with as many groups as labels.  ARI is 0 on average for groups that have nothing
            to do with the labels, NMI near 0, and both are 1 where groups are labels; purity is the
            share of the images whose label is the commonest in their group.
read by     a linear classifier (multinomial logistic regression on standardized codes), and by the
            labels of the NEIGHBORS nearest codes: the share of labels that are right.

A Gaussian mixture VAE has groups of its own, the likeliest component under q(y given x), which are
held against k-means on the codes of the VAE and on its own codes.
Source: Bengio, Courville & Vincent 2013, Representation learning, sections 3 and 11.2; Kingma &
    Welling 2014, appendix A, for the plane of codes; Jiang et al. 2017, Variational deep embedding,
    section 4.3; Hubert & Arabie 1985, Comparing partitions, for the ARI.
"""

from itertools import product
from typing import Annotated

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import experiments
import zoo
from experiments import studies
from experiments.measure.labels import likeliest
from experiments.measure.purity import cluster_latent
from experiments.report.page import Table
from experiments.studies.parts import judge as judges
from experiments.studies.parts.cells import number, over_seeds
from experiments.studies.parts.claims import above
from experiments.studies.parts.rows import column, known
from experiments.studies.study import Study
from experiments.svi.config import Distinct
from zoo.errors import require

MODELS = ("vae", "autoencoder")
NEIGHBORS = 5
RESTARTS = 10  # of k-means
REACH = 2.5  # standard deviations of the prior that a traversal goes to either side
SHOWN, POINTS = 7, 500  # pictures in a line; points in a plane of codes

SPACES = {
    "vae": "VAE",
    "autoencoder": "autoencoder",
    "gmvae": "mixture VAE",
    "components": "mixture VAE, components",
    "pca": "PCA",
    "pixels": "pixels",
}
READ = ("linear", "neighbors")
KEYS = ("ari", "nmi", "purity", *READ)
MEASURES = {
    "nmi": "groups among {} agree with labels more (NMI) than those among {}",
    "linear": "a linear classifier reads more labels from {} than from {}",
    "neighbors": "nearest neighbors tell more labels by {} than by {}",
}
OTHERS = {
    "pixels": "pixels",
    "pca": "as many principal components",
    "autoencoder": "an autoencoder's",
}
COMPARED = tuple(product(MEASURES, OTHERS))


class Own(judges.Training):
    """Settings: those of training, and whose codes are held against labels."""

    latent_dims: Distinct[Annotated[int, Field(ge=1)]] = Field((2, 10), min_length=1)
    steps: int = Field(1000, ge=1)
    rows: int = Field(3000, ge=100)
    """Images at most whose codes are held against labels, of those trained on and held out."""


QUICK = {
    "data": "digits",
    "latent_dims": (2,),
    "hidden": (100, 100),
    "steps": 600,
    "batch_size": 64,
    "learning_rate": 0.01,
}


def measure(settings, device):
    """{"spaces": a row for each space and seed; "shown": what the figure shows}."""
    data = zoo.data.load(settings.data).binarized()
    most = max(settings.latent_dims)
    require(most <= data.width, f"latent_dims: {most} is more than the {data.width} pixels")
    some = judges.thinned(data, settings.rows, "train", "test")
    spaces, shown = list(without_models(data.train, some, settings)), {}
    models = [*product(MODELS, settings.latent_dims), ("gmvae", max(settings.latent_dims))]
    for name, k in models:
        for seed, problem, guide in judges.trained(name, data, settings, device, latent_dim=k):
            key = {"space": name, "latent_dim": k, "seed": seed}
            codes = [judges.codes(guide, x).numpy() for x in (some.train, some.test)]
            spaces.append(key | read(codes, some) | grouped(codes, some, seed))
            if name == "gmvae":
                none = dict.fromkeys(READ)  # no codes to read labels from
                spaces.append(
                    key | {"space": "components"} | own_groups(problem, guide, some) | none
                )
            if seed == 0 and (k == 2 or name != "autoencoder"):
                shown[f"{name} {k}"] = pictures(problem, codes[1], some)
    return {"spaces": spaces, "shown": shown, "shape": list(data.image_shape)}


def without_models(x, data, settings):
    """Rows of pixels and of x's principal components, where the seed is that of k-means alone."""
    pixels = [data.train.numpy(), data.test.numpy()]
    spaces = {("pixels", data.width): pixels}
    for k in settings.latent_dims:
        found = PCA(k, random_state=0).fit(x.numpy())
        spaces["pca", k] = [found.transform(block) for block in pixels]
    for (space, k), codes in spaces.items():
        right = read(codes, data)
        for seed in range(settings.seeds):
            key = {"space": space, "latent_dim": k, "seed": seed}
            yield key | right | grouped(codes, data, seed)


def read(codes, data):
    """How well codes (train, held out) tell the labels: shares that are right."""
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    readers = {"linear": linear, "neighbors": KNeighborsClassifier(NEIGHBORS)}
    train, test = (labels.numpy() for labels in (data.train_labels, data.test_labels))
    return {
        name: float(reader.fit(codes[0], train).score(codes[1], test))
        for name, reader in readers.items()
    }


def grouped(codes, data, seed):
    """How well the groups of k-means among codes (train, held out) agree with the labels."""
    means = KMeans(len(data.train_labels.unique()), n_init=RESTARTS, random_state=seed)
    return agreement(data.test_labels.numpy(), means.fit(codes[0]).predict(codes[1]))


def own_groups(problem, guide, data):
    """How well the likeliest components of a mixture VAE agree with the labels."""
    found = likeliest(problem, guide, cluster_latent(problem), data.test)
    return agreement(data.test_labels.numpy(), found.numpy())


def agreement(labels, groups):
    """ARI, NMI and purity of groups (n,) against labels (n,)."""
    return {
        "ari": float(adjusted_rand_score(labels, groups)),
        "nmi": float(normalized_mutual_info_score(labels, groups)),
        "purity": experiments.purity(labels, groups.astype(int)),
    }


def pictures(problem, codes, data):
    """What is shown of a space: a plane of held-out codes, traversals, or pictures by component."""
    k = codes.shape[1]
    if problem.name == "gmvae":
        return judges.packed(by_component(problem))
    if k == 2:
        return {
            "codes": codes[:POINTS].round(2).tolist(),
            "labels": data.test_labels[:POINTS].tolist(),
        }
    axes = torch.eye(k)[:, None] * torch.linspace(-REACH, REACH, SHOWN)[:, None]
    return judges.packed(judges.decoded(problem, axes))


def by_component(problem):
    """E[x given z] of draws of z of each component: (components, SHOWN, d)."""
    loc, scale = problem.model.loc.detach(), problem.model.log_scale.detach().exp()
    noise = torch.randn(len(loc), SHOWN, loc.shape[1], generator=torch.Generator().manual_seed(0))
    return judges.decoded(problem, loc[:, None] + scale[:, None] * noise)


def sizes(results):
    """The numbers of latents."""
    return known([row for row in results["spaces"] if row["space"] == "vae"], "latent_dim")


def claims(results):
    """What the texts say of groups, and what a VAE adds to pixels, PCA and an autoencoder."""
    rows, found = results["spaces"], []
    for k in sizes(results):
        sentence = (
            f"groups among a VAE's codes of {k} numbers agree with labels, which it never saw"
        )
        found.append(above(f"{sentence} (ARI)", column(rows, "ari", space="vae", latent_dim=k)))
        for key, other in COMPARED:
            size = {} if other == "pixels" else {"latent_dim": k}
            theirs = column(rows, key, space=other, **size)
            sentence = MEASURES[key].format(f"a VAE's {k} numbers", OTHERS[other])
            found.append(above(sentence, column(rows, key, space="vae", latent_dim=k) - theirs))
    k = max(sizes(results))
    own = column(rows, "nmi", space="components", latent_dim=k)
    sentence = f"the components of a mixture VAE of {k} latents agree with labels more (NMI) than"
    for other, words in (("vae", "a VAE's"), ("gmvae", "its own")):
        better = own - column(rows, "nmi", space=other, latent_dim=k)
        found.append(above(f"{sentence} groups among {words} codes", better, texts=other == "vae"))
    return found


def tables(results):
    """Every space against the labels."""
    rows = results["spaces"]
    spaces = sorted({(row["latent_dim"], row["space"]) for row in rows})
    lines = [
        [
            SPACES[space],
            number(k, 0),
            *[cell(column(rows, key, space=space, latent_dim=k)) for key in KEYS],
        ]
        for k, space in spaces
    ]
    caption = (
        "Shares and indices on held-out images. ARI, NMI, purity: k-means among the codes, for "
        "components the likeliest under q(y given x), against the labels. linear, "
        f"{NEIGHBORS} nearest: share of labels read from the codes by a classifier that learned "
        "from training images. ± is the standard error over seeds, which share their data; of PCA "
        "and pixels over those of k-means."
    )
    head = ["codes", "numbers", "ARI", "NMI", "purity", "linear", f"{NEIGHBORS} nearest"]
    return [Table("Codes against the labels", head, lines, caption)]


def cell(values):
    """Values over seeds, or that there are none."""
    return number(None) if values[0] is None else over_seeds(values)


def draw(results):
    """Planes of codes, traversals of each latent, and samples by component."""
    shown, largest = results["shown"], max(sizes(results))
    planes = [name for name in shown if isinstance(shown[name], dict)]
    sheets = {f"vae {largest}": "along each latent", f"gmvae {largest}": "by component"}
    sheets = {name: words for name, words in sheets.items() if name not in planes}
    count = len(planes) + len(sheets)
    figure = Figure(figsize=(3.2 * count, 3.6), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis, name in zip(axes, planes, strict=False):
        marks = axis.scatter(
            *np.array(shown[name]["codes"]).T, c=shown[name]["labels"], cmap="tab10", s=5
        )
        axis.set(title=f"{name}: held-out codes by label", xticks=[], yticks=[])
    if planes:  # the last one's colors are those of all
        figure.legend(*marks.legend_elements(), loc="outside lower center", ncols=10, title="label")
    for axis, name in zip(axes[len(planes) :], sheets, strict=True):
        judges.show(axis, shown[name], results["shape"], f"{name}: {sheets[name]}")
    return figure


@studies.register
def build():
    """The study."""
    return Study(
        question="Does a latent space, learned without labels, group what is alike?",
        answers=(
            "codes of 10 numbers agree with labels",
            "nearest neighbors tell more labels by a VAE's 10 numbers than by pixels",
        ),
        settings=Own,
        quick=QUICK,
        measure=measure,
        claims=claims,
        tables=tables,
        draw=draw,
        figure="Codes of held-out images by label, and pictures along latents or by component",
        reading={
            "ARI": "Agreement of groups with labels: 0 by chance, 1 where they are the same.",
            "NMI": "What a group tells of the label, as a share of what there is: from 0 to 1.",
            "purity": "Share of the images whose label is the commonest in their group.",
            "linear": "Share of labels that a linear classifier reads from the codes.",
            f"{NEIGHBORS} nearest": "Share of labels that the nearest training codes tell.",
        },
    )
