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


A_DATUM = {"amortized_flow", "amortized_full_rank", "importance", "semi_amortized"}
"""Guides for densities that have an answer for every datum."""
DENSITIES = {*A_DATUM, "flow", "full_rank", "laplace", "low_rank"}
"""Guides for densities over numbers, all of a datum's latents together."""


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
    if guide_name == "structured":
        return any(latent.length for latent in latents)
    if guide_name in DENSITIES:
        spread = all(latent.proper and not latent.support.is_discrete for latent in latents)
        fits = guide_name != "laplace" or problem.num_parameters > 0
        return spread and fits and not (guide_name in A_DATUM and problem.joint)
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


def kind(name):
    """What tells a guide one model from another: where its latents stand and what they are."""
    latents = zoo.load(name).latents
    one = [
        (la.support.is_discrete, la.num_values is None, len(la.event_shape), la.proper, la.length)
        for la in latents
    ]
    return tuple(one), tuple(la.plates for la in latents)


KINDS = {kind(name): name for name in sorted(zoo.names(), reverse=True)}
"""A model of every kind, the first by name."""
OTHERS = ("mean_field", "amortized", "oracle", "empty", "semi_supervised")
"""Guides that are run with every model also by the slower tests."""
SAMPLE = [(model, guide) for model, guide in PAIRS if model in KINDS.values() or guide in OTHERS]
"""Every guide with a model of every kind, and every model with some guides."""
SMALL = {
    "laplace": {"iterations": 2},
    "semi_amortized": {"steps": 1, "draws": 2},
    "importance": {"num_draws": 2},
    "flow": {"hidden": [8]},
    "amortized_flow": {"flow_hidden": [8]},
}
"""Options with which a step takes the same operations, but fewer of them."""
RECORDABLE = [pair for pair in SAMPLE if recordable(*pair)]


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
