"""The marginal of k binary latents is a sum of 2^k terms: where does it stop being possible?

    log p(x) = log sum_z p(z) p(x given z),  z in {0, 1}^k
has no shorter form where the latents meet in the likelihood, as the switches of a Bernoulli latent
variable model do: it is taken for k from few to many, and timed.  Taken in one piece it needs a
table of n 2^k numbers for n rows; in blocks its memory need not grow, its time does all the same.

SVI never takes the sum: a step draws a few vectors z of q(z given x), whose k logits an encoder
computes, and its bound, the ELBO, is below log p(x) by KL(q, p(z given x)).  Its steps are timed,
eagerly and one at a time, and their memory counted, at the same k and beyond it.

slope  of log2 seconds against k by least squares, 1 where every latent doubles them; from k = 12
       on, where a sum is a full block of the zoo's or several, since before it fixed costs count
far    the seconds at a k that nobody waits for, by that line; its interval is that of a new
       observation, if the line goes on and errors of log2 seconds are independent and normal
       (Draper & Smith 1998, section 3.1)
The replicates are repetitions, by turns, for times; for the bound seeds, each with its own model.
Source: Blei, Kucukelbir & McAuliffe 2017, Variational inference: a review for statisticians,
    section 2.1; Neal 1992, Connectionist learning of belief networks, for the model; Dong, Mnih &
    Tucker 2020, DisARM, for the gradient.
"""

import statistics
from typing import Annotated

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from scipy import stats

import experiments
import guides
import zoo
from experiments import studies
from experiments.measure.cost import memory_of_training, peak_bytes
from experiments.measure.elbo import log_weights
from experiments.report.page import Cell, Table
from experiments.studies.parts.cells import number, over_seeds
from experiments.studies.parts.claims import LEVEL, Claim, above, mean_se, near
from experiments.studies.study import Study
from experiments.svi.config import Distinct, FitConfig, Settings
from experiments.svi.device import now
from experiments.svi.estimators import resolve
from experiments.svi.run import Run
from zoo import enumeration
from zoo.distributions import all_vectors
from zoo.errors import require

MODEL, GUIDE, ESTIMATOR = "bernoulli_lvm", "amortized", "disarm"
WARM = 10  # steps of a timed fit that do not count
ENOUGH, MOST = 0.2, 20  # seconds, and sums, after which a repetition times no further ones
SLOPE_MARGIN, FLAT_MARGIN = 0.15, 0.02  # doublings a latent by which a slope may be off 1, or 0
GROWN = 1.5  # times the memory of one block, or of a step with few latents, that may be taken
SURE = 1 - 2 * LEVEL  # of the interval at the far end: either end is off LEVEL of the time
FLOAT, MIB = 4, 2**20  # bytes
TIMES = {"years": 31_557_600, "days": 86_400, "hours": 3600, "minutes": 60, "s": 1, "ms": 0.001}
SIZES = {"TiB": 2**40, "GiB": 2**30, "MiB": MIB, "KiB": 2**10}
Latents = Annotated[int, Field(ge=1, le=24)]


class Own(Settings):
    """Settings: which numbers of latents, how many rows, and what is spent on SVI."""

    latents: Distinct[Latents] = tuple(range(2, 21))
    """Numbers of latents of the exact sums."""
    rows: int = Field(100, ge=1)
    """Held-out rows of a timed sum."""
    one_piece: int = Field(18, ge=1, le=20)
    """Largest number of latents for which the sum is also taken in one piece."""
    repetitions: int = Field(10, ge=2)
    far: int = Field(32, ge=2)
    """A number of latents whose sum nobody takes."""
    timed: Distinct[Annotated[int, Field(ge=1)]] = Field((*range(2, 21), 26, 32), min_length=2)
    """Numbers of latents at which steps of SVI are taken."""
    timed_steps: int = Field(200, ge=2 * WARM)
    fitted: Distinct[Annotated[int, Field(ge=1)]] = (4, 8, 12, 16, 32)
    """Numbers of latents of the models that are trained; log p(x) is exact where `latents` go."""
    seeds: int = Field(5, ge=2)
    steps: int = Field(3000, ge=1)
    draws: int = Field(1000, ge=2)
    """Draws of q for the ELBO of a held-out row."""


QUICK = {
    "latents": (4, 8, 13, 15, 17, 18),
    "rows": 50,
    "one_piece": 15,
    "timed": (2, 32),
    "timed_steps": 60,
    "fitted": (4, 8, 12),
    "seeds": 4,
    "steps": 300,
    "draws": 200,
}


def measure(settings, device):
    """Rows of "sums", "steps", "memory" and "bounds", with the settings that they hang on."""
    settled = [k for k in settings.latents if k >= enumeration.SETTLED]
    require(
        len(settled) >= 3, f"latents must name at least 3 numbers from {enumeration.SETTLED} on"
    )
    rows = zoo.load(MODEL).data.test[: settings.rows].to(device)
    models = {k: zoo.load(MODEL, latent_dim=k).model.to(device) for k in settings.latents}
    sums, steps = [], []
    for turn in range(settings.repetitions):
        for k, model in models.items():
            found = seconds_of_sum(model, rows)
            sums.append({"latents": k, "repetition": turn, "seconds": found})
        for k in settings.timed:
            found = seconds_of_step(k, settings.timed_steps, device)
            steps.append({"latents": k, "repetition": turn, "seconds": found})
    return {
        "sums": sums,
        "steps": steps,
        "memory": [memory(model, rows, settings.one_piece) for model in models.values()],
        "steps_memory": [{"latents": k, "step": memory_of_step(k, device)} for k in settings.timed],
        "bounds": [row for k in settings.fitted for row in bounds(k, settings, device)],
        "rows": len(rows),
        "spent": settings.steps,
        "far": settings.far,
    }


@torch.no_grad()
def blocks(model, x):
    """log p(x) of every row by the zoo's sum in blocks, (n,) nats; x (n, d)."""
    length = len(model.prior_logits)
    return enumeration.log_evidence(
        lambda x, z: zoo.bernoulli_lvm.cross_log_joint(model, x, z), x, length
    )


@torch.no_grad()
def one_piece(model, x):
    """The same by a table of all rows and vectors, (n, 2^k)."""
    states = all_vectors(len(model.prior_logits), like=x)
    return zoo.bernoulli_lvm.cross_log_joint(model, x, states).logsumexp(-1)


def seconds_of_sum(model, rows):
    """Seconds of the sum for all rows; of short sums the median of several."""
    found = []
    while sum(found) < ENOUGH and len(found) < MOST:
        started = now(rows.device)
        blocks(model, rows)
        found.append(now(rows.device) - started)
    return statistics.median(found)


def seconds_of_step(latents, steps, device):
    """Seconds of one step of SVI, the median of so many of a new fit but for the first few."""
    problem = zoo.load(MODEL, latent_dim=latents)
    guide = guides.build(GUIDE, problem)
    options = {"estimator": ESTIMATOR, "engine": "eager"}
    (seconds,) = experiments.fit(problem, guide, steps=steps, device=device, **options).seconds
    return seconds.double().diff()[WARM:].median().item()


def memory(model, rows, most):
    """Bytes that the sum takes at a time, in blocks and, up to `most` latents, in one piece."""
    latents = len(model.prior_logits)
    found = {"latents": latents, "blocks": peak_bytes(lambda: blocks(model, rows), rows)}
    found["table"] = len(rows) * 2**latents * rows.element_size()
    whole = latents <= most
    found["one_piece"] = peak_bytes(lambda: one_piece(model, rows), rows) if whole else None
    return found


def memory_of_step(latents, device):
    """Bytes that a step of SVI takes at a time, beyond parameters and what Adam keeps of them."""
    problem = zoo.load(MODEL, latent_dim=latents)
    config = resolve(FitConfig(estimator=ESTIMATOR, engine="eager"), problem)
    run = Run.start(problem, guides.build(GUIDE, problem), config, 0, device)
    return memory_of_training(run, problem)["step_bytes"]


def bounds(latents, settings, device):
    """Held-out ELBO and exact log p(x) of trained models, nats a datum: a row for each seed."""
    problem = zoo.load(MODEL, latent_dim=latents)
    fit = experiments.fit(
        problem, guides.build(GUIDE, problem), steps=settings.steps, seeds=settings.seeds,
        device=device, estimator=ESTIMATOR,
    )  # fmt: skip
    exact = latents <= max(settings.latents)
    return [
        {"latents": latents, "seed": seed} | bound(own, guide, exact, settings.draws)
        for seed, own, guide in zip(fit.seeds, fit.problems, fit.guides, strict=True)
    ]


def bound(problem, guide, exact, draws):
    """Held-out ELBO, log p(x) and their gap, nats a datum; of the last two None unless `exact`."""
    x = problem.data.test
    elbo = log_weights(problem, guide, x, draws).mean().item()
    evidence = blocks(problem.model, x).mean().item() if exact else None
    return {"elbo": elbo, "log_evidence": evidence, "gap": evidence - elbo if exact else None}


def _by_latents(rows, key):
    """{latents: values of that key, in order}, without those that are not there."""
    found = {}
    for row in rows:
        if row[key] is not None:
            found.setdefault(row["latents"], []).append(row[key])
    return found


def _settled(values):
    return {k: value for k, value in values.items() if k >= enumeration.SETTLED}


def slopes(seconds):
    """Of log2 seconds against latents, one a repetition; seconds: {latents: (repetitions,)}."""
    return np.polyfit(list(seconds), np.log2(list(seconds.values())), 1)[0]


def extrapolated(seconds, latents):
    """(seconds at so many latents, lower end, upper end) by a line through log2 of the medians."""
    x = np.array(list(seconds))
    y = np.log2([statistics.median(values) for values in seconds.values()])
    line, n = np.polyfit(x, y, 1), len(x)
    spread = np.sqrt(np.square(y - np.polyval(line, x)).sum() / (n - 2))
    off = np.square(latents - x.mean()) / np.square(x - x.mean()).sum()
    reach = stats.t.ppf((1 + SURE) / 2, n - 2) * spread * np.sqrt(1 + 1 / n + off)
    return tuple(2 ** (np.polyval(line, latents) + side * reach) for side in (0, -1, 1))


def claims(results):
    """What the texts say of the sum and of the way round it."""
    seconds = _settled(_by_latents(results["sums"], "seconds"))
    steps = _by_latents(results["steps"], "seconds")
    found = [
        near(
            f"from {min(seconds)} latents on every further one doubles the seconds of the exact "
            "sum (slope of log2 seconds)",
            slopes(seconds), 1, SLOPE_MARGIN, of="repetitions",
        ),
        near(
            f"from {min(steps)} to {max(steps)} latents an eager step of SVI takes less than "
            f"{2 ** (FLAT_MARGIN * (max(steps) - min(steps))):.1f} times as long (slope of log2 "
            "seconds)",
            slopes(steps), 0, FLAT_MARGIN, of="repetitions",
        ),
        _too_long(results, seconds, steps),
        *_of_memory(results),
    ]  # fmt: skip
    gaps = list(_by_latents(results["bounds"], "gap").values())
    if gaps:
        sentence = "the ELBO is below the exact log p(x) at every number of latents (smallest gap)"
        found.append(above(sentence, np.min(gaps, 0), " nats a held-out datum"))
    return found


def _too_long(results, seconds, steps):
    """The claim that one sum is out of reach where a whole fit is not."""
    far, spent = results["far"], results["spent"]
    middle, low, high = extrapolated(seconds, far)
    whole = spent * statistics.median(steps[max(steps)])
    return Claim(
        f"one exact sum of {far} latents for {results['rows']} rows takes longer than a whole fit "
        f"of {spent:,} steps by SVI with {max(steps)}",
        f"{in_words(middle, TIMES)} ({SURE:.0%} interval {in_words(low, TIMES)} to "
        f"{in_words(high, TIMES)}) by extrapolation against {in_words(whole, TIMES)}",
        bool(low > whole),
    )


def _of_memory(results):
    """The claims on memory, which is the same at every repetition."""
    whole, parts = (
        _settled({k: v for k, (v,) in _by_latents(results["memory"], key).items()})
        for key in ("one_piece", "blocks")
    )
    table = {row["latents"]: row["table"] for row in results["memory"]}
    largest = max(parts)
    yield Claim(
        "in blocks the exact sum needs no more memory for many latents than for one block's "
        f"{enumeration.SETTLED}",
        f"{in_words(parts[largest], SIZES)} at {largest} latents, "
        f"{in_words(parts[min(parts)], SIZES)} at {min(parts)}",
        max(parts.values()) <= GROWN * parts[min(parts)],
        texts=False,
    )
    steps = {k: v for k, (v,) in _by_latents(results["steps_memory"], "step").items()}
    fewest, most = min(steps), max(steps)
    yield Claim(
        f"a step of SVI with {most} latents takes less than {GROWN:g} times the memory of one with "
        f"{fewest}",
        f"{in_words(steps[most], SIZES)} against {in_words(steps[fewest], SIZES)}",
        steps[most] < GROWN * steps[fewest],
    )
    if len(whole) > 1:
        slope = np.polyfit(list(whole), np.log2(list(whole.values())), 1)[0]
        least = min(whole[k] / table[k] for k in whole)
        yield Claim(
            "in one piece every latent doubles its memory (slope of log2 bytes)",
            f"{slope:.3f}, at least {least:.1f} times a table of rows by states",
            bool(abs(slope - 1) <= SLOPE_MARGIN),
        )


def in_words(value, units):
    """A number in the largest of the units of which there is at least one."""
    unit, size = next((pair for pair in units.items() if value >= pair[1]), [*units.items()][-1])
    return f"{value / size:.3g} {unit}"


def _cell(value, units):
    return number(None) if value is None else Cell(in_words(value, units), value)


def tables(results):
    """What the sum takes, what SVI takes, and how far its bound is."""
    return [_costs(results), _bounds(results)]


def _costs(results):
    seconds, steps = (_by_latents(results[part], "seconds") for part in ("sums", "steps"))
    far, memory = results["far"], {row["latents"]: row for row in results["memory"]}
    kept = {row["latents"]: row["step"] for row in results["steps_memory"]}
    lines = []
    for k in sorted({*seconds, *steps, far}):
        exact = _cell(statistics.median(seconds[k]) if k in seconds else None, TIMES)
        if k == far and k not in seconds:
            middle, *ends = extrapolated(_settled(seconds), far)
            low, high = (in_words(end, TIMES) for end in ends)
            exact = Cell(f"{in_words(middle, TIMES)} [{low}, {high}], extrapolated", middle)
        held = memory.get(k, {"table": FLOAT * results["rows"] * 2**k})
        sizes = [_cell(held.get(key), SIZES) for key in ("table", "one_piece", "blocks")]
        step = _cell(statistics.median(steps[k]) if k in steps else None, TIMES)
        terms, its_memory = Cell(f"{2**k:,}", 2**k), _cell(kept.get(k), SIZES)
        lines.append([Cell(f"{k}", k), terms, exact, *sizes, step, its_memory])
    caption = (
        f"exact sum: of log p(x) of {results['rows']} rows in blocks, medians over repetitions; "
        f"extrapolated: by the line through log2 of those from {enumeration.SETTLED} latents on, "
        f"with its {SURE:.0%} interval. table: rows times states, {FLOAT} bytes each; in one "
        "piece, in blocks: memory that the sum takes at a time, by count. step: of SVI, 128 "
        "rows, eagerly, medians over repetitions, by the wall clock; sums by that of the thread; "
        "its memory: by count, beyond parameters and what Adam keeps of them. –: not taken."
    )
    head = ["latents", "terms a row", "exact sum", "table", "in one piece", "in blocks", "step",
            "its memory"]  # fmt: skip
    return Table("What an exact log p(x) takes", head, lines, caption)


def _bounds(results):
    columns = [_by_latents(results["bounds"], key) for key in ("log_evidence", "elbo", "gap")]
    lines = []
    for k in columns[1]:
        cells = [over_seeds(own[k]) if k in own else number(None) for own in columns]
        lines.append([Cell(f"{k}", k), *cells])
    caption = (
        f"Nats a held-out datum after {results['spent']:,} steps of SVI with {ESTIMATOR}; ± is the "
        "standard error over seeds. –: too many terms to sum."
    )
    head = ["latents", "log p(x)", "ELBO", "gap"]
    return Table("The bound against the exact sum", head, lines, caption)


def draw(results):
    """Seconds, memory, and the bound with what it bounds, against the number of latents."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_seconds(left, results)
    _draw_memory(middle, results)
    for key, color, label in (
        ("log_evidence", "black", "log p(x), exact"),
        ("elbo", "#0072b2", "ELBO"),
    ):
        found = _by_latents(results["bounds"], key)
        means, errors = zip(*map(mean_se, found.values()), strict=True) if found else ((), ())
        right.errorbar(list(found), means, errors, color=color, fmt="o-", ms=3, label=label)
    right.set(xlabel="latents", title="held-out nats a datum, ± se over seeds")
    right.legend()
    return figure


def _draw_seconds(axis, results):
    seconds, steps = (_by_latents(results[part], "seconds") for part in ("sums", "steps"))
    medians = [statistics.median(values) for values in seconds.values()]
    axis.plot(list(seconds), medians, "o-", color="black", ms=3, label="exact sum")
    ahead = np.linspace(max(seconds), max(results["far"], max(seconds)))
    line, low, high = zip(*(extrapolated(_settled(seconds), k) for k in ahead), strict=True)
    axis.plot(ahead, line, "--", color="black", label="extrapolated")
    axis.fill_between(ahead, low, high, color="black", alpha=0.15, linewidth=0)
    whole = [results["spent"] * statistics.median(values) for values in steps.values()]
    label = f"{results['spent']:,} steps of SVI"
    axis.plot(list(steps), whole, "o-", color="#0072b2", ms=3, label=label)
    axis.set(yscale="log", xlabel="latents", title="seconds")
    axis.legend()


def _draw_memory(axis, results):
    for key, color, label in (
        ("one_piece", "#d55e00", "sum in one piece"),
        ("blocks", "black", "sum in blocks"),
    ):
        found = _by_latents(results["memory"], key)
        sizes = [size / MIB for (size,) in found.values()]
        axis.plot(list(found), sizes, "o-", color=color, ms=3, label=label)
    steps = {row["latents"]: row["step"] / MIB for row in results["steps_memory"]}
    axis.plot(list(steps), list(steps.values()), "o-", color="#0072b2", ms=3, label="step of SVI")
    k = np.arange(min(row["latents"] for row in results["memory"]), results["far"] + 1)
    table = FLOAT * results["rows"] * 2.0**k / MIB
    axis.plot(k, table, "--", color="#d55e00", label="table of rows by states")
    axis.set(yscale="log", xlabel="latents", title="MiB at a time")
    axis.legend()


@studies.register
def build():
    """The study."""
    return Study(
        question="The marginal of k binary latents is a sum of 2^k terms: where does it stop?",
        answers=("every further one doubles the seconds", "one exact sum of"),
        settings=Own,
        quick=QUICK,
        measure=measure,
        claims=claims,
        tables=tables,
        draw=draw,
        figure="Seconds and memory of the exact sum against the number of binary latents, "
        "and the ELBO against the exact log p(x)",
        reading={
            "exact sum": "Time of log p(x) of all rows: twice as long for every latent more.",
            "in blocks": "Memory of a sum that forgets each block: bounded, while its time is not.",
            "step": "Of SVI, a gradient of the bound from draws: k logits a row, not 2^k terms.",
            "gap": "log p(x) - ELBO = KL(q, posterior): what the way round the sum loses.",
        },
    )
