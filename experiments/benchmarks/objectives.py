"""What more particles do to a bound, and to the signal in its gradients: IWAE beside DReG.

    python -m experiments.benchmarks.objectives --out DIR

Writes DIR/objectives.json and DIR/objectives.md, in a few minutes on one core.
Source: Rainforth et al. 2018, Tighter variational bounds are not necessarily better, sections 3
    and 4, for the signal-to-noise ratio; Tucker, Lawson, Gu & Maddison 2019, section 6.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from pyro.infer import RenyiELBO
from torch.nn.utils.stateless import _reparametrize_module

import experiments
import guides
import zoo
from experiments.measure.pareto import pareto_k
from experiments.svi import noise
from experiments.svi.config import FitConfig
from experiments.svi.estimators import elbo, resolve
from experiments.svi.fit import prepare
from experiments.svi.loop import isolated
from experiments.svi.recordable import recordable

COUNTS = (1, 4, 16, 64, 256)
BLOCKS = 20  # of draws, each left out once by the jackknife
ROWS = 500
TRAINED = {"steps": 3000, "batch_size": 100, "engine": "recorded"}
NOISE = 0.01  # sd of what is added to every trained parameter
TAIL_DRAWS = 20_000  # for the Pareto k of a row's weights
CELLS = 12_800  # draws x particles of one pass
SMALL = {"hidden": (30,)}
CASES = {
    "gaussian_lvm, q 1.5 times as wide": ("gaussian_lvm", {}, {"hidden": ()}, 1.5),
    "vae, q 3 times as wide": ("vae", SMALL, SMALL, 3.0),
    "vae, q as trained": ("vae", SMALL, SMALL, 1.0),
}
"""Model, its options, those of its amortized guide, and a factor on every sd of the trained q.

The theory needs weights with moments: a q that is narrower than the posterior has none, a few of
its draws rule all others, and neither gradient is what it says.
"""


def prepared(case):
    """(problem under trained parameters, its guide), both then moved a little by noise."""
    name, options, guide_options, factor = CASES[case]
    options = {"latent_dim": 2} | options
    data = zoo.load(name, **options).data
    data = zoo.data.DataSet(data.name, data.train[:ROWS], data.test)
    problem = zoo.load(name, data=data, **options)
    guide = guides.build("amortized", problem, **guide_options)
    fit = experiments.fit(problem, guide, **TRAINED)
    with torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(1)
        for module in (fit.models[0], fit.guides[0]):
            for parameter in module.parameters():
                parameter.add_(NOISE * torch.randn_like(parameter))
        last = [m for m in fit.guides[0].modules() if isinstance(m, torch.nn.Linear)][-1]
        last.bias[2:] += math.log(factor)  # (loc, log sd) of two coordinates
    return fit.problems[0], fit.guides[0]


def bound_of(problem, objective, count):
    """The ELBO object of an objective with so many particles."""
    return elbo(resolve(FitConfig(objective=objective, num_particles=count), problem), problem)


def gradients(problem, guide, objective, count, num_draws, index):
    """Gradients of the surrogate on rows `index`, a draw a row: {part: (num_draws, p)}."""
    at_once = max(1, CELLS // count)
    parts = [
        _gradients(problem, guide, bound_of(problem, objective, count), index, keys)
        for keys in noise.fold(torch.tensor(0), torch.arange(num_draws)).split(at_once)
    ]
    return {part: torch.cat([p[part] for p in parts]).double() for part in parts[0]}


def _gradients(problem, guide, bound, index, keys):
    """The same for the draws whose noise has the keys (m,), all at once as many seeds are."""
    modules = torch.nn.ModuleDict({"decoder": problem.model, "encoder": guide}).eval()
    named = dict(modules.named_parameters())
    leaves = {n: p.detach().expand(len(keys), *p.shape).clone() for n, p in named.items()}
    for leaf in leaves.values():
        leaf.requires_grad_()

    def one(values, key):
        filled = _reparametrize_module(modules, values, tie_weights=True)
        with filled, recordable(), noise.Keyed(key):
            return bound.terms(problem.model, guide, problem.data.train, index)[1]

    surrogates = torch.vmap(one)(leaves, keys)
    found = torch.autograd.grad(surrogates.sum(), list(leaves.values()))
    flat = {n: g.reshape(len(g), -1) for n, g in zip(leaves, found, strict=True)}
    return {
        part: torch.cat([g for n, g in flat.items() if n.startswith(part)], 1) for part in modules
    }


def signals(draws):
    """(of the whole gradient, the median over parameters) of draws (m, p).

    Whole: |E g| / sqrt(E |g - E g|^2), |E g|^2 without bias, 0 where noise hides it.  Median: of
    |mean| / sd, parameters without any gradient left out.
    """
    mean, variance = draws.mean(0), draws.var(0)
    square = mean.square().sum() - variance.sum() / len(draws)
    whole = (square.clamp(min=0) / variance.sum()).sqrt()
    moving = variance > 0
    return torch.stack([whole, (mean[moving].abs() / variance[moving].sqrt()).median()])


def jackknife(statistic, draws):
    """A statistic of lists of draws, and its standard error by leaving out a block of each."""
    blocks = torch.arange(len(draws[0])).tensor_split(BLOCKS)
    kept = [torch.cat([b for b in blocks if b is not block]) for block in blocks]
    left_out = torch.stack([statistic([d[rows] for d in draws]) for rows in kept])
    spread = (left_out - left_out.mean(0)).square().sum(0)
    return statistic(draws), (spread * (BLOCKS - 1) / BLOCKS).sqrt()


def slope(draws):
    """Of log signal against log k by least squares: (2,), as `signals` has them."""
    x = torch.tensor(COUNTS).double().log()
    x = x - x.mean()
    y = torch.stack([signals(d) for d in draws]).log()
    return (x[:, None] * y).sum(0) / x.square().sum()


def signal_table(name, problem, guide, num_draws, batch):
    """Rows of the signal-to-noise ratio for one model."""
    index, rows = torch.arange(batch), []
    for objective in ("iwae", "dreg"):
        with isolated():
            each = [gradients(problem, guide, objective, k, num_draws, index) for k in COUNTS]
        for part in ("encoder", "decoder"):
            draws = [found[part] for found in each]
            at = [jackknife(lambda d: signals(d[0]), [d]) for d in draws]
            value, se = jackknife(slope, draws)
            rows.append(
                {
                    "model": name,
                    "objective": objective,
                    "part": part,
                    "parameters": draws[0].shape[1],
                    "whole": [[v[0].item(), e[0].item()] for v, e in at],
                    "median": [[v[1].item(), e[1].item()] for v, e in at],
                    "slope_whole": [value[0].item(), se[0].item()],
                    "slope_median": [value[1].item(), se[1].item()],
                }
            )
    return rows


@torch.no_grad()
def bound_table(name, problem, guide, repeats):
    """Rows of the bound a datum against the exact evidence for one model."""
    x = problem.data.train
    evidence = problem.log_evidence(x).mean().item()
    error = problem.evidence_error(x).max().item()
    rows = []
    for count in COUNTS:
        own = bound_of(problem, "iwae", count)
        pyros = RenyiELBO(0, max(count, 2), max_plate_nesting=1, vectorize_particles=True)

        def ours(index, own=own):
            return -own.terms(problem.model, guide, x, index)[1].item()

        def theirs(index, pyros=pyros):
            return -pyros.loss(problem.model, guide, x, index)

        whole, tenth = (_epochs(ours, len(x), size, repeats) for size in (len(x), len(x) // 10))
        wrong = _epochs(theirs, len(x), len(x) // 10, 2) if count > 1 else None
        rows.append({"k": count, "whole": whole, "tenth": tenth, "pyro_tenth": wrong})
    return {"model": name, "level": problem.truth.level, "evidence": evidence, "error": error} | {
        "rows": rows
    }


def _epochs(value, num_data, size, repeats):
    """[mean, se] over repeats of the mean over an epoch's batches, nats a datum of all rows."""
    found = []
    with isolated():
        for seed in range(repeats):
            torch.manual_seed(seed)
            order = torch.randperm(num_data)
            batches = [None] if size == num_data else order.split(size)
            found.append(sum(value(index) for index in batches) / len(batches) / num_data)
    found = torch.tensor(found, dtype=torch.float64)
    return [found.mean().item(), (found.std() / math.sqrt(repeats)).item()]


def markdown(results):
    """The tables with captions."""
    return "\n".join([*_signal_lines(results), "", *_bound_lines(results), ""])


def _signal_lines(results):
    head = ["model", "gradient", "of", *(f"k = {k}" for k in COUNTS), "slope"]
    for kind in ("whole", "median"):
        yield f"## Signal-to-noise ratio, {kind}"
        yield ""
        yield _line(head)
        yield _line(["---"] * len(head))
        for row in results["signal"]:
            cells = [_plus_minus(*pair, 3) for pair in [*row[kind], row[f"slope_{kind}"]]]
            yield _line([row["model"], row["objective"], row["part"], *cells])
        yield ""
    yield (
        f"Gradients of the k-particle bound on {results['batch']} rows, {results['draws']:,} draws "
        f"each, at parameters trained for {TRAINED['steps']:,} steps, then moved by normal noise "
        f"of sd {NOISE:g}, the sd of q widened as named. whole: norm "
        "of the mean gradient over the root of its total variance, the square of the norm without "
        "bias. median: over parameters, of abs(mean) / sd; pure noise would read about "
        f"{0.67 / math.sqrt(results['draws']):.3f}. slope: of log ratio against log k by least "
        "squares, – where noise hides a ratio; theory for k large, where the weights have moments: "
        "-1/2 for the encoder by IWAE, +1/2 for the decoder and for the encoder by DReG. Weights "
        "have a variance where their Pareto k is below 0.5; on these rows, by "
        f"{TAIL_DRAWS:,} draws, it is {'; '.join(map(_tail_words, results['tails']))}. ± is the "
        f"standard error, by a jackknife over {BLOCKS} blocks of draws."
    )


def _tail_words(tail):
    return f"{', '.join(f'{k:.2f}' for k in tail['k'])} ({tail['model']})"


def _bound_lines(results):
    yield "## The bound against the evidence"
    yield ""
    head = ["model", "k", "all rows", "a tenth", "evidence", "Pyro's RenyiELBO(0), a tenth"]
    yield _line(head)
    yield _line(["---"] * len(head))
    for table in results["bounds"]:
        for row in table["rows"]:
            wrong = row["pyro_tenth"]
            cells = [_plus_minus(*row["whole"], 4), _plus_minus(*row["tenth"], 4)]
            cells += [f"{table['evidence']:.4f}", _plus_minus(*wrong, 4) if wrong else "–"]
            yield _line([f"{table['model']} ({table['level']})", row["k"], *cells])
    errors = ", ".join(f"{t['model']} {t['error']:.4f}" for t in results["bounds"])
    yield ""
    yield (
        f"Nats a datum over {ROWS} training rows: objective=iwae with k particles, all rows at "
        f"once and batches of {ROWS // 10}, as a fit computes it; the mean over "
        f"{results['repeats']} repeats, each of them every row once, ± its standard error. "
        f"evidence: exact, or by quadrature; largest stated error {errors}. The last column "
        "scales to all data within the logarithm, which is no bound."
    )


def _line(cells):
    return f"| {' | '.join(map(str, cells))} |"


def _plus_minus(value, se, digits):
    return f"{value:.{digits}f} ± {se:.{digits}f}" if math.isfinite(value + se) else "–"


def measure(draws=1200, batch=4, repeats=5):
    """All numbers, as objectives.json has them."""
    results = {"draws": draws, "batch": batch, "repeats": repeats, "counts": COUNTS}
    results |= {"signal": [], "tails": [], "bounds": []}
    for name in CASES:
        problem, guide = prepared(name)
        results["signal"] += signal_table(name, problem, guide, draws, batch)
        k = pareto_k(problem, guide, problem.data.train[:batch], TAIL_DRAWS)
        results["tails"].append({"model": name, "k": k.tolist()})
        results["bounds"].append(bound_table(name, problem, guide, repeats))
    return results


def write(folder, results):
    """Write both files."""
    finite = json.loads(json.dumps(results), parse_constant=lambda _: None)
    (folder / "objectives.json").write_text(json.dumps(finite, indent=1) + "\n")
    (folder / "objectives.md").write_text(markdown(results))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for both files")
    folder = parser.parse_args().out
    prepare(folder)
    torch.set_num_threads(1)
    write(folder, measure())
    print((folder / "objectives.md").read_text())


if __name__ == "__main__":
    main()
