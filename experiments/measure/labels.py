"""Which label a guide infers, and how often it is wrong."""

import torch

from experiments.measure.elbo import draw


@torch.no_grad()
def likeliest(problem, guide, latent, x, num_draws=100, seed=0, index=None):
    """The value of a finite latent that the guide holds likeliest: (n,), or (b,) for rows `index`.

    By q itself for a guide with rows of parameters, else the commonest of `num_draws` draws.
    """
    if hasattr(guide, "rows"):
        q = guide.distribution(latent.name, guide.rows(x)[latent.name])
        found = latent.values.to(x.device)[q.logits.argmax(-1)]
        return found if index is None else found[index]
    drawn = draw(problem.model, guide, x, num_draws, seed, index).latents[latent.name]
    return drawn.mode(0).values


def label_errors(problem, guide, x, labels, num_draws=100, seed=0):
    """1.0 where the likeliest label under the guide is not the true one, else 0.0: (m,).

    Of the m rows of x (n, d) that do not tell their label, the value of the latent
    `problem.label`.  labels: (n,) the true ones.
    """
    (latent,) = (latent for latent in problem.latents if latent.name == problem.label)
    hidden = (x[:, -1] == latent.num_values).nonzero()[:, 0]
    found = likeliest(problem, guide, latent, x, num_draws, seed, hidden)
    return (found != labels[hidden]).double()
