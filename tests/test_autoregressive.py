"""NADE, MADE, PixelCNN and PixelRNN: normalized, causal, and what naive loops say they are."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import experiments
import guides
import zoo
from experiments.measure.elbo import draw, log_weights
from experiments.svi.config import FitConfig
from experiments.svi.estimators import elbo, resolve
from guides.oracle import Oracle
from zoo import autoregressive, nade
from zoo.data import DataSet

CASES = {
    "nade": ("nade", {"hidden": 6}),
    "orderless nade": ("nade", {"hidden": 6, "orderless": True, "num_orders": 3}),
    "made": ("made", {"hidden": [40]}),
    "deep made": ("made", {"hidden": [30, 20]}),
    "made without direct connections": ("made", {"hidden": [40], "direct": False}),
    "made without hidden units": ("made", {"hidden": []}),
    "pixel_cnn": ("pixel_cnn", {"channels": 4, "layers": 2}),
    "shallow pixel_cnn": ("pixel_cnn", {"channels": 4, "layers": 1}),
    "row lstm": ("pixel_rnn", {"channels": 4, "layers": 2}),
    "diagonal bilstm": ("pixel_rnn", {"channels": 4, "layers": 2, "variant": "diagonal_bilstm"}),
}
DIRECT = ["made", "deep made", "made without hidden units"]
SEES_ALL = ["nade", "orderless nade", "diagonal bilstm", *DIRECT]
WITH_LEVELS = [case for case, (name, _) in CASES.items() if name.startswith("pixel")]
BINARY_AND_LEVELS = [(case, 2) for case in CASES] + [(case, 3) for case in WITH_LEVELS]


def images(height, width, num_levels=2):
    """Every image of that size, (num_levels^(height width), height width)."""
    values = itertools.product(range(num_levels), repeat=height * width)
    return torch.tensor(list(values), dtype=torch.get_default_dtype())


def some_images(height, width, num_levels=2, count=12):
    return torch.randint(num_levels, (count, height * width)).to(torch.get_default_dtype())


def made_for(rows, height, width, case, num_levels=2):
    """A case's problem on rows of images, parameters well away from their start."""
    name, options = CASES[case]
    if name.startswith("pixel"):
        options = options | {"num_levels": num_levels}
    problem = zoo.load(
        name, data=DataSet("own", rows, rows, image_shape=(height, width)), **options
    )
    problem.model.to(torch.get_default_dtype())
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return problem


@pytest.mark.parametrize(("case", "num_levels"), BINARY_AND_LEVELS)
def test_probabilities_of_all_images_sum_to_one(case, num_levels, double):
    """All 2^9 binary images of 3 x 3 pixels, or all 3^4 of 2 x 2 pixels of 3 levels."""
    side = 3 if num_levels == 2 else 2
    x = images(side, side, num_levels)
    problem = made_for(x, side, side, case, num_levels)
    assert problem.truth.level == "T0"
    assert problem.log_evidence(x).exp().sum().item() == pytest.approx(1, abs=1e-10)


def logits_of(problem):
    """The function from rows, in the order of the entries' turns, to logits (n, d, ...).

    Of an orderless case that in its last order.
    """
    model = problem.model
    if not isinstance(model, nade.NADE):
        return model.network
    parts = model.weight, model.output, model.hidden_bias, model.bias, model.known
    recursion = nade.Recursion(*parts)
    return recursion if model.orders is None else recursion.taken_in(model.orders[-1])


@pytest.mark.parametrize("case", WITH_LEVELS)
def test_probabilities_of_256_levels_sum_to_one(case):
    x = images(1, 2, 256)
    found = made_for(x, 1, 2, case, 256).log_evidence(x)
    assert found.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("case", "num_levels"), BINARY_AND_LEVELS)
def test_no_output_depends_on_its_own_or_a_later_pixel(case, num_levels, double):
    """By gradients, on images of 5 x 4; most pixels before are seen, by some models all."""
    x = some_images(5, 4, num_levels)
    logits = logits_of(made_for(x, 5, 4, case, num_levels))
    slopes = torch.autograd.functional.jacobian(lambda x: logits(x).sum(0), x[:3])
    slopes = slopes.reshape(20, -1, 3, 20).abs().amax((1, 2))  # output, input
    before = torch.ones(20, 20).tril(-1).bool()
    assert (slopes[~before] == 0).all()
    if case in SEES_ALL:
        assert (slopes[before] > 0).all()
    assert (slopes[before] > 0).double().mean() > 0.5


def test_pixel_cnn_has_no_blind_spot(double):
    """The last pixel of 6 x 6 sees every pixel that three layers reach: rows 1 to 5, 5 columns."""
    name, options = "pixel_cnn", {"channels": 4, "layers": 3}
    data = DataSet("own", *2 * [some_images(6, 6)], image_shape=(6, 6))
    network = zoo.load(name, data=data, **options).model.double().network
    x = data.train[:4].clone().requires_grad_()
    (slopes,) = torch.autograd.grad(network(x)[:, 33].sum(), x)  # row 5, column 3
    seen = (slopes.abs().amax(0) > 0).reshape(6, 6)
    assert seen[1:5].all()
    assert seen[5].tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize(("case", "num_levels"), BINARY_AND_LEVELS)
def test_draws_are_as_frequent_as_the_density_says(case, num_levels):
    """Images of 2 x 2 by a chi-square test, refused once in 1,000."""
    x = images(2, 2, num_levels)
    problem = made_for(x, 2, 2, case, num_levels)
    count = 20_000
    drawn = trace(problem, count)["x"]
    powers = num_levels ** torch.arange(3, -1, -1.0)
    found = (drawn @ powers).long().bincount(minlength=len(x)).double()
    expected = count * problem.log_evidence(x).double().exp()
    rare = expected < 10
    found = torch.cat([found[~rare], found[rare].sum()[None]])[: None if rare.any() else -1]
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])[
        : None if rare.any() else -1
    ]
    expected = expected * found.sum() / expected.sum()  # probabilities in float32 sum to 1 + 1e-7
    assert stats.chisquare(found.numpy(), expected.numpy()).pvalue > 0.001


def trace(problem, count):
    """Draws of every site without data: {site: (count, ...)}."""
    from zoo.testing import traced, values_of

    values = values_of(traced(problem.model, num_draws=count))
    return {name: value.squeeze(1) for name, value in values.items()}


def test_draws_of_an_orderless_nade_belong_to_their_orders():
    """Of order and image together: 3 x 16 cells."""
    x = images(2, 2)
    problem = made_for(x, 2, 2, "orderless nade")
    drawn = trace(problem, 20_000)
    cells = drawn["order"] * 16 + (drawn["x"] @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long()
    found = cells.bincount(minlength=48).double()
    joint = [problem.log_joint(problem.model, x, order=torch.full((16,), m)) for m in range(3)]
    expected = torch.cat(joint).detach().double().exp()
    keep = expected * 20_000 >= 10
    found = torch.cat([found[keep], found[~keep].sum()[None]])
    expected = torch.cat([expected[keep], expected[~keep].sum()[None]])
    expected = expected / expected.sum() * found.sum()
    assert stats.chisquare(found[expected > 0], expected[expected > 0]).pvalue > 0.001


@pytest.mark.parametrize(
    ("case", "num_levels"), [pair for pair in BINARY_AND_LEVELS if CASES[pair[0]][0] != "made"]
)
def test_draws_use_the_logits_of_the_density(case, num_levels, double):
    """Place by place, also where the image is taller than what a pixel sees."""
    x = some_images(9, 3, num_levels)
    logits = logits_of(made_for(x, 9, 3, case, num_levels))
    for place in range(27):
        later = x.clone()
        later[:, place:] = 0  # as it is while drawing
        torch.testing.assert_close(logits.at(later, place), logits(x)[:, place])


# What follows computes the densities anew, one entry or pixel after the other, in NumPy.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def parameters(problem):
    return {name: value.detach().numpy() for name, value in problem.model.named_parameters()}


def log_bernoulli(x, logit):
    p = sigmoid(logit)
    return math.log(p if x == 1 else 1 - p)


def naive_nade(p, x, order):
    """log p(x), x (d,), entries in that order."""
    total = 0.0
    for turn, i in enumerate(order):
        a = p["hidden_bias"].copy()
        for j in order[:turn]:
            a += p["weight"][j] * x[j]
            if "known" in p:
                a += p["known"][j]
        total += log_bernoulli(x[i], p["bias"][i] + p["output"][i] @ sigmoid(a))
    return total


def test_nade_equals_a_naive_loop(double):
    x = some_images(3, 3)
    problem = made_for(x, 3, 3, "nade")
    expected = [naive_nade(parameters(problem), row, range(9)) for row in x.numpy()]
    np.testing.assert_allclose(problem.log_evidence(x), expected, rtol=1e-12)
    np.testing.assert_allclose(program_density(problem, x), expected, rtol=1e-12)


def program_density(problem, x):
    """log p of every row by the program itself, (n,)."""
    guide = guides.build("empty", problem)
    return draw(problem.model, guide, x, 1).log_p[0]


def test_orderless_nade_equals_a_naive_mixture(double):
    x = some_images(3, 3)
    problem = made_for(x, 3, 3, "orderless nade")
    p, orders = parameters(problem), problem.model.orders.tolist()
    assert sorted(orders[1]) == list(range(9))
    assert orders[0] != orders[1]
    each = np.array([[naive_nade(p, row, order) for order in orders] for row in x.numpy()])
    evidence = np.log(np.exp(each).mean(1))
    np.testing.assert_allclose(problem.log_evidence(x), evidence, rtol=1e-12)
    shares = problem.posterior(x).probs
    np.testing.assert_allclose(shares, np.exp(each - evidence[:, None]) / 3, rtol=1e-9)


def test_a_guide_that_knows_the_order_reaches_the_evidence(double):
    """Its bound is the ensemble's evidence; that of equal shares is the mean over orders."""
    x = some_images(3, 3)
    problem = made_for(x, 3, 3, "orderless nade")
    weights = log_weights(problem, Oracle(problem), x, 20)
    torch.testing.assert_close(weights, problem.log_evidence(x).expand_as(weights))
    equal = guides.build("constant", problem).double()  # it starts with equal shares
    config = resolve(FitConfig(), problem)
    assert config.estimator == "enumeration"
    loss, _ = elbo(config, problem).terms(problem.model, equal, x, None)
    means = nade.component_log_joint(problem.model, x).mean(1) + math.log(3)
    assert loss.item() == pytest.approx(-means.sum().item(), rel=1e-9)
    assert means.sum() < problem.log_evidence(x).sum()


@pytest.mark.parametrize("orderless", [False, True])
def test_blocks_of_columns_change_nothing_in_nade(orderless, double, monkeypatch):
    x = some_images(3, 5)
    problem = made_for(x, 3, 5, "orderless nade" if orderless else "nade")
    model = problem.model
    recursion = nade.Recursion(
        model.weight, model.output, model.hidden_bias, model.bias, model.known
    )
    found = []
    for cells in (1, 6 * 12 * 4, 10**9):  # blocks of 1, 4 and 15 columns
        monkeypatch.setattr(nade, "CELLS_AT_ONCE", cells)
        logits = recursion(x)
        loss = (logits * torch.linspace(-1, 1, 15)).square().sum()
        found.append([logits, *torch.autograd.grad(loss, list(model.parameters()))])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two)


def test_made_equals_a_naive_loop(double):
    """Of every unit the degree is known, so that no mask is needed."""
    x = some_images(3, 3)
    problem = made_for(x, 3, 3, "deep made")
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in layers_of(problem)]
    direct = problem.model.network.direct.weight.detach().numpy()
    sizes = [30, 20]
    degrees = [[k * 8 // size + 1 for k in range(size)] for size in sizes]
    assert all(set(own) == set(range(1, 9)) for own in degrees)
    for row, found in zip(x.numpy(), problem.log_evidence(x), strict=True):
        below, own_below = row, list(range(1, 10))
        for (weight, bias), own in zip(layers[:2], degrees, strict=True):
            units = []
            for k, degree in enumerate(own):
                seen = [j for j, other in enumerate(own_below) if other <= degree]
                units.append(max(0.0, bias[k] + sum(weight[k, j] * below[j] for j in seen)))
            below, own_below = units, own
        weight, bias = layers[2]
        total = 0.0
        for i in range(9):
            seen = [k for k, degree in enumerate(own_below) if degree < i + 1]
            logit = bias[i] + sum(weight[i, k] * below[k] for k in seen)
            logit += sum(direct[i, j] * row[j] for j in range(i))
            total += log_bernoulli(row[i], logit)
        assert found.item() == pytest.approx(total, rel=1e-12)


def layers_of(problem):
    return list(problem.model.network.layers)[::2]


class Naive:
    """The image networks at one pixel after the other, with the weights of a problem's model."""

    def __init__(self, problem, height, width):
        self.p = {name.removeprefix("network."): v for name, v in parameters(problem).items()}
        self.height, self.width, self.levels = height, width, problem.model.num_levels

    def pixels(self):
        return itertools.product(range(self.height), range(self.width))

    def taps(self, name, maps, at, offsets):
        """The convolution `name` at a pixel: maps {pixel: (channels,)}, nothing outside."""
        weight, total = self.p[f"{name}.weight"], self.p.get(f"{name}.bias", 0.0)
        for (row, column), (a, b) in offsets.items():
            pixel = at[0] + row, at[1] + column
            if pixel in maps:
                total = total + weight[:, :, a, b] @ maps[pixel]
        return total

    def above(self, name, maps, at, reach, own_row):
        rows, columns = range(-reach, own_row), range(-reach, reach + 1)
        offsets = {(r, c): (r + reach, c + reach) for r in rows for c in columns}
        return self.taps(name, maps, at, offsets)

    def left(self, name, maps, at, reach, own_pixel):
        return self.taps(name, maps, at, {(0, c): (0, c + reach) for c in range(-reach, own_pixel)})

    def one(self, name, value):
        return self.taps(name, {(0, 0): value}, (0, 0), {(0, 0): (0, 0)})

    def head(self, value):
        value = self.one("head.1", np.maximum(value, 0))
        return self.one("head.3", np.maximum(value, 0))

    def image(self, x):
        values = 2 * x.reshape(self.height, self.width) / (self.levels - 1) - 1
        return {pixel: values[pixel][None] for pixel in self.pixels()}

    def log_p(self, x):
        maps, total = self.features(self.image(x)), 0.0
        for pixel, value in zip(self.pixels(), x, strict=True):
            logits = self.head(maps[pixel])
            if self.levels == 2:
                total += log_bernoulli(value, logits[0])
            else:
                total += logits[int(value)] - math.log(np.exp(logits).sum())
        return total


class NaiveCNN(Naive):
    def features(self, image):
        above = left = image
        for layer in range(2):
            first, name = layer == 0, f"layers.{layer}"
            reach = 3 if first else 1
            v = {
                at: self.above(f"{name}.above", above, at, reach, not first) for at in self.pixels()
            }
            new = {}
            for at in self.pixels():
                h = self.left(f"{name}.left", left, at, reach, not first)
                h = self.one(f"{name}.out", self.gate(h + self.one(f"{name}.across", v[at])))
                new[at] = h if first else left[at] + h
            above, left = {at: self.gate(v[at]) for at in v}, new
        return left

    def gate(self, values):
        a, b = np.split(values, 2)
        return np.tanh(a) * sigmoid(b)


class NaiveRNN(Naive):
    """An LSTM visits the pixels one by one, and keeps each one's state and cell."""

    def features(self, image):
        maps = {
            at: self.above("above", image, at, 3, False) + self.left("left", image, at, 3, False)
            for at in self.pixels()
        }
        for layer in range(2):
            added = self.layer(f"layers.{layer}", maps)
            maps = {at: maps[at] + self.one(f"layers.{layer}.up", added[at]) for at in maps}
        return maps

    def step(self, gates, cell):
        o, f, i, g = np.split(gates, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(cell), cell


class NaiveRowLSTM(NaiveRNN):
    def layer(self, name, maps):
        states, cells = {}, {}
        neighbors = {(-1, column): (0, column + 1) for column in (-1, 0, 1)}
        for row, column in self.pixels():
            at = row, column
            gates = self.left(f"{name}.inputs", maps, at, 1, True)
            gates = gates + self.taps(f"{name}.states", states, at, neighbors)
            states[at], cells[at] = self.step(gates, cells.get((row - 1, column), 0.0))
        return states


class NaiveDiagonal(NaiveRNN):
    def layer(self, name, maps):
        sides = []
        for side, back in ((0, -1), (1, 1)):  # where the state before stands in the own row
            states, cells = {}, {}
            neighbors = {(-1, 0): (0, 0), (0, back): (1, 0)}
            for row in range(self.height):
                for column in range(self.width)[::-back]:
                    at = row, column
                    gates = self.one(f"{name}.inputs.{side}", maps[at])
                    gates = gates + self.taps(f"{name}.states.{side}", states, at, neighbors)
                    states[at], cells[at] = self.step(gates, cells.get((row, column + back), 0.0))
            sides.append(states)
        left, right = sides
        nothing = np.zeros_like(left[0, 0])
        return {(r, c): left[r, c] + right.get((r - 1, c), nothing) for r, c in maps}


NAIVE = {"pixel_cnn": NaiveCNN, "row lstm": NaiveRowLSTM, "diagonal bilstm": NaiveDiagonal}


@pytest.mark.parametrize("shape", [(3, 3), (5, 4)])
@pytest.mark.parametrize("num_levels", [2, 3])
@pytest.mark.parametrize("case", NAIVE)
def test_image_models_equal_a_loop_over_pixels(case, num_levels, shape, double):
    x = some_images(*shape, num_levels, count=4)
    problem = made_for(x, *shape, case, num_levels)
    expected = [NAIVE[case](problem, *shape).log_p(row) for row in x.numpy()]
    np.testing.assert_allclose(problem.log_evidence(x), expected, rtol=1e-10)
    np.testing.assert_allclose(program_density(problem, x), expected, rtol=1e-10)


# Blocks, passes and data


@pytest.mark.parametrize("case", ["nade", "pixel_cnn"])
def test_blocks_of_rows_change_nothing(case, double, monkeypatch):
    x = some_images(3, 3, count=13)
    problem = made_for(x, 3, 3, case)
    whole = problem.log_evidence(x), program_density(problem, x)
    monkeypatch.setattr(autoregressive, "ENTRIES_AT_ONCE", 40)  # 4 rows
    torch.testing.assert_close((problem.log_evidence(x), program_density(problem, x)), whole)


def test_a_bound_without_latents_takes_one_pass(monkeypatch):
    """Whatever the number of draws, of which all are the same."""
    problem = zoo.load("made", data=some_images(3, 3, count=100))
    passes, own = [], type(problem.model.network).forward
    count = lambda self, x: passes.append(len(x)) or own(self, x)  # noqa: E731
    monkeypatch.setattr(type(problem.model.network), "forward", count)
    monkeypatch.setattr("experiments.measure.elbo.CELLS_AT_ONCE", 100)
    weights = log_weights(problem, guides.build("empty", problem), problem.data.train, 30)
    assert weights.shape == (30, 100)
    assert passes == [100]


def test_the_digits_have_17_levels_and_are_rounded_to_fewer():
    from sklearn.datasets import load_digits

    own = sorted(map(tuple, load_digits().data.astype(int).tolist()))
    data = zoo.load("pixel_cnn", num_levels=17).data
    every = torch.cat([data.train, data.test]).int().tolist()
    assert sorted(map(tuple, every)) == own
    assert zoo.load("pixel_rnn", num_levels=4).data.train.unique().tolist() == [0, 1, 2, 3]
    assert zoo.load("pixel_rnn").data.train.unique().tolist() == [0, 1]


@pytest.mark.data
def test_mnist_has_256_levels():
    data = zoo.load("pixel_cnn", data="mnist", num_levels=256).data
    pixels = zoo.data.load("mnist").test
    assert torch.equal(data.test, (255 * pixels).round())
    assert data.train.max() == 255


@pytest.mark.parametrize(
    ("case", "num_levels", "guide_name"),
    [
        ("orderless nade", 2, "mean_field"),
        ("deep made", 2, "empty"),
        ("pixel_cnn", 3, "empty"),
        ("diagonal bilstm", 2, "empty"),
        ("row lstm", 3, "empty"),
    ],
)
def test_other_variants_conform_too(case, num_levels, guide_name):
    x = some_images(3, 4, num_levels, count=40)
    problem = made_for(x, 3, 4, case, num_levels)
    found = experiments.check(problem, guides.build(guide_name, problem))
    assert [r for r in found if not r.ok] == []


TABLE = [[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]]
IMAGES = DataSet("own", torch.tensor(TABLE), torch.tensor(TABLE), image_shape=(2, 2))
LOPSIDED = DataSet("own", torch.tensor(TABLE), torch.tensor(TABLE), image_shape=(2, 3))
GRAY = DataSet("own", torch.tensor(TABLE) / 2, torch.tensor(TABLE), image_shape=(2, 2))
PIXELS = ("pixel_cnn", "pixel_rnn")
BAD = [
    ("nade", {"hidden": 0}, "hidden must be a whole number of at least 1, got 0"),
    ("nade", {"hidden": True}, "hidden must be a whole number of at least 1, got True"),
    ("nade", {"hidden": (50,)}, r"hidden must be a whole number of at least 1, got \(50,\)"),
    ("nade", {"orderless": 1}, "orderless must be true or false, got 1"),
    ("nade", {"orderless": True, "num_orders": 1.5}, "num_orders must be a whole number .* 1.5"),
    ("nade", {"data": [[0.5, 1.0], [0.0, 1.0]]}, "observes 0.5, outside the support"),
    ("made", {"hidden": 5}, r"hidden must list layer widths of at least 1, .* got 5"),
    ("made", {"hidden": [0]}, "hidden must list layer widths of at least 1"),
    ("made", {"direct": 1}, "direct must be true or false, got 1"),
    ("made", {"hidden": ["3"]}, "hidden must list layer widths of at least 1"),
    ("made", {"data": [[2.0, 1.0], [0.0, 1.0]]}, "observes 2, outside the support"),
    ("pixel_rnn", {"variant": ["row_lstm"]}, "unknown variant .'row_lstm'.; known: row_lstm"),
    ("pixel_rnn", {"variant": "lstm"}, "unknown variant 'lstm'; known: row_lstm, diagonal_bilstm"),
    *[
        (name, options, message)
        for name in PIXELS
        for options, message in [
            ({"data": TABLE}, r"an image model was given a table \('own data'\)"),
            ({"data": LOPSIDED}, r"image_shape \(2, 3\), which is not their 4 columns"),
            ({"data": replace(IMAGES, image_shape=4)}, "image_shape 4, which is not their"),
            ({"data": replace(IMAGES, image_shape=("2", "2"))}, "image_shape .*not their"),
            ({"data": replace(IMAGES, image_shape=(-2, -2))}, "image_shape .*not their"),
            ({"data": GRAY}, "observes 0.5, outside the support"),
            ({"data": GRAY, "num_levels": 3}, "observes 0.5, outside the support"),
            ({"data": IMAGES, "channels": 0}, "channels must be a whole number of at least 1"),
            ({"data": IMAGES, "layers": 1.0}, "layers must be a whole number of at least 1"),
            ({"data": IMAGES, "layers": "3"}, "layers must be a whole number .* got '3'"),
            ({"num_levels": 1}, "num_levels must be a whole number from 2 to 256, got 1"),
            ({"num_levels": 257}, "num_levels must be a whole number from 2 to 256, got 257"),
            ({"num_levels": True}, "num_levels must be a whole number from 2 to 256, got True"),
            ({"num_levels": 2.0}, "num_levels must be a whole number from 2 to 256, got 2.0"),
        ]
    ],
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_input_is_one_line(name, options, message):
    with pytest.raises(zoo.ZooError, match=message) as caught:
        zoo.load(name, **options)
    assert "\n" not in str(caught.value)
