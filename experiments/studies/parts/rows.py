"""Rows of a study's results: dicts of facts and numbers, one for each place and seed."""

import numpy as np


def column(rows, key, /, **where):
    """The values of `key` in the rows that have those fields, in order: an array."""
    return np.array([row[key] for row in rows if all(row[n] == v for n, v in where.items())])


def known(rows, key):
    """The values of `key`, each once, in order: a list."""
    return list(dict.fromkeys(row[key] for row in rows))
