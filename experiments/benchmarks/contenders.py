"""Who takes part: {name: (title, prepare)}, and which of them for which case."""

from dataclasses import replace
from functools import partial
from importlib.util import find_spec

from experiments.benchmarks import handwritten, ours, pyro_svi
from experiments.benchmarks.cases import Absent
from experiments.benchmarks.timing import Entry

NO_JAX = "numpyro or jax is not installed: pip install latent-zoo[bench]"


def has_numpyro():
    """Whether numpyro and jax are installed; neither is imported."""
    return bool(find_spec("numpyro") and find_spec("jax"))


def _numpyro(case, variant):
    if not has_numpyro():
        raise Absent(NO_JAX)
    from experiments.benchmarks import numpyro_svi

    return numpyro_svi.prepare(case, variant)


CONTENDERS = {
    "handwritten": ("by hand", handwritten.prepare),
    "handwritten_rows": ("by hand, SparseAdam", partial(handwritten.prepare, sparse=True)),
    "handwritten_compiled": ("by hand, torch.compile", partial(handwritten.prepare, compiled=True)),
    "handwritten_graph": ("by hand, CUDA graph", handwritten.prepare_graph),
    "pyro": ("pyro SVI", pyro_svi.prepare),
    "pyro_unvalidated": ("pyro SVI, no validation", partial(pyro_svi.prepare, validate=False)),
    "numpyro_jit": ("numpyro, jit", partial(_numpyro, variant="jit")),
    "numpyro_scan": ("numpyro, scan", partial(_numpyro, variant="scan")),
    "numpyro_rows": ("numpyro, row-wise scan", partial(_numpyro, variant="rows")),
    "eager": ("ours, eager", ours.eager),
    "compiled": ("ours, compiled", ours.compiled),
    "fused": ("ours, fused", ours.fused),
}
BY_HAND = ("handwritten", "handwritten_rows")
NUMPYRO = ("numpyro_jit", "numpyro_scan", "numpyro_rows")
SLOW_TO_COMPILE = ("handwritten_compiled", "compiled")
LEFT_OUT_BY_QUICK = (*SLOW_TO_COMPILE, "pyro_unvalidated", "numpyro_jit", "eager")
SEVERAL_SEEDS = ("fused", "numpyro_scan")
SEEDS = (4, 16)
DENSE_UP_TO = 100_000  # rows of a table whose every row a dense Adam touches at each step


def prepare(entry):
    """steps(n) of an entry.  Raises Absent where the contender cannot take part."""
    return CONTENDERS[entry.contender][1](entry.case)


def title(name):
    """The name a person reads."""
    return CONTENDERS[name][0]


def of_case(case, quick=False):
    """The entries of a case: every contender that suits it, then several seeds at once."""
    left_out = () if case.device != "cpu" else ("handwritten_graph",)
    if case.guide != "mean_field":
        left_out += ("handwritten_rows", "numpyro_rows")
    left_out += LEFT_OUT_BY_QUICK if quick else ()
    alone = [Entry(case, name) for name in CONTENDERS if name not in left_out]
    counts = SEEDS[-1:] if quick else SEEDS
    names = SEVERAL_SEEDS[:1] if quick else SEVERAL_SEEDS
    return alone + [Entry(replace(case, seeds=s), name) for name in names for s in counts]


def of_tables(cases, quick=False):
    """The entries of a growing table, whose steps of all sizes are timed by turns."""
    names = ("handwritten_rows", "fused")
    names += () if quick else ("handwritten", "numpyro_scan", "numpyro_rows", "eager")
    dense = ("handwritten", "numpyro_scan")
    return [
        Entry(case, name)
        for name in names
        for case in cases
        if name not in dense or case.num_data <= DENSE_UP_TO
    ]
