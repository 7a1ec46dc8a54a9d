"""`fit`: SVI for every seed; `Fit`: what came of it."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from experiments.measure import elbo as measure_elbo
from experiments.svi import checkpoint
from experiments.svi import device as devices
from experiments.svi.config import FitConfig, validated
from experiments.svi.engine import train
from experiments.svi.estimators import FitError, resolve
from experiments.svi.interrupt import Interrupted, noticing
from experiments.svi.refusals import refuse_guide
from experiments.svi.run import Run, as_module, load_modules
from guides.checks import refuse_traps
from zoo.errors import require


@dataclass(frozen=True)
class Fit:
    """Fitted models and guides, one of each a seed.

    losses and seconds: for each seed a tensor (steps,): loss in nats a datum, seconds since start.
    """

    problem: object
    config: FitConfig
    seeds: tuple[int, ...]
    models: tuple[nn.Module, ...]
    guides: tuple[nn.Module, ...]
    losses: tuple[torch.Tensor, ...]
    seconds: tuple[torch.Tensor, ...]

    @property
    def problems(self):
        """The problem under each seed's fitted parameters."""
        return [self.problem.having(model=model) for model in self.models]

    @property
    def history(self):
        """Estimate of the bound at every step, nats a datum: (seeds, steps), NaN after a stop.

        It is the plain ELBO of the step's draws whatever the objective, so that curves compare.
        For a point estimate, which has no log q, it is the log joint density at the points.
        """
        bounds = [-losses for losses in self.losses]
        return nn.utils.rnn.pad_sequence(bounds, batch_first=True, padding_value=float("nan"))

    @cached_property
    def elbo(self):
        """The bound on the training data, nats, from 100 fresh draws: (seeds,)."""
        return self.elbo_per_datum * len(self.problem.data.train)

    @cached_property
    def elbo_per_datum(self):
        """The same divided by the number of data: (seeds,)."""
        bounds = [measure_elbo.elbo(d).value for d in self._draws(100, need_log_q=True)]
        return torch.tensor(bounds)

    def draws(self, num_draws):
        """Draws of every latent from the guides: {name: (seeds, num_draws, n, ...)}."""
        each = [draws.latents for draws in self._draws(num_draws, need_log_q=False)]
        return {name: torch.stack([latents[name] for latents in each]) for name in each[0]}

    def log_evidence(self, x):
        """Exact log p(x) under each seed's parameters: (seeds, n) nats; see Problem."""
        return torch.stack([problem.log_evidence(x) for problem in self.problems])

    def posterior(self, x):
        """Exact posterior under each seed's parameters: a list of distributions; see Problem."""
        return [problem.posterior(x) for problem in self.problems]

    def to_datatree(self, num_draws=100, predictive=None):
        """An ArviZ tree whose chains are the seeds; see experiments.measure.bridge."""
        from experiments.measure.bridge import to_datatree

        return to_datatree(self, num_draws, predictive)

    def _draws(self, num_draws, need_log_q):
        x = self.problem.data.train
        return [
            measure_elbo.draw(model, guide, x, num_draws, need_log_q=need_log_q)
            for model, guide in zip(self.models, self.guides, strict=True)
        ]


def fit(problem, guide, steps=2000, seeds=1, device="auto", out=None, resume=False, **options):
    """Fit a guide and the model's parameters by SVI, once for every seed.

    guide: from `guides.build`, or any Pyro guide `guide(x, index=None)`.  seeds: how many, or a
    list of them.  device: "auto", "cpu" or "cuda".  out: folder for checkpoints, from which
    `resume=True` goes on.  options: further fields of FitConfig; `objective` says what is
    maximized, by default the ELBO as Trace_ELBO has it.
    Raises ZooError for bad arguments or an unfit guide, FitError where the loss is not finite.
    """
    config = resolve(validated(FitConfig, steps=steps, **options), problem)
    require(out is not None or not resume, "resume goes on in a folder: name it with out")
    device, seeds = devices.resolve(device), seed_list(seeds)
    minibatches = config.takes_minibatches(len(problem.data.train))
    refuse_traps(problem, as_module(guide, problem), minibatches)
    refuse_guide(config, problem, as_module(guide, problem))
    runs = fit_seeds(problem, guide, config, seeds, device, out, resume)
    for run in runs:
        if run.error is not None:
            raise run.error
    return collect(problem, config, runs)


def sweep(problem, guide, learning_rates, seeds=1, steps=2000, device="auto", **options):
    """{rate: Fit}: every seed at every learning rate, all trained as one program.

    A seed draws the same noise and batches at every rate.  Arguments are those of `fit`, whose
    learning_rate they replace; a table's rows keep their row_learning_rate.
    Raises as `fit` does.
    """
    listed = isinstance(learning_rates, list | tuple) and len(learning_rates) > 0
    numbers = listed and all(isinstance(rate, int | float) for rate in learning_rates)
    require(
        numbers and len(set(learning_rates)) == len(learning_rates),
        f"learning_rates must list numbers that differ, got {learning_rates!r}",
    )
    require("learning_rate" not in options, "give sweep its learning_rates, not a learning_rate")
    configs = [
        resolve(validated(FitConfig, steps=steps, learning_rate=rate, **options), problem)
        for rate in learning_rates
    ]
    device, seeds = devices.resolve(device), seed_list(seeds)
    minibatches = configs[0].takes_minibatches(len(problem.data.train))
    refuse_traps(problem, as_module(guide, problem), minibatches)
    refuse_guide(configs[0], problem, as_module(guide, problem))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        runs = [Run.start(problem, guide, c, seed, device) for c in configs for seed in seeds]
        train(runs, problem)
    for run in runs:
        if run.error is not None:
            rate = run.config.learning_rate
            raise FitError(f"seed {run.seed}, learning rate {rate:g}: {run.error}")
    return {
        config.learning_rate: collect(problem, config, [r for r in runs if r.config is config])
        for config in configs
    }


def fit_seeds(problem, guide, config, seeds, device, out=None, resume=False, report=None):
    """A run for every seed, each finished or with its `error`.

    Runs go on from their checkpoints in `out` where `resume` is set and there are some.
    report(steps) is called after every few steps with the steps of all seeds that were taken.
    Raises Interrupted on SIGINT or SIGTERM, after a checkpoint.  torch's random state is left as
    it was.
    """
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus), noticing() as interrupted:
        if out is not None:
            prepare(Path(out))
        runs = [Run.start(problem, guide, config, seed, device) for seed in seeds]
        paths = {run.seed: Path(out) / f"seed-{run.seed}.safetensors" for run in runs if out}
        for run in runs:
            path = paths.get(run.seed)
            if path is not None and path.exists():
                require(resume, f"{path} is there: go on with --resume, or name another --out")
                run.load(path)
        saver = Saver(runs, paths, config.checkpoint_seconds, interrupted, report)
        train(runs, problem, saver)
        return runs


class Saver:
    """Called after every few steps: saves runs when it is time, finished, or to be interrupted."""

    def __init__(self, runs, paths, every, interrupted, report):
        self.runs, self.paths, self.every = runs, paths, every
        self.interrupted, self.report = interrupted, report
        self.last = time.monotonic()
        self.saved = {run.seed for run in runs if run.finished}

    def __call__(self, runs):
        stop = self.interrupted()
        due = time.monotonic() - self.last > self.every
        for run in runs:
            ended = run.finished and run.seed not in self.saved
            if run.seed in self.paths and (ended or ((due or stop) and run.alive)):
                run.save(self.paths[run.seed])
                self.saved |= {run.seed} if run.finished else set()
        if due:
            self.last = time.monotonic()
        if self.report is not None:
            self.report(sum(run.step for run in self.runs))
        if stop:
            raise Interrupted


def collect(problem, config, runs):
    """The Fit of finished runs of one problem and config, on the CPU."""
    return Fit(
        problem,
        config,
        tuple(run.seed for run in runs),
        tuple(run.modules["model"].cpu() for run in runs),
        tuple(run.modules["guide"].cpu() for run in runs),
        tuple(torch.tensor(run.losses) for run in runs),
        tuple(torch.tensor(run.seconds) for run in runs),
    )


def load(problem, guide, folder, seeds):
    """The Fit whose finished checkpoints stand in `folder`.

    Raises ZooError where a checkpoint is missing, damaged, or of another model or guide.
    """
    runs, config = [], None
    for seed in seed_list(seeds):
        path = Path(folder) / f"seed-{seed}.safetensors"
        tensors, facts = checkpoint.read(path)
        config = validated(FitConfig, **facts["config"])
        with torch.random.fork_rng([]):
            run = Run.start(problem, guide, config, seed, torch.device("cpu"))
        load_modules(run.modules, tensors, path)
        run.losses, run.seconds = tensors["losses"].tolist(), tensors["seconds"].tolist()
        runs.append(run)
    return collect(problem, config, runs)


def seed_list(seeds):
    """(0, ..., seeds - 1) for a number, the seeds themselves for a list."""
    if type(seeds) is int:
        require(seeds >= 1, f"seeds must be at least 1, got {seeds}")
        return tuple(range(seeds))
    seeds = tuple(seeds) if isinstance(seeds, list | tuple | range) else (seeds,)
    good = seeds and all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    known = "a number or a list of whole numbers from 0 to 2^63 - 1"
    require(good, f"seeds must be {known}, got {seeds!r}")
    require(len(set(seeds)) == len(seeds), f"seeds must differ, got {seeds!r}")
    return seeds


def prepare(folder):
    """Make a folder for output, or say in one line why it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        require(False, f"cannot write to {folder}: {error.strerror}")
