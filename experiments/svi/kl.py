"""The KL part of the ELBO with a weight: beta, annealing, free bits.

    E log p(x | z) - sum_s weight_t max(free_bits, KL_s),   weight_t = beta min(1, t / annealing)

KL_s = mean over the draws and the minibatch of log q - log p of latent site s, nats a datum; that
of a site outside the plate is in nats altogether.  Where the guide draws one vector for several
latents (an auxiliary site) these are one group, in nats altogether if any stands outside the plate.
A group's gradient is that of its KL where the estimate is at least free_bits, and none below.
Source: Higgins et al. 2017, beta-VAE, eq. 4; Bowman et al. 2016, Generating sentences from a
    continuous space, section 3.1, for annealing; Kingma et al. 2016, Improved variational inference
    with inverse autoregressive flow, eq. 15, for free bits.
"""

from functools import partial

import torch
from pyro.distributions.util import is_identically_zero

from experiments.svi.surrogate import mean_losses
from zoo.problem import sample_sites


def pressed(config, plate):
    """The losses of the weighted bound: the plain loss in nats, and what has its gradient."""
    return partial(_losses, config, plate)


def weight_at(config, step):
    """The weight of the KL part at a step counted from 0, a number or a tensor ()."""
    if not config.annealing_steps:
        return config.beta
    return config.beta * torch.as_tensor(step / config.annealing_steps).clamp(max=1)


def _losses(config, plate, elbo, model, guide, args):
    weight = weight_at(config, elbo.step)

    def particle(*pair):
        loss, _ = elbo.particle(*pair)
        weights = {name: weight * on for name, on in _pressing(config, plate, elbo, *pair).items()}
        for trace in pair:
            _weigh(trace, weights)
        return loss, elbo.particle(*pair)[1]

    return mean_losses(elbo, model, guide, args, particle=particle)


def _pressing(config, plate, elbo, model_trace, guide_trace):
    """{latent site: 1 where its group's KL is pressed, else 0}, auxiliary sites among them."""
    signs = (1, guide_trace), (-1, model_trace)
    sites = [(sign, s) for sign, t in signs for s in sample_sites(t) if not s["is_observed"]]
    names = {site["name"] for _, site in sites}
    if not config.free_bits:
        return dict.fromkeys(names, 1.0)
    alone = len(sites) == 2 * len(names)  # else the guide has sites that the model has not
    on = {}
    for group in ([name] for name in names) if alone else [names]:
        members = [(sign, site) for sign, site in sites if site["name"] in group]
        kl = sum(sign * site["log_prob_sum"].detach() for sign, site in members)
        kl = kl / (elbo.num_particles * min(_size(site, plate) for _, site in members))
        on |= dict.fromkeys(group, (kl >= config.free_bits).to(kl.dtype))
    return on


def _size(site, plate):
    """Number of all data for a site in their plate, 1 for one outside."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.name == plate]
    return (frames[0].full_size or frames[0].size) if frames else 1


def _weigh(trace, weights):
    """Multiply the log densities of a trace's latent sites, not the scores, by {name: weight}."""
    for site in sample_sites(trace):
        if site["is_observed"]:
            continue
        weight = weights[site["name"]]
        for key in ("log_prob", "log_prob_sum"):
            site[key] = site[key] * weight
        if "score_parts" in site:
            site["score_parts"] = _weighed_parts(site["score_parts"], weight)
        if "packed" in site:  # what enumeration reads
            site["packed"]["log_prob"] = _weighed(site["packed"]["log_prob"], weight)


def _weighed_parts(parts, weight):
    entropy = parts.entropy_term
    if not is_identically_zero(entropy):
        entropy = entropy * weight
    return parts._replace(log_prob=parts.log_prob * weight, entropy_term=entropy)


def _weighed(packed, weight):
    """A packed tensor times a weight, its dimensions still known."""
    found = packed * weight
    found._pyro_dims = packed._pyro_dims
    return found
