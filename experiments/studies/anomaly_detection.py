"""Is p(x) high for what is normal and low for what is not, so that it finds anomalies?

A model is trained on all classes but one.  Then log p(x) of held-out rows of those classes, the
normal ones, is compared with that of the class left out, and of another set of images: by the area
under the ROC curve (AUROC), the probability that a normal row has the higher score, and that under
the precision-recall curve of the anomalies (AUPRC).
Scores: log p(x) of a VAE of 2 latents (by quadrature), of NADE and the Chow-Liu tree (exact), and
of a VAE of 10 (importance weighting, a lower bound on average); log p(x given the mean of q) of the
same VAEs, their reconstruction error with its sign changed; an isolation forest; and "simplicity",
which learns nothing: minus the number of edges, pairs of neighboring pixels that differ.
Data: binary images of 8 x 8 pixels: the digits, and MNIST without its border of two pixels, the
means of 3 x 3 blocks; black where at least half.
p(x) says how much probability a single image gets; of simple images there are few, so that each
gets much, strange or not.  So the failure is looked for where it is to be expected before any model
is trained: at the simplest class, the one of fewest edges.
Replicates: the classes left out, each the mean over seeds, since seeds share all data, and taken as
independent, though two of their training sets have eight classes of nine in common.  What differs
too little between them is tested over images (Mann-Whitney and Spearman tests, the largest p over
models, classes and seeds): that of another set, of the simplest class, and of edges.
Source: Nalisnick et al. 2019, Do deep generative models know what they don't know?, section 3 and
    5; Serra et al. 2020, Input complexity and out-of-distribution detection with likelihood-based
    generative models; Liu, Ting & Zhou 2008, Isolation forest.
"""

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from scipy.stats import mannwhitneyu, pearsonr, spearmanr
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn.functional import avg_pool2d

import guides
import zoo
from experiments import studies
from experiments.measure.evidence import iwae
from experiments.report.page import Table
from experiments.studies.parts.cells import number, over_seeds
from experiments.studies.parts.claims import above, mean_se, told_by_tests
from experiments.studies.parts.rows import column, known
from experiments.studies.study import Study
from experiments.svi.config import Distinct, Settings
from experiments.svi.fit import fit
from zoo.data import DataSet

MODELS = {
    "vae of 2": ("vae", "amortized", {"latent_dim": 2}),
    "vae of 10": ("vae", "amortized", {"latent_dim": 10}),
    "nade": ("nade", "empty", {}),
    "chow_liu": ("chow_liu", "empty", {}),
}
FOREST, SIMPLICITY, NADE = "isolation forest", "simplicity", "nade"
NORMAL, LEFT_OUT, OTHER = "normal", "left-out class", "other set"
BINS = 25  # of the histograms
COLORS = {NORMAL: "#0072b2", LEFT_OUT: "#d55e00", OTHER: "#009e73"}
SIDE, BLOCK, BORDER = 8, 3, 2  # pixels of an image, of a block of MNIST, and around all blocks


class Own(Settings):
    """Settings: which data, which classes are left out, how the models are trained."""

    data: Distinct[Literal["digits", "mnist"]] = Field(("digits", "mnist"), min_length=1)
    """Sets to train on; where there are two, each is the other's other set."""
    classes: Distinct[Annotated[int, Field(ge=0, le=9)]] = Field(tuple(range(10)), min_length=2)
    """Left out one at a time."""
    models: Distinct[Literal[tuple(MODELS)]] = Field(tuple(MODELS), min_length=1)
    seeds: int = Field(2, ge=2)
    steps: int = Field(600, ge=1)
    train_rows: int = Field(5000, ge=2)
    """Largest number of rows to train on."""
    rows: int = Field(200, ge=2)
    """Largest number of normal rows, of rows of the class left out, and of the other set."""
    draws: int = Field(200, ge=1)
    """Of importance weighting, a row."""


QUICK = {
    "data": ("digits",),
    "classes": tuple(range(6)),
    "models": ("vae of 2", "chow_liu"),
    "rows": 400,
    "steps": 300,
}


def measure(settings, device):
    """{"areas", "classes", "shown"}: rows of areas and correlations, of class facts, histograms."""
    sets = {name: SETS[name]() for name in settings.data}
    found = {"areas": [], "classes": [], "shown": []}
    for name, data in sets.items():
        found["classes"] += class_facts(name, data, settings.classes)
        for out in settings.classes:
            train, groups = parts(sets, name, out, settings)
            facts = {"data": name, "left_out": out}
            for score, values in scores(train, groups, settings, device).items():
                facts["score"] = score
                found["areas"] += [facts | row for row in areas(values, groups)]
                if score in MODELS and out in ends(found, name):
                    found["shown"].append(facts | histogram(values[0]))
    return found


def _digits():
    """The digits, pixels of 0 and 1."""
    return zoo.data.load("digits").binarized()


def _mnist():
    """MNIST at the digits' size, pixels of 0 and 1."""
    whole = zoo.data.load("mnist")

    def pool(rows):
        inner = rows.unflatten(1, whole.image_shape)[:, BORDER:-BORDER, BORDER:-BORDER]
        return avg_pool2d(inner[:, None], BLOCK).flatten(1)

    return replace(whole.map(pool), image_shape=(SIDE, SIDE)).binarized()


SETS = {"digits": _digits, "mnist": _mnist}


def edges(x):
    """Pairs of pixels, side by side or one above the other, that differ: (n, 64) -> (n,)."""
    images = x.unflatten(1, (SIDE, SIDE))
    return sum(images.diff(dim=axis).abs().sum((1, 2)) for axis in (1, 2))


def class_facts(name, data, classes):
    """The mean number of edges and of black pixels of every class's training images."""
    for label in classes:
        x = data.train[data.train_labels == label]
        means = {"edges": edges(x).mean().item(), "ink": x.sum(1).mean().item()}
        yield {"data": name, "label": label} | means


def ends(results, data):
    """(simplest class, the one with the most edges) of a set."""
    own = sorted((r["edges"], r["label"]) for r in results["classes"] if r["data"] == data)
    return own[0][1], own[-1][1]


def parts(sets, name, out, settings):
    """(DataSet to train on, {group: rows}) where a class is left out.

    Nothing of that class is trained on, so that its rows come from both parts of the set.
    """
    data, count = sets[name], settings.rows
    kept, known = data.test_labels != out, data.train_labels != out
    strange = torch.cat([data.test[~kept], data.train[~known]])
    groups = {NORMAL: data.test[kept][:count], LEFT_OUT: strange[:count]}
    for other in sets.keys() - {name}:
        groups[OTHER] = sets[other].test[:count]
    return DataSet(name, data.train[known][: settings.train_rows], groups[NORMAL]), groups


def scores(data, groups, settings, device):
    """{score: a list over seeds of {group: (n,) array}}, higher for what is more normal."""
    found, seeds = {}, range(settings.seeds)
    for name in settings.models:
        model, guide, options = MODELS[name]
        problem = zoo.load(model, data=data, **options)
        own = [0] if problem.maximum_likelihood else seeds
        guide = guides.build(guide, problem)
        run = fit(problem, guide, steps=settings.steps, seeds=own, device=device)
        pairs = list(zip(run.problems, run.guides, strict=True))
        found[name] = [_of(groups, log_p, *pair, settings.draws) for pair in pairs]
        if model == "vae":
            found[restored(name)] = [_of(groups, reconstruction, *pair) for pair in pairs]
    forests = [IsolationForest(random_state=seed).fit(data.train.numpy()) for seed in seeds]
    found[FOREST] = [_of(groups, lambda x, own: own.score_samples(x.numpy()), f) for f in forests]
    return found | {SIMPLICITY: [_of(groups, lambda x: -edges(x))]}


def _of(groups, function, *args):
    return {name: np.asarray(function(x, *args)) for name, x in groups.items()}


def log_p(x, problem, guide, draws):
    """log p(x) of every row, (n,) nats; a lower bound on average where it is not known exactly."""
    if problem.truth.log_evidence is None:
        return iwae(problem, guide, x, draws).value
    return problem.log_evidence(x)


@torch.no_grad()
def reconstruction(x, problem, guide):
    """log p(x given z) of every row where z is the mean of q: (n,) nats."""
    mean = guide.distribution("z", guide.rows(x)["z"]).mean
    return problem.model.likelihood(mean).log_prob(x)


def restored(model):
    """The name of the reconstruction score of a VAE."""
    return f"reconstruction, {model}"


def areas(values, groups):
    """Rows of areas for each seed and group of anomalies, with correlations over normal rows.

    p_reversed, p_found: of the Mann-Whitney tests that anomalies do not have the higher scores, and
    normal rows do not; p_edges: of Spearman's, that scores do not fall with edges.
    """
    x = groups[NORMAL]
    for seed, own in enumerate(values):
        normal = own[NORMAL]
        related = {"with_edges": edges(x), "with_ink": x.sum(1)}
        related = {name: np.corrcoef(normal, by)[0, 1] for name, by in related.items()}
        related["p_edges"] = spearmanr(normal, edges(x), alternative="less").pvalue
        for against in [group for group in own if group != NORMAL]:
            label = np.repeat([0, 1], [len(normal), len(own[against])])
            every = -np.concatenate([normal, own[against]])
            found = {
                "auroc": roc_auc_score(label, every),
                "auprc": average_precision_score(label, every),
                "chance_auprc": label.mean(),
                "p_reversed": mannwhitneyu(own[against], normal, alternative="greater").pvalue,
                "p_found": mannwhitneyu(normal, own[against], alternative="greater").pvalue,
            }
            numbers = {name: float(value) for name, value in (found | related).items()}
            yield {"seed": seed, "against": against} | numbers


def histogram(own):
    """The share of every group's rows in BINS bins that all groups have in common."""
    bins = np.histogram_bin_edges(np.concatenate(list(own.values())), BINS)
    shares = {name: np.histogram(values, bins)[0] / len(values) for name, values in own.items()}
    return {name: values.round(4).tolist() for name, values in (shares | {"bins": bins}).items()}


def claims(results):
    """What the texts say of p(x), and where it fails."""
    found = []
    for data in names(results, "data"):
        found += [*_detection(results, data), *_rivals(results, data), *_failure(results, data)]
    if OTHER in names(results, "against"):
        found.append(_simpler_set(results))
    return found


def _simpler_set(results):
    """That a model of the busier set gives higher p(x) to the simpler one."""
    edges = {
        data: np.mean([row["edges"] for row in results["classes"] if row["data"] == data])
        for data in names(results, "data")
    }
    simpler, busier = min(edges, key=edges.get), max(edges, key=edges.get)
    areas = [by_class(results, busier, model, OTHER) for model in models(results)]
    return told_by_tests(
        f"all models: trained on {busier}, they give a higher log p to the simpler set, {simpler}",
        f"AUROC {np.min(areas):.3f} to {np.max(areas):.3f}; {edges[simpler]:.1f} edges an image "
        f"against {edges[busier]:.1f}",
        *(largest(results, key, busier, OTHER) for key in ("p_reversed", "p_found")),
    )


def names(results, key):
    """What stands there in the rows of areas, each once."""
    return known(results["areas"], key)


def models(results):
    """The scores that are log p(x)."""
    return [name for name in names(results, "score") if name in MODELS]


def by_class(results, data, score, against=LEFT_OUT, key="auroc"):
    """The mean over seeds for every class left out: (classes,)."""
    where = {"data": data, "score": score, "against": against}
    classes = [row["label"] for row in results["classes"] if row["data"] == data]
    return np.array(
        [column(results["areas"], key, left_out=out, **where).mean() for out in classes]
    )


def one_class(results, data, score, out, key="auroc"):
    """The values of all seeds for one class left out."""
    where = {"data": data, "score": score, "against": LEFT_OUT}
    return column(results["areas"], key, left_out=out, **where)


def _detection(results, data):
    """That log p(x) is higher for normal rows than for anomalies."""
    for model in models(results):
        values = by_class(results, data, model)
        sentence = f"{model}: on average log p finds a class that was left out ({data})"
        claim = above(sentence, values, " AUROC", bound=0.5, of="classes")
        count = f"above 0.5 for {sum(values > 0.5)} of {len(values)} classes, on average "
        yield replace(claim, found=count + claim.found)
    if OTHER in names(results, "against"):
        sentence = f"all models: log p is higher for normal rows than for another set ({data})"
        worst = min(by_class(results, data, model, OTHER).min() for model in models(results))
        tests = (largest(results, key, data, OTHER) for key in ("p_found", "p_reversed"))
        yield told_by_tests(sentence, f"AUROC at least {worst:.3f}", *tests)


def largest(results, key, data, against=LEFT_OUT, by=max):
    """The largest p of a test over images, of all models, classes left out and seeds."""
    values = [
        column(results["areas"], key, data=data, score=model, against=against)
        for model in models(results)
    ]
    return float(by(map(by, values)))


def _rivals(results, data):
    """That log p(x) of a VAE finds a class left out better than others do."""
    here = names(results, "score")
    for model in [name for name in models(results) if restored(name) in here]:
        for rival in [name for name in (FOREST, NADE, restored(model)) if name in here]:
            gains = by_class(results, data, model) - by_class(results, data, rival)
            sentence = f"{model}: log p finds a class left out better than {rival} ({data})"
            yield above(sentence, gains, " more AUROC", of="classes")


def _failure(results, data):
    """That the simplest class gets higher p(x) than what was trained on, and why."""
    simplest, _ = ends(results, data)
    for model in models(results):
        tests = (
            one_class(results, data, model, simplest, key).max()
            for key in ("p_reversed", "p_found")
        )
        auroc = over_seeds(one_class(results, data, model, simplest)).text
        sentence = (
            f"{model}: left out, the simplest class gets a higher log p than normal rows ({data})"
        )
        found = f"AUROC {auroc} for class {simplest}"
        yield told_by_tests(sentence, found, *tests, texts=False)
    weakest = max(
        by_class(results, data, model, key="with_edges").max() for model in models(results)
    )
    sentence = f"all models: the fewer edges an image has, the higher is its log p ({data})"
    p, least = (largest(results, "p_edges", data, by=by) for by in (max, min))
    found = f"Pearson's correlation at most {weakest:.2f}, Spearman's tested"
    yield told_by_tests(sentence, found, p, 1 - least, texts=False)
    mean = np.mean([by_class(results, data, model) for model in models(results)], 0)
    test = pearsonr(mean, by_class(results, data, SIMPLICITY), alternative="greater")
    sentence = f"the simpler a class, the less log p finds it when it is left out ({data})"
    found = f"correlation {test.statistic:.2f} of their AUROC with that of simplicity over classes"
    yield told_by_tests(sentence, found, test.pvalue, 1 - test.pvalue, texts=False)


def tables(results):
    """For each data set a table of the scores and one of the classes."""
    of = (score_table, class_table)
    return [table(results, data) for data in names(results, "data") for table in of]


def score_table(results, data):
    """A line a score: the areas over classes, and what log p(x) goes with."""
    simplest, _ = ends(results, data)
    shown = [(group, key) for group in names(results, "against") for key in ("auroc", "auprc")]
    lines = []
    for score in names(results, "score"):
        cells = [over_seeds(by_class(results, data, score, *each)) for each in shown]
        cells.append(over_seeds(one_class(results, data, score, simplest)))
        for key in ("with_edges", "with_ink"):
            related = by_class(results, data, score, key=key)
            cells.append(over_seeds(related, 2) if score in MODELS else "–")
        lines.append([score, *cells])
    chance = by_class(results, data, SIMPLICITY, key="chance_auprc").mean()
    caption = (
        "± is the standard error over the classes left out, each the mean over seeds; for the "
        f"simplest class, {simplest}, over seeds. By chance the AUROC is 0.5, the AUPRC of a class "
        f"left out {chance:.2f}. with edges, with ink: correlation of log p(x) with an image's "
        "number of edges and of black pixels, over normal rows."
    )
    areas_of = [f"{key.upper()}, {group}" for group, key in shown]
    head = ["score", *areas_of, "AUROC, simplest", "with edges", "with ink"]
    return Table(f"Scores that find anomalies: {data}", head, lines, caption)


def class_table(results, data):
    """A line a class left out: how simple it is, and the AUROC of every score."""
    facts = [row for row in results["classes"] if row["data"] == data]
    lines = []
    for row in sorted(facts, key=lambda row: row["edges"]):
        own = [one_class(results, data, s, row["label"]) for s in names(results, "score")]
        cells = [over_seeds(values, 2) for values in own]
        lines.append([str(row["label"]), number(row["edges"], 1), number(row["ink"], 1), *cells])
    caption = (
        "AUROC of a class left out; ± is the standard error over seeds, which share all data. "
        "edges, ink: means of the class's training images."
    )
    head = ["class", "edges", "ink", *names(results, "score")]
    return Table(f"Each class left out: {data}", head, lines, caption)


def draw(results):
    """For each data set log p(x) of the groups where it succeeds and fails, and the AUROC.

    The histograms are of the model that fails most.
    """
    data_sets = names(results, "data")
    figure = Figure(figsize=(11, 3.4 * len(data_sets)), layout="constrained")
    panels = figure.subplots(len(data_sets), 3, squeeze=False)
    for (left, middle, right), data in zip(panels, data_sets, strict=True):
        simplest, busiest = ends(results, data)
        fails = {m: one_class(results, data, m, simplest).mean() for m in models(results)}
        for axis, out in ((left, busiest), (middle, simplest)):
            histograms(axis, results, data, min(fails, key=fails.get), out)
        bars(right, results, data, simplest)
    figure.axes[0].legend(fontsize=7)
    panels[0, -1].legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2, fontsize=7)
    return figure


def histograms(axis, results, data, model, out):
    """Shares of log p(x) of every group, where a class is left out."""
    wanted = {"data": data, "score": model, "left_out": out}.items()
    (row,) = [row for row in results["shown"] if wanted <= row.items()]
    for group in [name for name in COLORS if name in row]:
        axis.stairs(
            row[group], row["bins"], color=COLORS[group], fill=True, alpha=0.35, label=group
        )
    axis.set(
        xlabel="log p(x), nats",
        ylabel="share of the rows",
        title=f"{data}, {out} left out: {model}",
    )


def bars(axis, results, data, simplest):
    """The mean AUROC of every score; marks: that of the simplest class, and of another set."""
    scores = names(results, "score")
    means, errors = zip(*(mean_se(by_class(results, data, s)) for s in scores), strict=True)
    places = range(len(scores))
    axis.barh(places, means, xerr=errors, color=COLORS[NORMAL], alpha=0.5, capsize=2)
    own = [one_class(results, data, score, simplest).mean() for score in scores]
    mark = {"clip_on": False, "zorder": 3}
    axis.plot(own, places, "D", color=COLORS[LEFT_OUT], label="the simplest class alone", **mark)
    if OTHER in names(results, "against"):
        other = [by_class(results, data, score, OTHER).mean() for score in scores]
        axis.plot(other, places, "D", color=COLORS[OTHER], label=OTHER, **mark)
    axis.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    axis.set_yticks(places, scores, fontsize=7)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel=f"{data}: AUROC (bars: mean over classes left out)")


@studies.register
def build():
    """The study."""
    return Study(
        question="Is p(x) high for what is normal, so that it finds anomalies?",
        answers=(
            "on average log p finds a class that was left out",
            "on average log p finds a class that was left out (mnist)",
            "left out, the simplest class gets a higher log p than normal rows (mnist)",
        ),
        settings=Own,
        quick=QUICK,
        measure=measure,
        claims=claims,
        tables=tables,
        draw=draw,
        figure="log p(x) of normal rows and anomalies where it finds them and where it "
        "fails, and the AUROC of every score",
        reading={
            "AUROC": "The probability that a normal row has a higher score than an anomaly; "
            "0.5 by chance, below it anomalies look more normal than what is normal.",
            "AUPRC": "The mean precision where anomalies are searched from the lowest score on.",
            "simplicity": "Minus the number of edges of an image: it knows nothing of the data.",
            "simplest": "The class of fewest edges, where p(x) is expected to fail.",
            "with edges": "Below 0 where images with fewer edges have higher p(x).",
        },
    )
