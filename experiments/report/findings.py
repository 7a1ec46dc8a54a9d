"""The sentences of the page of choices.  Each is a function of the verdicts, and is left out where
the records do not bear it."""

from experiments.report.columns import behind
from experiments.report.table import as_text, cell
from experiments.report.tradeoff import COST, ends, middle
from experiments.report.verdict import ANCHOR, differs, lead

MOST_K, COVERS, REFUSED = 0.1, (0.85, 0.95), 0.2
FLAT = "constant"
"""The guide whose model has no use for latents: whatever the datum, q is the same."""
EVIDENCES = ("evidence", "shortfall", "shortfall lower")
"""Where a row has evidences seed by seed: of training data, else of held-out data, else a bound."""
SMALLEST = 0.01  # nats; an evidence by quadrature may be wrong by as much


def code(names):
    """Names in a sentence: `a`, `b` and `c`."""
    quoted = [f"`{name}`" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def listed(names, every):
    """Those of some models for which something holds."""
    if len(names) == len(every) > 1:
        return f"each of the {len(every)} models"
    return code(names) if names else "no model"


def the_exact_posterior(every):
    """Where the exact posterior would be the better choice."""
    known = [verdict for verdict in every if verdict.anchor]
    if not known:
        return None
    better = [v.model for v in known if differs(lead(v.anchor, v.chosen))]
    faster = [v.model for v in known if v.anchor[COST][0] < v.chosen[COST][0]]
    cheaper = f"cheaper for {listed(faster, known)}" if faster else "never cheaper"
    return (
        f"`{ANCHOR}` is the exact posterior and takes no part in the rule. Where it is fitted its "
        "ELBO is higher than that of the guide to take by more than two standard errors for "
        f"{listed(better, known)}, and it was {cheaper} for new data."
    )


def the_exact_posteriors_training(every):
    """Where the exact posterior did not train its model as far as another guide."""
    short = [v for v in every if v.anchor and _tells(v.anchor["training gap"])]
    if not short:
        return None
    parts = [
        f"for `{v.model}` the model's evidence on the training data ends "
        f"{estimate(*v.anchor['training gap'])} nats a datum below that under `{_trained(v)}`"
        for v in short
    ]
    steps = " and ".join(f"{n:,}" for n in sorted({v.anchor["steps"] for v in short}))
    return (
        f"`{ANCHOR}`'s own fit is not always at the optimum after {steps} steps: "
        f"{'; '.join(parts)}. There the differences in ELBO are also those in how fast a model "
        "trains under a guide."
    )


def _trained(verdict):
    """The guide that trained the model best."""
    known = [row for row in verdict.rows if row["training gap"] is not None]
    return min(known, key=lambda row: row["training gap"][0])["guide"]


def _tells(more):
    """Whether a (mean, se) of evidences, if known, is above what noise and quadrature explain."""
    return more is not None and differs(more) and more[0] > SMALLEST


def latents_without_use(every):
    """Guides other than the flat one whose model has an evidence like its."""
    own = {v.model: [row for row in v.rows if row["guide"] != FLAT] for v in every}
    found = {v.model: [r["guide"] for r in own[v.model] if ignores(v, r)] for v in every}
    parts = [f"`{model}` under {code(names)}" for model, names in found.items() if names]
    if not parts:
        return None
    return (
        "A model may come to ignore its latents: then its posterior is its prior, which "
        f"any guide meets. So it is for {'; '.join(parts)}, where the evidence is that under "
        f"`{FLAT}` within two standard errors or {SMALLEST:g} nats."
    )


def ignores(verdict, row):
    """Whether the model that a guide trained has the evidence that it has under the flat guide.

    False where there is none, or no evidence to compare.
    """
    flat = verdict.row(FLAT)
    gains = [behind(flat, [row], name, name) for name in EVIDENCES] if flat else []
    known = [gain for gain in gains if gain is not None]
    return bool(known) and not _tells(known[0]) and not _tells((-known[0][0], known[0][1]))


def a_weighted_guide(every):
    """What the bound is of guides that weigh another's draws, where the rule considers them."""
    found = {}
    for verdict in every:
        for row in verdict.near:
            if row["weighted"]:
                found.setdefault((row["guide"], *row["weighted"]), []).append((verdict, row))
    return " ".join(_weighted(*key, pairs) for key, pairs in found.items()) or None


def _weighted(guide, count, base, pairs):
    return (
        f"`{guide}`, within two standard errors of the highest ELBO for "
        f"{code([verdict.model for verdict, _ in pairs])}, keeps one of {count} draws of `{base}` "
        f"by weight: its ELBO, gap and k are those of the bound of {count} weighted draws, and "
        f"KL(q, posterior) is at most that gap.{_longer(base, pairs)}"
    )


def _longer(base, pairs):
    """How much longer training takes than that of the base at as many steps, where it is known."""
    both = [(v.model, row, v.row(base)) for v, row in pairs if v.row(base)]
    both = [one for one in both if one[1]["steps"] == one[2]["steps"]]
    if not both:
        return ""
    model, row, plain = max(both, key=lambda one: one[1]["seconds"][0] / one[2]["seconds"][0])
    return (
        f" At as many steps its training takes up to {row['seconds'][0] / plain['seconds'][0]:.1f} "
        f"times as long: {cell(row, 'seconds')} s against {cell(plain, 'seconds')} s for `{model}`."
    )


def the_encoders_loss(every):
    """Where amortized loses by its encoder, and where by its family."""
    known = [v for v in every if _split(v.row("amortized"))]
    if not known:
        return None
    rows = {v.model: v.row("amortized") for v in known}
    worst = max(rows, key=lambda model: middle(rows[model], "amortization gap"))
    encoder = [m for m, r in rows.items() if _encoder_loses_more(r)]
    family = [m for m in rows if m not in encoder]
    more, less = listed(encoder, rows), listed(family, rows)
    return (
        f"The encoder of `amortized` loses most for `{worst}`, "
        f"{cell(rows[worst], 'amortization gap')} nats a datum (amortization gap). It loses more "
        f"than the family (approximation gap) for {more}, and not for {less}."
    )


def _encoder_loses_more(row):
    return middle(row, "amortization gap") > middle(row, "approximation gap")


def the_familys_loss(every):
    """Where a diagonal family loses, and which family loses least there."""
    known = [v for v in every if _split(v.row("mean_field"))]
    if not known:
        return None
    worst = max(known, key=lambda v: middle(v.row("mean_field"), "approximation gap"))
    own = worst.row("mean_field")
    others = [row for row in worst.rows if row is own or not ignores(worst, row)]
    others = [row for row in others if ends(row, "approximation gap")]
    least = min(others, key=lambda row: middle(row, "approximation gap"))
    words = (
        f"The family of `mean_field` loses most for `{worst.model}`, "
        f"{cell(own, 'approximation gap')} nats a datum (approximation gap)"
    )
    if least["guide"] == "mean_field":
        return f"{words}; no other family loses less there."
    return (
        f"{words}; that of `{least['guide']}` loses least there, "
        f"{cell(least, 'approximation gap')}, each under the model that it trained."
    )


def a_small_gap_alone(every):
    """A guide whose gap is below that of the best, and whose model is worse for it."""
    found = [
        (lead(v.best, row), v, row)
        for v in every
        for row in v.rows
        if middle(row, "total gap") < middle(v.best, "total gap") and differs(lead(v.best, row))
    ]
    if not found:
        return None
    (mean, se), verdict, row = max(found, key=lambda one: one[0][0])
    return (
        "A small gap alone is no reason to take a guide: the gap is to the model that the guide "
        f"itself trained. For `{verdict.model}` that of `{row['guide']}` is "
        f"{cell(row, 'total gap')} nats, of `{verdict.best['guide']}` "
        f"{cell(verdict.best, 'total gap')}, but its ELBO is {estimate(mean, se)} nats lower."
    )


def an_encoder_for_a_table(every):
    """What it costs, and gains, to replace mean_field by amortized."""
    known = [v for v in every if v.row("mean_field") and v.row("amortized")]
    if not known:
        return None
    pairs = {v.model: (v.row("mean_field"), v.row("amortized")) for v in known}
    ratios = sorted(table[COST][0] / encoder[COST][0] for table, encoder in pairs.values())
    costs = {m: lead(table, encoder) for m, (table, encoder) in pairs.items()}
    gains = {m: lead(encoder, table) for m, (table, encoder) in pairs.items()}
    parts = _amounts("it costs", costs) + _amounts("it gains", gains)
    same = [m for m in pairs if not differs(costs[m]) and not differs(gains[m])]
    parts += [f"for {code(same)} the difference is within two standard errors"] if same else []
    factors = _range([as_text(r, 0 if r >= 10 else 1) for r in (ratios[0], ratios[-1])])
    return (
        "Taking `amortized` for `mean_field` divides the time for a new datum by "
        f"{factors}; of held-out ELBO {'; '.join(parts)}."
    )


def _amounts(verb, leads):
    amounts = [f"{estimate(*e)} for `{m}`" for m, e in leads.items() if differs(e)]
    return [f"{verb} {', '.join(amounts)}"] if amounts else []


def draws_to_trust(every):
    """Which guides' draws pass the checks that were made of them, of models that use latents."""
    checked = {v.model: [r for r in v.rows if r["ranks refused"] is not None] for v in every}
    parts = [f"for `{v.model}` {_trusted(v, checked[v.model])}" for v in every if checked[v.model]]
    if not parts:
        return None
    low, high = (f"{100 * end:.0f}" for end in COVERS)
    used = f", if their model makes use of its latents (that of `{FLAT}` does not)"
    return (
        "Whose draws can be taken for the posterior's? Those of guides with k > 0.7 for at most "
        f"{100 * MOST_K:.0f} % of the data, whose 90 % intervals cover {low} to {high} %, and "
        f"whose ranks are refused in at most {100 * REFUSED:.0f} % of the fits, each where it is "
        f"measured{used if any(v.row(FLAT) for v in every) else ''}; those within two standard "
        f"errors of the highest ELBO first: {'; '.join(parts)}."
    )


def _trusted(verdict, checked):
    """The guides that pass, in words: those near the highest ELBO, and then those behind them."""
    passed = [row for row in checked if _passes(row) and not ignores(verdict, row)]
    passed.sort(key=lambda row: lead(verdict.best, row)[0])
    first, names = {row["guide"] for row in verdict.near}, [row["guide"] for row in passed]
    near, rest = [n for n in names if n in first], [n for n in names if n not in first]
    parts = [code(near)] * bool(near) + [f"further behind {code(rest)}"] * bool(rest)
    return ", and ".join(parts) or "none"


def _passes(row):
    k, covers = row["k > 0.7"], row["90 % covers"]
    low, high = COVERS
    return (
        (k is None or k[0] <= MOST_K)
        and (covers is None or low <= covers[0] <= high)
        and row["ranks refused"][0] <= REFUSED
    )


def passes_and_searches(every):
    """What an answer for new data costs by either way."""
    rows = [row for verdict in every for row in verdict.rows]
    search = "a search for a row, restarts included,"
    parts = []
    for words, searched in (("one pass of a guide takes", False), (search, True)):
        costs = sorted(row[COST][0] for row in rows if row["searched"] == searched)
        if costs:
            parts.append(f"{words} {_range([as_text(c, 1) for c in (costs[0], costs[-1])])} µs")
    return f"for a new datum {', '.join(parts)}"


def training(every):
    """What training costs, from the least to the most."""
    rows = [row for verdict in every for row in verdict.rows]
    parts = []
    columns = ("seconds", "s", 1), ("ms a step", "ms a step", 1), ("MiB", "MiB", 2)
    for column, unit, digits in columns:
        known = [row for row in rows if row[column] is not None]
        if known:
            low, high = (pick(known, key=lambda row: row[column][0]) for pick in (min, max))
            parts.append(
                f"{as_text(low[column][0], digits)} {unit} (`{low['guide']}` of `{low['model']}`) "
                f"to {as_text(high[column][0], digits)} {unit} (`{high['guide']}` of "
                f"`{high['model']}`)"
            )
    shared = "; seconds and steps are those of all seeds that a program trains at once"
    return f"training takes {', '.join(parts)}{shared}" if parts else None


def estimate(mean, se):
    """A mean with its standard error, where there is one."""
    return as_text(mean, 3) + ("" if se is None else f" ± {se:.3f}")


def _range(texts):
    low, high = texts
    return low if low == high else f"{low} to {high}"


def _split(row):
    """Whether there is such a guide, and its gap is split."""
    return row is not None and all(
        ends(row, f"{name} gap") for name in ("approximation", "amortization")
    )


FINDINGS = (
    a_weighted_guide,
    the_exact_posterior,
    the_exact_posteriors_training,
    the_encoders_loss,
    the_familys_loss,
    a_small_gap_alone,
    latents_without_use,
    an_encoder_for_a_table,
    draws_to_trust,
)
"""Sentences of one device's verdicts."""
