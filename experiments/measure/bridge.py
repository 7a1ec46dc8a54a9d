"""The one file that knows ArviZ: fits as trees whose chains are the seeds.

Python 3.11 gets ArviZ 0.23, whose preview has the interface of ArviZ 1.x, which later Pythons get.
"""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
import xarray as xr

with warnings.catch_warnings():
    # ArviZ 0.23 announces its next version once a day, at import.
    warnings.simplefilter("ignore", FutureWarning)
    try:
        import arviz.preview as az
    except ImportError:
        import arviz as az

from experiments.measure.elbo import draw
from zoo.errors import require


def to_datatree(fit, num_draws=100):
    """An ArviZ DataTree of a Fit on its training data.

    posterior: every latent, (chain, draw, plate, ...); chain is the seed.
    log_likelihood: every observed site, (chain, draw, plate); where a discrete latent makes most
    draws equal, ties are broken by a billionth, since `az.loo` refuses them.
    sample_stats: log_p and log_q of every draw and datum, nats; `elbo` (chain, step), the bound's
    estimate a datum at every step; both of these log densities leave out terms outside the plate,
    which are `shared_log_p` and `shared_log_q` where there are any.
    observed_data: the rows; constant_data: their labels where there are any.
    """
    require(num_draws >= 1, f"num_draws must be at least 1, got {num_draws}")
    data, plate = fit.problem.data, fit.problem.plate
    pairs = list(zip(fit.models, fit.guides, strict=True))
    each = [draw(model, guide, data.train, num_draws) for model, guide in pairs]
    sites = list(each[0].log_likelihood)
    local = {latent.name for latent in fit.problem.latents if latent.local}
    groups = {
        "posterior": _stack([d.latents for d in each]),
        "log_likelihood": _without_ties(_stack([d.log_likelihood for d in each])),
        "sample_stats": _stack([_densities(d) for d in each]),
        "observed_data": {site: data.train.numpy() for site in sites},
    }
    if data.train_labels is not None:
        groups["constant_data"] = {"label": data.train_labels.numpy()}
    tree = az.from_dict(
        groups,
        coords={plate: np.arange(len(data.train)), "chain": list(fit.seeds)},
        dims=_dims(groups, local | {"log_p", "log_q", "label", *sites}, plate),
    )
    stats = tree["sample_stats"].to_dataset()
    stats["elbo"] = (("chain", "step"), fit.history.numpy())
    tree["sample_stats"] = xr.DataTree(stats)
    return tree


def write(tree, path):
    """Write a tree as compressed netCDF: whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    encoding = {
        f"/{group}": {name: {"zlib": True, "complevel": 1} for name in node.data_vars}
        for group, node in tree.children.items()
    }
    try:
        tree.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _densities(draws):
    found = {"log_p": draws.log_p, "log_q": draws.log_q}
    if draws.shared_log_q.any() or draws.shared_log_p.any():
        found |= {"shared_log_p": draws.shared_log_p, "shared_log_q": draws.shared_log_q}
    return found


def _stack(each):
    """Dicts of tensors, one a seed, as one dict of arrays with the seeds in front."""
    return {name: torch.stack([values[name] for values in each]).numpy() for name in each[0]}


def _without_ties(log_likelihood):
    """The same in float64, ties broken by a billionth, far below float32's rounding.

    Draws of a discrete latent give a datum the same likelihood again and again, and the Pareto fit
    behind `az.loo` refuses a tail of equal values.
    """
    random = np.random.default_rng(0)
    return {
        name: values * (1 + 1e-9 * random.random(values.shape)) if _tied(values) else values
        for name, values in log_likelihood.items()
    }


def _tied(values):
    """Whether a datum has the same likelihood in most draws."""
    flat = np.sort(values.reshape(-1, values.shape[-1]), axis=0)
    return bool(((np.diff(flat, axis=0) == 0).mean(0) > 0.5).any())


def _dims(groups, in_plate, plate):
    """Names of each variable's dimensions after chain and draw: the plate, then its own."""
    dims = {}
    for group, values in groups.items():
        lead = 0 if group in ("observed_data", "constant_data") else 2
        for name, value in values.items():
            first = [plate] if name in in_plate else []
            rest = range(value.ndim - lead - len(first))
            if group != "log_likelihood":
                dims[name] = [*first, *(f"{name}_dim_{i}" for i in rest)]
    return dims
