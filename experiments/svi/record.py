"""Recording: a function that runs Pyro programs, as a graph of tensor operations.

The graph takes the function's arguments and then every other tensor that the function touched:
parameters, buffers, data held by a closure.  None of them is burnt in, so that a recording stays
right when their values change.
"""

import warnings

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from zoo.errors import ZooError


class CannotRecord(ZooError):
    """A function whose operations depend on the values of its tensors; the message says where."""


def record(function, args):
    """(graph, held): a GraphModule `graph(*args, *held)` of what function(*args) does now.

    args: tensors; function returns a tuple of tensors.  held: the other tensors it touched, in the
    order in which the graph takes them.  The function runs once, on torch's random state as it is,
    which is left so.
    Raises CannotRecord where an operation needs the value of a tensor.
    """
    gpus = sorted({tensor.device.index for tensor in args if tensor.is_cuda})
    try:
        with torch.random.fork_rng(gpus), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = make_fx(function)(*args)
    except RuntimeError as error:
        raise CannotRecord(_reason(error)) from error
    held = _lift(graph, args)
    _clear(graph)
    return graph, held


def update_in_place(graph, updates):
    """Make a graph write some of its outputs into its inputs, and return the others.

    updates: {position of an output: position of an input}.
    """
    inputs, end = graph.graph.find_nodes(op="placeholder"), graph.graph.output_node()
    outputs = end.args[0]
    with graph.graph.inserting_before(end):
        for output, place in updates.items():
            graph.graph.call_function(
                torch.ops.aten.copy_.default, (inputs[place], outputs[output])
            )
    end.args = (tuple(out for i, out in enumerate(outputs) if i not in updates),)
    graph.recompile()


def _lift(graph, args):
    """Turn the tensors that a graph holds into inputs of it; returns them in order."""
    inputs = graph.graph.find_nodes(op="placeholder")
    known = {id(tensor): node for tensor, node in zip(args, inputs, strict=True)}
    held, last = [], inputs[-1]
    for node in graph.graph.find_nodes(op="get_attr"):
        tensor = getattr(graph, node.target)
        if id(tensor) not in known:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"held_{len(held)}")
            known[id(tensor)] = last
            held.append(tensor)
        node.replace_all_uses_with(known[id(tensor)])
        graph.graph.erase_node(node)
    return held


def _clear(graph):
    """Drop what recording left on a graph: its own tensors, and values noted at the nodes."""
    for name in [n for n in dir(graph) if n.startswith(("_tensor_constant", "_param_constant"))]:
        delattr(graph, name)
    for node in graph.graph.nodes:
        node.meta.clear()
    graph.recompile()


def _reason(error):
    """One line that says why a function could not be recorded."""
    text = str(error).strip().splitlines()
    if text and "value out of a tracing tensor" in text[0]:
        return "its control flow depends on the value of a tensor (an if, .item() or a loop)"
    return text[0] if text else type(error).__name__
