"""Public conformance checks of a model/guide pair: plain functions of both, one a check.

Each returns nothing where the pair holds, raises ZooError with a sentence that says what is wrong
and how to mend it, and NotApplicable where it says nothing of this guide.  `experiments.check` runs
them all, `experiments.fit` those in `refuse_traps`.  Those in RANDOM refuse a right pair at the
rate `level` at most; the others are exact up to rounding.
"""

import math
from contextlib import contextmanager, suppress
from copy import deepcopy

import pyro
import pyro.distributions as dist
import torch

import guides
import zoo.checks
from guides.families import is_identity
from zoo import testing
from zoo.checks import same_again
from zoo.errors import ZooError, explained, require
from zoo.testing import NotApplicable, drawn_sites, log_density, traced, values_of

CELLS = 200_000  # draws x data in the pass that bounds the evidence
NUMBERS = 50_000  # of latents in a pass that differentiates their density twice
MADE_ANEW = "the guide's density is known at its own draws alone"
SECTIONS = ("Family:", "Cannot represent:", "Needs:", "Source:")


def check_sites(problem, guide):
    """Refuse a guide whose latent sites are not the model's, in name, event shape and plate.

    Pyro warns of such a pair and goes on; the fit then means nothing.
    """
    found = {
        site["name"]: (tuple(site["fn"].event_shape), testing.plates(site))
        for site in _latent_sites(problem, guide)
    }
    wanted = {latent.name: latent for latent in problem.latents}
    for name in wanted:
        require(name in found, f"the guide misses latent {name!r}; it has {_list(found)}")
    for name, (event_shape, plates) in found.items():
        require(
            name in wanted,
            f"the guide has latent {name!r}, unknown to the model; the model has {_list(wanted)}",
        )
        latent = wanted[name]
        require(
            event_shape == latent.event_shape,
            f"latent {name!r} has event shape {event_shape} in the guide, "
            f"{latent.event_shape} in the model",
        )
        require(
            plates == latent.plates,
            f"latent {name!r} stands in plates {_list(plates)} in the guide, "
            f"{_list(latent.plates)} in the model",
        )


def check_supports(problem, guide):
    """The guide draws every latent within its support, and no wider."""
    supports = {latent.name: latent.support for latent in problem.latents}
    for site in _latent_sites(problem, guide):
        name = site["name"]
        if name not in supports:  # which is what check_sites refuses
            continue
        inside = supports[name].check(site["value"]).all()
        if not isinstance(_plain(site["fn"]), dist.Delta | dist.TransformedDistribution):
            inside &= is_identity(supports[name]) or not is_identity(site["fn"].support)
        require(
            inside,
            f"the guide draws latent {name!r} outside its support {supports[name]}: carry the "
            "draws there, such as by dist.TransformedDistribution(q, biject_to(support))",
        )


def check_index(problem, guide):
    """The guide draws for the rows that it is asked for."""
    plate = problem.plate
    if not any(testing.in_plate(site) for site in _latent_sites(problem, guide)):
        raise NotApplicable("no latent stands in the plate of the data")
    x, index = problem.data.train, torch.tensor([1, 0])
    mends = f"open the plate with zoo.datum(x, index, {plate!r}) and take the rows of index"
    with explained(f"the guide does not run on a minibatch; {mends}"):
        trace = traced(guide, x, index.to(x.device))
    frames = [frame for s in drawn_sites(trace) for frame in s["cond_indep_stack"]]
    rows = trace.nodes.get(plate, {}).get("value")
    require(
        rows is not None
        and rows.tolist() == index.tolist()
        and all(frame.size == len(index) for frame in frames if frame.name == plate),
        f"the guide ignores index: asked for rows {index.tolist()} of the data it does not draw "
        "for those, so that the latents and data of a minibatch would be of different rows "
        f"(Pyro's AutoGuides do so, issue 3468); {mends}, or take all rows at every step with "
        "batch_size=None",
    )


def check_minibatch(problem, guide):
    """The mean over minibatches of the scaled log q is that of all data, at fixed draws."""
    x = problem.data.train
    first = traced(guide, x)
    _refuse_points(first)
    draws = values_of(first)
    if not draws:
        raise NotApplicable("the guide has no latents")
    inside = {site["name"] for site in drawn_sites(first) if testing.in_plate(site)}
    _refuse_if_made_anew(guide, x, None, draws)
    chosen, mean = _chosen(first), 0.0
    for index in testing.thirds(len(x), x.device):
        part = {name: v[index] if name in inside else v for name, v in chosen.items()}
        mean = mean + traced(guide, x, index, part).log_prob_sum() * len(index) / len(x)
    whole = traced(guide, x, values=draws).log_prob_sum()
    require(
        (mean - whole).abs() <= 1e-4 * (1 + whole.abs()),
        f"log q of minibatches is {mean.item():.6g} nats on average, that of all data "
        f"{whole.item():.6g}: open the plate with zoo.datum(x, index), which scales a minibatch "
        "to all data, and scale nothing by hand",
    )


def check_rows(problem, guide):
    """A row's q does not depend on the other rows of its batch."""
    x, index = _batch(problem)
    first = traced(guide, x, index)
    _refuse_points(first)
    draws = values_of(first)
    inside = {site["name"] for site in drawn_sites(first) if testing.in_plate(site)}
    if not inside:
        raise NotApplicable("no latent stands in the plate of the data")
    _refuse_if_made_anew(guide, x, index, draws)
    (together, _), chosen = log_density(first, len(index)), _chosen(first)
    for row in (0, len(index) - 1):
        values = {name: v[[row]] if name in inside else v for name, v in chosen.items()}
        (alone, _) = log_density(traced(guide, x, index[[row]], values), 1)
        require(
            torch.allclose(alone[0], together[row], rtol=1e-3, atol=1e-3),
            f"row {row} has log q {alone[0].item():.6g} alone and {together[row].item():.6g} "
            f"among {len(index)} rows: rows must not see each other; take batch statistics out",
        )


def check_inputs(problem, guide):
    """The guide leaves its inputs as they are."""
    x, index = problem.data.train.clone(), torch.tensor([1, 0])
    for rows in (None, index):
        traced(guide, x, rows)
    same = torch.equal(x, problem.data.train) and index.tolist() == [1, 0]
    require(same, "the guide changes its input in place: write x = x - ..., not x -= ... or x[...]")


def check_parameters(problem, guide):
    """Every parameter gets a finite gradient: from rows spread over the data, or from all."""
    x, index = _batch(problem)
    if len(index) < len(x):
        with suppress(ZooError):
            return _gradients_reach(problem, guide, x, index)
    return _gradients_reach(problem, guide, x, torch.arange(len(x), device=x.device))


def _gradients_reach(problem, guide, x, index):
    guide, _ = testing.saved_and_loaded(guide)  # no gradient is zero by its start alone
    model, loss, traces = deepcopy(problem.model), 0.0, []
    with pyro.get_param_store().scope():  # in which the copies' names are their own
        for _ in range(4):
            q = traced(guide, x, index)
            values = {s["name"]: s["value"] for s in drawn_sites(q)}
            p = traced(model, x, index, values)
            traces.append(q)
            for sign, trace in ((1, p), (-1, q)):
                loss = loss + sign * sum(part.sum() for part in log_density(trace, len(index)))
    own = torch.nn.ModuleList([model, guide])
    testing.check_leaves(loss, own, "guide")
    testing.check_met(loss, traces, guide, "guide")
    testing.check_each_gradient(loss, guide, "guide")


def check_score_identity(problem, guide, level=testing.FALSE_ALARMS):
    """The guide draws from the density that it states: the mean of grad log q is zero."""
    x, index = _batch(problem)
    parameters = [p for p in guide.parameters() if p.requires_grad]
    if not parameters:
        raise NotApplicable("the guide has no parameters")

    def draw_log_density(count):
        with torch.no_grad():
            values = values_of(traced(guide, x, index, num_draws=count))
        trace = traced(guide, x, index, values, count)
        _refuse_points(trace)
        return _total(trace, count)

    numbers = sum(value.numel() for value in values_of(traced(guide, x, index)).values())
    at_once = max(1, min(testing.NUM_DRAWS, NUMBERS // max(1, numbers)))
    found = testing.score_statistic(draw_log_density, parameters, at_once)
    require(
        found < testing.threshold(level),
        f"the guide's log q is not the density that it draws from: the mean of its score is "
        f"{found:.1f} standard errors from zero; write q once, and let pyro.sample both draw from "
        "it and score it",
    )


def check_bound(problem, guide, level=testing.FALSE_ALARMS):
    """No bound is above the exact evidence: the importance-weighted one, which is the tightest.

    The mean of p / q over draws has mean p(x), and so the product over units of its ratio to p(x)
    has mean 1: it exceeds 1 / level with probability `level` at most (Markov), whatever the guide.
    """
    if problem.truth.log_evidence is None:
        raise NotApplicable("the exact evidence is not known")
    if {site["name"] for site in _latent_sites(problem, guide)} != {*_names(problem)}:
        raise NotApplicable("the guide's latents are not the model's")
    x, index = _batch(problem)
    if problem.joint:
        x, index = problem.data.train, None
    num_draws = max(2, min(testing.NUM_DRAWS, CELLS // (len(x) if index is None else len(index))))
    with torch.no_grad():
        q = traced(guide, x, index, num_draws=num_draws)
        _refuse_points(q)
        p = traced(problem.model, x, index, values_of(q), num_draws)
        bounds = _units(problem, p, num_draws)
        bounds = bounds - _units(problem, q, num_draws) if problem.latents else bounds
    bounds = bounds.logsumexp(0) - math.log(num_draws)
    rows = x if index is None else x[index]
    excess = (bounds - problem.log_evidence(rows) - problem.evidence_error(rows)).sum().item()
    require(
        excess < -math.log(level),
        f"the bound is {excess:.3g} nats above the exact evidence of {len(rows)} rows: the "
        "evidence is too low, or the guide's log q is not the density that it draws from",
    )


def check_uses_its_input(problem, guide):
    """The answer of a guide that gives rows to a network changes with the data."""
    x, index = _batch(problem)
    if torch.equal(x[index], x[index].roll(1, 0)):
        raise NotApplicable("all rows of the data are equal")
    draws = values_of(traced(guide, x, index))
    draws = {n: v.requires_grad_() if v.is_floating_point() else v for n, v in draws.items()}
    with _row_inputs(guide, len(index)) as inputs:
        first = traced(guide, x, index, draws)
    if not inputs:
        raise NotApplicable("the guide gives no rows to a network")
    if not log_density(first, len(index))[0].isfinite().all():
        raise NotApplicable(MADE_ANEW)
    other = x.clone()
    other[index] = x[index].roll(1, 0)
    second = traced(guide, other, index, draws)
    require(
        not torch.equal(log_density(first, len(index))[0], log_density(second, len(index))[0]),
        "the guide's encoder ignores the data: q stays the same when rows are exchanged; compute "
        "its parameters from the rows that zoo.datum yields",
    )


@contextmanager
def _row_inputs(guide, num_rows):
    """Inside, notes what networks are given that looks like rows of data: the list it yields.

    That is an argument alone, of that many rows of numbers, which depends on no latent and no
    parameter: neither the index of a table, nor draws, nor a layer's answer to the one before.
    """
    found = []

    def note(module, arguments):
        leaf = module is not guide and not list(module.children()) and len(arguments) == 1
        x = arguments[0] if leaf else None
        if isinstance(x, torch.Tensor) and x.is_floating_point() and not x.requires_grad:
            found.extend([x] if num_rows in x.shape[:-1] else [])

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield found
    finally:
        hook.remove()


def check_save_load(problem, guide):
    """Parameters saved and put into another copy give the same draws, bit for bit."""
    x, index = _batch(problem)
    one, two = testing.saved_and_loaded(guide)
    traces = []
    for copy in (one, two):
        torch.manual_seed(7)
        traces.append(traced(copy, x, index))
    require(
        all(torch.equal(*pair) for pair in zip(*map(_values, traces), strict=True)),
        "a copy of the guide with the saved parameters draws other values: keep what q depends on "
        "in parameters and buffers of the module",
    )


def check_reruns(problem, guide):
    """The same seed gives the same draws and densities, bit for bit."""
    require(
        same_again(guide, *_batch(problem)),
        "two runs from one seed differ: draw from torch or Pyro alone, not from numpy or random, "
        "and keep nothing from one run to the next",
    )


def check_docstring(problem, guide):
    """The file of a registered guide has all sections in its docstring."""
    name = getattr(guide, "name", None)
    if name not in guides.names():
        raise NotApplicable("the guide is not a registered one")
    text = testing.module_text(guides.build_function(name))
    testing.check_sections(text, SECTIONS, "guide")


CHECKS = (
    check_sites,
    check_supports,
    check_index,
    check_minibatch,
    check_rows,
    check_inputs,
    check_parameters,
    check_uses_its_input,
    check_save_load,
    check_reruns,
    check_docstring,
)
RANDOM = (check_score_identity, check_bound)


def refuse_traps(problem, guide, minibatches=True):
    """Refuse what SVI would fit in silence, or with a warning: the checks that a fit begins with.

    minibatches: whether the fit takes them; a guide that ignores index serves without.
    Raises ZooError.
    """
    pair, model = [check_sites, check_supports], [zoo.checks.check_parameters]
    if minibatches:
        pair += [check_index, check_minibatch, check_parameters]
        model += [zoo.checks.check_minibatch]
    calls = [(check, problem) for check in model] + [(check, problem, guide) for check in pair]
    for check, *arguments in calls:
        with suppress(NotApplicable), torch.random.fork_rng([]), testing.quiet():
            torch.manual_seed(0)
            check(*arguments)


def _latent_sites(problem, guide):
    """The guide's sites for all of the training data, but for auxiliary ones."""
    wrong = explained("the guide does not run on the training data")
    with wrong, torch.random.fork_rng([]), testing.quiet(), torch.no_grad():
        sites = drawn_sites(traced(guide, problem.data.train))
    latent = [site for site in sites if not site["is_observed"]]
    return [site for site in latent if not site["infer"].get("is_auxiliary")]


def _names(problem):
    return [latent.name for latent in problem.latents]


def _batch(problem):
    """All training rows, and the index of those that a check looks at."""
    x = problem.data.train
    return x, testing.spread(len(x), x.device)


def _refuse_points(trace):
    """Leave a guide alone whose latents are points, or functions of its parameters."""
    sites = [site for site in drawn_sites(trace) if isinstance(_plain(site["fn"]), dist.Delta)]
    auxiliary = any(site["infer"].get("is_auxiliary") for site in drawn_sites(trace))
    if sites and not auxiliary:
        raise NotApplicable("the guide is a point (delta), which has no log q")
    if any(_plain(site["fn"]).v.requires_grad for site in sites):
        raise NotApplicable("the draws are functions of the guide's parameters, given its noise")


def density_is_known(guide, x, index, draws):
    """Whether a guide that runs again on the same rows has a density at draws it made before."""
    return traced(guide, x, index, draws).log_prob_sum() > -math.inf


def _refuse_if_made_anew(guide, x, index, draws):
    """Leave a guide alone whose latents are picked among draws that it makes anew at every run."""
    if not density_is_known(guide, x, index, draws):
        raise NotApplicable(MADE_ANEW)


def _chosen(trace):
    """The draws but for functions of others, which other rows may round otherwise."""
    sites = [s for s in drawn_sites(trace) if not isinstance(_plain(s["fn"]), dist.Delta)]
    return {site["name"]: site["value"] for site in sites}


def _plain(fn):
    """The distribution itself, without declared event dimensions or a mask."""
    while hasattr(fn, "base_dist") and not isinstance(fn, dist.TransformedDistribution):
        fn = fn.base_dist
    return fn


def _values(trace):
    return [site["value"] for site in drawn_sites(trace)]


def _total(trace, num_draws):
    """Log density of all sites for every draw: (draws,)."""
    sites = drawn_sites(trace)
    start = torch.zeros(num_draws)
    return sum((s["unscaled_log_prob"].reshape(num_draws, -1).sum(1) for s in sites), start)


def _units(problem, trace, num_draws):
    """Log density of every draw and independent unit: (draws, units), in float64."""
    if problem.joint:
        return _total(trace, num_draws)[:, None].double()
    rows = max(site["unscaled_log_prob"].shape[-1] for site in drawn_sites(trace))
    return log_density(trace, rows)[0].double()


def _list(names):
    return ", ".join(names) or "none"
