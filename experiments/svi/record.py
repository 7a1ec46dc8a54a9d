"""Recording: a function that runs Pyro programs, as a graph of tensor operations.

The graph takes the function's arguments and then every other tensor that the function touched:
parameters, buffers, data held by a closure.  None of them is burnt in, so that a recording stays
right when their values change.
"""

import operator
import random
import warnings

import numpy as np
import torch
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.svi.rewrite import WRITTEN_OUT, narrow
from zoo.errors import ZooError

VALUES = "its control flow depends on the value of a tensor (an if, .item() or a loop)"
# These write to their running statistics, arguments 3 and 4, and their schemas do not say so.
BATCH_NORMS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")


class CannotRecord(ZooError):
    """A function whose operations depend on the values of its tensors; the message says where."""


def record(function, args, written_out=WRITTEN_OUT):
    """(graph, held): a GraphModule `graph(*args, *held)` of what function(*args) does now.

    args: tensors; function returns a tuple of tensors.  written_out: {operation: what to record in
    its place}, by default what a compiler makes faster.  held: the other tensors it touched, in the
    order in which the graph takes them.  The function runs once, on torch's random state as it is;
    that state, and every tensor from outside that the function writes to, is left as it was.
    Raises CannotRecord where an operation needs the value of a tensor.
    """
    gpus = sorted({tensor.device.index for tensor in args if tensor.is_cuda})
    foreign, outside = foreign_randomness(), Outside()
    try:
        with torch.random.fork_rng(gpus), warnings.catch_warnings(), _NoValues(), outside:
            warnings.simplefilter("ignore")
            graph = _traced(function, args, written_out)
        held = _lift(graph, args)
        narrow(graph.graph, _written_nodes(graph))
    except Exception as error:
        raise CannotRecord(_reason(error)) from error
    finally:
        outside.restore()
        drawn = foreign_randomness() != foreign
        random.setstate(foreign[0])
        np.random.set_state(foreign[1])
    if drawn:
        raise CannotRecord("it draws from the random numbers of Python or NumPy")
    _clear(graph)
    return graph, held


def _traced(function, args, written_out):
    """The graph of an operation after another, which holds the tensors that are not arguments."""
    # Without a mode in common make_fx makes one for each node, and each keeps the whole stack:
    # as long as all the rest takes.
    with tracing(TracingContext(FakeTensorMode())):
        return make_fx(function, decomposition_table=written_out)(*args)


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


def written_inputs(graph):
    """Positions of the inputs that a graph writes to, itself or through a view."""
    inputs = {node: i for i, node in enumerate(graph.graph.find_nodes(op="placeholder"))}
    return {inputs[node] for node in _written_nodes(graph) if node in inputs}


def _written_nodes(graph):
    """The nodes whose memory is written to, by themselves or through a view."""
    found = set()
    for node in graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            found.update(map(_origin, _written(node.target, node.args, node.kwargs)))
    return found


def foreign_randomness():
    """The states of the random numbers that no graph can hold."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, tuple(keys), *rest)


class Outside(TorchDispatchMode):
    """Watches how a function treats tensors that it did not make.

    What it writes to is kept, so that `restore` can undo it; where it asks for a value, or for a
    number of values that only running tells, it is stopped.  A mask that is the same at every run
    (made of neither arguments, held tensors nor random numbers) is turned into the numbers of its
    rows, as the structure of a triangular matrix is.
    """

    def __init__(self):
        super().__init__()
        self.made, self.fixed, self.before = set(), set(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, args = kwargs or {}, self._unmasked(func, args)
        self._refuse(func, args, kwargs)
        written = _written(func, args, kwargs)
        for tensor in written:
            if not self._all_in(self.made, tensor):
                with disable_proxy_modes_tracing():
                    self.before.append((tensor, tensor.clone()))
        result = func(*args, **kwargs)
        self._note(func, (args, kwargs), written, result)
        return result

    def restore(self):
        """Undo every write, the last one first."""
        with torch.no_grad():
            for tensor, value in reversed(self.before):
                tensor.copy_(value)
        self.before.clear()

    def _note(self, func, inputs, written, result):
        """Note which results are made here, and which of them are the same at every run."""
        constant = func is torch.ops.aten.lift_fresh.default
        if constant or not _returns_alias(func):
            self.made.update(map(_storage, _tensors(result)))
        random = torch.Tag.nondeterministic_seeded in func.tags
        touched = set(map(_storage, _tensors((result, written))))
        if constant or (not random and self._all_in(self.fixed, inputs)):
            self.fixed |= touched
        else:
            self.fixed -= touched

    def _all_in(self, storages, tree):
        return all(_storage(tensor) in storages for tensor in _tensors(tree))

    def _unmasked(self, func, args):
        if func._opname not in ("index", "index_put", "index_put_") or not _masks(args[1]):
            return args
        if not self._all_in(self.fixed, _masks(args[1])):
            return args
        with disable_proxy_modes_tracing():
            rows = []
            for index in args[1]:
                rows += index.nonzero().unbind(-1) if _masks([index]) else [index]
        return args[0], rows, *args[2:]

    def _refuse(self, func, args, kwargs):
        if any(isinstance(arg, torch.Generator) for arg in (*args, *kwargs.values())):
            raise CannotRecord("it draws from a torch.Generator of its own")
        if torch.Tag.data_dependent_output in func.tags and not self._all_in(
            self.made, (args, kwargs)
        ):
            raise CannotRecord(VALUES)
        by_number = func is torch.ops.aten.index.Tensor and not _masks(args[1])
        if torch.Tag.dynamic_output_shape in func.tags and not by_number:
            raise CannotRecord(f"the size of a result of {func} depends on values")


class _NoValues(TorchFunctionMode):
    """Stops what takes values out of a tensor without an operation that a graph could show."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__):
            raise CannotRecord(f"it takes values out of a tensor by {func.__name__}()")
        return func(*args, **(kwargs or {}))


def _tensors(tree):
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _masks(indices):
    return [i for i in _tensors(indices) if i.dtype in (torch.bool, torch.uint8)]


def _storage(tensor):
    strided = tensor.layout is torch.strided
    return tensor.untyped_storage()._cdata if strided else id(tensor)


def _returns_alias(func):
    return any(result.alias_info is not None for result in func._schema.returns)


def _written(func, args, kwargs):
    """The arguments that an operation writes to: tensors, or nodes of a graph."""
    if func._opname in BATCH_NORMS:
        written = args[3:5]
    else:
        known = func._schema.arguments
        given = dict(zip((a.name for a in known), args, strict=False)) | kwargs
        writes = [a.name for a in known if a.alias_info is not None and a.alias_info.is_write]
        written = [given.get(name) for name in writes]
    leaves = torch.utils._pytree.tree_leaves(list(written))
    return [leaf for leaf in leaves if leaf is not None]


def _origin(node):
    """The node whose memory a view, or one of several, shows."""
    while node.op == "call_function" and node.args:
        one_of_several = node.target is operator.getitem
        if not (one_of_several or _returns_alias(node.target)):
            break
        node = node.args[0]
    return node


def _lift(graph, args):
    """Turn the tensors that a graph holds into inputs of it; returns them in order."""
    inputs = graph.graph.find_nodes(op="placeholder")
    known = {id(tensor): node for tensor, node in zip(args, inputs, strict=True)}
    held, last = [], inputs[-1] if inputs else None
    for node in graph.graph.find_nodes(op="get_attr"):
        tensor = getattr(graph, node.target)
        if not isinstance(tensor, torch.Tensor):
            raise CannotRecord("it has control flow of torch's own (cond, while_loop)")
        if id(tensor) not in known:
            place = graph.graph.inserting_after(last) if last else graph.graph.inserting_before()
            with place:
                last = graph.graph.placeholder(f"held_{len(held)}")
                last.meta["val"] = tensor
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
        return VALUES
    if isinstance(error, CannotRecord):
        return str(error)
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
