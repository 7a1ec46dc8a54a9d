"""Semi-amortized: an encoder's answer, and then a few gradient steps on the datum's own parameters.

Family: q(z) = prod_n q(z_n; row_n), row_n = encoder(x_n) after `steps` steps of gradient ascent on
    the datum's bound, by default of a diagonal normal.  The encoder is trained through the steps,
    and so are their rates, one for each number of a row.
Cannot represent: what the family cannot; the few steps leave some of the amortization gap.
Needs: continuous latents, none of them shared between data.  New data cost one pass of the encoder
    and `steps` gradients of the model, each over `draws` draws by noise that stays the same, so
    that q is a function of the datum.
Differs from the source in: the steps' lengths are learned, their noise is fixed, and the model is
    trained by the bound at q as it stands, not by how q follows the model.
Source: Kim, Wiseman, Miller, Sontag & Rush 2018, Semi-amortized variational autoencoders, algorithm
    1; Marino, Yue & Mandt 2018, Iterative amortized inference, for learned steps.
"""

import math

import torch
from torch import nn

import guides
from guides.families import refuse_unsuited, unconstrained
from guides.guide import Guide
from guides.inside import detached, log_joint
from guides.joined import refuse_joint
from guides.placed import even_noise, placed
from guides.sources import ByLatent, by_encoder
from zoo.errors import require, require_count

FIRST_RATE = 0.1
LONGEST = 1.0  # norm of a datum's step, over all its numbers, beyond which it is shortened


class Refinement(nn.Module):
    """Gradient steps on rows of parameters of these families; the rates are its parameters.

    The model is not its own: copied together with the model, the copy follows the copied model.
    """

    def __init__(self, problem, families, steps, draws):
        super().__init__()
        self._hidden = (problem.model,)  # in a tuple its parameters are not the guide's
        self.families, self.steps, self.rates = families, steps, ByLatent()
        self.sizes = {la.name: math.prod(unconstrained(la)[1]) for la in problem.latents}
        self.register_buffer("noise", even_noise(draws, sum(self.sizes.values())).float())
        for name, q in families.items():
            self.rates[name] = Rates(steps, q.num_parameters)

    def forward(self, x, rows):
        """Rows {latent: (n, num_parameters)} after the steps, for data x (n, d)."""
        model = detached(self._hidden[0])
        for step in range(self.steps):
            slopes = torch.func.grad(lambda rows: self.bound(model, x, rows).sum())(rows)
            moves = {name: self.rates[name](step) * slope for name, slope in slopes.items()}
            squares = sum(move.square().sum(-1, keepdim=True) for move in moves.values())
            short = LONGEST / (squares + 1e-12).sqrt().clamp(min=LONGEST)
            rows = {name: row + short * moves[name] for name, row in rows.items()}
        return rows

    def bound(self, model, x, rows):
        """The bound of every datum, nats, at draws by noise that stays the same: (n,)."""
        values, log_q = {}, 0.0
        parts = self.noise.to(x).split(list(self.sizes.values()), -1)
        for (name, row), noise in zip(rows.items(), parts, strict=True):
            q = self.families[name](row).expand((len(noise), len(x)))
            values[name] = placed(q, lambda shape, noise=noise: noise.reshape(-1, 1, *shape))
            log_q = log_q + q.log_prob(values[name])
        return (log_joint(model, x, values) - log_q).mean(0)


class Rates(nn.Module):
    """The length of every step for each number of a row."""

    def __init__(self, steps, size):
        super().__init__()
        self.logit = nn.Parameter(torch.empty(steps, size))
        self.reset_parameters()

    def reset_parameters(self):
        """All of them the same."""
        nn.init.constant_(self.logit, math.log(FIRST_RATE / (1 - FIRST_RATE)))

    def forward(self, step):
        """Rates of a step, below 1: (size,)."""
        return self.logit[step].sigmoid()


@guides.register
def build(problem, family="auto", hidden=(100, 100), steps=3, draws=8):
    """The guide; hidden: widths of the encoder's layers; steps: gradient steps, each by draws."""
    require_count(steps=steps, draws=draws)
    require(draws % 2 == 0, f"draws come in pairs: it must be even, got {draws}")
    refuse_joint("semi_amortized", problem)
    for latent in problem.latents:
        refuse_unsuited("semi_amortized", latent)
    guide = Guide("semi_amortized", problem, by_encoder(problem, hidden), family)
    guide.refine = Refinement(problem, guide.families, steps, draws)
    return guide
