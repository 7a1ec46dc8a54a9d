"""Reference draws: long runs of NUTS that meet written criteria, kept with how they were made.

`python -m experiments.measure.reference eight_schools` makes them, `load("eight_schools")` gives
them.  A run that misses a criterion is not kept.  The draws stand in NAME.safetensors; NAME.json
beside it holds the method, its arguments, the diagnostics of every quantity, the criteria as named
booleans, and the command.
Source: Magnusson et al., posteriordb (the criteria); Vehtari et al. 2021, Rank-normalization,
    folding, and localization (R-hat); Betancourt 2016, Diagnosing suboptimal cotangent
    disintegrations (E-FMI).
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from pyro.ops.stats import autocorrelation, effective_sample_size, split_gelman_rubin
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save

import zoo
from experiments import records
from experiments.measure.nuts import Chains, sample
from experiments.svi import device as devices
from experiments.svi.checkpoint import write_bytes
from experiments.svi.fit import prepare
from zoo import eight_schools
from zoo.errors import ZooError, require, unknown

FOLDER = Path(zoo.__file__).parent / "references"
MIN_DRAWS = 10_000
MAX_RHAT = 1.01
MAX_LAG1 = 0.05
MIN_EFMI = 0.2


@dataclass(frozen=True)
class Recipe:
    """How a problem's reference is made: the form that NUTS runs on, and what is kept of it.

    quantities(**latents) -> {name: (chains, draws, ...)}; arguments: those of `nuts.sample`.
    """

    options: dict
    quantities: Callable
    arguments: dict


RECIPES = {
    "eight_schools": Recipe(
        {"parametrization": "non_centered"},
        eight_schools.effects,
        {"num_draws": MIN_DRAWS, "num_chains": 4, "warmup": 1000, "thin": 3, "seed": 0}
        | {"target_accept_prob": 0.95, "jit": True},
    )
}


def scalars(draws):
    """{"name[i]": (chains, draws)} of {name: (chains, draws, ...)}."""
    found = {}
    for name, values in draws.items():
        for place in product(*map(range, values.shape[2:])):
            label = f"[{', '.join(map(str, place))}]" if place else ""
            found[name + label] = values[(..., *place)].double()
    return found


def rank_rhat(values):
    """R-hat of (chains, draws): the larger of those of the ranks and of the folded ranks.

    Source: Vehtari et al. 2021, section 4.
    """
    folded = (values - values.median()).abs()
    return max(
        split_gelman_rubin(_normal_scores(v), chain_dim=0, sample_dim=1).item()
        for v in (values, folded)
    )


def _normal_scores(values):
    """Normal quantiles of the ranks among all chains: (chains, draws)."""
    ranks = values.flatten().argsort().argsort().reshape(values.shape) + 1.0
    return torch.special.ndtri((ranks - 3 / 8) / (values.numel() + 1 / 4))


def efmi(energy):
    """E-FMI of each chain: mean squared change of the energy over its variance; (chains,)."""
    centered = energy.double() - energy.double().mean(1, keepdim=True)
    return centered.diff().square().sum(1) / centered.square().sum(1)


def diagnostics(chains):
    """{quantity: {mean, sd, ess, rhat, lag1}}; lag1 is the autocorrelation, mean over chains."""
    return {
        name: {
            "mean": values.mean().item(),
            "sd": values.std().item(),
            "ess": effective_sample_size(values, chain_dim=0, sample_dim=1).item(),
            "rhat": rank_rhat(values),
            "lag1": autocorrelation(values, dim=1)[:, 1].mean().item(),
        }
        for name, values in scalars(chains.draws).items()
    }


def criteria(chains):
    """The criteria of truth level T3: {what is asked: whether it holds}."""
    found = diagnostics(chains).values()
    return {
        f"at least {MIN_DRAWS} draws": chains.num_draws >= MIN_DRAWS,
        f"R-hat below {MAX_RHAT}": all(d["rhat"] < MAX_RHAT for d in found),
        f"abs(lag-1 autocorrelation) below {MAX_LAG1}": all(
            abs(d["lag1"]) < MAX_LAG1 for d in found
        ),
        f"E-FMI above {MIN_EFMI}": bool((efmi(chains.energy) > MIN_EFMI).all()),
        "no divergences": bool((chains.divergences == 0).all()),
    }


def make(name, folder=FOLDER):
    """Run a problem's recipe, and write its reference to the folder.

    Raises ZooError for a problem without a recipe, or where the run misses a criterion.
    """
    if name not in RECIPES:
        raise unknown("reference", name, RECIPES)
    recipe = RECIPES[name]
    problem = zoo.load(name, **recipe.options)
    prepare(Path(folder))
    started = time.perf_counter()
    chains = sample(problem, **recipe.arguments)
    seconds = time.perf_counter() - started
    kept = Chains(recipe.quantities(**chains.draws), chains.energy, chains.divergences)
    facts = {
        "problem": problem.identity,
        "method": "NUTS of Pyro, diagonal mass matrix and step size adapted, float64",
        "arguments": recipe.arguments,
        "seconds": seconds,
        "environment": records.environment(devices.name(problem.data.train.device))
        | {"command": f"python -m experiments.measure.reference {name}"},
    }
    return write(kept, Path(folder), name, facts)


def write(chains, folder, name, facts):
    """Write chains and facts as a reference; returns what the JSON holds.

    Raises ZooError, and writes nothing, where a criterion is missed.
    """
    met = criteria(chains)
    missed = [what for what, holds in met.items() if not holds]
    require(not missed, f"the run is no reference; it misses: {', '.join(missed)}")
    tensors = {f"draws.{k}": v.float().contiguous() for k, v in chains.draws.items()}
    tensors |= {"energy": chains.energy.float(), "divergences": chains.divergences}
    content = save(tensors)
    facts = facts | {
        "criteria": met,
        "diagnostics": diagnostics(chains),
        "efmi": efmi(chains.energy).tolist(),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_bytes(folder / f"{name}.safetensors", content)
    write_bytes(folder / f"{name}.json", (json.dumps(facts, indent=1) + "\n").encode())
    return facts


def load(name, folder=FOLDER):
    """(chains, facts) of a reference.

    Raises ZooError where there is none, or its two files do not belong together.
    """
    folder = Path(folder)
    known = sorted(path.stem for path in folder.glob("*.json"))
    if name not in known:
        raise unknown("reference", name, known)
    try:
        facts = json.loads((folder / f"{name}.json").read_text())
        content = (folder / f"{name}.safetensors").read_bytes()
        same = hashlib.sha256(content).hexdigest() == facts["sha256"]
        require(same, f"{folder / name}.safetensors is not the file that {name}.json describes")
        tensors = load_tensors(content)
        draws = {k.removeprefix("draws."): v for k, v in tensors.items() if k.startswith("draws.")}
        return Chains(draws, tensors["energy"], tensors["divergences"]), facts
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ZooError(f"{folder / name} is no reference, or damaged: {error}") from error


def main(arguments):
    """`python -m experiments.measure.reference NAME [FOLDER]`."""
    try:
        require(
            len(arguments) in (1, 2),
            f"expected a name and perhaps a folder; names: {', '.join(sorted(RECIPES))}",
        )
        facts = make(*arguments)
    except ZooError as error:
        print(f"zoo: {error}", file=sys.stderr)
        return 2
    print(json.dumps({k: facts[k] for k in ("criteria", "seconds", "efmi")}, indent=1))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
