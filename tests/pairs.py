"""Pairs of Pyro programs in the style of its tutorials, each with its densities written again.

`PAIRS` maps a name to a function that makes an `Example`; `fitted(name)` fits it briefly.  The
densities are plain NumPy and SciPy, for one draw of the latents, a dict of arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from scipy import stats
from scipy.special import logsumexp
from torch import nn
from torch.distributions import constraints


@dataclass(frozen=True)
class Example:
    """A pair, its arguments, and what is known of its densities at a draw.

    log_prior(z), log_likelihood(z): of the latents that the guide has, enumerated ones summed out;
    log_likelihood as {site: pointwise array}.  log_q(z): the guide's density.
    """

    model: Callable
    guide: Callable
    args: tuple
    log_prior: Callable
    log_likelihood: Callable
    log_q: Callable
    elbo: Callable = Trace_ELBO
    max_plate_nesting: int = 1


def fit(example, steps=100, learning_rate=0.02):
    """The losses of a brief fit; parameters stay in the modules and in Pyro's store."""
    elbo = example.elbo(max_plate_nesting=example.max_plate_nesting)
    svi = SVI(example.model, example.guide, Adam({"lr": learning_rate}), elbo)
    return [svi.step(*example.args) for _ in range(steps)]


def fitted(name, seed=0, **options):
    """(Example, losses) of a brief fit in a cleared store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    example = PAIRS[name]()
    return example, fit(example, **options)


def param(name):
    """A parameter of Pyro's store as an array."""
    return pyro.param(name).detach().double().numpy()


def auto_normal_log_q(guide, z, transforms):
    """log q of AutoNormal: a normal in unconstrained space, less the log Jacobian.

    transforms: {site: "real", "positive" or "simplex"}.
    """
    total = 0.0
    for name, kind in transforms.items():
        loc, scale = (
            getattr(part, name).detach().double().numpy() for part in (guide.locs, guide.scales)
        )
        if kind == "real":
            total += stats.norm.logpdf(z[name], loc, scale).sum()
        elif kind == "positive":
            total += stats.lognorm.logpdf(z[name], scale, scale=np.exp(loc)).sum()
        else:
            total += stick_breaking_log_density(z[name], loc, scale)
    return total


def stick_breaking_log_density(w, loc, scale):
    """Log density on the simplex of a stick-breaking logistic normal.

    v_k = w_k / (1 - w_1 - ... - w_{k-1}), logit v_k = x_k - log(K - k), x normal; the Jacobian
    of v -> w is the product of the sticks, that of x -> v is v (1 - v).
    """
    left = 1 - np.concatenate([[0.0], np.cumsum(w)[:-2]])
    v = w[:-1] / left
    x = np.log(v / (1 - v)) + np.log(np.arange(len(w) - 1, 0, -1))
    jacobian = np.log(v) + np.log1p(-v) + np.log(left)
    return (stats.norm.logpdf(x, loc, scale) - jacobian).sum()


def eight_schools():
    """Centered, with a hand-written guide whose parameters stand in the global store."""
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])

    def model(sigma, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.LogNormal(1.0, 1.0))
        with pyro.plate("school", len(sigma)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.deterministic("gain", theta - mu)
            pyro.sample("effect", dist.Normal(theta, sigma), obs=y)

    def guide(sigma, y=None):
        positive = constraints.positive
        mu_loc = pyro.param("mu_loc", torch.tensor(4.0))
        mu_scale = pyro.param("mu_scale", torch.tensor(2.0), constraint=positive)
        tau_loc = pyro.param("tau_loc", torch.tensor(1.0))
        theta_loc = pyro.param("theta_loc", lambda: 4 + torch.randn(8))
        theta_scale = pyro.param("theta_scale", torch.full((8,), 3.0), constraint=positive)
        pyro.sample("mu", dist.Normal(mu_loc, mu_scale))
        pyro.sample("tau", dist.LogNormal(tau_loc, 0.5))
        with pyro.plate("school", len(sigma)):
            pyro.sample("theta", dist.Normal(theta_loc, theta_scale))

    def log_prior(z):
        top = stats.norm.logpdf(z["mu"], 0, 5) + stats.lognorm.logpdf(z["tau"], 1, scale=np.e)
        return top + stats.norm.logpdf(z["theta"], z["mu"], z["tau"]).sum()

    def log_q(z):
        top = stats.norm.logpdf(z["mu"], param("mu_loc"), param("mu_scale"))
        top += stats.lognorm.logpdf(z["tau"], 0.5, scale=np.exp(param("tau_loc")))
        local = stats.norm.logpdf(z["theta"], param("theta_loc"), param("theta_scale"))
        return top + local.sum()

    def log_likelihood(z):
        return {"effect": stats.norm.logpdf(y, z["theta"], sigma)}

    return Example(model, guide, (sigma, y), log_prior, log_likelihood, log_q)


class TutorialVAE(nn.Module):
    """Model and guide are methods that hand their networks to `pyro.module`."""

    def __init__(self, width=12, latent_dim=2):
        super().__init__()
        self.latent_dim = latent_dim
        self.decoder = nn.Linear(latent_dim, width)
        self.encoder = nn.Linear(width, 2 * latent_dim)

    def model(self, x):
        decoder = pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent_dim), 1).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        encoder = pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def vae():
    """Bernoulli pixels; parameters are those of two networks."""
    x = (torch.rand(30, 1) * torch.ones(12) > torch.rand(30, 12)).float()
    networks = TutorialVAE()

    def affine(layer, value):
        weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
        return np.asarray(value, float) @ weight.T + bias

    def log_prior(z):
        return stats.norm.logpdf(z["z"]).sum()

    def log_likelihood(z):
        sign = 2 * x.double().numpy() - 1
        return {"x": -np.logaddexp(0, -sign * affine(networks.decoder, z["z"])).sum(-1)}

    def log_q(z):
        loc, log_scale = np.split(affine(networks.encoder, x), 2, -1)
        return stats.norm.logpdf(z["z"], loc, np.exp(log_scale)).sum()

    return Example(networks.model, networks.guide, (x,), log_prior, log_likelihood, log_q)


def gaussian_mixture():
    """Weights and locations by AutoNormal, the assignments enumerated in the model."""
    x = torch.tensor([0.0, 0.5, 1.2, 1.9, 2.6, 10.0, 11.0, 11.5])

    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 0.5)))
        with pyro.plate("component", 3):
            loc = pyro.sample("loc", dist.Normal(3.0, 5.0))
        with pyro.plate("point", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], 1.5), obs=x)

    guide = AutoNormal(poutine.block(model, hide=["z", "x"]), init_scale=0.3)

    def log_prior(z):
        dirichlet = stats.dirichlet.logpdf(z["weights"] / z["weights"].sum(), np.full(3, 0.5))
        return dirichlet + stats.norm.logpdf(z["loc"], 3, 5).sum()

    def log_likelihood(z):
        parts = np.log(z["weights"]) + stats.norm.logpdf(x[:, None].numpy(), z["loc"], 1.5)
        return {"x": logsumexp(parts, axis=-1)}

    def log_q(z):
        return auto_normal_log_q(guide, z, {"weights": "simplex", "loc": "real"})

    return Example(model, guide, (x,), log_prior, log_likelihood, log_q, TraceEnum_ELBO)


def hierarchical_regression():
    """Varying intercepts, slope and noise by AutoNormal; counties and homes are two plates."""
    floor, county = torch.rand(40).round(), torch.arange(40) % 5
    price = 1.0 - 0.7 * floor + 0.3 * county + 0.4 * torch.randn(40)

    def model(floor, county, price):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        sd = pyro.sample("sd", dist.LogNormal(0.0, 0.5))
        slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 0.5))
        with pyro.plate("county", 5):
            intercept = pyro.sample("intercept", dist.Normal(mean, sd))
        with pyro.plate("home", len(floor)):
            pyro.sample("radon", dist.Normal(intercept[county] + slope * floor, noise), obs=price)

    guide = AutoNormal(model)

    def log_prior(z):
        top = stats.norm.logpdf([z["mean"], z["slope"]], 0, 2).sum()
        top += stats.lognorm.logpdf([z["sd"], z["noise"]], 0.5).sum()
        return top + stats.norm.logpdf(z["intercept"], z["mean"], z["sd"]).sum()

    def log_likelihood(z):
        loc = z["intercept"][county.numpy()] + z["slope"] * floor.numpy()
        return {"radon": stats.norm.logpdf(price, loc, z["noise"])}

    def log_q(z):
        kinds = {"mean": "real", "sd": "positive", "slope": "real", "noise": "positive"}
        return auto_normal_log_q(guide, z, kinds | {"intercept": "real"})

    return Example(model, guide, (floor, county, price), log_prior, log_likelihood, log_q)


def lda():
    """Latent Dirichlet allocation: documents and words nested, word topics enumerated."""
    words = torch.tensor([[0, 0, 1, 2], [4, 4, 3, 0], [0, 1, 0, 3]]).T  # (word, document)

    def model(words):
        with pyro.plate("topic", 2):
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(5)))
        with pyro.plate("document", words.shape[1]):
            shares = pyro.sample("shares", dist.Dirichlet(torch.full((2,), 0.5)))
            with pyro.plate("position", len(words)):
                topic = pyro.sample("topic_of_word", dist.Categorical(shares))
                pyro.sample("word", dist.Categorical(topic_words[topic]), obs=words)

    def guide(words):
        alpha = pyro.param("alpha", lambda: 1 + torch.rand(2, 5), constraint=constraints.positive)
        beta = pyro.param("beta", lambda: 1 + torch.rand(3, 2), constraint=constraints.positive)
        with pyro.plate("topic", 2):
            pyro.sample("topic_words", dist.Dirichlet(alpha))
        with pyro.plate("document", words.shape[1]):
            pyro.sample("shares", dist.Dirichlet(beta))

    def dirichlets(rows, parameters):
        pairs = zip(rows / rows.sum(-1, keepdims=True), parameters, strict=True)
        return sum(stats.dirichlet.logpdf(row, parameter) for row, parameter in pairs)

    def log_prior(z):
        top = dirichlets(z["topic_words"], np.ones((2, 5)))
        return top + dirichlets(z["shares"], np.full((3, 2), 0.5))

    def log_likelihood(z):
        mixed = np.log(z["shares"] @ z["topic_words"])  # (document, vocabulary)
        return {"word": np.take_along_axis(mixed.T, words.numpy(), 0)}

    def log_q(z):
        return dirichlets(z["topic_words"], param("alpha")) + dirichlets(z["shares"], param("beta"))

    model = pyro.infer.config_enumerate(model)
    return Example(model, guide, (words,), log_prior, log_likelihood, log_q, TraceEnum_ELBO, 2)


def subsampled():
    """A latent a datum, in a plate that draws a minibatch of its own at every step."""
    y = 1.0 + torch.randn(24)

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("unit", len(y), subsample_size=6) as index:
            level = pyro.sample("level", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(level, 0.5), obs=y[index])

    guide = AutoNormal(model)

    def log_prior(z):
        return stats.norm.logpdf(z["mean"], 0, 3) + stats.norm.logpdf(z["level"], z["mean"]).sum()

    def log_likelihood(z):
        return {"y": stats.norm.logpdf(y, z["level"], 0.5)}

    def log_q(z):
        return auto_normal_log_q(guide, z, {"mean": "real", "level": "real"})

    return Example(model, guide, (y,), log_prior, log_likelihood, log_q)


def hidden_markov():
    """Sequences in a plate, three enumerated states in each, one observed site a time."""
    y = torch.randn(5, 3) + torch.tensor([0.0, 2.0, 0.0])
    stay = 0.8

    def model(y):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        move = torch.tensor([[stay, 1 - stay], [1 - stay, stay]])
        with pyro.plate("sequence", len(y)):
            state = None
            for time in pyro.markov(range(3)):
                p = torch.full((2,), 0.5) if state is None else move[state]
                infer = {"enumerate": "parallel"}
                state = pyro.sample(f"state_{time}", dist.Categorical(p), infer=infer)
                pyro.sample(f"y_{time}", dist.Normal(loc[state], 1.0), obs=y[:, time])

    hidden = [f"{kind}_{time}" for kind in ("state", "y") for time in range(3)]
    guide = AutoNormal(poutine.block(model, hide=hidden))
    paths = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    log_paths = np.log(0.5) + np.log(np.where(paths[:, 1:] == paths[:, :-1], stay, 1 - stay)).sum(
        -1
    )

    def log_evidence(z, times):
        terms = stats.norm.logpdf(y[:, None, :].numpy(), z["loc"][paths], 1.0)[..., times]
        return logsumexp(log_paths + terms.sum(-1), axis=-1)

    def log_prior(z):
        return stats.norm.logpdf(z["loc"], 0, 2).sum()

    def log_likelihood(z):
        times = [0, 1, 2]
        return {
            f"y_{t}": log_evidence(z, times) - log_evidence(z, [s for s in times if s != t])
            for t in times
        } | {"all": log_evidence(z, times)}

    def log_q(z):
        return auto_normal_log_q(guide, z, {"loc": "real"})

    return Example(model, guide, (y,), log_prior, log_likelihood, log_q, TraceEnum_ELBO)


PAIRS = {
    example.__name__: example
    for example in (
        eight_schools,
        vae,
        gaussian_mixture,
        hierarchical_regression,
        lda,
        subsampled,
        hidden_markov,
    )
}
