"""Rewritten graphs compute the same values, with less work, and leave alone what they must not."""

import pytest
import torch

from experiments.svi.record import CannotRecord, record
from experiments.svi.rewrite import FEW

aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}


def targets(graph):
    return {node.target for node in graph.graph.nodes if node.op == "call_function"}


def recorded(function, *args):
    """The graph of function(*args), whose value on the same arguments it has compared."""
    graph, held = record(lambda *given: (function(*given),), list(args))
    [ours], expected = graph(*args, *held), function(*args)
    assert ours.dtype == expected.dtype
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12, check_dtype=False)
    return graph


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [(7, 1, 8), (7, FEW, 8), (9, 8, 1), (9, 8, FEW), (1, 8, 9), (FEW, 9, 8), (1, 1, 1), (2, 3, 4)],
)
def test_thin_products_are_written_out(batch, m, k, n):
    a, b, bias = draw(*batch, m, k), draw(*batch, k, n), draw(*batch, m, n)
    assert not PRODUCTS & targets(recorded(torch.matmul, a, b))
    add = torch.baddbmm if batch else torch.addmm
    assert not PRODUCTS & targets(recorded(add, bias, a, b))
    both = recorded(
        lambda a, b: torch.autograd.functional.vjp(torch.matmul, (a, b), bias)[1][0], a, b
    )
    assert n > FEW or not PRODUCTS & targets(both)


@pytest.mark.parametrize("shapes", [((7, 8), (8, 9)), ((7, 0), (0, 9)), ((3, 7, 8), (3, 8, 9))])
def test_other_products_are_left_to_the_library(shapes):
    assert PRODUCTS & targets(recorded(torch.matmul, *(draw(*shape) for shape in shapes)))


def test_products_that_torch_takes_otherwise_are_left_to_it():
    whole = torch.arange(6, dtype=torch.int32).reshape(3, 2)
    assert aten.mm.default in targets(recorded(torch.mm, whole, whole.T))
    with pytest.raises(CannotRecord, match="RuntimeError"):
        record(lambda a, b: (torch.bmm(a, b),), [draw(3, 2, 2), draw(1, 2, 2)])


def test_weighted_sums_with_products_are_left_to_the_library():
    args = draw(5), draw(4, 2), draw(2, 5)
    graph = recorded(lambda *given: torch.addmm(*given, beta=0.5, alpha=2.0), *args)
    assert aten.addmm.default in targets(graph)


def sizes(graph, args, target):
    """Numbers of elements of the results of an operation."""
    found = []

    class Watch(torch.fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            if node.target is target:
                found.append(result.numel())
            return result

    Watch(graph).run(*args)
    return found


def test_operations_on_expanded_tensors_are_done_before():
    """Also through a chain of them, and through an expansion of an expansion."""

    def function(scale, x):
        wide = scale.exp().expand(6).expand(5, 6)
        return (x / (wide.log() * 2).pow(2)).sum()

    args = draw(1).abs(), draw(5, 6)
    graph = recorded(function, *args)
    assert sizes(graph, args, aten.log.default) == [1]
    assert sizes(graph, args, aten.pow.Tensor_Scalar) == [1]
    assert sizes(graph, args, aten.div.Tensor) == [30]


def test_two_expansions_that_fill_each_other_are_left():
    args = draw(5, 1), draw(1, 6)
    graph = recorded(lambda a, b: a.expand(5, 6) * b.expand(5, 6), *args)
    assert sizes(graph, args, aten.mul.Tensor) == [30]


def test_what_is_written_to_is_not_expanded():
    """Rows of one memory would all be changed by a write to one of them."""

    def function(x):
        wide = x.expand(3, 2).exp()
        wide[0] = 7.0
        return wide * 2

    recorded(function, draw(2))


def test_types_stay_where_tensors_without_dimensions_would_give_way():
    scale, x = draw(), draw(3, 2, dtype=torch.float32)
    recorded(lambda s, x: s.expand(3, 2) * x.expand(3, 2), scale, x)
    recorded(lambda s, x: s.expand(3, 2) * x[:1].expand(3, 2), scale, x)


def test_a_change_of_shape_follows():
    recorded(lambda x: x.expand(3, 2).exp().view(6), draw(2))
    recorded(lambda x: x.expand(3, 2).exp().as_strided((2, 2), (3, 1)), draw(2))


def test_tanh_is_written_out():
    """To 2e-7 of float64's, everywhere; with the right ends and the right derivative."""
    ends = torch.tensor([float("inf"), 50.0, 7.95, 0.0, 1e-30])
    near = torch.logspace(-8, 1, 20_001)
    x = torch.cat([ends, -ends, near, -near, torch.linspace(-10, 10, 20_001)])
    graph, held = record(lambda x: (x.tanh(),), [x])
    assert aten.tanh.default not in targets(graph)
    [ours] = graph(x, *held)
    exact = x.double().tanh()
    torch.testing.assert_close(ours.double(), exact, rtol=2e-7, atol=0)
    assert ours.abs().max() <= 1
    [nothing] = graph(torch.full_like(x, torch.nan), *held)
    assert nothing.isnan().all()
    slope, held = record(
        lambda x: torch.autograd.functional.vjp(torch.tanh, x, torch.ones_like(x))[1:], [x]
    )
    [found] = slope(x, *held)
    torch.testing.assert_close(found.double(), 1 - exact**2, rtol=0, atol=1e-6)


def test_tanh_of_other_types_is_the_librarys():
    assert aten.tanh.default in targets(recorded(torch.tanh, draw(5)))
