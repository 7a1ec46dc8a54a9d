"""Optimizers as formulas, against those of torch."""

import math

import pytest
import torch
from torch import nn

from experiments.svi.config import FitConfig
from experiments.svi.optimizer import JointOptimizer
from experiments.svi.updates import STATE, clipped, rate_factor, schedule, updated

TORCH = {
    "adam": lambda p: torch.optim.Adam(p, 0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.3),
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "sparse": lambda p: torch.optim.SparseAdam(p, 0.1),
}


def gradients_of_many_sizes(steps=6):
    """(steps, 4): also zero, and so small that epsilon counts."""
    return (
        torch.randn(steps, 4) * torch.tensor([1e-9, 1e-4, 1.0, 1e3]) * (torch.rand(steps, 1) > 0.2)
    )


@pytest.mark.parametrize("kind", TORCH)
def test_an_update_is_that_of_torch(kind, double):
    """Several steps of two seeds, each with a rate of its own."""
    sparse, gradients = kind == "sparse", gradients_of_many_sizes()
    config = FitConfig(optimizer="adam" if sparse else kind, weight_decay=0.3)
    start = torch.randn(1, 4)
    parameter = nn.Parameter(start.clone())
    optimizer = TORCH[kind]([parameter])
    both = start.repeat(2, 1, 1)
    moments = [torch.zeros(2, 1, 4) for _ in STATE[config.optimizer]]
    for step, gradient in enumerate(gradients):
        row = torch.sparse_coo_tensor([[0]], gradient[None], (1, 4), check_invariants=True)
        parameter.grad = row if sparse else gradient[None].clone()
        optimizer.step()
        corrections = [1 / (1 - 0.9 ** (step + 1)), (1 - 0.999 ** (step + 1)) ** -0.5]
        both, *moments = updated(
            config,
            both,
            moments,
            gradient.expand(2, 1, 4),
            torch.tensor([0.1, 0.0]),
            torch.tensor([corrections, corrections]),
            sparse,
        )
    torch.testing.assert_close(both[0], parameter.detach(), rtol=1e-12, atol=1e-12)
    assert torch.equal(both[1], start)
    for name, moment in zip(STATE[config.optimizer], moments, strict=True):
        torch.testing.assert_close(moment[0], optimizer.state[parameter][name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", [0.1, 5.0, 1e6])
def test_clipping_is_that_of_torch_for_each_seed(norm, double):
    gradients = {"a": torch.randn(3, 2, 4), "b": torch.randn(3), "c": torch.randn(3, 5) * 10}
    found = clipped(gradients, norm)
    for seed in range(3):
        parameters = [nn.Parameter(torch.zeros_like(g[seed])) for g in gradients.values()]
        for parameter, gradient in zip(parameters, gradients.values(), strict=True):
            parameter.grad = gradient[seed].clone()
        nn.utils.clip_grad_norm_(parameters, norm)
        for parameter, name in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(found[name][seed], parameter.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["geometric", "cosine"])
def test_schedules_follow_their_formulas(kind):
    config = FitConfig(steps=40, decay=0.02, schedule=kind)
    table = schedule(config, torch.arange(40), torch.tensor(40))
    assert table.shape == (40, 3)
    for step in range(40):
        if kind == "geometric":
            factor = 0.02 ** (step / 40)
        else:
            factor = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / 40))
        expected = [factor, 1 / (1 - 0.9 ** (step + 1)), 1 / math.sqrt(1 - 0.999 ** (step + 1))]
        assert table[step].tolist() == pytest.approx(expected, rel=1e-6)
        assert float(rate_factor(config, step)) == pytest.approx(factor, rel=1e-6)
    assert float(rate_factor(config, 0)) == 1
    assert float(rate_factor(config, 40)) == pytest.approx(0.02)


class Both(nn.Module):
    """A dense parameter, and a table whose gradient may be sparse."""

    def __init__(self, sparse):
        super().__init__()
        self.dense = nn.Parameter(torch.arange(3.0))
        self.table = nn.Embedding(6, 2, sparse=sparse)
        nn.init.ones_(self.table.weight)


@pytest.mark.parametrize("norm", [0.5, 1e6])
def test_the_joint_optimizer_clips_sparse_gradients_as_dense_ones(norm, double):
    """By SGD, so that every row moves by its gradient; an index stands in the batch twice."""
    ends = []
    for sparse in (True, False):
        modules = Both(sparse)
        config = FitConfig(optimizer="sgd", clip_norm=norm)
        optimizer = JointOptimizer(modules, config)
        rows = modules.table(torch.tensor([1, 4, 1]))
        (rows.square().sum() * 3 + modules.dense.square().sum()).backward()
        before = {name: p.detach().clone() for name, p in modules.named_parameters()}
        optimizer(None)
        rates = config.learning_rate, config.row_learning_rate if sparse else config.learning_rate
        for (name, p), rate in zip(modules.named_parameters(), rates, strict=True):
            ends.append((before[name] - p.detach()) / rate)
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ends[1], ends[3], rtol=1e-12, atol=1e-12)
    whole = math.sqrt(ends[2].square().sum() + ends[3].square().sum())
    assert whole == pytest.approx(0.5, rel=1e-5) if norm == 0.5 else whole > 1
