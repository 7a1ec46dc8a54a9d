"""Which guides a comparison fits to a problem: those that it names, or every one that suits."""

from pathlib import Path

import guides
from experiments.measure.elbo import draw, latent_names
from experiments.svi.refusals import refuse_guide
from experiments.svi.run import as_module
from guides.checks import refuse_traps
from zoo.errors import ZooError, explained, require, unknown

SUITABLE = "suitable"
"""The word that stands among the guides of a suite for every registered one that suits."""
HELD_OUT = 3  # rows of which a guide is asked before anything is fitted


def check_names(names, without, models):
    """Refuse guides that are neither registered nor files, also where none of them is taken.

    without: guides, or MODEL-GUIDE with one of the models' names.
    """
    known = guides.names()
    for guide in {*names} - {SUITABLE}:
        if Path(guide).suffix != ".py" and guide not in known:
            raise unknown("guide", guide, [*known, SUITABLE])
    pairs = [f"{model}-{guide}" for model in models for guide in known]
    for name in without:
        if name not in known and name not in pairs:
            raise unknown("guide or pair in without:", name, pairs if "-" in name else known)
    require(
        not without or SUITABLE in names,
        f'without leaves guides out of those that suit: it needs guides = "{SUITABLE}"',
    )


def chosen(names, without, problem, fit, options):
    """(guides, unsuited): {guide: resolved options} to fit, and {guide: why it is not}.

    names: of guides, among which SUITABLE is every registered one that suits the problem, those in
    `without`, by name or as MODEL-GUIDE, left out.  options: {guide: its options}.  A problem
    without latents gets `empty`.
    Raises ZooError for a guide that is named and does not suit, or where none does.
    """
    if not problem.latents:
        names = ["empty"]
    found, unsuited = {}, {}
    for name in names:
        if name != SUITABLE:
            require(name not in found, "a model or guide is named twice in the comparison")
            found[name] = _resolved(name, problem, fit, options)
    if SUITABLE in names:
        for name in guides.names():
            if name in found or name == "empty":
                continue
            if {name, f"{problem.name}-{name}"} & {*without}:
                unsuited[name] = "the suite leaves it out"
                continue
            try:
                with guides.without_advice():
                    found[name] = _resolved(name, problem, fit, options)
            except ZooError as error:
                unsuited[name] = str(error)
    require(found, f"no registered guide suits {problem.name}")
    return found, unsuited


def _resolved(name, problem, fit, options):
    """The guide's options with its defaults, where it suits."""
    resolved = guides.resolve(name, options.get(name, {}))
    check_guide(problem, guides.build(name, problem, **resolved), fit)
    return resolved


def check_guide(problem, guide, fit):
    """Refuse a guide that does not match the problem, or that a comparison cannot measure.

    It must have a log q, and an answer for held-out rows, at once or as a table that is fitted to
    them.
    """
    name = getattr(guide, "name", getattr(guide, "__name__", type(guide).__name__))
    require(
        getattr(guide, "family", None) != "delta",
        f"guide {name!r} is a point estimate: it has no log q, so no bound and no gap to compare; "
        "experiments.fit finds the point",
    )
    guide = as_module(guide, problem)
    with explained(f"guide {name!r} does not run beside {problem.name}"):
        refuse_traps(problem, guide, fit.takes_minibatches(len(problem.data.train)))
    refuse_guide(fit, problem, guide)
    if problem.joint or getattr(guide, "tabular", False):
        latent_names(guide, problem.data.train)
    else:
        with explained(f"a comparison asks guide {name!r} of held-out rows, and it has no answer"):
            draw(problem.model, guide, problem.data.test[:HELD_OUT], 2)
