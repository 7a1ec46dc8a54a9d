"""Optimizers as tensor formulas: what a step makes of parameters, gradients and moments."""

import torch

BETAS = 0.9, 0.999
EPSILON = 1e-8
ADAM_STATE = "exp_avg", "exp_avg_sq"
STATE = {"adam": ADAM_STATE, "adamw": ADAM_STATE, "sgd": ()}
"""Names of what each optimizer keeps for a parameter, as torch.optim calls it."""


def schedule(config, step, steps):
    """What depends on the step alone: step (S,), counted from 0, of `steps` -> (S, 3).

    The factor of the learning rates, and Adam's two bias corrections, 1 / (1 - beta1^t) and
    1 / sqrt(1 - beta2^t).  Numbers of steps are no part of a recorded graph, so that runs of any
    length share a compiled one.
    """
    step = step.double()
    corrections = [1 - beta ** (step + 1) for beta in BETAS]
    columns = [rate_factor(config, step, steps), 1 / corrections[0], corrections[1].rsqrt()]
    return torch.stack(columns, 1).float()


def rate_factor(config, step, steps=None):
    """What the first rate is multiplied by at a step, a number or a tensor of them."""
    progress = step / (config.steps if steps is None else steps)
    if config.schedule == "cosine":
        cosine = torch.as_tensor(torch.pi * progress).cos()
        return config.decay + (1 - config.decay) * (1 + cosine) / 2
    return config.decay**progress


def updated(config, parameter, moments, gradient, rate, corrections, sparse=False):
    """[parameter, *moments] after a step; each (S, ...), a row a seed.

    rate: (S,); corrections: the columns of `schedule` behind the first, (S, 2).  sparse: rows of a
    table, as torch's SparseAdam moves them: its epsilon is not scaled, and nothing decays.
    Source: Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2.
    """
    rate, first, second = (_behind(v, parameter) for v in (rate, *corrections.unbind(1)))
    if config.optimizer == "sgd":
        return [parameter - rate * gradient]
    if config.optimizer == "adamw" and not sparse:
        parameter = parameter * (1 - rate * config.weight_decay)
    mean, square = moments
    mean = mean + (1 - BETAS[0]) * (gradient - mean)
    square = BETAS[1] * square + (1 - BETAS[1]) * gradient * gradient
    if sparse:
        change = rate * first / second * mean / (square.sqrt() + EPSILON)
    else:
        change = rate * first * mean / (square.sqrt() * second + EPSILON)
    return [parameter - change, mean, square]


def clipped(gradients, norm):
    """Gradients {name: (S, ...)} scaled so that each seed's joint norm is at most `norm`."""
    squares = sum(
        gradient.square().reshape(len(gradient), -1).sum(1) for gradient in gradients.values()
    )
    # As torch.nn.utils.clip_grad_norm_ does it.
    factor = (norm / (squares.sqrt() + 1e-6)).clamp(max=1)
    return {name: g * _behind(factor, g) for name, g in gradients.items()}


def _behind(values, tensor):
    """Values (S,) with as many axes as a tensor (S, ...)."""
    return values.view(-1, *(1,) * (tensor.dim() - 1))
