"""`check`: every conformance check of a model and of guides for it."""

from itertools import count
from pathlib import Path

import guides
import zoo.checks
from experiments.svi.run import as_module
from guides import checks
from zoo.errors import ZooError
from zoo.testing import FALSE_ALARMS, NOT_APPLICABLE, Result, outcome


def check(problem, guide=None, also=(), seed=0, false_alarms=FALSE_ALARMS):
    """Run every check of a problem and of guides for it: a list of `zoo.testing.Result`.

    guide: a name, a Pyro guide, a list of these, or None for every registered guide that suits.
    also: further guides beside those.
    A model that does not run is one Result: every check would say the same.
    false_alarms: rate at which the random checks together refuse what is right.  seed: of their
    random streams.  Raises ZooError for an unknown guide, or one that does not suit the latents.
    """
    broken = outcome("model", zoo.checks.runs, problem, seed=seed)
    if not broken.ok:
        return [broken]
    results, found = [], []
    for one in [*_listed(guide), *also]:
        try:
            found.append(_built(one, problem))
        except ZooError as refusal:
            if guide is not None or one in also:
                raise
            results.append(Result(one, "suits", True, f"{NOT_APPLICABLE}{refusal}"))
    num_random = len(zoo.checks.RANDOM) + len(found) * len(checks.RANDOM)
    level = false_alarms / num_random  # Bonferroni
    results += _run("model", zoo.checks, level, seed, problem)
    for name, module in _numbered(found):
        results += _run(name, checks, level, seed, problem, module)
    return results


def _run(subject, package, level, seed, *arguments):
    found = [outcome(subject, one, *arguments, seed=seed) for one in package.CHECKS]
    random = [outcome(subject, one, *arguments, level, seed=seed) for one in package.RANDOM]
    return found + random


def _listed(guide):
    if guide is None:
        return guides.names()
    return list(guide) if isinstance(guide, list | tuple) else [guide]


def _built(guide, problem):
    """(name, module) of a guide's name, or of a guide itself."""
    if isinstance(guide, str):
        return Path(guide).stem, guides.build(guide, problem)
    name = getattr(guide, "name", None) or getattr(guide, "__name__", type(guide).__name__)
    return name, as_module(guide, problem)


def _numbered(found):
    """The same (name, module) pairs, where no two subjects of the table share a name."""
    taken = {"model"}
    for name, module in found:
        number = next(n for n in count(1) if _with(name, n) not in taken)
        taken.add(_with(name, number))
        yield _with(name, number), module


def _with(name, number):
    return name if number == 1 else f"{name} {number}"


def table(results):
    """The outcome of every check as text: a row a check, a column for the model and each guide.

    Below it a sentence for each failure, and for each guide that does not suit the model.
    """
    subjects = list(dict.fromkeys(r.subject for r in results if r.check != "suits"))
    marks = {(r.check, r.subject): _mark(r) for r in results}
    checks = list(dict.fromkeys(r.check for r in results if r.check != "suits"))
    width = max(map(len, checks))
    lines = [" ".join(["check".ljust(width), *(f" {s}" for s in subjects)]).rstrip()]
    for one in checks:
        cells = [f" {marks.get((one, s), ''):<{len(s)}}" for s in subjects]
        lines.append(" ".join([one.ljust(width), *cells]).rstrip())
    lines += [f"{r.subject} does not suit: {r.sentence}" for r in results if r.check == "suits"]
    lines += _left_out(results)
    lines += [f"FAILED {r.subject}, {r.check}: {r.sentence}" for r in results if not r.ok]
    return "\n".join([*lines, _counts([r for r in results if r.check != "suits"])])


def _left_out(results):
    """A line for each reason for which checks of the model do not apply."""
    reasons = {}
    for result in results:
        if result.subject == "model" and _mark(result) == "-":
            reasons.setdefault(result.sentence.removeprefix(NOT_APPLICABLE), []).append(
                result.check
            )
    return [f"not applied: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _counts(results):
    marks = [_mark(result) for result in results]
    hold, left_out, failed = (marks.count(mark) for mark in ("ok", "-", "FAILED"))
    parts = [f"{failed} of {len(results)} checks failed"] if failed else []
    parts += [f"{hold} checks hold"] if hold or not failed else []
    parts += [f"{left_out} do not apply (-)"] if left_out else []
    return ", ".join(parts)


def _mark(result):
    if result.sentence.startswith(NOT_APPLICABLE):
        return "-"
    return "ok" if result.ok else "FAILED"
