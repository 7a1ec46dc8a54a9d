"""The one file that knows ArviZ: fits, and any pair of Pyro programs, as trees.

Python 3.11 gets ArviZ 0.23, whose preview has the interface of ArviZ 1.x, which later Pythons get.
"""

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.infer.autoguide import AutoGuide
from torch import nn

with warnings.catch_warnings():
    # ArviZ 0.23 announces its next version once a day, at import.
    warnings.simplefilter("ignore", FutureWarning)
    try:
        import arviz.preview as az
    except ImportError:
        import arviz as az

from experiments.measure.pairs import Pair, draw_pair, require_whole
from experiments.measure.whole import fitted_pairs
from zoo.errors import explained, require, unknown

SAMPLED = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "prior",
    "prior_predictive",
)
SAMPLED_DIMS = {"chain", "draw", "step"}
PREDICTIVE_CELLS = 30_000_000  # values of the predictive groups that a fit's tree has unasked


def from_svi(
    model,
    guide,
    *args,
    num_draws=1000,
    params=None,
    losses=None,
    coords=None,
    dims=None,
    constant_data=None,
    prior=True,
    predictive=True,
    parallel=False,
    seed=0,
    kwargs=None,
):
    """An ArviZ DataTree of a Pyro model and its fitted guide: functions, modules or autoguides.

    args, kwargs: what both programs are called with.  Plates of the tree are dimensions, and they
    are whole: one that draws a minibatch takes all its indices, so args are all data; one with
    `subsample=index` has these indices.

    Repeated fits are chains: `guide` (and `model`, where it was fitted too) as a list, or `params`
    as a list of `pyro.get_param_store().get_state()`, one a fit.  Without params a module answers
    with its own parameters, a function with those of Pyro's store; the store is left as it was.
    Functions whose parameters stand in the store need params for several fits.  params={} draws
    what no module holds at its initial value, as before a fit.

    Groups: posterior, with deterministic sites; prior; prior_predictive; posterior_predictive, of
    new data for the same local latents; observed_data; constant_data, the tensors among args that
    are not observed, or as given.  log_likelihood: nats of every observed site, pointwise.
    sample_stats: log_p = log p(data, latents) and log_q, by datum where each datum has its own
    terms (shared_log_p, shared_log_q: the terms outside its plate); total_log_p and total_log_q
    (chain, draw), for `az.loo_approximate_posterior`; elbo (chain, step), where `losses` are given,
    (steps,) a fit, as `SVI.step` returns them: nats of all data together.

    A discrete latent that the guide leaves to enumeration is drawn by `infer_discrete`.  It is
    summed out of log_p, and out of log_likelihood in the plates that it shares with the data, which
    is log p(datum given the guide's latents and other sites' data): what `az.loo` takes out.  A
    discrete latent outside the data's plates stays in the condition.

    coords: {plate: labels}; dims: {site: names of its event dimensions}; parallel: many draws in
    one run under an outer plate, fast, for programs that index from the right.
    Raises ZooError for unfit programs and arguments: a guide with a point (delta) for a latent, an
    observed site in no plate, a model without data, no draws, parameters that were never fitted.
    """
    require_whole(num_draws=num_draws, seed=seed)
    _require_options(losses, kwargs=kwargs, coords=coords, dims=dims, constant_data=constant_data)
    pairs = _chains(model, guide, args, kwargs or {}, params)
    each = [
        draw_pair(pair, num_draws, seed + chain, parallel, prior, predictive)
        for chain, pair in enumerate(pairs)
    ]
    if constant_data is None:
        constant_data = _constants(pairs[0], each[0])
    return _tree(each, coords or {}, dims or {}, constant_data, _bounds(losses, len(pairs)))


def to_datatree(fit, num_draws=100, predictive=None):
    """An ArviZ DataTree of a Fit on its training data; groups as `from_svi` makes them.

    Its chains are the seeds, and `elbo` is the bound's estimate at every step: nats of all
    training rows together.
    predictive: whether to draw the prior and both predictive groups; None draws them where they
    have at most 30 million values.
    constant_data: the labels where there are any.
    """
    data, plate = fit.problem.data, fit.problem.plate
    if predictive is None:
        predictive = 2 * len(fit.seeds) * num_draws * data.train.numel() <= PREDICTIVE_CELLS
    programs = zip(fit.models, fit.guides, strict=True)
    each = [
        draw_pair(Pair(*pair, (data.train,)), num_draws, seed, True, predictive, predictive)
        for seed, pair in enumerate(programs)
    ]
    labels = {} if data.train_labels is None else {"label": data.train_labels}
    constant = {name: ((plate,), values) for name, values in labels.items()}
    return _tree(
        each, {"chain": list(fit.seeds)}, {}, constant, fit.history.numpy() * len(data.train)
    )


def write(tree, path):
    """Write a tree as compressed netCDF: whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    encoding = {
        f"/{group}": {
            name: {"zlib": True, "complevel": 1} for name, values in node.items() if values.ndim
        }
        for group, node in tree.children.items()
    }
    try:
        tree.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _require_options(losses, **named):
    """Refuse options of another kind than from_svi describes."""
    for name, value in named.items():
        require(
            value is None or isinstance(value, Mapping),
            f"{name} must be a dict, got {value!r}",
        )
    for site, names in (named["dims"] or {}).items():
        good = isinstance(names, list | tuple) and all(isinstance(n, str) for n in names)
        require(good, f"dims of {site!r} must be a list of names, got {names!r}")
    for plate, labels in (named["coords"] or {}).items():
        good = isinstance(labels, Sequence | np.ndarray) or hasattr(labels, "__array__")
        require(
            good and not isinstance(labels, str) and np.ndim(labels) == 1,
            f"coords of {plate!r} must be a list of labels, got {labels!r}",
        )
    with explained("losses are lists of numbers, one a fit, as SVI.step returns them"):
        for row in () if losses is None else losses:
            np.asarray(row, dtype=float)


def _chains(model, guide, args, kwargs, params):
    """A Pair for every chain."""
    given = {"models": model, "guides": guide, "params": params}
    listed = {
        name: len(value)
        for name, value in given.items()
        if isinstance(value, list | tuple | nn.ModuleList) and not isinstance(value, AutoGuide)
    }
    counts = " and ".join(f"{count} {name}" for name, count in listed.items())
    require(len(set(listed.values())) <= 1, f"got {counts}: every chain needs one of each")
    count = next(iter(listed.values()), 1)
    require(count >= 1, f"got {counts}: a tree needs at least one fit")
    models = list(model) if "models" in listed else [model] * count
    guides = list(guide) if "guides" in listed else [guide] * count
    for program in (*models, *guides):
        require(callable(program), f"a Pyro program is called with the data, got {program!r}")
    pairs = [Pair(*programs, args, kwargs) for programs in zip(models, guides, strict=True)]
    return fitted_pairs(pairs, params)


def _bounds(losses, num_chains):
    """The bound at every step, (chains, steps), NaN after a chain's last; None without losses."""
    if losses is None:
        return None
    rows = list(losses)
    rows = [rows] if rows and np.ndim(rows[0]) == 0 else rows
    require(
        len(rows) == num_chains,
        f"losses are one list a fit: got {len(rows)} for {num_chains} fits",
    )
    bounds = np.full((num_chains, max(map(len, rows))), np.nan)
    for chain, row in enumerate(rows):
        bounds[chain, : len(row)] = -np.asarray(row, dtype=float)
    return bounds


def _constants(pair, draws):
    """{name: (dims, tensor)} of the tensors among the arguments that are not observed.

    A leading dimension is a plate's where it has the length of that plate alone.
    """
    program = pair.model.forward if isinstance(pair.model, nn.Module) else pair.model
    bound = {}
    with suppress(TypeError, ValueError):  # a program whose arguments have no names
        bound = inspect.signature(program).bind(*pair.args, **pair.kwargs).arguments
    observed = [value for _, value in draws.observed_data.values()]
    found = {}
    for name, value in bound.items():
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            data = any(value.shape == o.shape and torch.equal(value, o) for o in observed)
            plates = [p for p, index in draws.indices.items() if value.shape[:1] == (len(index),)]
            if not data:
                found[name] = (tuple(plates) if len(plates) == 1 else (), value)
    return found


def _tree(each, coords, dims, constant_data, bounds):
    """The tree of one PairDraws a chain."""
    groups = {group: _stack([getattr(draws, group) for draws in each]) for group in SAMPLED}
    groups["log_likelihood"] = _without_ties(groups["log_likelihood"])
    groups["observed_data"] = _arrays(each[0].observed_data)
    groups["constant_data"] = _arrays(constant_data)
    if bounds is not None:
        groups["sample_stats"]["elbo"] = (("chain", "step"), bounds)
    variables = set().union(*groups.values())
    for name in sorted(variables & SAMPLED_DIMS):
        require(False, f"{name!r} is a dimension of every tree: rename the site or argument")
    for name in dims:
        if name not in variables:
            raise unknown("variable in dims", name, variables)
    names = _dim_names(each[0].indices, groups)
    coords = {"chain": np.arange(len(each))} | _coords(coords, each[0].indices, names)
    datasets = {
        group: _dataset(variables, 2 * (group in SAMPLED), coords, dims, names)
        for group, variables in groups.items()
        if variables
    }
    return xr.DataTree.from_dict(datasets)


def _stack(chains):
    """One {name: (plates, tensor)} a chain as {name: (dims, array)}, chains in front.

    Leaves out what not every chain has in the same plates, as log p by datum of several guides.
    """
    names = [n for n in chains[0] if all(n in c and c[n][0] == chains[0][n][0] for c in chains)]
    return {
        name: (
            ("chain", "draw", *chains[0][name][0]),
            torch.stack([chain[name][1] for chain in chains]).numpy(),
        )
        for name in names
    }


def _arrays(variables):
    """{name: (dims, array)} of pairs (dims, tensor or array), or of arrays alone."""
    found = {}
    for name, value in variables.items():
        plates, values = value if isinstance(value, tuple) else ((), value)
        found[name] = (tuple(plates), np.asarray(values))
    return found


def _dim_names(indices, groups):
    """{plate: its dimension}, its own name unless ArviZ or a variable beside it has taken that."""
    taken = set(SAMPLED_DIMS)
    for variables in groups.values():
        taken |= set(variables) & {plate for plates, _ in variables.values() for plate in plates}
    return {plate: f"{plate}_plate" if plate in taken else plate for plate in indices}


def _coords(given, indices, names):
    """{dimension: labels}: as given, else the indices of the plate."""
    coords = {names[plate]: index.numpy() for plate, index in indices.items()}
    for plate, labels in given.items():
        dim = names.get(plate, plate)
        if dim != "chain" and dim not in coords:
            raise unknown("plate in coords", plate, [*indices, "chain"])
        size = len(labels) if dim == "chain" else len(coords[dim])
        require(
            len(labels) == size, f"coords of {plate!r} have {len(labels)} labels for {size} values"
        )
        coords[dim] = np.asarray(labels)
    return coords


def _dataset(variables, num_sampled, coords, event_dims, names):
    """A group: plates after the sampled dimensions renamed, and names for what is left."""
    arrays, dims = {}, {}
    for name, (plates, values) in variables.items():
        lead = [*plates[:num_sampled], *(names.get(p, p) for p in plates[num_sampled:])]
        own = list(event_dims.get(name, ()))[: values.ndim - len(lead)]
        rest = range(len(own), values.ndim - len(lead))
        dims[name] = [*lead, *own, *(f"{name}_dim_{axis}" for axis in rest)]
        arrays[name] = values
    used = {dim for each in dims.values() for dim in each}
    return az.dict_to_dataset(
        arrays,
        dims=dims,
        coords={dim: labels for dim, labels in coords.items() if dim in used},
        sample_dims=[],
        inference_library=pyro,
        check_conventions=False,
    )


def _without_ties(log_likelihood):
    """The same in float64, ties broken by a billionth, far below float32's rounding.

    Draws of a discrete latent give a datum the same likelihood again and again, and a masked datum
    has 0 in every draw; the Pareto fit behind `az.loo` refuses a tail of equal values.
    """
    random = np.random.default_rng(0)
    return {
        name: (dims, _jittered(values, random) if _tied(values) else values)
        for name, (dims, values) in log_likelihood.items()
    }


def _jittered(values, random):
    size = np.maximum(1, np.abs(values, where=np.isfinite(values), out=np.ones(values.shape)))
    return values + 1e-9 * random.random(values.shape) * size


def _tied(values):
    """Whether a datum has the same likelihood in most draws."""
    num_draws = values.shape[0] * values.shape[1]
    if num_draws < 2:
        return False
    flat = np.sort(values.reshape(num_draws, -1), axis=0)
    return bool(((flat[1:] == flat[:-1]).mean(0) > 0.5).any())
