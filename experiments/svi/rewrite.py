"""Rewriting of recorded graphs into what a compiler makes fast code of.

Values stay as they are but for the order of sums and the last bit of a float32 tanh: the compiler
fuses what is left.
"""

import torch

aten = torch.ops.aten
FEW = 4
"""Rows, columns or terms up to which a matrix product is written out."""


def product(a, b):
    """a (..., m, k) @ b (..., k, n) by sums that fuse with what stands around, if it is thin.

    A library's matrix product takes as long for two terms as for sixteen.
    """
    (m, k), n = a.shape[-2:], b.shape[-1]
    exact = not (a.is_floating_point() or a.is_complex())
    if exact or k != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        return NotImplemented
    if 0 < k <= FEW:
        return sum(a[..., :, j, None] * b[..., None, j, :] for j in range(k))
    if 0 < n <= FEW:
        return torch.stack([(a * b[..., None, :, j]).sum(-1) for j in range(n)], -1)
    if 0 < m <= FEW:
        return torch.stack([(a[..., i, :, None] * b).sum(-2) for i in range(m)], -2)
    return NotImplemented


def sum_with_product(bias, a, b, beta=1, alpha=1):
    """bias + a @ b, likewise."""
    found = product(a, b) if beta == alpha == 1 else NotImplemented
    return found if found is NotImplemented else bias + found


SMALL = 0.625
SERIES = (-0.333332819422, 0.133314422036, -0.0537397155531, 0.0206390887954, -0.00570498872745)


def tanh(x):
    """tanh of float32 on the CPU, right to 2e-7 of its value, which fuses with what is around.

    Source: Moshier 1989, Cephes, tanhf.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    square = x * x
    series = x + x * square * _polynomial(SERIES, square)
    quotient = 1 - 2 / ((2 * x.abs()).exp() + 1)
    return torch.where(x.abs() < SMALL, series, quotient.copysign(x))


def _polynomial(coefficients, x):
    *rest, value = coefficients
    for coefficient in reversed(rest):
        value = value * x + coefficient
    return value


WRITTEN_OUT = {
    aten.tanh.default: tanh,
    aten.mm.default: product,
    aten.bmm.default: product,
    aten.addmm.default: sum_with_product,
    aten.baddbmm.default: sum_with_product,
}
"""Decompositions for make_fx."""


def narrow(graph, written):
    """Work out elementwise operations on expanded tensors before these are expanded.

    graph: a recorded torch.fx.Graph with values' shapes; written: nodes whose memory is written to.
    """
    nodes = list(graph.nodes)
    if any(node.target is aten.as_strided.default for node in nodes):
        return  # it counts on the places in memory
    for node in nodes:
        if node not in written and _elementwise(node):
            _narrow(graph, node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default  # of what may be expanded now


def _elementwise(node):
    if torch.Tag.pointwise not in getattr(node.target, "tags", ()):
        return False
    # Of mixed types the result's depends on which of the tensors have dimensions.
    values = [arg.meta.get("val") for arg in node.all_input_nodes]
    types = {getattr(value, "dtype", None) for value in values}
    return len(types) == 1 and None not in types and not node.target._schema.is_mutable


def _narrow(graph, node):
    sources = {arg: _unexpanded(arg) for arg in node.all_input_nodes}
    if all(arg is source for arg, source in sources.items()):
        return
    shapes = [source.meta["val"].shape for source in sources.values()]
    value = node.meta["val"]
    with graph.inserting_before(node):
        new = graph.node_copy(node, sources.get)
        wide = graph.call_function(aten.expand.default, (new, list(value.shape)))
    new.meta["val"], wide.meta["val"] = value.new_empty(torch.broadcast_shapes(*shapes)), value
    node.replace_all_uses_with(wide)
    graph.erase_node(node)


def _unexpanded(node):
    while node.target is aten.expand.default:
        node = node.args[0]
    return node
