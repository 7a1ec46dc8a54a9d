"""What the conformance checks of models and of guides share: outcomes, traces, the score test."""

import inspect
import math
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import pyro
import torch
from pyro import poutine

from zoo.errors import ZooError, require
from zoo.problem import sample_sites
from zoo.program import Program

FALSE_ALARMS = 0.01  # rate at which a whole suite of checks refuses an entry that is right
ROWS = 16  # data that a check looks at
NOT_APPLICABLE = "not applicable: "
NUM_DRAWS = 2000  # draws of a random check


class NotApplicable(Exception):
    """A check that says nothing of this entry; the message says why."""


@dataclass(frozen=True)
class Result:
    """Outcome of one check of a model, or of a guide with it; `sentence` is empty where it holds.

    ok is True also where a check does not apply; the sentence then begins with NOT_APPLICABLE.
    """

    subject: str
    check: str
    ok: bool
    sentence: str = ""


def outcome(subject, check, *arguments, seed=0):
    """The Result of a check: a function that returns nothing, or raises ZooError or NotApplicable.

    Runs with a random stream and a parameter store of its own.
    """
    name = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        with torch.random.fork_rng([]), quiet():
            torch.manual_seed(seed)
            check(*arguments)
    except NotApplicable as reason:
        return Result(subject, name, True, NOT_APPLICABLE + str(reason))
    except ZooError as failure:
        return Result(subject, name, False, str(failure))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Result(subject, name, False, f"the {subject} does not run in this check: {reason}")
    return Result(subject, name, True)


@contextmanager
def quiet():
    """Pyro with an empty parameter store, and without its own validation."""
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        yield


def traced(program, x=None, index=None, values=None, num_draws=None):
    """A trace of a model or guide with its log densities; sites in `values` are held there.

    num_draws: run inside a plate of so many draws, on the left of all others.
    """

    def run():
        if num_draws is None:
            return program(x, index)
        with pyro.plate("draws", num_draws, dim=-2):
            return program(x, index)

    trace = poutine.trace(poutine.condition(run, data=values or {})).get_trace()
    trace.compute_log_prob()
    return trace


def spread(num_data, device=None):
    """The places of at most ROWS rows, evenly over all of them, for data may be sorted."""
    if num_data <= ROWS:
        return torch.arange(num_data, device=device)
    return torch.linspace(0, num_data - 1, ROWS, device=device).long()


def thirds(num_data, device=None):
    """The places of all rows in three batches, in fewer where there are not three rows."""
    return torch.arange(num_data, device=device).tensor_split(min(3, num_data))


def drawn_sites(trace):
    """The sample sites of a trace, but for those that pyro.deterministic records."""
    return [site for site in sample_sites(trace) if not site["infer"].get("_deterministic")]


def values_of(trace, names=None):
    """{site: value, detached} of a trace's sample sites, or of those in `names`."""
    sites = drawn_sites(trace)
    return {s["name"]: s["value"].detach() for s in sites if names is None or s["name"] in names}


def log_density(trace, num_rows):
    """(of each row, of what the rows share): (..., num_rows) and (...), without a plate's scale."""
    rows, shared = 0.0, 0.0
    for site in drawn_sites(trace):
        if in_plate(site):
            rows = rows + site["unscaled_log_prob"].expand(
                *site["unscaled_log_prob"].shape[:-1], num_rows
            )
        else:
            shared = shared + site["unscaled_log_prob"]
    return torch.as_tensor(rows), torch.as_tensor(shared)


def in_plate(site):
    """Whether a site stands in a plate, the draws' aside."""
    return bool(plates(site))


def plates(site):
    """Names of the plates that a site stands in, the draws' aside."""
    frames = site["cond_indep_stack"]
    return tuple(f.name for f in frames if f.vectorized and f.name != "draws")


def leaves(tensor):
    """The tensors that asked for a gradient and on which `tensor` depends."""
    found, seen, stack = [], set(), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack += [parent for parent, _ in node.next_functions]
    return found


def check_leaves(loss, module, what):
    """Refuse a loss that depends on a parameter which the module does not hold."""
    own = {id(parameter) for parameter in module.parameters()}
    for leaf in leaves(loss):
        require(
            id(leaf) in own,
            f"the {what} uses a parameter of shape {tuple(leaf.shape)} that is not in its module, "
            "so that it is neither saved nor copied: make it an nn.Parameter of the module",
        )


def check_met(loss, traces, module, what):
    """Refuse a parameter that a density depends on, and that Pyro met in none of the runs."""
    params = [site["value"] for t in traces for site in t.nodes.values() if site["type"] == "param"]
    met = {
        id(value.unconstrained() if hasattr(value, "unconstrained") else value) for value in params
    }
    reached = set(map(id, leaves(loss)))
    for name, parameter in module.named_parameters():
        require(
            id(parameter) in met or id(parameter) not in reached,
            f"parameter {plain(name)!r} of the {what} is read where Pyro does not see it, as in a "
            "function that a distribution calls later, so that SVI does not train it: make the "
            f"{what} a PyroModule and read its parameters in forward, before pyro.sample",
        )


def check_each_gradient(loss, module, what):
    """Refuse a parameter whose gradient is missing or not finite.

    A gradient that is there but zero is let through: a single component's weight has one.
    """
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if not named:
        raise NotApplicable(f"the {what} has no parameters to train")
    gradients = [None] * len(named)
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    for name, gradient in zip(map(plain, named), gradients, strict=True):
        require(
            gradient is not None,
            f"parameter {name!r} of the {what} gets no gradient: it is unused or detached; "
            "use it in the density, without .detach(), .data or .item(), or remove it",
        )
        require(
            torch.isfinite(gradient).all(),
            f"the gradient of parameter {name!r} of the {what} is not finite: look for 0 / 0, the "
            "logarithm or root of 0, or exp of a large number",
        )


def saved_and_loaded(module):
    """Two copies: one with its tensors moved, and another, moved otherwise, that loads its state.

    They differ where something counts that the state does not hold.
    """
    copies = deepcopy(module), deepcopy(module)
    with torch.no_grad():
        for copy in copies:
            held = [value for part in copy.modules() for value in vars(part).values()]
            held = [value for value in held if isinstance(value, torch.Tensor)]
            for value in [*copy.parameters(), *copy.buffers(), *held]:
                if value.is_floating_point():
                    value.add_(0.01 * torch.rand_like(value))
    copies[1].load_state_dict(copies[0].state_dict())
    return copies


def plain(name):
    """The name of a module's parameter as its author wrote it."""
    return name.removeprefix("values.own_").replace("__", ".")


def score_statistic(draw_log_density, parameters, at_once=NUM_DRAWS):
    """How many standard errors the mean score is from zero, along its likeliest direction.

    draw_log_density(count) -> (count,): the log density of fresh draws, differentiable in
    parameters; at_once: its largest count, which bounds the memory.
    The mean of its gradient is zero where the draws come from that density.  Half of the draws
    choose a direction, the mean gradient of theirs; the slopes of the others along it have mean
    zero and are one-sided normal in the limit, whatever the number of parameters.
    """
    counts = [min(at_once, NUM_DRAWS - done) for done in range(0, NUM_DRAWS, at_once)]

    def gradients(value, of, **options):
        options |= {"allow_unused": True, "materialize_grads": True}
        return torch.autograd.grad(value, of, **options)

    def slopes(count):
        log_density = draw_log_density(count)
        weights = torch.ones_like(log_density, requires_grad=True)
        steps = gradients((weights * log_density).sum(), parameters, create_graph=True)
        along = sum((step * d).sum() for step, d in zip(steps, direction, strict=True))
        return gradients(along, weights)[0]

    direction = [0.0] * len(parameters)
    for count in counts:
        log_density = draw_log_density(count)
        if not log_density.requires_grad:
            raise NotApplicable("no parameter reaches the density of the draws")
        found = gradients(log_density.sum() / NUM_DRAWS, parameters)
        direction = [d + own for d, own in zip(direction, found, strict=True)]
    found = torch.cat([slopes(count) for count in counts]).double()
    se = found.std() / math.sqrt(len(found))
    return (found.mean() / se).item() if se > 0 else 0.0


def threshold(level):
    """The normal quantile that is exceeded with probability `level`."""
    return torch.special.ndtri(torch.tensor(1 - level, dtype=torch.float64)).item()


def in_double(problem, function):
    """function(model, x) in float64 where the model can run in it, else as it is."""
    default, x = torch.get_default_dtype(), problem.data.train[:ROWS]
    torch.set_default_dtype(torch.float64)
    try:
        return function(deepcopy(problem.model).double(), x.double())
    except (RuntimeError, TypeError):  # a constant of the program's is in float32
        torch.set_default_dtype(default)
        return function(problem.model, x)
    finally:
        torch.set_default_dtype(default)


def module_text(function):
    """The docstring of the file that a function stands in, None where it stands in no file."""
    while isinstance(function, partial):
        function = function.func
    names = getattr(inspect.unwrap(function), "__globals__", {})
    return (names.get("__doc__") or "") if "__file__" in names else None


def check_sections(text, sections, what):
    """Refuse a docstring without its sections, in their order."""
    require(text, f"the {what}'s file has no docstring: begin it with a sentence that says what")
    places = [text.find(section) for section in sections]
    missing = [s for s, place in zip(sections, places, strict=True) if place < 0]
    require(not missing, f"the docstring of the {what}'s file lacks {', '.join(missing)}")
    require(
        places == sorted(places),
        f"the sections of the {what}'s docstring are out of order; expected {', '.join(sections)}",
    )


def model_function(model):
    """The function that a model, guide or Program runs."""
    return model.function if isinstance(model, Program) else type(model).forward
