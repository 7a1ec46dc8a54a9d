"""`Fingerprint`: what Pyro programs can see besides their arguments, and whether it is still so.

A program sees attributes of modules and objects, closures, defaults, globals of its own functions,
and what these name in a user's Python modules.  Numbers and strings count by value, tensors and
everything else by identity.  Not seen: what is written into NumPy arrays of more than a page, and
what library code keeps for itself.
"""

import argparse
import functools
import sys
import sysconfig
import types
from collections import OrderedDict, defaultdict
from itertools import chain
from operator import attrgetter

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import nn
from torch.distributions import Distribution

SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, range)
CONTAINERS = (list, tuple, dict, OrderedDict, defaultdict, set, frozenset, torch.Size)
RECORDS = (types.SimpleNamespace, argparse.Namespace)
PAGE = 4096
PARTS = attrgetter("__code__", "__defaults__", "__kwdefaults__")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
QUIET = ("_cached", "_non_persistent")  # what Pyro's transforms remember of their last call
KNOWN = 64
"""Fingerprints that are told apart; the oldest is forgotten first."""
LIBRARY = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


class Fingerprint:
    """What `programs` can see now: `tokens`, hashable and equal where that is the same.

    `holds()` tells in some microseconds that nothing has changed since; where it says False, a new
    fingerprint may still have equal tokens.  Objects stay alive with it, so that no id is reused.
    """

    def __init__(self, programs):
        self.found, self._known = [], {}
        self._dicts, self._lists, self._classes = [], [], []
        self._cells, self._functions, self._globals = [], [], []
        self._sets, self._arrays, self._slots, self._spaces = [], [], [], set()
        for program in programs:
            self._note(program)
        self.tokens = tuple(self.found)
        del self.found
        self._now = self._quick()
        # The ids are those of objects that may be replaced: they have to live as long.
        self._alive = list(self._values())

    def holds(self):
        """Whether everything seen is the very same object as before."""
        try:
            return self._quick() == self._now
        except KeyError:  # a global is gone
            return False

    def _quick(self):
        """Ids of everything seen, by loops in C: it is asked for at every step."""
        return (
            list(map(id, self._values())),
            [id(_content(cell)) for cell in self._cells],
            [id(part) for function in self._functions for part in PARTS(function)],
            [list(map(id, map(space.__getitem__, names))) for space, names in self._globals],
            list(map(frozenset, self._sets)),
            [array.tobytes() for array in self._arrays],
        )

    def _values(self):
        classes = [vars(kind).values() for kind in self._classes]
        slots = [getattr(value, name, None) for value, names in self._slots for name in names]
        items = chain.from_iterable(map(dict.items, self._dicts))
        return chain(*self._lists, *classes, slots, chain.from_iterable(items))

    def _note(self, value):
        """Append the tokens of a value, and of what can be seen through it."""
        if isinstance(value, SCALARS):
            self.found.append((type(value), repr(value)))
        elif id(value) in self._known:
            self.found.append(("again", self._known[id(value)][0]))
        else:
            self._known[id(value)] = len(self._known), value
            self._see(value)

    def _see(self, value):
        if isinstance(value, torch.Tensor | types.ModuleType):
            self.found.append(id(value))
        elif isinstance(value, CONTAINERS):
            self._see_container(value)
        elif isinstance(value, types.FunctionType):
            self._see_function(value)
        elif isinstance(value, types.MethodType):
            self._note(value.__func__)
            self._note(value.__self__)
        elif isinstance(value, functools.partial):
            self._note([value.func, value.args, value.keywords])
        elif isinstance(value, np.ndarray):
            small = value.nbytes <= PAGE
            self.found.append((id(value), value.tobytes() if small else None))
            self._arrays += [value] if small else []
        elif isinstance(value, type):
            self._see_class(value)
        else:
            self._see_object(value)

    def _see_container(self, value):
        self.found.append((type(value), len(value)))
        if isinstance(value, dict):
            self._dicts.append(value)
            self.found.append(tuple(map(str, value)))
            value = value.values()
        elif isinstance(value, list):
            self._lists.append(value)
        elif isinstance(value, set):
            self._sets.append(value)
        for item in value if not isinstance(value, set | frozenset) else map(repr, value):
            self._note(item)

    def _see_function(self, function):
        self.found.append(id(function.__code__))
        self._note(function.__code__)
        self._functions.append(function)
        for value in (function.__defaults__, function.__kwdefaults__):
            self._note(value)
        for cell in function.__closure__ or ():
            self._cells.append(cell)
            self._note(_content(cell))
        if not is_library(function.__code__.co_filename):
            self._see_space(function.__globals__, _names(function.__code__))

    def _see_space(self, space, names):
        """What code that uses these names sees of a module, and of a user's modules named there."""
        if (id(space), names) in self._spaces:
            return
        self._spaces.add((id(space), names))
        known = tuple(name for name in sorted(names) if name in space)
        self._globals.append((space, known))
        for name in known:
            value = space[name]
            self._note(value)
            if isinstance(value, types.ModuleType) and not is_library(_path(value)):
                self._see_space(vars(value), names)

    def _see_class(self, kind):
        """The methods and constants of a user's class, and of the classes it stands on."""
        self.found.append(id(kind))
        for base in kind.__mro__:
            if not is_library(_file(base)):
                self._classes.append(base)
                for name, value in vars(base).items():
                    if not name.startswith("__") or name == "__call__":
                        self._note(value)

    def _see_object(self, value):
        kind = type(value)
        own = kind in RECORDS or not is_library(_file(kind))
        self.found.append(id(value) if own else kind)
        if own and kind not in RECORDS:
            self._note(kind)
        if isinstance(value, property | staticmethod | classmethod):
            for function in (getattr(value, n, None) for n in ("fget", "__func__")):
                self._note(function)
        elif isinstance(value, SubsampleMessenger):
            self._note([value.name, value.size, value.subsample_size, value.dim])
        elif isinstance(value, nn.Module):
            self._see_module(value)
        elif hasattr(value, "__dict__") and (own or isinstance(value, Distribution | Messenger)):
            self._note(vars(value))
        elif own:
            slots = [vars(base).get("__slots__", ()) for base in kind.__mro__]
            names = tuple(chain(*([s] if isinstance(s, str) else s for s in slots)))
            self._slots.append((value, names))
            for name in names:
                self._note(getattr(value, name, None))

    def _see_module(self, module):
        state = vars(module)
        self._dicts.append(state)
        for name, value in state.items():
            if name in HOOKS or not ("_hook" in name or name.startswith(QUIET)):
                self.found.append(name)
                self._note(value)


class Sights:
    """Numbers for what pairs of programs can see: equal where it is the same."""

    def __init__(self):
        self._now, self._numbers, self._restless = {}, OrderedDict(), set()
        self._count = 0

    def number(self, model, guide):
        """The number of what the pair sees now."""
        pair = id(model), id(guide)
        if pair not in self._now or not self._now[pair][1].holds():
            sight = Fingerprint((model, guide))
            if sight.tokens not in self._numbers:
                self._count += 1
                self._numbers[sight.tokens] = self._count, sight
                if len(self._numbers) > KNOWN:
                    self._numbers.popitem(last=False)
            self._now[pair] = self._numbers[sight.tokens][0], sight
            if len(self._now) > KNOWN:
                self._restless.discard(oldest := next(iter(self._now)))
                del self._now[oldest]
        return self._now[pair][0]

    def mark(self, pair):
        """Note that running the pair changes what it sees."""
        self._restless.add(pair)

    def restless(self, pair):
        """Why a pair cannot be compiled, None where it may be."""
        return "the programs change what they see as they run" if pair in self._restless else None


def is_library(path):
    """Whether code comes from Python or an installed package: nobody edits it between two runs."""
    return path.startswith(LIBRARY) or path.startswith("<frozen")


@functools.cache
def _file(kind):
    return _path(sys.modules.get(kind.__module__))


def _path(module):
    """The file of a Python module, or what stands for one."""
    own = getattr(module, "__name__", None) == "__main__"
    return getattr(module, "__file__", None) or ("<own>" if own else "<frozen>")


@functools.cache
def _names(code):
    """Every global name that code may read, that of functions inside it too."""
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return frozenset(code.co_names).union(*inner)


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return None
