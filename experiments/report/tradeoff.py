"""What a guide loses against what it costs: points, and those that no other beats in both."""

import math

from experiments.report.columns import SHORTFALL

COST = "µs per new datum"


def ends(row, column):
    """(lower, upper) of a column's mean, alike where it is one number; None where unknown."""
    if row[column] is not None:
        return (row[column][0],) * 2
    found = [row.get(f"{column} {end}") for end in ("lower", "upper")]
    return None if None in found else (found[0][0], found[1][0])


def middle(row, column):
    """The middle of what is known of a column, infinite where nothing is."""
    found = ends(row, column)
    return math.inf if found is None else sum(found) / 2


def comparable(found):
    """The rows whose shortfall and seconds for new data are known."""
    return [row for row in found if ends(row, next(iter(SHORTFALL))) and row[COST] is not None]


def optimal(points):
    """Places of the points (cost, loss) that none other beats in one and equals in the other.

    They stand in order of cost.
    """
    found, least = [], math.inf
    for place in sorted(range(len(points)), key=lambda i: points[i]):
        if points[place][1] < least:
            found.append(place)
            least = points[place][1]
    return found
