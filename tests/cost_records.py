"""Records as a comparison with costs leaves them, with numbers that a test chooses."""

MEASURE = {
    "costs": True,
    "restarts": 1,
    "search": True,
    "pareto_draws": 500,
    "simulations": 200,
    "densities": False,
    "nll_draws": 10,
}


def record(model, guide, seed, elbo, evidence, **changed):
    """The record of a run whose ELBO and log evidence are these, nats a held-out datum."""
    facts = {"approximation": 0.0, "amortization": evidence - elbo, "width": None, "search": False}
    facts |= {"seconds_per_new_datum": 1e-6, "seconds": 3.0, "MiB": 1.0, "threads": 1}
    facts |= {"share": 0.05, "median": 0.3, "covers": 0.9, "refused": 0.0, "unsuited": {}}
    unknown = changed.keys() - facts.keys()
    assert not unknown, unknown
    facts |= changed
    calibration = {"coverage_50": 0.5, "coverage_90": facts["covers"], "refused": facts["refused"]}
    return {
        "run": f"{model}-{guide}-{seed}",
        "label": f"{model}-{guide}",
        "seed": seed,
        "status": "ok",
        "unsuited": facts["unsuited"],
        "config": {
            "model": "vae",
            "guide": guide,
            "seed": seed,
            "device": "cpu",
            "measure": MEASURE,
            "fit": {"estimator": "pathwise"},
        },
        "environment": {"threads": facts["threads"], "device": "a processor"},
        "measures": {
            "train": {"elbo_per_datum": elbo + 0.5},
            "held_out": {"elbo_per_datum": elbo, "generalization_gap_per_datum": 0.5},
            "gaps": _gaps(elbo, evidence, facts),
            "pareto": {"share": facts["share"], "median": facts["median"]},
            "calibration": calibration,
        },
        "trace": {"step": [1, 2], "elbo_per_datum": [-30.0, elbo], "seconds": [1.0, 2.0]},
        "cost": {
            "seconds": facts["seconds"],
            "steps": 1500,
            "engine": "recorded",
            "compile_seconds": 1.0,
            "seconds_per_new_datum": facts["seconds_per_new_datum"],
            "new_data": 450,
            "new_data_by": "search" if facts["search"] else "pass",
            "memory_bytes": facts["MiB"] * 2**20,
        },
    }


def _gaps(elbo, evidence, facts):
    found = {"elbo_per_datum": elbo, "row_steps": 120, "row_converged": True}
    found["amortization_gap_per_datum"] = facts["amortization"]
    if facts["width"] is None:
        ends = {"": 0.0}
    else:
        ends = {"_lower": 0.0, "_upper": facts["width"]}
        found |= {"interval_rows": 100, "interval_elbo_per_datum": elbo}
    for end, more in ends.items():
        found |= {
            f"log_evidence{end}_per_datum": evidence + more,
            f"total_gap{end}_per_datum": evidence + more - elbo,
            f"approximation_gap{end}_per_datum": facts["approximation"] + more,
        }
    return found


def seeds(model, guide, elbo, evidence, noise=0.0, count=5, **changed):
    """The records of a guide's seeds, whose ELBO and evidence move by `noise` about their means."""
    return [
        record(model, guide, s, elbo + noise * (s - 2), evidence + noise * (s - 2), **changed)
        for s in range(count)
    ]
