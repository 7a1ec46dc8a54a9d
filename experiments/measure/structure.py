"""What one run of a pair shows: its sites, its plates, and whether model and guide agree."""

from contextlib import suppress
from dataclasses import dataclass
from math import prod

import pyro.distributions as dist
import torch
from pyro import poutine

from zoo.errors import explained, require
from zoo.problem import base_distribution, sample_sites

DRAWS = "_draws"  # the plate of draws in a parallel run


@dataclass(frozen=True)
class Structure:
    """Sites and plates of a pair.

    latents: names of the model's latents and deterministic sites; observed: {site: its site};
    enumerated: discrete latents that the guide leaves out; frames: {plate: its frame};
    event_dims: {deterministic site: how many of its dimensions are an event's};
    unit: the plate in which log p and log q split into independent terms, None without one.
    """

    latents: tuple
    observed: dict
    enumerated: tuple
    frames: dict
    event_dims: dict
    unit: str | None

    @property
    def nesting(self):
        """How many dimensions the plates take, from the right."""
        return max(-frame.dim for frame in self.frames.values())

    @property
    def cells(self):
        """Number of cells of the largest observed site's plates."""
        return max(prod(f.size for f in frames_of(site)) for site in self.observed.values())


def structure_of(pair, densities=True):
    """The Structure of a pair, from a run each.

    densities: whether the guide has to have a log q, which a point has not.
    Raises ZooError where model and guide do not suit each other.
    """
    # The model shows first which plates have indices of their own: a guide's plates take them.
    # A prior may have no sampler, of which the draws of the guide have no need.
    _trace(pair, pair.model, "the model", NotImplementedError)
    guide = _trace(pair, pair.guide, "the guide")
    replayed = poutine.replay(pair.model, trace=latents_only(guide))
    model = _trace(pair, replayed, "the model, at a draw of the guide,")
    sites = sample_sites(model)
    observed = {site["name"]: site for site in sites if is_data(site)}
    latents = tuple(s["name"] for s in sites if not s["is_observed"] or is_deterministic(s))
    check_plates(sites, observed)
    enumerated = _check_latents(model, guide)
    if densities:
        _check_points(pair, guide)
    everything = [*sites, *sample_sites(guide)]
    frames = {frame.name: frame for site in everything for frame in frames_of(site)}
    event_dims = {site["name"]: event_dim_of(site) for site in sites if is_deterministic(site)}
    unit = _unit(observed, model, guide)
    return Structure(latents, observed, enumerated, frames, event_dims, unit)


def frames_of(site):
    """The vectorized plates of a site, but for the plate of draws, from left to right."""
    frames = [f for f in site["cond_indep_stack"] if f.vectorized and f.name != DRAWS]
    return sorted(frames, key=lambda frame: frame.dim)


def plates_of(site):
    """The names of these plates."""
    return {frame.name for frame in frames_of(site)}


def event_dim_of(site):
    """How many of a deterministic site's dimensions, from the right, are an event's, in one draw.

    `pyro.deterministic` takes all for an event's unless it is told, so the plates are looked for:
    they stand left of the event, and no other dimension does.
    """
    value, frames, told = site["value"], frames_of(site), site["fn"].event_dim
    if told < value.dim() or not frames:
        return told
    fitting = [e for e in range(value.dim() + 1) if _is_batch(value.shape[: told - e], frames)]
    require(
        len(fitting) <= 1,
        f"deterministic site {site['name']!r} of shape {tuple(value.shape)} may have "
        f"{' or '.join(map(str, fitting))} event dimensions: give it event_dim=",
    )
    return fitting[0] if fitting else told


def _is_batch(shape, frames):
    """Whether a shape is that of these plates, with dimensions of size 1 beside them."""
    sizes = {frame.dim: frame.size for frame in frames}
    if len(shape) < max(-dim for dim in sizes):
        return False
    return all(shape[dim] == sizes.get(dim, 1) for dim in range(-len(shape), 0))


def is_deterministic(site):
    """Whether `pyro.deterministic` made the site."""
    return bool(site["infer"].get("_deterministic"))


def is_data(site):
    """Whether a site observes data: no factor, and nothing deterministic."""
    factor = isinstance(base_distribution(site["fn"]), dist.Unit)
    return site["is_observed"] and not factor and not is_deterministic(site)


def latents_only(trace):
    """The trace without observed sites and minibatches of plates, for `poutine.replay`."""
    kept = poutine.Trace()
    for site in sample_sites(trace):
        if not site["is_observed"]:
            kept.add_node(site["name"], **site)
    return kept


def check_plates(sites, observed):
    """Refuse a model without data, data in no plate, and dimensions that no plate declares."""
    require(observed, "the model observes no data: give its likelihood site obs=")
    for site in sites:
        name, frames = site["name"], frames_of(site)
        # A mask may widen a density beyond the batch shape.
        density = site["log_prob"].shape if "log_prob" in site else ()
        shape = torch.broadcast_shapes(site["fn"].batch_shape, density)
        dims = {frame.dim for frame in frames}
        stray = [n for n in range(-len(shape), 0) if shape[n] > 1 and n not in dims]
        require(
            not stray,
            f"site {name!r} has batch shape {tuple(shape)}, of which no plate declares dimension "
            f"{(stray or [0])[0]}: open a pyro.plate there, or call .to_event",
        )
        require(
            frames or name not in observed,
            f"observed site {name!r} stands in no plate, so it has no pointwise log likelihood: "
            "sample it inside `with pyro.plate(name, size):`",
        )


def _trace(pair, program, what, *forgiven):
    wrong = explained(f"{what} does not run on these arguments with its plates whole")
    with wrong, suppress(*forgiven):
        trace = poutine.trace(pair.call(program)).get_trace()
        trace.compute_log_prob()
        return trace


def _check_latents(model, guide):
    """The discrete latents that the guide leaves to enumeration."""
    wanted = {s["name"]: s for s in sample_sites(model) if not s["is_observed"]}
    found = {s["name"] for s in sample_sites(guide) if not s["is_observed"]}
    auxiliary = {n for n in found if guide.nodes[n]["infer"].get("is_auxiliary")}
    known = ", ".join(wanted) or "none"
    for name in found - auxiliary - set(wanted):
        require(False, f"the guide has latent {name!r}, unknown to the model, which has {known}")
    missing = tuple(name for name in wanted if name not in found)
    for name in missing:
        finite = wanted[name]["fn"].has_enumerate_support
        require(finite, f"the guide misses latent {name!r}, which cannot be enumerated either")
    return missing


def _check_points(pair, guide):
    """Refuse a latent that is the same point in every draw, as a delta guide's are."""
    again = None
    for site in sample_sites(guide):
        if isinstance(base_distribution(site["fn"]), dist.Delta) and not site["is_observed"]:
            again = again or _trace(pair, pair.guide, "the guide")
            require(
                not torch.equal(site["value"], again.nodes[site["name"]]["value"]),
                f"latent {site['name']!r} is a single point in the guide (a delta), which has no "
                "log q: use a guide with a density, such as AutoNormal",
            )


def _unit(observed, model, guide):
    """The outermost plate of all data in which every local latent has a log q of its own."""
    shared = set.intersection(*map(plates_of, observed.values()))
    for frame in frames_of(next(iter(observed.values()))):
        if frame.name in shared and _splits(frame.name, model, guide):
            return frame.name
    return None


def _splits(plate, model, guide):
    """Whether the guide has latents in the plate, the model's, each with its density there."""

    def local(trace):
        sites = [s for s in sample_sites(trace) if not s["is_observed"]]
        return {s["name"]: s for s in sites if plate in plates_of(s)}

    inside, wanted = local(guide), local(model)
    names = {n for n in inside if not inside[n]["infer"].get("is_auxiliary")}
    # A joint autoguide draws all latents outside the plate, and copies them into it as deltas.
    copies = any(isinstance(base_distribution(inside[name]["fn"]), dist.Delta) for name in names)
    return names == set(wanted) & set(guide.nodes) != set() and (not copies or names < set(inside))
