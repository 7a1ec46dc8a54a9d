"""Public conformance checks of a model: plain functions of a problem, one a check.

Each returns nothing where the model holds, raises ZooError with a sentence that says what is wrong
and how to mend it, and NotApplicable where it says nothing of this model.  `experiments.check` runs
them all, each with a random stream of its own.  Those in RANDOM refuse a right model at the rate
`level` at most; the others are exact up to rounding.
"""

import inspect
from contextlib import suppress

import pyro
import torch
from torch.distributions import biject_to

import zoo
from zoo import testing
from zoo.errors import ZooError, explained, require
from zoo.problem import sample_sites
from zoo.testing import NotApplicable, log_density, traced, values_of

POINTS = 16
SECTIONS = ("Story:", "Data:", "Truth:", "Differs from the source in:", "Raises:", "Source:")


def runs(problem):
    """Refuse a model that does not run on its data: no other check would say more."""
    with explained("the model does not run as model(x, index), with x=None and index=None"):
        traced(problem.model, problem.data.train[: testing.ROWS], None)


def check_sites(problem):
    """Latents are the same with and without data, and log_joint takes them by their names."""
    names = [latent.name for latent in problem.latents]
    trace = traced(problem.model)
    free = [s["name"] for s in sample_sites(trace) if not s["is_observed"]]
    observed = [
        s["name"]
        for s in sample_sites(traced(problem.model, problem.data.train[:2]))
        if s["is_observed"] and s["name"] in free
    ]
    require(
        set(free) == {*names, *observed},
        f"without data the model draws {', '.join(free)}; with data it has the latents "
        f"{', '.join(names)} and observes {', '.join(observed)}: the sites must be the same",
    )
    if problem.log_joint is None:
        return
    try:
        values = dict.fromkeys(names)
        inspect.signature(problem.log_joint).bind(problem.model, problem.data.train, **values)
    except TypeError as error:
        raise ZooError(
            f"log_joint does not take the model's latents ({', '.join(names)}): {error}; "
            "its arguments are (model, x, one for each latent, by its name)"
        ) from error


def check_shapes(problem):
    """Every site has one log density a row, also in a plate of draws on the left."""
    x = problem.data.train[: testing.ROWS]
    for num_draws in (None, 3):
        with explained("the model does not run in a plate of draws: index from the right"):
            trace = traced(problem.model, x, num_draws=num_draws)
        for site in testing.drawn_sites(trace):
            shape = tuple(site["unscaled_log_prob"].shape)
            full = (len(x),) if testing.in_plate(site) else ()
            if num_draws:
                full = (num_draws, *(full or (1,)))
            require(
                shape == full,
                f"site {site['name']!r} has log densities of shape {shape} for {len(x)} rows"
                f"{' and 3 draws' if num_draws else ''}, expected {full}: declare what is no row "
                "with .to_event, observe values of the shape of the distribution (such as "
                "rows[:, 0]), and index from the right",
            )


def check_supports(problem):
    """Every draw of a latent has the declared shape and lies in the declared support."""
    x = problem.data.train[: testing.ROWS]
    values = values_of(traced(problem.model, x))
    for latent in problem.latents:
        value = values[latent.name]
        shape = ((len(x),) if latent.local else ()) + latent.event_shape
        require(
            tuple(value.shape) == shape,
            f"latent {latent.name!r} has shape {tuple(value.shape)} for {len(x)} rows, expected "
            f"{shape}: its distribution's event shape must not depend on the rows",
        )
        require(
            latent.support.check(value).all(),
            f"a draw of latent {latent.name!r} is outside its support {latent.support}",
        )


def check_data(problem):
    """The density depends on the data."""
    x = problem.data.train[: testing.ROWS]
    other = x.roll(1, 0)
    if torch.equal(x, other):
        raise NotApplicable("all rows of the data are equal")
    latents = _latents(problem, x)
    model, _ = testing.saved_and_loaded(problem.model)  # rows may be alike at its start alone
    one, two = (_density(problem, rows, values=latents, model=model) for rows in (x, other))
    require(
        not torch.equal(one[0], two[0]),
        "the density stays the same when the rows of the data are exchanged: the model does not "
        "observe them; give the likelihood obs=rows, the rows that zoo.datum yields",
    )


def check_density(problem):
    """The program's density is that of log_joint at draws of the prior, row by row."""
    if problem.log_joint is None:
        raise NotApplicable("no log_joint is given: write the density a second time with sums")
    for _ in range(3):
        testing.in_double(problem, lambda model, x: _same_density(problem, model, x))


def _same_density(problem, model, x):
    trace = traced(model, x)
    rows, shared = log_density(trace, len(x))
    expected = rows.sum() + shared if problem.joint else rows
    latents = values_of(trace, {latent.name for latent in problem.latents})
    with torch.no_grad():
        found = problem.log_joint(model, x, **latents)
    require(
        found.shape == expected.shape,
        f"log_joint returns shape {tuple(found.shape)}, expected {tuple(expected.shape)}: "
        + ("one number for all rows, which share a latent" if problem.joint else "one a row"),
    )
    size = 1e-8 if found.dtype == torch.float64 else 1e-4
    off = ((found - expected).abs() / (1 + expected.abs())).max().item()
    change = (found - expected).flatten()[0].item()
    require(
        off < size,
        f"log_joint differs from the program by {change:.5g} nats (first row) at a draw of the "
        "prior: look for a variance passed as a scale, a missing constant, another prior",
    )


def check_gradients(problem):
    """Gradients are finite at 16 unconstrained points, and are those of the density itself.

    Latents whose prior is no density are held: there the gradients may be others on purpose.
    """
    for _ in range(POINTS):
        testing.in_double(problem, lambda model, x: _right_gradient(problem, model, x))


def _right_gradient(problem, model, x):
    """The gradient at one point: finite, and its slope that of a central difference."""
    values = _latents(problem, x, model)
    smooth = [la for la in problem.latents if la.proper and not la.support.is_discrete]
    maps = {latent.name: biject_to(latent.support) for latent in smooth}
    points = {name: maps[name].inv(values[name]).to(x.dtype) for name in maps}
    points = {name: torch.randn_like(point) for name, point in points.items()}
    steps = {name: torch.randn_like(point) for name, point in points.items()}

    def density(length, moved):
        inside = {n: maps[n](moved[n] + length * steps[n]) for n in maps}
        return sum(part.sum() for part in _density(problem, x, None, values | inside, model))

    names = ", ".join(maps) or "none"
    loss, gradients = _finite_gradients(density, points, names)
    if maps and loss.dtype == torch.float64:
        slope = sum((g * s).sum() for g, s in zip(gradients, steps.values(), strict=True))
        scale = sum(g.norm() * s.norm() for g, s in zip(gradients, steps.values(), strict=True))
        _check_slope(lambda length: density(length, points), slope, scale, loss, names)


def _finite_gradients(density, points, names):
    """The density at the points {latent: value} and its gradients there, all finite."""
    leaves = {name: point.clone().requires_grad_() for name, point in points.items()}
    loss = density(0, leaves)
    gradients = [torch.zeros(())]
    if leaves and loss.requires_grad:
        options = {"allow_unused": True, "materialize_grads": True}
        gradients = torch.autograd.grad(loss, list(leaves.values()), **options)
    require(
        torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients),
        "the density or its gradient is not finite at a point of the unconstrained latents "
        f"({names}): look for 0 / 0, the logarithm or root of 0 (also behind torch.where), or exp "
        "of a large number",
    )
    return loss, gradients


def _check_slope(density, slope, scale, loss, names):
    """The slope by the gradient is that of a central difference of the density along a line.

    density(length) -> the density so far along; scale: how large the slope could be.
    """
    with torch.no_grad():
        near, far = ((density(length) - density(-length)) / (2 * length) for length in (1e-5, 4e-5))
    allowed = 1e-3 * (scale + near.abs()) + 1e-9 * loss.abs()
    if (near - far).abs() > 0.1 * allowed:  # a kink, or rounding to float32, between the points
        return
    require(
        (slope - near).abs() <= allowed,
        f"the gradient of the density in the latents ({names}) is not its slope: {slope:.5g} "
        f"against {near:.5g}: a latent is detached; take .detach(), .data, .item() and "
        "torch.no_grad() out of the program",
    )


def check_parameters(problem):
    """Every parameter gets a finite gradient: from rows spread over the data, or from all."""
    x = problem.data.train
    if len(x) > testing.ROWS:
        with suppress(ZooError):
            return _gradients_reach(problem, x[testing.spread(len(x), x.device)])
    return _gradients_reach(problem, x)


def _gradients_reach(problem, x):
    model, _ = testing.saved_and_loaded(problem.model)  # no gradient is zero by its start alone
    draws = [_latents(problem, x) for _ in range(4)]
    with pyro.get_param_store().scope():  # in which the copy's name is its own
        traces = [traced(model, x, None, latents) for latents in draws]
    loss = sum(part.sum() for trace in traces for part in log_density(trace, len(x)))
    testing.check_leaves(loss, model, "model")
    testing.check_met(loss, traces, model, "model")
    testing.check_each_gradient(loss, model, "model")


def check_runs_without_data(problem):
    """Without data the program draws one datum of the data's shape."""
    try:
        free = values_of(traced(problem.model))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ZooError(
            f"the model does not run without data ({reason}): take x=None and index=None, and "
            "observe the rows that zoo.datum yields, None where there are none"
        ) from error
    for site in testing.drawn_sites(traced(problem.model, problem.data.train[:1])):
        name, shape = site["name"], tuple(site["value"].shape)
        require(
            name in free and tuple(free[name].shape) == shape,
            f"site {name!r} has shape {tuple(free[name].shape) if name in free else 'none'} "
            f"without data and {shape} with one row of data: they must be the same",
        )


def check_minibatch(problem):
    """The mean over minibatches of the scaled density is the density of all data."""
    x = problem.data.train[: testing.ROWS + 1]
    latents = _latents(problem, x)
    whole = traced(problem.model, x, values=latents).log_prob_sum()
    mean = 0.0
    for index in testing.thirds(len(x), x.device):  # the last batches are shorter
        part = _rows_of(problem, latents, index)
        batch = traced(problem.model, x, index, part).log_prob_sum()
        mean = mean + batch * len(index) / len(x)
    require(
        (mean - whole).abs() <= 1e-4 * (1 + whole.abs()),
        f"the density of minibatches is {mean.item():.6g} nats on average, that of all data "
        f"{whole.item():.6g}: open the plate with zoo.datum(x, index), which scales a minibatch "
        "to all data, and scale nothing by hand",
    )


def check_rows(problem):
    """A row's density does not depend on the other rows of its batch."""
    x = problem.data.train[: testing.ROWS]
    latents = _latents(problem, x)
    together, _ = _density(problem, x, values=latents)
    for row in (0, len(x) - 1):
        values = _rows_of(problem, latents, torch.tensor([row]))
        (alone, _) = _density(problem, x[[row]], values=values)
        require(
            torch.allclose(alone[0], together[row], rtol=1e-4, atol=1e-4),
            f"row {row} has log density {alone[0].item():.6g} alone and "
            f"{together[row].item():.6g} among {len(x)} rows: rows must not see each other; "
            "take batch statistics and sums over the rows out of the program",
        )


def check_inputs(problem):
    """The program leaves its inputs as they are."""
    x, index = problem.data.train[: testing.ROWS].clone(), torch.tensor([1, 0])
    for rows in (None, index):
        traced(problem.model, x, rows)
    same = torch.equal(x, problem.data.train[: testing.ROWS]) and index.tolist() == [1, 0]
    require(same, "the model changes its input in place: write x = x - ..., not x -= ... or x[...]")


def check_normalization(problem, level=testing.FALSE_ALARMS):
    """The density of latents and data together integrates to one: its score has mean zero.

    E[grad log p(x, z)] = 0 over draws of the program without data, whatever the parameters.
    """
    parameters = [p for p in problem.model.parameters() if p.requires_grad]
    if not parameters:
        raise NotApplicable("the model has no parameters")

    def draw_log_density(count):
        with torch.no_grad():
            values = values_of(traced(problem.model, num_draws=count))
        trace = traced(problem.model, values=values, num_draws=count)
        rows, shared = log_density(trace, 1)
        return (rows + shared).expand(count, 1).squeeze(1)

    found = testing.score_statistic(draw_log_density, parameters)
    require(
        found < testing.threshold(level),
        f"the density of latents and data is not normalized: the mean of its score is {found:.1f} "
        "standard errors from zero; give every distribution its constants that depend on the "
        "parameters, and use no pyro.factor",
    )


def check_truth(problem):
    """The joint density over the exact posterior is the exact evidence, at draws of it."""
    known = problem.truth.log_evidence, problem.truth.posterior
    if None in known or problem.log_joint is None or len(problem.latents) != 1:
        raise NotApplicable("no exact evidence and posterior of a single latent are known")
    testing.in_double(problem, lambda model, x: _same_evidence(problem, model, x[:6]))


def _same_evidence(problem, model, x):
    problem = problem.having(model=model)
    posterior, evidence = problem.posterior(x), problem.log_evidence(x)
    for _ in range(5):
        z = posterior.sample()
        with torch.no_grad():
            joint = problem.log_joint(model, x, **{problem.latents[0].name: z})
        off = joint - posterior.log_prob(z) - evidence
        size = 1e-6 if off.dtype == torch.float64 else 1e-3
        allowed = problem.evidence_error(x) + size * (1 + evidence.abs())
        require(
            off.shape == evidence.shape and (off.abs() <= allowed).all(),
            f"log p(x, z) - log p(z given x) is off log p(x) by {off.flatten()[0].item():.5g} nats "
            "(first row): the evidence or the posterior is wrong",
        )


def check_save_load(problem):
    """Parameters saved and put into another copy give the same density, bit for bit."""
    x = problem.data.train[: testing.ROWS]
    latents = _latents(problem, x)
    one, two = testing.saved_and_loaded(problem.model)
    found, expected = (_density(problem, x, None, latents, model)[0] for model in (two, one))
    require(
        torch.equal(found, expected),
        "a copy of the model with the saved parameters has another density: keep what the density "
        "depends on in parameters and buffers of the module",
    )


def check_reruns(problem):
    """The same seed gives the same draws and densities, bit for bit."""
    x = problem.data.train[: testing.ROWS]
    require(
        same_again(problem.model, x) and same_again(problem.model, None),
        "two runs from one seed differ: draw from torch or Pyro alone, not from numpy or random, "
        "and keep nothing from one run to the next",
    )


def check_docstring(problem):
    """The file's docstring: all sections for a file of zoo/, a sentence for a file of your own."""
    text = testing.module_text(testing.model_function(problem.model))
    if text is None:
        raise NotApplicable("the model stands in no file")
    testing.check_sections(text, SECTIONS if problem.name in zoo.names() else (), "model")


CHECKS = (
    check_sites,
    check_shapes,
    check_supports,
    check_data,
    check_density,
    check_gradients,
    check_parameters,
    check_runs_without_data,
    check_minibatch,
    check_rows,
    check_inputs,
    check_truth,
    check_save_load,
    check_reruns,
    check_docstring,
)
RANDOM = (check_normalization,)


def same_again(program, x, index=None):
    """Whether two runs from one seed draw the same values with the same densities."""
    traces = []
    for _ in range(2):
        with torch.random.fork_rng([]):
            torch.manual_seed(7)
            traces.append(sample_sites(traced(program, x, index)))
    return all(
        torch.equal(one[key], two[key])
        for one, two in zip(*traces, strict=True)
        for key in ("value", "unscaled_log_prob")
    )


def _latents(problem, x, model=None):
    """Draws of the prior for the rows x: {latent: value}."""
    with torch.no_grad():
        trace = traced(model or problem.model, x)
    return values_of(trace, {latent.name for latent in problem.latents})


def _density(problem, x, index=None, values=None, model=None):
    """Log densities of the rows (n,) and of what they share (), latents held."""
    trace = traced(model or problem.model, x, index, values)
    return log_density(trace, len(x) if index is None else len(index))


def _rows_of(problem, latents, index):
    """The latents of some rows; those that the rows share as they are."""
    local = {latent.name for latent in problem.latents if latent.local}
    return {name: v[index] if name in local else v for name, v in latents.items()}
