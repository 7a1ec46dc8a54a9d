"""What is registered, by kind: which problems are joint, which pairs suit each other."""

from dataclasses import replace
from itertools import product

import guides
import zoo

JOINT = [name for name in zoo.names() if zoo.load(name).joint]
"""Problems whose rows share a latent."""
INDEPENDENT = [name for name in zoo.names() if name not in JOINT]
LATENT = [name for name in INDEPENDENT if zoo.load(name).latents]
"""Problems of independent rows, each with latents of its own."""


def suits(name, guide_name):
    """Whether a guide is for a model, by what its latents are; a test compares."""
    problem = zoo.load(name)
    latents = problem.latents
    if guide_name == "empty" or not latents:
        return guide_name == "empty" and not latents
    if guide_name == "oracle":
        known = problem.truth.posterior is not None and problem.num_parameters > 0
        return known and len(latents) == 1
    if guide_name == "semi_supervised":
        return problem.label is not None
    if guide_name == "delta":
        return not any(latent.support.is_discrete for latent in latents)
    if guide_name == "full_rank":
        return all(latent.proper and not latent.support.is_discrete for latent in latents)
    return True


def latents_spread(name):
    """Whether a model has latents, each with a density."""
    latents = zoo.load(name).latents
    return bool(latents) and all(latent.proper for latent in latents)


CONTINUOUS = [name for name in guides.names() if suits("hierarchical_vae", name)]
"""Guides for any continuous latents, also where no exact posterior is known."""
KNOWN = [name for name in INDEPENDENT if zoo.load(name).truth.posterior is not None]
"""Problems of independent rows whose evidence and posterior are known."""
SPREAD = [name for name in INDEPENDENT if latents_spread(name)]
"""Problems of independent rows over whose latents a guide may spread."""
UNSUITED = {p for p in product(zoo.names(), guides.names()) if not suits(*p)}
"""Pairs that a guide refuses; a test compares."""
PAIRS = [pair for pair in product(zoo.names(), guides.names()) if pair not in UNSUITED]


def recordable(name, guide_name):
    """Whether a step is the same operations whatever the data: a grid is refined as they need."""
    return not (guide_name == "oracle" and zoo.load(name).truth.level == "T1")


RECORDABLE = [pair for pair in PAIRS if recordable(*pair)]


def by_gradients(problem):
    """Settings of a fit that takes steps, also where its model has a closed form."""
    return {} if problem.maximum_likelihood is None else {"estimator": "pathwise"}


def few_rows(name, num_data=50):
    """A registered problem on its first rows; a full-rank guide takes no 10,000 of them."""
    return zoo.load(name, data=first_rows(zoo.load(name).data, num_data))


def first_rows(data, count):
    """The same set with its first rows to train on and as many held out; images stay images."""
    rows = {"train": data.train[:count], "test": data.test[:count]}
    return replace(data, **rows, valid=None, train_labels=None, test_labels=None)
