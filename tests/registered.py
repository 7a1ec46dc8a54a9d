"""What is registered, by kind: which problems are joint, which pairs suit each other."""

from itertools import product

import guides
import zoo

JOINT = ["beta_bernoulli", "eight_schools", "normal_hierarchical"]
"""Problems whose rows share a latent; a test compares."""
INDEPENDENT = [name for name in zoo.names() if name not in JOINT]
UNSUITED = {("bernoulli_mixture", "delta"), ("bernoulli_mixture", "full_rank")}
"""Pairs that a guide refuses; a test compares."""
PAIRS = [pair for pair in product(zoo.names(), guides.names()) if pair not in UNSUITED]


def few_rows(name, num_data=50):
    """A registered problem on its first rows; a full-rank guide takes no 10,000 of them."""
    data = zoo.load(name).data
    return zoo.load(name, data=(data.train[:num_data], data.test[:num_data]))
