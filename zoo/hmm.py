"""Hidden Markov model: which of K states is a sequence in, at each of its steps?

The standard model of binary sequences whose behavior switches, such as rows of a picture or days
of a record.  States hang together: where the data leave open when a switch happened, the
posterior holds whole paths, each with its switch at another step.  A factorized (mean_field) guide
q(z) = prod_t q(z_t) has the right chances of every state at best, and cannot say that successive
states belong together: it also draws paths that switch twice or never, which the posterior rules
out, or settles on one path.

Story:
    z_n1            ~ Categorical(pi)               state of datum n at the first of T steps
    z_nt | z_n(t-1) ~ Categorical(A_z(t-1))         state at step t
    x_nt | z_nt     ~ Bernoulli(p_z), event (w,)    the step's columns; all T are a row of d = T w
Data: rows of 0 and 1, T steps of w columns side by side; default the digits, pixels at least half
    black: eight rows of eight pixels.
Truth: T0, the forward algorithm in log space, O(T K^2) a datum; the posterior is a Markov chain
    from the last state to the first (forward filtering, backward sampling).
Differs from the source in: many sequences of one length, several binary columns a step, and
    parameters in logits, by maximum likelihood.
Raises: ZooError for values other than 0 and 1, steps below 2 or that do not divide the columns,
    or num_states below 1.
Source: Rabiner 1989, A tutorial on hidden Markov models and selected applications in speech
    recognition, eq. 12-21; Chib 1996, Calculating posterior distributions and modal estimates in
    Markov mixture models, for the backward draws.
"""

import pyro
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.nn.functional import logsigmoid

import zoo
from zoo.chains import StateChain, check_steps
from zoo.data import as_dataset
from zoo.distributions import BernoulliVector
from zoo.errors import require_count


class HMM(PyroModule):
    """The program; `first_logits` (K,), `step_logits` (K, K), `logits` (K, w) of emissions."""

    def __init__(self, width, steps, num_states):
        super().__init__(zoo.unique("hmm"))
        self.steps = steps
        self.first_logits = nn.Parameter(torch.empty(num_states))
        self.step_logits = nn.Parameter(torch.empty(num_states, num_states))
        self.logits = nn.Parameter(torch.empty(num_states, width // steps))
        self.reset_parameters()

    def reset_parameters(self):
        """States equally likely at every step; chances of a 1 uniform in (0.25, 0.75)."""
        with torch.no_grad():
            self.first_logits.zero_()
            self.step_logits.zero_()
            self.logits.copy_(torch.empty_like(self.logits).uniform_(0.25, 0.75).logit())

    def prior(self):
        """p(z): a chain of `steps` states, event (T,)."""
        steps = self.step_logits.expand(self.steps - 1, -1, -1)
        return StateChain(self.first_logits, steps)

    def forward(self, x=None, index=None):
        prior, logits = self.prior(), self.logits
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", prior)
            own = logits[z.long()].flatten(-2)  # a guide may draw two states as 0.0 and 1.0
            return pyro.sample("x", BernoulliVector(own), obs=rows)


def log_joint(model, x, z):
    """log p(x, z) of every row, (n,) nats; x (n, d), z (n, T).  Rabiner 1989, eq. 12-15."""
    log_pi, log_a = model.first_logits.log_softmax(-1), model.step_logits.log_softmax(-1)
    y, z = x.unflatten(-1, (model.steps, -1)), z.long()
    one, zero = logsigmoid(model.logits)[z], logsigmoid(-model.logits)[z]
    emitted = (y * one + (1 - y) * zero).sum((-2, -1))
    return log_pi[z[..., 0]] + log_a[z[..., :-1], z[..., 1:]].sum(-1) + emitted


def emissions(model, x):
    """log p(x_t given z_t = k) of every row and step: (n, T, K)."""
    y = x.unflatten(-1, (model.steps, -1))
    return y @ model.logits.T - nn.functional.softplus(model.logits).sum(-1)


def filtered(model, x):
    """log p(x_1 ... x_t, z_t = k) of every row, a list over the steps of (n, K).  Eq. 19-20."""
    log_a, emitted = model.step_logits.log_softmax(-1), emissions(model, x).unbind(1)
    alphas = [model.first_logits.log_softmax(-1) + emitted[0]]
    for term in emitted[1:]:
        alphas.append((alphas[-1][:, :, None] + log_a).logsumexp(1) + term)
    return alphas


def log_evidence(model, x):
    """log p(x) of every row, (n,) nats, by the forward algorithm.  Eq. 21."""
    return filtered(model, x)[-1].logsumexp(-1)


def posterior(model, x):
    """p(z given x), a chain backward in time, batch (n,), event (T,).

    p(z_t = i given z_(t+1) = j, x) is in proportion to p(x_1 ... x_t, z_t = i) A_ij.
    """
    *alphas, last = filtered(model, x)
    log_a = model.step_logits.log_softmax(-1)
    steps = [alpha[:, None, :] + log_a.T for alpha in reversed(alphas)]
    return StateChain(last, torch.stack(steps, 1), backward=True)


@zoo.register
def build(data="digits", steps=8, num_states=4):
    """The problem; data as `zoo.data.as_dataset` takes it, binary; steps: T, num_states: K."""
    require_count(num_states=num_states)
    data = as_dataset(data, binary=True)
    check_steps(steps, data)
    return zoo.Problem(
        model=HMM(data.width, steps, num_states),
        data=data,
        log_joint=log_joint,
        truth=zoo.Truth("T0", "forward algorithm", log_evidence, posterior),
        predictive_mean=lambda model, z: model.logits[z.long()].flatten(-2).sigmoid(),
    )
