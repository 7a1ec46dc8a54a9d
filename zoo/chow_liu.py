"""Chow-Liu tree: every column hangs on one other, the best choice of all.

The best density that pairs of columns alone can give: of all d^(d-2) trees the likeliest is a
maximum spanning tree of the columns' mutual information.  As many parameters as `markov_chain`,
which takes the columns as they come.

Story:
    x_n,root                 ~ Bernoulli(p_root)    column of datum n
    x_ni | x_n,parent(i)=a   ~ Bernoulli(p_ia)      its own coin for each a of 0 and 1
Data: rows of 0 and 1; default the digits, pixels at least half black.
Truth: T0, there are no latents; maximum likelihood in closed form, tree and parameters.
Differs from the source in: parameters in logits, and `smoothing` imagined rows of each pair of
    values: p_ij(a, b) = (N_ab + s) / (N + 4 s), p_i(a) = (N_a + 2 s) / (N + 4 s), so that pairs
    and columns agree, and the density is the same whichever column is the root.  The tree as built
    is that of the training rows; SVI trains the logits only.
Raises: ZooError for values other than 0 and 1, a single column, or negative smoothing.
Source: Chow & Liu 1968, Approximating discrete probability distributions with dependence trees,
    IEEE Transactions on Information Theory 14.
"""

import pyro
import torch
from pyro.nn import PyroModule
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from torch import nn
from torch.nn.functional import logsigmoid
from torch.special import xlogy

import zoo
from zoo.chains import BernoulliTree, check_columns, likeliest_rest, smoothed_logits
from zoo.data import as_dataset
from zoo.errors import require_smoothing


class ChowLiu(PyroModule):
    """The program; `first` () logit of the root, `rest` (d - 1, 2) given the parent is 0 or 1.

    order (d,), the columns with parents first, and parent (d - 1,), of the columns order[1:].
    """

    def __init__(self, order, parent):
        super().__init__(zoo.unique("chow_liu"))
        self.first = nn.Parameter(torch.empty(()))
        self.rest = nn.Parameter(torch.empty(len(parent), 2))
        self.register_buffer("order", order)
        self.register_buffer("parent", parent)
        self.reset_parameters()

    def reset_parameters(self):
        """Fair coins; the tree stays."""
        nn.init.zeros_(self.first)
        nn.init.zeros_(self.rest)

    def forward(self, x=None, index=None):
        tree = BernoulliTree(self.first, self.rest, self.order, self.parent)
        with zoo.datum(x, index) as rows:
            return pyro.sample("x", tree, obs=rows)


def log_joint(model, x):
    """log p(x) of every row, (n,) nats; x (n, d)."""
    root, child = x[:, model.order[0]], x[:, model.order[1:]]
    parent = x[:, model.parent]
    total = root * logsigmoid(model.first) + (1 - root) * logsigmoid(-model.first)
    for a, given in enumerate((1 - parent, parent)):
        one, zero = logsigmoid(model.rest[:, a]), logsigmoid(-model.rest[:, a])
        total = total + (given * (child * one + (1 - child) * zero)).sum(-1)
    return total


def pair_counts(x):
    """In how many rows of x (n, d) two columns are both 1: (d, d) float64, ones on the diagonal.

    The product in float32 is exact up to 2^24 rows.
    """
    return (x.T @ x).double()


def mutual_information(both, num_data, smoothing):
    """Mutual information of all pairs of columns, (d, d) nats, from their counts."""
    ones, only = both.diagonal(), both.diagonal()[:, None] - both
    cells = (both, only, only.T, num_data - ones - only)  # 11, 10, 01, 00
    total = num_data + 4 * smoothing
    one = (ones + 2 * smoothing) / total
    first, second = (one, one, 1 - one, 1 - one), (one, 1 - one, one, 1 - one)
    found = torch.zeros_like(both)
    for cell, p, q in zip(cells, first, second, strict=True):
        share = (cell + smoothing) / total
        found += xlogy(share, share) - xlogy(share, p[:, None]) - xlogy(share, q)
    return found


def best_tree(both, num_data, smoothing):
    """(order (d,), parent (d - 1,)) of a maximum spanning tree, rooted at column 0."""
    weight = mutual_information(both, num_data, smoothing).cpu().numpy()
    # scipy takes 0 for no edge, and wants the smallest: every edge here is at least 1.
    tree = minimum_spanning_tree(1 + weight.max() - weight)
    order, parent = breadth_first_order(tree, 0, directed=False)
    order, parent = torch.as_tensor(order).long(), torch.as_tensor(parent).long()
    return order, parent[order[1:]]


def maximum_likelihood(model, x, smoothing=0.0):
    """Put the likeliest tree for the rows x (n, d) and its logits into the model.

    smoothing: imagined rows of each pair of values.
    """
    both, n = pair_counts(x), len(x)
    order, parent = best_tree(both, n, smoothing)
    model.order.copy_(order)
    model.parent.copy_(parent)
    ones, child, parent = both.diagonal(), model.order[1:], model.parent
    rest = likeliest_rest(ones[child], ones[parent], both[child, parent], n, smoothing)
    model.first.data.copy_(smoothed_logits(ones[model.order[0]], n, 2 * smoothing))
    model.rest.data.copy_(rest)


@zoo.register
def build(data="digits", smoothing=1.0):
    """The problem; data as `zoo.data.as_dataset` takes it, binary."""
    require_smoothing(smoothing)
    data = as_dataset(data, binary=True)
    check_columns(data)
    tree = best_tree(pair_counts(data.train), len(data.train), smoothing)
    return zoo.Problem(
        model=ChowLiu(*tree),
        data=data,
        log_joint=log_joint,
        maximum_likelihood=lambda model, x: maximum_likelihood(model, x, smoothing),
    )
