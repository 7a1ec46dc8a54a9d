"""What the numbers of the tables are, in words."""

from experiments.report.columns import DIAGNOSTICS, NLL_BY, READING, get, guide_of, model_of

SPLIT = "amortization_gap_per_datum"


def bounds_caption(records):
    """What the numbers of the first table are, and how they came about."""
    done = [r for r in records if r["status"] == "ok"]
    errors = [get(r, ("measures", "gaps", "evidence_error_max")) for r in done]
    joint = sorted({model_of(r) for r in done if "held_out" not in r["measures"]})
    shared = (
        f"The rows of {', '.join(joint)} share a latent: evidence and gaps there are those of the "
        "data fitted to, and so is the amortization gap of a table. "
        if joint
        else ""
    )
    error = max((e for e in errors if e is not None), default=None)
    stated = "" if error is None else f"Largest stated error of an evidence: {error:.4f}. "
    return (
        "Nats a datum; log evidence and gaps on held-out data under each fit's own parameters; "
        "± is the standard error over seeds. total gap = log evidence − ELBO = approximation gap "
        f"+ amortization gap. training gap: {READING['training gap']}. A table has no answer for "
        "new data, so its held-out rows are fitted and its amortization gap is 0 by definition. "
        f"{shared}{stated}{_interval_words(records)}{_unsplit_words(records)}"
        f"{_search_words(done)}{training_words(records)}"
    )


def training_words(records):
    """How the runs were trained, and on what."""
    first = records[0]
    done = [r for r in records if r["status"] == "ok"]
    estimators = sorted({r["config"]["fit"]["estimator"] for r in records})
    by_steps = [r for r in done if r["config"]["fit"]["estimator"] != "closed_form"]
    steps = ", ".join(f"{n:,}" for n in sorted({r["cost"]["steps"] for r in by_steps})) or "none"
    words = f"Steps of SVI a run: {steps}"
    engines = sorted({r["cost"].get("engine", "eager") for r in done})
    compiling = max((r["cost"].get("compile_seconds", 0.0) for r in done), default=0.0)
    extra = (
        f", beside recording and compilation of up to {compiling:.0f} s a program"
        if compiling
        else ""
    )
    return (
        f"{words}; seconds are {READING['seconds']}{extra}. "
        f"Engines: {', '.join(engines)}. Estimators: {', '.join(estimators)}. "
        f"{_objective_words(records)}"
        f"Device: {first['environment']['device']} ({first['config']['device']})."
    )


def costs_caption(records):
    """What the numbers of the table of costs are, and which guides are not in it."""
    done = [r for r in records if r["status"] == "ok"]
    passes = {get(r, ("cost", "new_data")) for r in done if _answers(r) == "pass"}
    batch = ", ".join(f"{n:,}" for n in sorted(passes)) or "no"
    steps = max((get(r, ("measures", "gaps", "row_steps")) or 0 for r in done), default=0)
    threads = ", ".join(str(n) for n in sorted({r["environment"]["threads"] for r in records}))
    return (
        f"shortfall: {READING['shortfall']}; a model's guides stand in its order. log evidence, "
        "gaps, k, coverage and ranks: as below. ± is the standard error over seeds, which are "
        "paired in the shortfall. seconds: of training, a program's shared by its seeds. µs per "
        f"new datum: {READING['µs per new datum']}; by one pass of the guide with one draw, in "
        f"Pyro, for {batch} rows at once (median of several), or for guides with a row a datum "
        f"({_tables(done)}) by the search for it, {_restarts(records)}at most {steps:,} steps "
        f"a datum. MiB: {READING['MiB']}; "
        f"{_counted(records)}. Threads: {threads}. {unsuited_words(records)}"
    ).rstrip()


def _answers(record):
    return get(record, ("cost", "new_data_by"))


def _tables(done):
    return ", ".join(dict.fromkeys(guide_of(r) for r in done if _answers(r) == "search")) or "none"


def _restarts(records):
    count = records[0]["config"]["measure"]["restarts"]
    return f"with {count} restart{'s' if count > 1 else ''}, " if count else ""


def _counted(records):
    """Who counted the memory of a step."""
    by_gpu = records[0]["config"]["device"].startswith("cuda")
    return "by the allocator of the GPU" if by_gpu else "by the tensors that operators return"


def unsuited_words(records):
    """The guides that a suite of all suitable ones does not fit to a model, and why."""
    every, found = list(dict.fromkeys(map(model_of, records))), {}
    for record in records:
        for guide, why in record.get("unsuited", {}).items():
            models = found.setdefault(why.partition(";")[0], {}).setdefault(guide, [])
            models += [model_of(record)] * (model_of(record) not in models)
    parts = [f"{_of_models(guides, every)} ({why})" for why, guides in found.items()]
    return f"not suitable: {'; '.join(parts)}." if parts else ""


def _of_models(guides, every):
    """Guides with the models that they are not for, where it is not all of them."""
    return ", ".join(
        name if models == every else f"{name} for {', '.join(models)}"
        for name, models in guides.items()
    )


def _objective_words(records):
    """Which runs were trained by another objective than the plain ELBO, where there are some."""
    named = {r["label"]: _objective(r["config"]["fit"]) for r in records}
    others = [f"{label} by {words}" for label, words in sorted(named.items()) if words]
    if not others:
        return ""
    return (
        f"Objectives: the plain ELBO, but {'; '.join(others)}; every ELBO in the tables is the "
        "plain one. "
    )


def _objective(fit):
    """The objective of a run's settings in words, "" for the plain ELBO, as of older records."""
    name, count = fit.get("objective", "elbo"), fit.get("num_particles")
    words = {
        "iwae": f"iwae ({count} particles)",
        "dreg": f"iwae with doubly reparametrized gradients ({count} particles)",
        "renyi": f"Renyi's bound of order {fit.get('alpha', 0):g} ({count} particles)",
        "stl": "the ELBO sticking the landing",
    }
    if name != "elbo":
        return words[name]
    parts = [f"a KL part times {fit['beta']:g}"] if fit.get("beta", 1) != 1 else []
    if fit.get("annealing_steps"):
        parts.append(f"a KL part annealed over {fit['annealing_steps']:,} steps")
    if fit.get("free_bits"):
        parts.append(f"{fit['free_bits']:g} free nats a latent")
    return f"the ELBO with {' and '.join(parts)}" if parts else ""


def _search_words(records):
    """How the searches for the best of the family ended, where there were some."""
    latent = [r for r in records if r["config"]["guide"] != "empty"]
    searches = [get(r, ("measures", "gaps", "row_converged")) for r in latent]
    searches = [met for met in searches if met is not None]
    if not searches:
        return ""
    return (
        f"The searches for the best of the family met their rule in {sum(searches)} of "
        f"{len(searches)} runs. "
    )


def densities_caption(records):
    """What the numbers of the table of densities are."""
    draws = records[0]["config"]["measure"]["nll_draws"]
    weighted = (
        f"; but for ≤: there by importance weighting with {draws:,} draws, which is too high on "
        "average"
        if any(get(r, NLL_BY) == "importance" for r in records)
        else ""
    )
    return (
        f"parameters: {READING['parameters']}. test NLL: {READING['test NLL']}, by the exact "
        f"evidence{weighted}. ± over data: {READING['± over data']}; another ± is the standard "
        f"error over seeds. seconds for 100 draws: {READING['seconds for 100 draws']}. "
        f"{training_words(records)}"
    )


def _interval_words(records):
    """What an evidence in brackets is, where there is one."""
    if not any(get(r, ("measures", "gaps", "log_evidence_lower_per_datum")) for r in records):
        return ""
    counts = {get(r, ("measures", "gaps", "interval_rows")) for r in records} - {None}
    return (
        f"[a, b]: not known exactly; measured on {', '.join(map(str, sorted(counts)))} of these "
        "data, where a is a lower bound on average, by the better of importance weighting and "
        "annealing, and b adds the width that bidirectional Monte Carlo finds on data simulated "
        "from the fit, and two standard errors of it; the other columns are over all data. "
    )


def diagnostics_caption(records):
    """What the numbers of the second table are; – where a measure does not apply."""
    measure = records[0]["config"]["measure"]
    return (
        f"generalization gap: {READING['generalization gap']}. {_label_words(records)}"
        f"{_purity_words(records)}"
        "k: Pareto shape of log p − log q of "
        f"{measure['pareto_draws']:,} draws a datum; above 0.7 the guide cannot be mended by "
        "importance sampling; left out for discrete latents of few values, whose weights are "
        "bounded. 50 % and 90 % covers: how often the guide's central interval holds the latent "
        f"that made the datum, over {measure['simulations']:,} data simulated from the fit. ranks "
        f"refused: {READING['ranks refused']}."
        + "".join(f" {run} has no {name}: {why}." for run, name, why in _skipped(records))
    )


def _label_words(records):
    """What a label error is, where there is one."""
    if not any(get(r, DIAGNOSTICS["label error"]) is not None for r in records):
        return ""
    return f"label error: {READING['label error']}. "


def _unsplit_words(records):
    """Which guides have no rows a datum, where there are some."""
    gaps = {r["label"]: get(r, ("measures", "gaps")) or {} for r in records}
    labels = [n for n, found in gaps.items() if found and SPLIT not in found]
    if not labels:
        return ""
    if not records[0]["config"]["measure"].get("search", True):
        return "The best of the family was not searched for, so that no encoder's gap is split. "
    return f"{', '.join(labels)}: no parameters of q a datum, so that the gap is not split. "


def _purity_words(records):
    """What purity is, where there is one."""
    if all(get(r, DIAGNOSTICS["purity"]) is None for r in records):
        return ""
    return f"purity: {READING['purity']}. "


def _skipped(records):
    """(label, measure, reason) of what was skipped, once a label."""
    found = {
        (r["label"], name): why
        for r in records
        for name, why in (get(r, ("measures", "skipped")) or {}).items()
    }
    return [(*key, why) for key, why in found.items()]
