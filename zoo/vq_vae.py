"""VQ-VAE: a datum as a few words of a learned dictionary, and what sequences of words are common.

An encoder gives some vectors for a datum, each is replaced by its nearest neighbor in a codebook,
and a decoder restores the datum from these.  The codes, unlike a VAE's hidden numbers, are discrete
and as precise as they are, and a prior learned over them draws new data.

Story:
    codes_n   ~ Autoregressive over m codes, each one of K
    z_n       = codebook[codes_n], event (m, k)
    x_n | z_n ~ Bernoulli(logits = decoder(z_n)), event (d,)
Data: rows of 0 and 1; default the digits, pixels at least half black.
Truth: T4.  A guide gives z as a point, what the encoder says before it is quantized; that is no
    draw of the story, and `log_joint` there no density but the source's objective: the likelihood
    at the nearest entries, with straight-through gradients, and their log probability, less how far
    z is from them.  The marginal p(x), a sum over K^m codes, stays unknown.
Differs from the source in: the prior is trained together with the rest, not after it; it has one
    hidden layer, after Larochelle & Murray 2011, and the networks no convolutions.  Errors are in
    nats, summed over pixels, beside which a commitment of 1 holds the encoder to the codebook.
Raises: ZooError for num_codes, codebook_size or code_dim below 1, a commitment that is not
    positive, or values other than 0 and 1.
Source: van den Oord, Vinyals & Kavukcuoglu 2017, Neural discrete representation learning, eq. 1-3;
    Larochelle & Murray 2011, The neural autoregressive distribution estimator, eq. 1-2.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import constraints

import zoo
from zoo.autoregressive import Autoregressive
from zoo.data import as_dataset
from zoo.densities import log_bernoulli
from zoo.distributions import improper
from zoo.errors import require_count, require_positive
from zoo.nets import check_hidden, mlp


class Quantized(TorchDistribution):
    """Entries of a codebook (K, k) at codes drawn from a prior over (m,) codes: event (m, k).

    Any vectors are scored: by the prior at the codes of their nearest entries, less the squared
    distance to these, which pulls the entries to the vectors, and `commitment` times it, which
    pulls the vectors to the entries.  Both are zero at draws.  Source: van den Oord et al., eq. 3.
    """

    arg_constraints = {}
    support = constraints.independent(improper, 2)

    def __init__(self, codes, codebook, commitment):
        self.codes, self.codebook, self.commitment = codes, codebook, commitment
        event = (*codes.event_shape, codebook.shape[-1])
        super().__init__(codes.batch_shape, torch.Size(event), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        """The same with a larger batch."""
        return type(self)(self.codes.expand(batch_shape), self.codebook, self.commitment)

    def sample(self, sample_shape=()):
        """Entries of the codebook: (*sample_shape, ..., m, k)."""
        return self.codebook[self.codes.sample(sample_shape).long()].detach()

    def log_prob(self, value):
        """The score of vectors (..., m, k): (...)."""
        places = nearest(value, self.codebook)
        entries = self.codebook[places]
        drawn = (entries - value.detach()).square().sum((-1, -2))
        committed = (value - entries.detach()).square().sum((-1, -2))
        return self.codes.log_prob(places) - drawn - self.commitment * committed


def nearest(value, codebook):
    """The places of the entries nearest to vectors (..., k) in a codebook (K, k): (...)."""
    return (codebook.square().sum(-1) - 2 * value @ codebook.T).argmin(-1)


class VQVAE(PyroModule):
    """The program; `codebook` (K, k), `decoder` maps (..., m k) to (..., d).

    The prior's network has `words` (m, K, h), `offset` (h,), `out` (m, h, K) and `logits` (m, K).
    """

    def __init__(self, width, num_codes, codebook_size, code_dim, hidden, prior_hidden, commitment):
        super().__init__(zoo.unique("vq_vae"))
        self.commitment = commitment
        self.codebook = nn.Parameter(torch.empty(codebook_size, code_dim))
        self.words = nn.Parameter(torch.empty(num_codes, codebook_size, prior_hidden))
        self.offset = nn.Parameter(torch.empty(prior_hidden))
        self.out = nn.Parameter(torch.empty(num_codes, prior_hidden, codebook_size))
        self.logits = nn.Parameter(torch.empty(num_codes, codebook_size))
        self.decoder = mlp(num_codes * code_dim, hidden, width)
        self.reset_parameters()

    def reset_parameters(self):
        """A scattered codebook; codes that are nearly uniform and independent."""
        with torch.no_grad():
            self.codebook.normal_()
            self.words.normal_(std=0.1)
            self.offset.normal_(std=0.1)
            self.out.normal_(std=0.1)
            self.logits.zero_()

    def prior(self):
        """p(codes), event (m,)."""
        # Pyro has to see the parameters now, and not when a density is computed, after the run.
        words, offset, out, bias = self.words, self.offset, self.out, self.logits
        places = torch.arange(len(words), device=words.device)

        def logits(codes):
            met = words[places, codes.long()]
            before = nn.functional.pad(met[:, :-1].cumsum(1), (0, 0, 1, 0))
            return torch.einsum("nmh,mhk->nmk", (offset + before).tanh(), out) + bias

        return Autoregressive(logits, len(words), offset, words.shape[1])

    def likelihood(self, z):
        """p(x given z) at the entries nearest to z (..., m, k), event (d,).

        The gradient goes from the entries to z as if they were the same.
        """
        entries = self.codebook[nearest(z, self.codebook)].detach()
        straight = entries + (z - z.detach())
        return dist.Bernoulli(logits=self.decoder(straight.flatten(-2))).to_event(1)

    def forward(self, x=None, index=None):
        prior = Quantized(self.prior(), self.codebook, self.commitment)
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", prior)
            return pyro.sample("x", self.likelihood(z), obs=rows)


def log_joint(model, x, z):
    """The source's objective for every row, (n,) nats; x (n, d), z (n, m, k).

    Where z are entries of the codebook it is log p(x, codes).
    """
    e = model.codebook
    distance = (z[..., None, :] - e).square().sum(-1)
    squares, codes = distance.min(-1)
    log_prior = -(1 + model.commitment) * squares.sum(-1)
    hidden = model.offset.expand(*codes.shape[:-1], -1)
    for place in range(codes.shape[-1]):
        logits = hidden.tanh() @ model.out[place] + model.logits[place]
        code = codes[..., place, None]
        log_prior = log_prior + logits.log_softmax(-1).gather(-1, code)[..., 0]
        hidden = hidden + model.words[place][code[..., 0]]
    return log_prior + log_bernoulli(x, model.decoder(e[codes].flatten(-2)))


@zoo.register
def build(
    data="digits",
    num_codes=8,
    codebook_size=16,
    code_dim=2,
    hidden=(100, 100),
    prior_hidden=32,
    commitment=1.0,
):
    """The problem; data as `zoo.data.as_dataset` takes it, binary.

    num_codes, codebook_size and code_dim: m, K and k of the story; hidden: widths of decoder
    layers; prior_hidden: width of the prior's layer; commitment: how much the encoder is pulled to
    the codebook, the beta of the source.
    """
    sizes = {"num_codes": num_codes, "codebook_size": codebook_size, "code_dim": code_dim}
    require_count(**sizes, prior_hidden=prior_hidden)
    require_positive(commitment=commitment)
    check_hidden(hidden)
    data = as_dataset(data, binary=True)
    return zoo.Problem(
        model=VQVAE(data.width, *sizes.values(), tuple(hidden), prior_hidden, float(commitment)),
        data=data,
        log_joint=log_joint,
        truth=zoo.Truth("T4", "a sum over all codes, of which the guide gives one as a point"),
        predictive_mean=lambda model, z: model.likelihood(z).mean,
    )
