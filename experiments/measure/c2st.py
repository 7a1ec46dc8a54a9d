"""Classifier two-sample test: can a classifier tell a guide's draws from those of the posterior?

Every datum gives as many draws of both, in pairs.  They are pooled over the data, so that a small
fault of every datum shows: a continuous latent is standardized by the exact posterior mean and
standard deviation of its datum.  The classifier learns on every other datum; on the rest its
accuracy is 1/2 where guide and posterior are equal.  One split, and no cross-validation: accuracies
of several folds are not independent, and their binomial test refused an exact guide in 15 % of 60
runs at 5 %.
Source: Lopez-Paz & Oquab 2017, Revisiting classifier two-sample tests, section 3.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom
from sklearn.ensemble import HistGradientBoostingClassifier

from experiments.measure.elbo import draw
from experiments.measure.streams import seeds, stream
from zoo.errors import require

MIN_PAIRS = 100  # fewer teach the classifier nothing


@dataclass(frozen=True)
class TwoSample:
    """Held-out accuracy, its binomial se, and the one-sided p-value of an accuracy of 1/2.

    Given the classifier, each pair of an exact guide has one right answer on average, so the
    binomial p-value is valid; it is conservative where the classifier favors one side.
    """

    accuracy: float
    se: float
    p_value: float
    num_pairs: int


def c2st(problem, guide, x, num_draws=40, seed=0):
    """Classifier two-sample test of a guide against the exact posterior for the rows x (n, d).

    num_draws: of each a datum, or of each together for a joint problem.  Returns a TwoSample.
    Raises TruthUnavailable where the problem knows no exact posterior, ZooError for more than one
    latent or fewer than 100 pairs of draws.
    """
    posterior = problem.posterior(x)
    names = ", ".join(latent.name for latent in problem.latents)
    require(len(problem.latents) == 1, f"c2st compares one latent, the model has {names}")
    num_units = 1 if problem.joint else len(x)
    require(
        type(num_draws) is int and num_draws * num_units >= MIN_PAIRS,
        f"c2st needs at least {MIN_PAIRS} pairs of draws, got {num_draws!r} draws for each of "
        f"{num_units}",
    )
    first, second, third = seeds(seed, 3)
    theirs = draw(problem.model, guide, x, num_draws, first).latents[names]
    with stream(second, x.device), torch.no_grad():
        exact = posterior.sample((num_draws,)).reshape(theirs.shape)
        features = _features(problem.latents[0], posterior, torch.stack([theirs, exact]))
    features = features.reshape(2, num_draws, num_units, -1).double().cpu().numpy()
    return _judge(features, third % 2**32)


def _features(latent, posterior, draws):
    """What the classifier sees of draws (2, num_draws, n, ...): (2, num_draws, n, features).

    Of a finite discrete latent its value and posterior probability; of any other the standardized
    value and the posterior density, which sees correlations; and which datum it is, roughly.
    """
    log_prob = posterior.log_prob(draws)
    typical = log_prob.mean((0, 1), keepdim=True)  # of both kinds, so that it tells them not apart
    if latent.num_values is not None and not latent.event_shape:
        seen = [_one_hot(posterior, draws), log_prob.exp()[..., None]]
        context = posterior.probs.expand(*log_prob.shape, -1)
    else:
        mean, sd = posterior.mean, posterior.variance.sqrt()
        z = ((draws - mean) / sd).reshape(*log_prob.shape, -1)
        seen = [z, (log_prob - typical)[..., None]]
        context = mean.expand_as(draws).reshape(*log_prob.shape, -1)
    return torch.cat([*seen, context], -1)


def _one_hot(posterior, draws):
    return torch.nn.functional.one_hot(draws.long(), posterior.probs.shape[-1]).float()


def _judge(features, seed):
    """Accuracy on half of the pairs (2, num_draws, n, f), by a classifier of the other half.

    The halves share no datum where there are several: what the classifier learns of how common a
    datum is then says nothing of the label.
    """
    _, num_draws, num_data, width = features.shape
    pairs = features.reshape(2, num_draws * num_data, width)
    place = np.arange(num_draws * num_data)
    held_out = (place % num_data if num_data > 1 else place) % 2 == 1
    labels = np.repeat([0, 1], (~held_out).sum())
    model = HistGradientBoostingClassifier(
        max_iter=60, max_leaf_nodes=8, early_stopping=False, random_state=seed
    )
    model.fit(pairs[:, ~held_out].reshape(-1, width), labels)
    right = np.stack([model.predict(pairs[label, held_out]) == label for label in (0, 1)])
    accuracy = right.mean().item()
    p_value = binom.sf(right.sum() - 1, right.size, 0.5).item()
    se = math.sqrt(accuracy * (1 - accuracy) / right.size)
    return TwoSample(accuracy, se, p_value, right.shape[1])
