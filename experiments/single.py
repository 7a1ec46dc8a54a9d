"""One run of a comparison, from its config to its record."""

import time
import traceback

import torch

import guides
from experiments import records
from experiments.measure.measures import measure
from experiments.svi import device as devices
from experiments.svi.fit import fit_seed

TRACE_POINTS = 200


def run(config, problem, folder, report=None):
    """Fit and measure; the record says what came of it, a failure included."""
    started = time.perf_counter()
    device = torch.device(config.device)
    devices.reset_peak_memory(device)
    record = identity(config)
    try:
        guide = guides.build(config.guide, problem, **config.guide_options)
        fitted = fit_seed(
            problem, guide, config.fit, config.seed, device, folder / config.label, True, report
        )
        record |= {"status": "ok", "measures": _measure(problem, fitted, config)}
        record |= {"trace": trace(fitted), "cost": cost(fitted, device, started)}
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        record |= {"status": "failed", "error": f"{type(error).__name__}: {reason}"}
        record["traceback"] = traceback.format_exc()
    return record


def identity(config):
    """What a record says of a run before it ran."""
    return {
        "run": f"{config.label}-{config.seed}",
        "label": config.label,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "environment": records.environment(devices.name(torch.device(config.device))),
    }


def _measure(problem, fitted, config):
    """The measures of a finished run under its own parameters."""
    data = problem.data.to(fitted.data.device)
    problem = problem.having(model=fitted.modules["model"], data=data)
    return measure(problem, fitted.modules["guide"], config.measure).record()


def trace(fitted):
    """The bound during training as means over at most 200 stretches of steps."""
    losses, seconds = torch.tensor(fitted.losses), torch.tensor(fitted.seconds)
    length = -(-len(losses) // TRACE_POINTS)
    return {
        "step": [min(i + length, len(losses)) for i in range(0, len(losses), length)],
        "elbo_per_datum": [-part.mean().item() for part in losses.split(length)],
        "seconds": [part[-1].item() for part in seconds.split(length)],
    }


def cost(fitted, device, started):
    """Seconds of training and of everything, steps, and memory."""
    training = fitted.seconds[-1]
    return {
        "seconds": training,
        "seconds_with_measures": time.perf_counter() - started,
        "steps": fitted.step,
        "steps_per_second": fitted.step / training,
        **devices.peak_memory(device),
    }
