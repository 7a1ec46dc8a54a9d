"""Noise by counter: the right bits, the right distributions, and streams that do not meet."""

import math
from itertools import combinations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from experiments.svi import noise
from experiments.svi.noise import Keyed, fold
from experiments.svi.record import CannotRecord

N = 100_000
BOUND = 4.5  # standard errors: exceeded by luck with probability 7e-6
KS = math.sqrt(-math.log(1e-5 / 2) / 2 / N)  # Kolmogorov's statistic at the level 1e-5
KEY = torch.tensor(5)


def split_mix(state, count):
    """Numbers of SplitMix64 from a seed, in whole numbers of Python."""
    found = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        found.append(z ^ (z >> 31))
    return found


def unsigned(values):
    return [value % 2**64 for value in values.flatten().tolist()]


def keyed(function, key=KEY):
    """What a function that draws returns under a key."""
    with Keyed(key):
        return function()


def test_bits_are_those_of_split_mix():
    """The first two numbers are published with the algorithm; the others are counted here."""
    known = [6457827717110365317, 3203168211198807973]
    assert split_mix(1234567, 2) == known
    assert unsigned(noise.bits(torch.tensor(1234567), (2,))) == known
    for seed in (0, 7, 2**63 - 1, -(2**63), -1):
        drawn = noise.bits(torch.tensor(seed), (5, 20))
        assert unsigned(drawn) == split_mix(seed % 2**64, 100)


def test_a_folded_key_is_that_number_of_the_stream():
    """fold(key, n) is the n-th output from key, for a number as for a tensor of it."""
    expected = split_mix(99, 12)
    for number in (1, 2, 12):
        assert unsigned(fold(torch.tensor(99), number)) == [expected[number - 1]]
        folded = fold(torch.tensor([99, 99]), torch.tensor([number, 1]))
        assert unsigned(folded) == [expected[number - 1], expected[0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("draw", "oracle"),
    [
        (noise.uniform, stats.uniform()),
        (noise.normal, stats.norm()),
        (
            lambda k, s, d: keyed(lambda: torch.empty(s, dtype=d).exponential_(2.0), k),
            stats.expon(scale=0.5),
        ),
        (
            lambda k, s, d: keyed(lambda: torch.empty(s, dtype=d).uniform_(-1, 3), k),
            stats.uniform(-1, 4),
        ),
        (
            lambda k, s, d: keyed(lambda: torch.normal(torch.ones(s, dtype=d), 2.0), k),
            stats.norm(1, 2),
        ),
    ],
    ids=["uniform", "normal", "exponential", "uniform_", "torch.normal"],
)
def test_draws_follow_their_distribution(draw, oracle, dtype):
    """Mean, variance and Kolmogorov's statistic within bounds of their sampling errors."""
    drawn = draw(torch.tensor(3), (N,), dtype)
    assert drawn.dtype == dtype
    assert drawn.isfinite().all()
    drawn = drawn.double().numpy()
    mean, variance, kurtosis = (float(v) for v in oracle.stats("mvk"))
    assert abs(drawn.mean() - mean) < BOUND * math.sqrt(variance / N)
    assert abs(drawn.var() - variance) < BOUND * variance * math.sqrt((kurtosis + 2) / N)
    assert stats.kstest(drawn, oracle.cdf).statistic < KS


def test_normal_tails():
    """How many draws lie beyond 2, 3 and 4, on either side."""
    drawn = noise.normal(KEY, (10 * N,))
    for edge in (2, 3, 4):
        expected = 10 * N * stats.norm.sf(edge)
        for side in (drawn, -drawn):
            assert abs((side > edge).sum() - expected) < BOUND * math.sqrt(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_and_normal_are_finite_at_the_ends_of_the_bits(dtype, monkeypatch):
    """All bits clear, and all set: never 0 or 1, so that no logarithm is infinite."""
    for ends in (0, -1):
        monkeypatch.setattr(noise, "bits", lambda k, s, e=ends: torch.full(s, e))
        drawn = noise.uniform(KEY, (3,), dtype)
        assert ((drawn > 0) & (drawn < 1)).all()
        assert noise.normal(KEY, (3,), dtype).isfinite().all()


def test_categorical_and_bernoulli_draw_by_their_probabilities():
    weights = torch.tensor([[1.0, 2.0, 5.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    drawn = keyed(lambda: torch.multinomial(weights, N, True))
    assert drawn.shape == (2, N)
    assert (drawn[1] == 1).all()
    probs = weights[0] / 8
    found = torch.bincount(drawn[0], minlength=4) / N
    assert ((found - probs).abs() <= BOUND * (probs * (1 - probs) / N).sqrt()).all()

    p = torch.tensor([0.0, 0.1, 0.7, 1.0])
    for draw in (
        lambda: torch.bernoulli(p.expand(N, 4)),
        lambda: dist.Bernoulli(p).sample((N,)),
        lambda: torch.empty(N, 4).bernoulli_(p),
        lambda: torch.stack([torch.bernoulli(torch.zeros(N), float(q)) for q in p], 1),
    ):
        drawn = keyed(draw)
        assert set(drawn.unique().tolist()) == {0.0, 1.0}
        assert ((drawn.mean(0) - p).abs() <= BOUND * (p * (1 - p) / N).sqrt()).all()


def test_dropout_and_permutations():
    x = torch.ones(N)
    kept = keyed(lambda: torch.nn.functional.dropout(x, 0.2, True))
    assert kept.unique().tolist() == pytest.approx([0.0, 1.25])
    assert abs(kept.mean() - 1) < BOUND * 1.25 * math.sqrt(0.16 / N)
    assert torch.equal(keyed(lambda: torch.nn.functional.dropout(x, 0.2, False)), x)
    assert not keyed(lambda: torch.nn.functional.dropout(x, 1.0, True)).any()
    places = torch.stack([keyed(lambda: torch.randperm(5), fold(KEY, i)) for i in range(2000)])
    assert torch.equal(places.sort(-1).values, torch.arange(5).expand(2000, 5))
    # In each place the mean is 2 and the variance 2.
    assert ((places.double().mean(0) - 2).abs() < BOUND * math.sqrt(2 / 2000)).all()


def test_streams_of_seeds_steps_calls_and_elements_do_not_meet():
    """Correlations of normals and of their squares, also shifted by one, are those of chance."""
    streams = []
    for seed, step in ((0, 0), (1, 0), (0, 1), (1, 1), (2**40, 0)):
        with Keyed(fold(fold(torch.tensor(seed), 1), step)):
            streams += [torch.randn(N), torch.randn(N)]
    streams = torch.stack(streams).double().numpy()
    bound = BOUND / math.sqrt(N)
    for one, two in combinations(streams, 2):
        assert abs(np.corrcoef(one, two)[0, 1]) < bound
        assert abs(np.corrcoef(one**2, two**2)[0, 1]) < bound
        assert abs(np.corrcoef(one[1:], two[:-1])[0, 1]) < bound
    for one in streams:
        assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < bound


def test_keys_of_many_seeds_and_steps_differ():
    seeds, steps = torch.arange(300)[:, None], torch.arange(300)
    keys = fold(fold(seeds, 1), steps)
    orders = fold(fold(seeds, 2), steps)
    assert len(torch.cat([keys, orders]).unique()) == 2 * 300 * 300


def draw_everything():
    """A draw of each kind, in the ways in which Pyro's distributions make them."""
    probs = torch.tensor([0.2, 0.3, 0.5])
    return torch.cat(
        [
            dist.Normal(torch.zeros(2), 1.0).rsample(),
            dist.Uniform(torch.zeros(2), 1.0).rsample(),
            dist.Exponential(torch.ones(2)).rsample(),
            dist.Laplace(torch.zeros(2), 1.0).rsample(),
            dist.LogNormal(torch.zeros(2), 1.0).rsample(),
            dist.Categorical(probs).sample((4,)).float(),
            dist.Bernoulli(probs).sample(),
            dist.OneHotCategorical(probs).sample(),
            torch.randn(3),
            torch.rand(2, 2).flatten(),
            torch.randn_like(probs),
            torch.rand_like(probs),
            torch.normal(0.0, 1.0, size=(2,)),
            torch.empty(2).normal_(1.0, 2.0),
            torch.empty(2).uniform_(0, 2),
            torch.randperm(4).float(),
            torch.nn.functional.dropout(torch.ones(4), 0.5),
        ]
    )


def test_seeds_together_draw_what_each_draws_alone():
    keys = torch.tensor([3, 11, -5])
    together = torch.vmap(lambda key: keyed(draw_everything, key))(keys)
    alone = torch.stack([keyed(draw_everything, key) for key in keys])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    assert not torch.equal(alone[0], alone[1])


def test_the_state_of_torch_is_neither_read_nor_moved():
    before = torch.get_rng_state()
    one = keyed(draw_everything)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    assert torch.equal(keyed(draw_everything), one)


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda: dist.Gamma(torch.ones(2), 1.0).rsample(), "_standard_gamma"),
        (lambda: dist.Dirichlet(torch.ones(2)).rsample(), "dirichlet"),
        (lambda: dist.Beta(torch.ones(2), 1.0).rsample(), "dirichlet"),
        (lambda: dist.Poisson(torch.ones(2)).sample(), "poisson"),
        (lambda: dist.Cauchy(torch.ones(2), 1.0).rsample(), "cauchy_"),
        (lambda: dist.Geometric(torch.full((2,), 0.5)).sample(), None),
        (lambda: torch.randint(3, (2,)), "randint"),
        (lambda: torch.multinomial(torch.ones(4), 2), "multinomial"),
        (lambda: torch.empty(2).log_normal_(), "log_normal_"),
        (lambda: torch.randn(2, dtype=torch.float16), "torch.float16"),
        (lambda: torch.rand(2, dtype=torch.bfloat16), "torch.bfloat16"),
    ],
)
def test_draws_without_a_form_by_counter_are_refused(draw, name):
    """None is drawn from torch's state unseen: it is refused, or keyed."""
    before = torch.get_rng_state()
    if name is None:
        keyed(draw)
    else:
        with pytest.raises(CannotRecord) as caught:
            keyed(draw)
        assert name.strip("_") in str(caught.value)
        assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), before)


def test_in_place_draws_leave_the_tensor_changed_and_return_it():
    x = torch.zeros(3)
    with Keyed(KEY):
        assert x.normal_() is x
    assert (x != 0).all()
