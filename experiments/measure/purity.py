"""Purity: do clusters that were found without labels agree with the labels?

Source: Manning, Raghavan & Schuetze 2008, Introduction to information retrieval, section 16.3.
"""

import torch

from zoo.errors import require


def purity(labels, clusters):
    """The share of the data whose label is the commonest in their cluster, from 0 to 1.

    labels, clusters: (n,) whole numbers.  It never falls where a cluster is split, and is 1 where
    every datum has a cluster of its own, so that it compares clusterings of equal number.
    Raises ZooError for anything but two equally long lists of whole numbers.
    """
    labels, clusters = (_numbers(*pair) for pair in (("labels", labels), ("clusters", clusters)))
    require(
        len(labels) == len(clusters) > 0,
        f"purity is of as many labels as clusters, at least one: got {len(labels)} and "
        f"{len(clusters)}",
    )
    labels, clusters = (values.unique(return_inverse=True)[1] for values in (labels, clusters))
    counts = torch.zeros(int(clusters.max()) + 1, int(labels.max()) + 1, dtype=torch.long)
    counts.index_put_((clusters, labels), torch.ones_like(labels), accumulate=True)
    return counts.amax(1).sum().item() / len(labels)


def _numbers(what, values):
    values = torch.as_tensor(values).cpu()
    whole = values.dim() == 1 and not values.is_floating_point() and not values.is_complex()
    require(
        whole,
        f"{what} must be a list of whole numbers, got {values.dtype} of shape "
        f"{tuple(values.shape)}",
    )
    return values.long()


def cluster_latent(problem):
    """The one latent of a datum that is a whole number of finitely many, None for other models."""
    finite = [la for la in problem.latents if la.local and la.num_values and not la.event_shape]
    return finite[0] if len(finite) == 1 else None
