"""Which guide to use and what it costs: a short page whose every word hangs on the records."""

from experiments.report.findings import FINDINGS, code, estimate, passes_and_searches, training
from experiments.report.table import cell
from experiments.report.tradeoff import COST
from experiments.report.verdict import lead, verdicts

TAKEN = (
    *("take", "its gap", "its ELBO below the highest", "µs per new datum"),
    *("ms a step of training", "seconds to train"),
)
"""What the table says of the guide to take on a device."""


def page(results):
    """The page as Markdown; empty where nothing is known.

    results: {device: records of a comparison with costs}.  What is said of bounds, gaps and draws
    is of the first device; what is said of the guide to take and its costs, of each.
    """
    found = {device: verdicts(records) for device, records in results.items()}
    found = {device: every for device, every in found.items() if every}
    if not found:
        return ""
    bullets = "\n".join(f"- {sentence}" for sentence in _sentences(found))
    return f"{_rule(found)}\n\n{_table(found)}\n\n{bullets}\n"


def sentences(records):
    """The rule's choice and what else a comparison's records bear, for its own page; or nothing."""
    device = (records[0].get("environment") or {}).get("device", "this device")
    every = verdicts(records)
    return [_rule({device: every}), *_sentences({device: every})] if every else []


def _sentences(found):
    first = next(iter(found.values()))
    every = [finding(first) for finding in FINDINGS] + [_costs(*one) for one in found.items()]
    return [sentence for sentence in every if sentence]


def _rule(found):
    parts = []
    for device, every in found.items():
        chosen = {}
        for verdict in every:
            chosen.setdefault(verdict.chosen["guide"], []).append(verdict.model)
        named = [f"`{guide}` for {code(models)}" for guide, models in chosen.items()]
        parts.append(f"on {device} {'; '.join(named)}")
    return (
        "Which guide should I use, and what does it cost me? Of the guides whose held-out ELBO is "
        "within two standard errors of the highest (paired over seeds), take the one that is "
        f"cheapest for new data: {'. And '.join(parts)}."
    )


def _table(found):
    head = ["model", "highest ELBO", "within 2 se of it"]
    head += [f"{name}, {device}" for device in found for name in TAKEN]
    rule = ["---"] * 3 + ["---", *["---:"] * (len(TAKEN) - 1)] * len(found)
    models = [verdict.model for verdict in next(iter(found.values()))]
    rows = [_row(model, found.values()) for model in models]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *rows])


def _row(model, devices):
    own = [next((v for v in every if v.model == model), None) for every in devices]
    verdict = own[0]
    near = [row["guide"] for row in verdict.near if row is not verdict.best]
    row = [model, verdict.best["guide"], ", ".join(near) or "none"]
    return row + [text for one in own for text in _taken(one)]


def _taken(verdict):
    if verdict is None:
        return ["–"] * len(TAKEN)
    row = verdict.chosen
    below = estimate(*lead(verdict.best, row))
    costs = [cell(row, column) for column in (COST, "ms a step", "seconds")]
    return [row["guide"], cell(row, "total gap"), below, *costs]


def _costs(device, every):
    parts = [passes_and_searches(every), training(every)]
    return f"On {device}: {'; '.join(part for part in parts if part)}."
