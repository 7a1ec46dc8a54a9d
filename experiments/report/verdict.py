"""What the rule of the page of choices says of each model.

The rule: of the guides whose held-out ELBO is within two standard errors of the highest, paired
over seeds, the one that is cheapest for new data.  The gap alone would choose guides that teach the
model to ignore its latents, since whatever posterior is left is then easy.  `oracle` takes no part:
it is the exact posterior, which a model of one's own seldom knows.
"""

from dataclasses import dataclass

from experiments.report.columns import behind, by_cost, rows
from experiments.report.tradeoff import COST, comparable

ANCHOR = "oracle"


@dataclass(frozen=True)
class Verdict:
    """What the records say of one model.

    rows: of its guides, oracle's left out; near: those that the rule chooses from; best: that of
    the highest ELBO; chosen: the cheapest of near; anchor: oracle's row, or None.
    """

    model: str
    rows: list
    near: list
    best: dict
    chosen: dict
    anchor: dict | None

    def row(self, guide):
        """The row of that guide, None where it is not there."""
        return next((row for row in self.rows if row["guide"] == guide), None)


def verdicts(records):
    """A Verdict for each model that has guides to choose from, in the records' order."""
    found = by_cost(comparable(rows(records)))
    models = dict.fromkeys(row["model"] for row in found)
    every = [_verdict([row for row in found if row["model"] == model]) for model in models]
    return [verdict for verdict in every if verdict is not None]


def _verdict(group):
    own = [row for row in group if row["guide"] != ANCHOR]
    if not own:
        return None
    lost = {row["guide"]: behind(row, own, "elbo", "elbo") for row in own}
    near = [row for row in own if not differs(lost[row["guide"]])]
    best = min(own, key=lambda row: lost[row["guide"]][0])
    chosen = min(near, key=lambda row: row[COST][0])
    anchor = next((row for row in group if row["guide"] == ANCHOR), None)
    return Verdict(group[0]["model"], own, near, best, chosen, anchor)


def lead(row, other):
    """(mean, se) over seeds of the held-out ELBO of one guide minus another's."""
    return behind(other, [row], "elbo", "elbo")


def differs(estimate):
    """Whether a (mean, se) is above zero by more than two standard errors."""
    mean, se = estimate
    return mean > 2 * (se or 0)
