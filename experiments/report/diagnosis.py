"""What a diagnosis of one guide shows: a text and figures, from its measures datum by datum."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments.measure import predictive
from experiments.measure.pareto import LIMIT
from experiments.report.figures import GUIDE_COLORS, STYLE

MOST_QUANTITIES = 8  # panels of ranks, the smallest p-values first
MOST_WORST = 12  # pictures of data with the largest k


def text(fit, measured, checks, two_sample):
    """The diagnosis in words and numbers, as Markdown."""
    records = [one.record() for one in measured]
    guide = getattr(fit.guides[0], "name", "guide")
    parts = [f"## {fit.problem.name}, {guide}", _gap_lines(fit, records), _k_lines(fit, records)]
    parts += [_rank_lines(fit, records), *_check_lines(fit, checks)]
    if two_sample is not None:
        parts.append(
            f"A classifier tells draws of the guide for training data, seed {fit.seeds[0]}, from "
            f"draws of the exact posterior in {100 * two_sample.accuracy:.1f} ± "
            f"{100 * two_sample.se:.1f} % of cases; 50 % is chance (p = {two_sample.p_value:.2g})."
        )
    for name, why in records[0].get("skipped", {}).items():
        parts.append(f"Skipped, {name}: {why}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def draw_diagnosis(folder, fit, measured):
    """Draw what there is to see, as PNG files into the folder; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figures = {
            "gaps.png": gap_curves(fit, measured),
            "k.png": k_histogram(fit, measured),
            "ranks.png": rank_panels(fit, measured),
            "worst.png": worst_pictures(fit, measured),
        }
        drawn = {name: figure for name, figure in figures.items() if figure is not None}
        for name, figure in drawn.items():
            figure.savefig(folder / name)
    return sorted(drawn)


def gap_curves(fit, measured):
    """Share of the data whose gap is below a value, a line a seed; None where none is known."""
    names = ("total_gap", "approximation_gap", "amortization_gap")
    known = [n for n in names if n in measured[0].values and measured[0].values[n].any()]
    if not known or fit.problem.joint:
        return None
    figure = Figure(figsize=(3.2 * len(known), 2.8), layout="constrained")
    axes = figure.subplots(1, len(known), squeeze=False, sharey=True)[0]
    for axis, name in zip(axes, known, strict=True):
        for seed, one in zip(fit.seeds, measured, strict=True):
            values = np.sort(one.values[name].cpu().numpy())
            share = np.arange(1, len(values) + 1) / len(values)
            axis.plot(values, share, linewidth=1, color=_color(fit, seed), label=f"seed {seed}")
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set(xlabel=f"{name.replace('_', ' ')}, nats")
    axes[0].set(ylabel="share of held-out data")
    axes[-1].legend(loc="lower right")
    figure.suptitle(f"{_title(fit)}: gaps of single data, with the noise of their draws")
    return figure


def k_histogram(fit, measured):
    """Pareto k of the data, and its spread by class where there are labels; None without k."""
    if measured[0].k is None:
        return None
    labels = measured[0].labels
    figure = Figure(figsize=(8 if labels is not None else 4.5, 2.8), layout="constrained")
    axes = figure.subplots(1, 1 + (labels is not None), squeeze=False)[0]
    k = np.concatenate([one.k.cpu().numpy() for one in measured])
    infinite = int(np.isinf(k).sum())
    axes[0].hist(k[np.isfinite(k)], bins=40, color=GUIDE_COLORS[0])
    beside = f" ({infinite} infinite not shown)" if infinite else ""
    axes[0].set(xlabel=f"Pareto k{beside}", ylabel="data, all seeds")
    if labels is not None:
        classes = np.concatenate([one.labels.cpu().numpy() for one in measured])
        every = np.concatenate([one.k.cpu().numpy() for one in measured])
        known = np.unique(classes)
        axes[1].boxplot([every[classes == label] for label in known], showfliers=False)
        axes[1].set_xticks(range(1, len(known) + 1), [str(label) for label in known])
        axes[1].axhline(LIMIT, color=GUIDE_COLORS[1], linewidth=1)
        axes[1].set(xlabel="class", ylabel="Pareto k")
    axes[0].axvline(LIMIT, color=GUIDE_COLORS[1], linewidth=1)
    figure.suptitle(f"{_title(fit)}: right of {LIMIT} reweighting cannot mend the guide")
    return figure


def rank_panels(fit, measured):
    """ECDF difference of the ranks with the simultaneous band, a panel a quantity."""
    first = measured[0].calibration
    if first is None:
        return None
    smallest = {
        name: min(one.calibration.p_values[name] for one in measured) for name in first.ranks
    }
    shown = sorted(smallest, key=smallest.get)[:MOST_QUANTITIES]
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(2.4 * columns + 0.6, 2.1 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    points, (lower, upper) = first.uniformity.points, first.band()
    for axis, name in zip(axes.flat, shown, strict=False):
        axis.fill_between(points, lower, upper, color="0.85", linewidth=0)
        for seed, one in zip(fit.seeds, measured, strict=True):
            difference = one.calibration.ecdf_difference(name)
            axis.plot(points, difference, linewidth=1, color=_color(fit, seed))
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set(title=name)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    figure.supxlabel("rank of the truth among draws, as a fraction")
    figure.supylabel("ECDF − uniform")
    figure.suptitle(f"{_title(fit)}: ranks of simulated truths; gray: where an exact guide stays")
    return figure


def worst_pictures(fit, measured):
    """The held-out data of the largest k of the first seed; None where rows are no images."""
    shape = fit.problem.data.image_shape
    if shape is None or fit.problem.joint or measured[0].k is None:
        return None
    one = measured[0]
    worst = one.k.argsort(descending=True)[:MOST_WORST]
    figure = Figure(figsize=(8, 1.35), layout="constrained")
    axes = figure.subplots(1, MOST_WORST, squeeze=False)[0]
    for axis in axes:
        axis.set_axis_off()
    images = fit.problem.data.test[one.rows.cpu()[worst.cpu()]].reshape(-1, *shape)
    for axis, image, place in zip(axes, images.numpy(), worst.tolist(), strict=False):
        axis.imshow(image, cmap="gray_r", interpolation="nearest")
        axis.set_title(f"{one.k[place]:.2f}", fontsize=8)
    figure.suptitle(f"{_title(fit)}: the held-out data of the largest k, seed {fit.seeds[0]}")
    return figure


def _gap_lines(fit, records):
    head = ["seed", "ELBO", "log evidence", "total gap", "approximation gap", "amortization gap"]
    lines = [head, ["---"] * len(head)]
    for seed, record in zip(fit.seeds, records, strict=True):
        names = ["elbo", "log_evidence", "total_gap", "approximation_gap", "amortization_gap"]
        lines.append([str(seed), *(_measured(record["gaps"], name) for name in names)])
    where, over = ("held-out data", "data")
    if fit.problem.joint:
        where, over = "the data it was fitted to, which share a latent", "draws"
    return f"Nats a datum on {where}; ± is the standard error over {over}.\n\n{_table(lines)}"


def _k_lines(fit, records):
    if "k" in records[0].get("skipped", {}):
        return ""
    if "pareto" not in records[0]:
        return "Pareto k was left out: the weights of discrete latents are bounded."
    head = ["seed", f"k > {LIMIT}", "median k", "largest k", "worst data"]
    lines = [head, ["---"] * len(head)]
    for seed, record in zip(fit.seeds, records, strict=True):
        found = record["pareto"]
        worst = ", ".join(str(one["index"]) for one in found["worst"])
        worst = "all data together" if fit.problem.joint else worst
        numbers = [f"{float(found['median']):.2f}", f"{float(found['max']):.2f}", worst]
        lines.append([str(seed), f"{100 * found['share']:.1f} %", *numbers])
    words = f"Pareto k of log p − log q.\n\n{_table(lines)}"
    return words + _class_lines(records)


def _class_lines(records):
    """Share of k above the limit by class, mean over seeds."""
    if "by_class" not in records[0]["pareto"]:
        return ""
    classes = list(records[0]["pareto"]["by_class"])
    shares = [
        np.mean([r["pareto"]["by_class"][label]["share"] for r in records]) for label in classes
    ]
    lines = [["class", *map(str, classes)], ["---"] * (1 + len(classes))]
    lines.append([f"k > {LIMIT}", *(f"{100 * share:.1f} %" for share in shares)])
    return f"\n\n{_table(lines)}"


def _rank_lines(fit, records):
    if "calibration" in records[0].get("skipped", {}):
        return ""
    if "calibration" not in records[0] and not fit.problem.joint:
        return "Ranks were left out: no simulations were asked for."
    if "calibration" not in records[0]:
        return "Ranks were left out: each simulation of a joint problem needs a fit of its own."
    head = ["seed", "50 % covers", "90 % covers", "smallest p", "refused"]
    lines = [head, ["---"] * len(head)]
    for seed, record in zip(fit.seeds, records, strict=True):
        found = record["calibration"]
        refused = [
            row["quantity"]
            for row in found["quantities"]
            if row["adjusted_p_value"] <= found["level"]
        ]
        names = ("coverage_50", "coverage_90")
        covers = [f"{100 * found[name]:.1f} %" if name in found else "–" for name in names]
        named = ", ".join(refused) or "none"
        lines.append([str(seed), *covers, f"{found['p_value']:.2g}", named])
    first = records[0]["calibration"]
    return (
        f"Ranks of the truth over {first['num_simulations']} simulated data; an exact guide is "
        f"refused once in {1 / first['level']:.0f}.\n\n{_table(lines)}"
    )


def _check_lines(fit, checks):
    """The predictive checks of every observed site."""
    return [
        f"Predictive checks of site {site!r}, seed {fit.seeds[0]}: statistics of the training "
        "data among those of data replicated from the fit; low and high hold 90 % of these.\n\n"
        f"{predictive.table(found)}"
        for site, found in checks.items()
    ]


def _measured(found, name):
    """A measure as text: value and error, an interval, or unknown."""
    value = found.get(f"{name}_per_datum")
    if value is not None:
        return f"{value:.3f} ± {found[f'{name}_per_datum_se']:.3f}"
    ends = [found.get(f"{name}_{end}_per_datum") for end in ("lower", "upper")]
    return "unknown" if None in ends else f"[{ends[0]:.3f}, {ends[1]:.3f}]"


def _table(lines):
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _title(fit):
    return f"{fit.problem.name}, {getattr(fit.guides[0], 'name', 'guide')}"


def _color(fit, seed):
    return GUIDE_COLORS[fit.seeds.index(seed) % len(GUIDE_COLORS)]
