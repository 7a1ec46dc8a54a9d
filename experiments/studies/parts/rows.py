"""Rows of a study's results: dicts of facts and numbers, one for each place and seed."""

import math

import numpy as np


def column(rows, key, /, **where):
    """The values of `key` in the rows that have those fields, in order: an array.

    What JSON does not know, a number that is none, is null in a record, and nan here.
    """
    found = [row[key] for row in rows if all(row[n] == v for n, v in where.items())]
    return np.array([math.nan if value is None else value for value in found])


def known(rows, key):
    """The values of `key`, each once, in order: a list."""
    return list(dict.fromkeys(row[key] for row in rows))
