"""The runs of one model and guide in a comparison, from their configs to their records."""

import time
import traceback
from contextlib import suppress

import torch

import guides
from experiments import records
from experiments.measure.cost import memory_of_training
from experiments.measure.measures import measure
from experiments.saved import write_posterior
from experiments.svi import device as devices
from experiments.svi.fit import collect, fit_seeds

TRACE_POINTS = 200


def run(configs, problem, folder, report=None, skip=()):
    """Fit all seeds together, measure each, and write posterior.nc where none failed.

    Returns a record a run, which says so where it failed.

    configs: RunConfigs that differ in nothing but the seed.  skip: seeds that are recorded: they
    are fitted with the others, and neither measured nor in the list of records.
    """
    wanted = [each for each in configs if each.seed not in skip]
    config, device = configs[0], torch.device(configs[0].device)
    devices.reset_peak_memory(device)
    try:
        guide = guides.build(config.guide, problem, **config.guide_options)
        seeds = [each.seed for each in configs]
        place = folder / config.label
        runs = fit_seeds(problem, guide, config.fit, seeds, device, place, True, report)
        memory = devices.peak_memory(device)  # of training: the measures come after
    except Exception as error:
        return [identity(each) | failure(error) for each in wanted]
    fitted = dict(zip(seeds, runs, strict=True))
    found = [_measured(each, problem, fitted[each.seed], memory) for each in wanted]
    if not skip and all(record["status"] == "ok" for record in found):
        with suppress(Exception):  # records first: `compare` tries again, and says what fails
            write_posterior(collect(problem, config.fit, runs), place, config.measure.num_draws)
    return found


def _measured(config, problem, fitted, memory):
    """The record of a run that was trained, or could not be; memory: of training all seeds."""
    started = time.perf_counter()
    try:
        if fitted.error is not None:
            raise fitted.error
        found = _measure(problem, fitted, config)
        record = {"status": "ok", "measures": found.record(), "trace": trace(fitted)}
        record["cost"] = cost(fitted, started) | memory | found.cost
        if config.measure.costs:
            record["cost"] |= memory_of_training(fitted, problem)
    except Exception as error:
        record = failure(error)
    return identity(config) | record


def failure(error):
    """What a record says of a run that failed."""
    reason = str(error).splitlines()[0] if str(error) else ""
    lines = traceback.format_exception(error)
    return {
        "status": "failed",
        "error": f"{type(error).__name__}: {reason}",
        "traceback": "".join(lines),
    }


def identity(config):
    """What a record says of a run before it ran."""
    found = {
        "run": f"{config.label}-{config.seed}",
        "label": config.label,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "environment": records.environment(devices.name(torch.device(config.device))),
    }
    return found | ({"unsuited": config.unsuited} if config.unsuited else {})


def _measure(problem, fitted, config):
    """The measures of a finished run under its own parameters."""
    data = problem.data.to(fitted.data.device)
    problem = problem.having(model=fitted.modules["model"], data=data)
    return measure(problem, fitted.modules["guide"], config.measure)


def trace(fitted):
    """The bound during training as means over at most 200 stretches of steps."""
    losses, seconds = torch.tensor(fitted.losses), torch.tensor(fitted.seconds)
    length = -(-len(losses) // TRACE_POINTS)
    return {
        "step": [min(i + length, len(losses)) for i in range(0, len(losses), length)],
        "elbo_per_datum": [-part.mean().item() for part in losses.split(length)],
        "seconds": [part[-1].item() for part in seconds.split(length)],
    }


def cost(fitted, started):
    """Seconds of training, shared by seeds that were trained together, and of the measures."""
    training = fitted.seconds[-1]
    return {
        "seconds": training,
        "seconds_of_measures": time.perf_counter() - started,
        "steps": fitted.step,
        "steps_per_second": fitted.step / training,
        **fitted.engine,
    }
