"""Gradient estimators of discrete latents: their bias, variance and cost, against exact gradients.

`python -m experiments.benchmarks.gradients --out DIR` writes DIR/gradients.json and
DIR/gradients.md.  Bias and variance are those of experiments/benchmarks/exact_gradients.py.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import NormalDist, median

import torch

import guides
import zoo
from experiments.benchmarks.exact_gradients import (
    BATCH,
    CONTENDERS,
    DIRECTIONS,
    OWN_STEPS,
    PIXELS,
    SWITCHES,
    Case,
    row,
)
from experiments.svi.config import FitConfig
from experiments.svi.engine import advance
from experiments.svi.estimators import elbo, resolve
from experiments.svi.fit import prepare
from experiments.svi.fused import Fused
from experiments.svi.loop import isolated
from experiments.svi.run import Run

TIMED_BATCH, ROUNDS = 128, 15
PHRASES = {
    "elbo": "ELBO",
    "pairs": "bound of 2 draws",
    "wake": "log evidence; KL(p, q) for the guide",
}


def milliseconds(contenders, rounds=ROUNDS):
    """{name: {"milliseconds_eager", "milliseconds_recorded"}}: medians of rounds in turns.

    eager: loss and gradients.  recorded: a whole step of Adam beside it.
    """
    timed = {contender.name: _timed(contender) for contender in contenders}
    found = {name: ([], []) for name in timed}
    for _ in range(rounds):
        for name, both in timed.items():
            for times, run in zip(found[name], both, strict=True):
                started = time.perf_counter()
                run(5)
                times.append(200 * (time.perf_counter() - started))
    keys = "milliseconds_eager", "milliseconds_recorded"
    return {name: dict(zip(keys, map(median, b), strict=True)) for name, b in found.items()}


def _timed(contender):
    """(take gradients eagerly, take recorded steps): functions of how many."""
    problem = zoo.load("bernoulli_lvm", latent_dim=SWITCHES)
    guide = guides.build("amortized", problem, hidden=())
    settings = {"batch_size": TIMED_BATCH, "steps": 10**6} | contender.settings
    config = resolve(FitConfig(**settings), problem)
    eager, fast = (Run.start(problem, guide, config, 0, torch.device("cpu")) for _ in range(2))
    step, index = Fused([fast], problem), torch.arange(TIMED_BATCH)
    step.prepare(compiling=False)

    def gradients(count):
        model, guide = eager.modules["model"], eager.modules["guide"]
        with isolated():
            for _ in range(count):
                eager.modules.zero_grad()
                bound = elbo(config, problem, eager.modules)
                bound.loss_and_grads(model, guide, eager.data, index)

    def steps(count):
        while count:
            count -= advance([fast], step, count)

    for run in (gradients, steps):
        run(2)
    return gradients, steps


COLUMNS = {
    "estimator": lambda row: row["name"] + (" (biased)" if row["biased"] else ""),
    "gradient of": lambda row: PHRASES[row["objective"]],
    "largest z": lambda row: f"{row['largest_z']:.1f}",
    "beyond 4 se": lambda row: f"{100 * row['share_beyond_4']:.1f} %",
    "largest z, directions": lambda row: f"{row['largest_z_of_directions']:.1f}",
    "bias, model": lambda row: f"{row['bias_model']:.4f} ({row['floor_model']:.4f})",
    "bias, guide": lambda row: f"{row['bias_guide']:.3f} ({row['floor_guide']:.3f})",
    "variance, model": lambda row: f"{row['variance_model']:.3g}",
    "variance, guide": lambda row: f"{row['variance_guide']:.3g}",
    "evaluations": lambda row: f"{row['evaluations']:,}",
    "variance, guide x evaluations": lambda row: (
        f"{row['variance_guide'] * row['evaluations']:.3g}"
    ),
    "ms, eager": lambda row: f"{row['milliseconds_eager']:.2f}",
    "ms, recorded": lambda row: f"{row['milliseconds_recorded']:.2f}",
}


def markdown(rows):
    """The table with its caption."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    lines += [[cell(row) for cell in COLUMNS.values()] for row in rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"**Gradient estimators for discrete latents**\n\n{text}\n\n{_caption(rows)}\n"


def _largest(count):
    """The median of the largest |z| of so many independent standard normals."""
    return NormalDist().inv_cdf((1 + 0.5 ** (1 / count)) / 2)


def _caption(rows):
    count = rows[0]["coordinates"]
    return (
        f"bernoulli_lvm with {SWITCHES} switches on {BATCH} rows of {PIXELS} pixels of the digits, "
        "a linear amortized guide, both trained for a while and then held still; "
        f"{rows[-1]['draws']:,} gradients of each estimator against the exact one, by the sum over "
        f"all {2**SWITCHES:,} states (over all pairs of them for vimco). z: (mean − exact) / se "
        f"of each of the {count} coordinates; the largest of as many is about "
        f"{_largest(count):.1f} for an estimator without bias. directions: {DIRECTIONS} random "
        "ones, the same question. "
        "K: draws of a datum for one gradient. bias: |mean − exact| / |exact|, for the parameters "
        "of the model and of the guide; in brackets what it is without bias at as many draws; "
        "(biased): the estimator has a bias by its making. rws follows two objectives, named in "
        "the second column. variance: of one gradient, its trace over the square of the ELBO's "
        "exact gradient. evaluations: of "
        "the model, for one gradient of a datum; gumbel_softmax makes one of its two without a "
        f"gradient. ms: a gradient (eager), a whole step with Adam (recorded), {TIMED_BATCH} rows "
        "of 64 pixels, medians of interleaved rounds on one thread. nvil and relax have learned "
        f"what is their own in {OWN_STEPS:,} steps of Adam, running_mean has seen as many."
    )


def main(arguments=None):
    """Measure all, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder for gradients.json and gradients.md")
    folder = Path(parser.parse_args(arguments).out)
    try:
        prepare(folder)
    except zoo.ZooError as error:
        parser.error(str(error))
    case, times = Case(), milliseconds(CONTENDERS)
    rows = [row(case, contender) | times[contender.name] for contender in CONTENDERS]
    (folder / "gradients.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / "gradients.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
