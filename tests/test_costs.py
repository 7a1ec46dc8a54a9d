"""What guides cost: seconds for new data and memory, their table, their figure, the page."""

import itertools
import math
import random
import re
import time

import matplotlib as mpl
import pyro
import pytest
import torch
from cost_records import record, seeds
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn

import guides
import zoo
from experiments import records as files
from experiments.measure import cost, measures
from experiments.report import choice, draw_figures, readme, table
from experiments.report.columns import by_cost, rows
from experiments.report.costs import costs
from experiments.report.figures import STYLE
from experiments.report.findings import FINDINGS
from experiments.report.tradeoff import optimal
from experiments.report.verdict import verdicts
from experiments.settings import MeasureConfig
from experiments.svi.config import FitConfig, validated
from experiments.svi.estimators import resolve
from experiments.svi.fit import fit_seeds

FEW = {
    "num_draws": 4,
    "restarts": 0,
    "simulations": 0,
    "pareto_rows": 5,
    "pareto_draws": 100,
    "costs": True,
}
PAUSE = 0.05  # seconds


class Slow(nn.Module):
    """A guide that takes a pause whenever it is asked for a whole batch of new rows."""

    tabular = False

    def __init__(self, guide):
        super().__init__()
        self.guide, self.latents = guide, guide.latents

    def forward(self, x=None, index=None):
        if len(x) == cost.BATCH and not pyro.poutine.runtime.am_i_wrapped():
            time.sleep(PAUSE)
        return self.guide(x, index)


def new_data_costs(problem, guide):
    return measures.measure(problem, guide, MeasureConfig(**FEW)).cost


def test_a_guide_with_a_pause_costs_a_pause_more_a_pass(clock):
    problem = zoo.load("gaussian_lvm")
    guide = guides.build("amortized", problem)
    plain, slow = new_data_costs(problem, guide), new_data_costs(problem, Slow(guide))
    assert plain["new_data_by"] == slow["new_data_by"] == "pass"
    assert plain["new_data"] == 450
    more = 450 * (slow["seconds_per_new_datum"] - plain["seconds_per_new_datum"])
    assert more == pytest.approx(PAUSE)
    assert 450 * plain["seconds_per_new_datum"] == pytest.approx(clock)


@pytest.mark.usefixtures("clock")
def test_a_tables_new_data_cost_their_search(monkeypatch):
    problem = zoo.load("bernoulli_mixture")
    guide, search = guides.build("mean_field", problem), measures.own_and_best

    def slowly(*arguments):
        time.sleep(4 * PAUSE)
        return search(*arguments)

    plain = new_data_costs(problem, guide)
    monkeypatch.setattr(measures, "own_and_best", slowly)
    slow = new_data_costs(problem, guide)
    assert plain["new_data_by"] == "search"
    assert plain["new_data"] == len(problem.data.test)
    more = plain["new_data"] * (slow["seconds_per_new_datum"] - plain["seconds_per_new_datum"])
    assert more == pytest.approx(4 * PAUSE)


def test_costs_are_measured_where_they_are_asked_for_and_there_are_new_data():
    problem = zoo.load("gaussian_lvm")
    config = MeasureConfig(**FEW | {"costs": False})
    assert measures.measure(problem, guides.build("amortized", problem), config).cost == {}
    joint = zoo.load("eight_schools")
    assert new_data_costs(joint, guides.build("mean_field", joint)) == {}


def test_peak_of_a_program_whose_tensors_can_be_counted():
    x = torch.zeros(1024)  # 4096 bytes

    def program():
        a = x + 1
        b = a * 2  # 2 alive
        del a
        c = b.reshape(32, 32).t().contiguous()  # 2
        d = c.sum()  # and 4 bytes
        b.mul_(2)  # in place
        return [c.sin().cos(), d]  # b, c, sine, cosine and d

    assert cost.peak_bytes(program, x) == 4 * 4096 + 4
    parts = torch.tensor([[0, 1]]), torch.ones(2, 8)
    sparse = torch.sparse_coo_tensor(*parts, (100, 8), check_invariants=False)
    values = 4 * 2 * 8
    assert values <= cost.peak_bytes(lambda: sparse * 2, x) <= values + 8 * 2


def test_peak_holds_what_the_gradient_keeps():
    x, weight = torch.randn(30, 50), torch.randn(50, 40, requires_grad=True)

    def program():
        (x @ weight).tanh().sum().backward()

    activations, gradient = 4 * 30 * 40, 4 * 50 * 40
    peak = cost.peak_bytes(program, x)
    # tanh keeps what it returned, whose gradient stands beside that of the weight.
    assert activations + gradient <= peak <= 2 * activations + gradient + 100


@pytest.mark.gpu
def test_peak_on_a_gpu_is_the_allocators():
    x = torch.zeros(1024, device="cuda")
    assert cost.peak_bytes(lambda: (x + 1) * 2, x) == 2 * 4096


def memory(problem, name, batch_size=100, estimator="auto", **options):
    guide = guides.build(name, problem, **options)
    fit = {"steps": 3, "batch_size": batch_size, "estimator": estimator}
    config = resolve(validated(FitConfig, **fit), problem)
    (run,) = fit_seeds(problem, guide, config, [0], torch.device("cpu"))
    before = {name: value.clone() for name, value in run.modules.state_dict().items()}
    found = cost.memory_of_training(run, problem)
    assert all(torch.equal(value, before[n]) for n, value in run.modules.state_dict().items())
    assert found["memory_bytes"] == found["state_bytes"] + found["step_bytes"]
    return found


def test_state_is_parameters_and_two_moments_each():
    problem = zoo.load("gaussian_lvm")
    table_, shared = memory(problem, "mean_field"), memory(problem, "constant")
    # A row of 2 locations and 2 scales, in float32, three times: but for a step count or two.
    rows_ = 3 * 4 * 4 * (len(problem.data.train) - 1)
    assert abs(table_["state_bytes"] - shared["state_bytes"] - rows_) <= 16


def test_state_holds_what_an_estimator_learns():
    """Of NVIL a network from 64 pixels by 100 units to one number, three numbers each."""
    problem = zoo.load("bernoulli_lvm")
    alone, beside = (memory(problem, "amortized", estimator=e) for e in ("score", "nvil"))
    network = 3 * 4 * (64 * 100 + 100 + 100 + 1)
    assert 0 <= beside["state_bytes"] - alone["state_bytes"] - network < 1000
    for estimator in ("running_mean", "relax"):
        assert memory(problem, "amortized", estimator=estimator)["state_bytes"] > 0


def test_a_step_takes_memory_in_proportion_to_its_batch():
    problem = zoo.load("vae")
    few, some, many = (memory(problem, "amortized", n)["step_bytes"] for n in (100, 300, 500))
    assert (many - some) / (some - few) == pytest.approx(1, abs=0.1)
    assert (some - few) / 200 > 4 * (64 + 4 * 100)  # pixels and two layers of 100, both ways


def example(models=("m", "n"), device="cpu"):
    """Models with five guides whose order, costs and losses are known; the evidence of n is not."""
    table = {"search": True, "amortization": 0.0}
    slow = table | {"seconds_per_new_datum": 4e-4, "seconds": 7.0, "approximation": 0.1}
    fast = table | {"seconds_per_new_datum": 1e-4, "approximation": 0.04}
    encoder = {"amortization": 0.15, "approximation": 0.05}
    found = []
    for model in models:
        width = {"width": 0.05 if model == "n" else None}
        found += seeds(model, "oracle", -20.0, -20.0, seconds_per_new_datum=2e-5, **width)
        found += seeds(model, "amortized", -20.3, -20.1, 0.01, **encoder, **width)
        found += seeds(model, "mean_field", -20.2, -20.1, 0.02, **slow, **width)
        found += seeds(model, "full_rank", -20.21, -20.17, -0.02, **fast, **width)
        found += seeds(model, "constant", -24.0, -23.99, 0.01, MiB=0.5, refused=1.0, **width)
    for one in found:
        one["config"]["device"] = device
    return found


def test_rows_know_their_shortfall_seed_by_seed():
    found = {row["label"]: row for row in rows(example())}
    assert found["m-oracle"]["shortfall"] == (0.0, 0.0)
    mean, se = found["m-mean_field"]["shortfall"]
    assert mean == pytest.approx(0.2)
    assert se == pytest.approx(0.02 * (2.5 / 5) ** 0.5)  # of the seeds -2 ... 2
    assert found["n-mean_field"]["shortfall"] is None
    low, high = (found["n-mean_field"][f"shortfall {end}"][0] for end in ("lower", "upper"))
    assert high - low == pytest.approx(0.05)
    other = [one | {"config": one["config"] | {"measure": {}}} for one in example()]
    assert all(row["shortfall"] is None for row in rows(other))


def test_table_of_costs_is_in_order_and_in_its_units():
    found = example(["m"])
    assert [row["guide"] for row in by_cost(rows(found))] == [
        *("oracle", "mean_field", "full_rank", "amortized", "constant")
    ]
    text = table.markdown_table("Title", found)
    head, _, first, second = text.split("\n\n")[1].splitlines()[:4]
    names = [cell.strip() for cell in head.strip("|").split("|")]
    cells = dict(zip(names, (c.strip() for c in second.strip("|").split("|")), strict=True))
    assert first.startswith("| m | oracle | 0.000 ± 0.000 |")
    assert cells["guide"] == "mean_field"
    assert cells["shortfall"] == "0.200 ± 0.014"
    assert cells["µs per new datum"] == "400.0 ± 0.0"
    assert cells["MiB"] == "1.00"  # one graph for all seeds
    assert cells["seconds"] == "7.0"  # and one clock
    assert cells["k > 0.7"] == "5.0 ± 0.0 %"
    lines = [line.split(",") for line in table.csv_table(found).splitlines()]
    own = dict(zip(lines[0], lines[3], strict=True))
    assert own["guide"] == "mean_field"
    assert float(own["microseconds_per_new_datum"]) == pytest.approx(400)
    assert float(own["memory_MiB"]) == 1


def test_an_interval_stands_in_the_table_of_costs():
    text = table.markdown_table("Title", example(["n"]))
    (line,) = [one for one in text.split("\n\n")[1].splitlines() if "mean_field" in one]
    assert "| mean_field | [0.200, 0.250] | [-20.100, -20.050] | [0.100, 0.150] |" in line


def test_milliseconds_a_step_are_those_of_the_rate():
    found = example(["m"])
    assert "ms a step |" not in table.markdown_table("Title", found)
    for one in found:
        one["cost"] |= {"steps_per_second": 400.0, "seeds_together": 5}
    text = table.markdown_table("Title", found)
    (line,) = [one for one in text.split("\n\n")[1].splitlines() if "mean_field" in one]
    assert "| 7.0 | 2.50 | 400.0 ± 0.0 |" in line
    assert "of all seeds that a program trains at once, here 5." in text
    assert "2.5 ms a step (`mean_field` of `m`)" in choice.page({"cpu": found})


def test_caption_says_what_is_measured_and_what_is_left_out():
    found = example(["m", "n"])
    for one in found:
        one["unsuited"] = {"delta": "no log q; really", "top_down": "the suite leaves it out"}
        if one["label"].startswith("n-"):
            one["unsuited"]["flow"] = "no log q"
    text = table.markdown_table("Title", found)
    assert "not suitable: delta, flow for n (no log q); top_down (the suite leaves it out)." in text
    assert "for 450 rows at once" in text
    assert "(mean_field, full_rank) by the search for it, with 1 restart, at most 120 steps" in text
    assert "not suitable" not in table.markdown_table("Title", example())


REASONS = {
    "a latent is discrete": "flow does not suit latent 'z': it is discrete; amortized does",
    "none of its latents is a chain": "flow does not suit m_1: none of its latents (z) is a chain",
    "the model knows no exact posterior": "flow does not suit m, which knows no exact posterior "
    "(truth level T2: bounds; by sampling); take others",
    "it has no log q, so no bound": "guide 'flow' is a point: it has no log q, so no bound; see",
    "RuntimeError: no use": "guide 'flow' does not run beside m: RuntimeError: no use",
    "the suite leaves it out": "the suite leaves it out",
    "would be one distribution over 12 numbers, and takes at most 2": "flow would be one "
    "distribution over 12 numbers, and takes at most 2; take fewer data",
}


@pytest.mark.parametrize("said", REASONS)
def test_a_reason_is_said_without_names(said):
    assert table.reason("flow", REASONS[said]) == said


def test_guides_of_one_reason_stand_together():
    found = example(["m", "n"])
    for one in found:
        model = one["label"][0]
        one["unsuited"] = {
            name: f"{name} does not suit {model}: none of its latents (z_{model}) is a chain"
            for name in ("structured", "chained")
        }
    text = table.markdown_table("Title", found)
    assert "not suitable: structured and chained (none of its latents is a chain)." in text


def test_caption_says_what_the_error_of_coverage_leaves_out():
    """200 simulations: sqrt(0.5 0.5 / 200) and sqrt(0.9 0.1 / 200)."""
    text = table.markdown_table("Title", example(["m"]))
    assert "coverage is 3.5 % at 50 % and 2.1 % at 90 %." in text
    bare = example(["m"])
    for one in bare:
        del one["measures"]["calibration"]
    assert "binomial" not in table.markdown_table("Title", bare)


def test_optimal_points_are_those_that_none_beats():
    generator = random.Random(0)
    for _ in range(200):
        points = [(generator.randint(0, 5), generator.randint(0, 5)) for _ in range(6)]
        beaten = {
            i
            for i, j in itertools.permutations(range(6), 2)
            if points[j][0] <= points[i][0] and points[j][1] <= points[i][1]
            if points[j] != points[i] or j < i
        }
        best = optimal(points)
        assert set(best) == set(range(6)) - beaten
        assert [points[i][0] for i in best] == sorted(points[i][0] for i in best)


def crowd():
    """Many guides close together, as six panels have to show them."""
    generator, found = random.Random(3), []
    names = ["amortized", "amortized_flow", "flow", "full_rank", "laplace", "linear", "low_rank"]
    names += ["importance", "mean_field", "semi_amortized", "structured", "oracle"]
    for model in ("a", "b", "c", "d", "e", "f"):
        for name in names:
            lost, search = generator.choice([0.1, 0.12, 0.2, 0.5]), name in ("flow", "mean_field")
            speed = generator.choice([4e-4, 2e-3] if search else [1e-6, 1.2e-6, 5e-6])
            facts = {"seconds_per_new_datum": speed, "search": search}
            facts["width"] = 0.05 if model == "f" else None
            found += seeds(model, name, -20 - lost, -20, 0.01, **facts)
    return found


def test_figure_has_a_panel_a_model_and_a_name_a_guide():
    with mpl.rc_context(STYLE):
        figure = costs(crowd())
    assert isinstance(figure, Figure)
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == list("abcdef")
    renderer = figure.canvas.get_renderer()
    for axis in panels:
        assert axis.get_xscale() == axis.get_yscale() == "log"
        assert len(axis.texts) == len({text.get_text() for text in axis.texts}) == 12
        for text in axis.texts:
            text.update_positions(renderer)
        boxes = [Text.get_window_extent(text, renderer) for text in axis.texts]  # without lines
        assert not any(one.overlaps(two) for one, two in itertools.combinations(boxes, 2))
        assert all(box.x0 > axis.bbox.x0 and box.x1 < axis.bbox.x1 for box in boxes)


def away(box, marker):
    """Pixels from a box to a marker."""
    beside = max(box.x0 - marker[0], marker[0] - box.x1, 0)
    return math.hypot(beside, max(box.y0 - marker[1], marker[1] - box.y1, 0))


def unclear(figure):
    """Names without a line that are nearer to another's marker, as (panel, name)."""
    renderer, found = figure.canvas.get_renderer(), []
    for axis in (axis for axis in figure.axes if axis.get_visible()):
        markers = {text.get_text(): axis.transData.transform(text.xy) for text in axis.texts}
        for text in axis.texts:
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)
            nearest = min(markers, key=lambda name, box=box: away(box, markers[name]))
            if nearest != text.get_text() and text.arrow_patch is None:
                found.append((axis.get_title(), text.get_text()))
    return found


def test_a_name_is_nearest_to_its_own_marker_or_has_a_line():
    found = files.read(readme.RESULTS / "guides-cpu" / "records.jsonl")
    with mpl.rc_context(STYLE):
        figure = costs(found)
        assert unclear(figure) == []
        assert unclear(costs(crowd())) == []
        assert unclear(costs([one for one in found if one["label"] == "vae-amortized"])) == []
    panel = next(axis for axis in figure.axes if axis.get_title() == "gaussian_lvm")
    moved = next(text for text in panel.texts if text.get_text() == "laplace")
    beside = panel.transData.transform((65, 1e-3)) - panel.transData.transform(moved.xy)
    moved.xyann = tuple(beside * 72 / figure.dpi)  # below the marker of semi_amortized
    assert unclear(figure) == [("gaussian_lvm", "laplace")]


def test_figure_shows_losses_against_costs():
    with mpl.rc_context(STYLE):
        figure = costs(example())
    first = figure.axes[0]
    places = {text.get_text(): text.xy for text in first.texts}
    assert places["oracle"] == (pytest.approx(20), 1e-3)  # the floor
    assert places["mean_field"] == (pytest.approx(400), pytest.approx(0.2))
    line = next(one for one in first.lines if one.get_color() == "0.7" and len(one.get_xdata()))
    assert list(line.get_xdata()) == pytest.approx([1, 20])  # amortized, then oracle
    assert list(line.get_ydata()) == pytest.approx([0.3, 1e-3])


def test_figure_is_a_file_where_costs_are_known(tmp_path):
    draw_figures(tmp_path / "with", example(), {})
    assert (tmp_path / "with" / "costs.png").stat().st_size > 1e4
    without = [one | {"config": one["config"] | {"measure": {}}} for one in example()]
    draw_figures(tmp_path / "without", without, {})
    assert not (tmp_path / "without" / "costs.png").exists()


def test_rule_takes_the_cheapest_within_noise():
    verdict = verdicts(example())[0]
    assert verdict.best["guide"] == "mean_field"  # oracle takes no part
    assert {row["guide"] for row in verdict.near} == {"mean_field", "full_rank"}
    assert verdict.chosen["guide"] == "full_rank"
    assert verdict.anchor["guide"] == "oracle"
    one_seed = [one for one in example() if one["seed"] == 0]
    assert [row["guide"] for row in verdicts(one_seed)[0].near] == ["full_rank"]  # -20.17, -20.24


def swapped(found, one, two):
    """The records with two guides' names exchanged."""
    names = {one: two, two: one}
    changed = []
    for each in found:
        guide = names.get(each["config"]["guide"], each["config"]["guide"])
        model = each["label"].rpartition("-")[0]
        config = each["config"] | {"guide": guide}
        changed.append(each | {"label": f"{model}-{guide}", "config": config})
    return changed


def test_page_says_what_the_records_say():
    text = choice.page({"cpu": example(["m"])})
    assert "on cpu `full_rank` for `m`." in text
    taken = "full_rank | 0.040 ± 0.000 | 0.010 ± 0.028 | 100.0 ± 0.0 |"
    assert f"| m | mean_field | full_rank | {taken}" in text
    assert "two standard errors for `m`, and it was cheaper for `m` for new data." in text
    assert "own fit" not in text
    assert "no use of its latents" not in text
    assert "`amortized` loses most for `m`, 0.150 ± 0.000 nats" in text
    assert "more than the family (approximation gap) for `m`, and not for no model." in text
    assert "`mean_field` loses most for `m`, 0.100 ± 0.000 nats" in text
    assert "For `m` that of `constant` is 0.010 ± 0.000 nats, of `mean_field` 0.100" in text
    assert "its ELBO is 3.800 ± 0.007 nats lower" in text
    assert "divides the time for a new datum by 400; of held-out ELBO it costs 0.100" in text
    assert "for `m` `mean_field` and `full_rank`, and further behind `amortized`." in text
    search = "a search for a row, restarts included, 100.0 to 400.0 µs"
    assert f"one pass of a guide takes 1.0 µs, {search}" in text
    assert "training takes 3.0 s (`full_rank` of `m`) to 7.0 s (`mean_field` of `m`)" in text
    assert "0.50 MiB (`constant` of `m`) to 1.00 MiB" in text


def test_page_of_other_numbers_says_otherwise():
    text = choice.page({"cpu": swapped(example(["m"]), "amortized", "mean_field")})
    assert "| m | amortized | full_rank | full_rank | 0.040 ± 0.000 | 0.010 ±" in text
    assert "`amortized` loses most for `m`, 0.000 ± 0.000 nats" in text
    assert "more than the family (approximation gap) for no model, and not for `m`." in text
    assert "new datum by 0.0; of held-out ELBO it gains 0.100 ± 0.007 for `m`" in text
    assert "for `m` `amortized` and `full_rank`, and further behind `mean_field`." in text
    text = choice.page({"cpu": swapped(example(["m"]), "constant", "mean_field")})
    assert "on cpu `full_rank` for `m`." in text
    assert "`mean_field` loses most for `m`, 0.000 ± 0.000 nats" in text
    assert "For `m` that of `mean_field` is 0.010" in text


def test_page_leaves_out_what_the_records_do_not_bear():
    bare = [one for one in example(["m"]) if one["config"]["guide"] in ("full_rank", "mean_field")]
    for one in bare:
        del one["measures"]["calibration"]
    text = choice.page({"cpu": bare})
    for word in ("oracle", "encoder", "small gap", "Taking `amortized`", "posterior's"):
        assert word not in text
    assert "`mean_field` loses most for `m`" in text
    assert choice.page({"cpu": [one | {"status": "failed"} for one in bare]}) == ""
    assert choice.page({}) == ""


def test_a_guide_whose_model_has_constants_evidence_is_no_answer():
    """However well its intervals cover: they are those of the prior."""
    collapsed = seeds("m", "full_rank", -23.995, -23.985, 0.01)
    kept = [one for one in example(["m"]) if one["config"]["guide"] != "full_rank"]
    text = choice.page({"cpu": kept + collapsed})
    assert "So it is for `m` under `full_rank`, where" in text
    assert "for `m` `mean_field`, and further behind `amortized`." in text
    flat = [one for one in kept if one["config"]["guide"] == "constant"]
    assert "for `m` none." in choice.page({"cpu": collapsed + flat})
    assert "use of its latents" not in choice.page({"cpu": collapsed})  # nothing to compare with


def with_training_evidence(records, evidences):
    """The records of guides, with their evidence of the training data."""
    for one in records:
        found = evidences[one["config"]["guide"]] + 0.001 * one["seed"]
        one["measures"]["train"]["log_evidence_per_datum"] = found
    return records


def test_page_says_where_the_exact_posterior_is_not_trained_to_its_end():
    evidences = {"amortized": -19.0, "mean_field": -19.2, "full_rank": -19.5, "constant": -23.0}
    short = with_training_evidence(example(["m"]), evidences | {"oracle": -19.3})
    text = choice.page({"cpu": short})
    assert "after 1,500 steps: for `m` the model's evidence" in text
    assert "ends 0.300 ± 0.000 nats a datum below that under `amortized`." in text
    near = with_training_evidence(example(["m"]), evidences | {"oracle": -19.005})
    assert "own fit" not in choice.page({"cpu": near})  # less than quadrature's error


def test_page_and_captions_say_which_bound_weighted_draws_have():
    found = example(["m"])
    found += seeds("m", "heavy", -20.05, -20.0, 0.02, seconds=9.0)
    for one in found:
        if one["config"]["guide"] == "heavy":
            one["config"]["guide_options"] = {"base": "amortized", "num_draws": 8}
    text = choice.page({"cpu": found})
    assert "- `heavy`, within two standard errors of the highest ELBO for `m`, keeps one" in text
    assert "the bound of 8 weighted draws, and KL(q, posterior) is at most that gap." in text
    assert "up to 3.0 times as long: 9.0 s against 3.0 s for `m`." in text
    words = "heavy: ELBO, gap and k are those of the bound of 8 draws of amortized, weighted"
    assert table.markdown_table("Title", found).count(words) == 2  # of gaps, and of k
    assert words not in table.markdown_table("Title", example(["m"]))
    far = [one for one in found if one["config"]["guide"] != "heavy"]
    assert "weighted draws" not in choice.page({"cpu": far})


@pytest.mark.parametrize(
    "changed", [{"share": 0.2}, {"covers": 0.8}, {"covers": 0.99}, {"refused": 0.4}]
)
def test_draws_that_fail_a_check_are_not_named(changed):
    kept = [one for one in example(["m"]) if one["config"]["guide"] == "mean_field"]
    bad = seeds("m", "amortized", -20.3, -20.1, **changed)
    assert "for `m` `mean_field`." in choice.page({"cpu": kept + bad})
    assert "for `m` none." in choice.page({"cpu": bad})


def test_a_smaller_gap_within_noise_is_no_warning():
    """full_rank has the smaller gap of two whose ELBO is not told apart."""
    kept = [one for one in example(["m"]) if one["config"]["guide"] in ("full_rank", "mean_field")]
    assert verdicts(kept)[0].best["guide"] == "mean_field"
    assert "small gap alone" not in choice.page({"cpu": kept})
    assert "small gap alone" in choice.page({"cpu": example(["m"])})


def test_page_of_two_devices_puts_them_side_by_side():
    fast = example(["m"], "cuda")
    for one in fast:
        if one["config"]["guide"] == "mean_field":
            one["cost"]["seconds_per_new_datum"] = 1e-5
    text = choice.page({"cpu": example(["m"]), "cuda": fast})
    assert "on cpu `full_rank` for `m`. And on cuda `mean_field` for `m`." in text
    assert "| µs per new datum, cpu | ms a step of training, cpu | seconds to train, cpu |" in text
    assert "| seconds to train, cpu | take, cuda | its gap, cuda |" in text
    assert re.search(r"\| full_rank \| .* 100\.0 ± 0\.0 .*\| mean_field \| .* 10\.0 ± 0\.0", text)
    assert "- On cuda: for a new datum one pass of a guide takes 1.0 µs" in text


def test_every_sentence_is_one_or_nothing():
    for records in (example(), crowd(), example(["m"])[:5], crowd()[:60]):
        for finding in FINDINGS:
            found = finding(verdicts(records))
            assert found is None or (found.endswith(".") and "None" not in found)


def test_readme_takes_the_page_where_there_are_records(tmp_path, monkeypatch):
    results = tmp_path / "experiments" / "results"
    (results / "guides-cpu" / "figures").mkdir(parents=True)
    (results / "guides-cpu" / "figures" / "costs.png").touch()
    for one in example():
        files.append(results / "guides-cpu" / "records.jsonl", one)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "RESULTS", results)
    path = tmp_path / "README.md"
    path.write_text("# A\n<!-- choice: begin -->\nold\n<!-- choice: end -->\nB\n")
    text = readme.made_anew(path)
    assert choice.page({"cpu": example()}) in text
    assert "![What guides lose against what a new datum costs, cpu]" in text
    assert "(experiments/results/guides-cpu/figures/costs.png)" in text
    assert "experiments/results/guides-cpu/table.md" in text
    assert text.startswith("# A\n<!-- choice: begin -->\n\n")
    assert text.endswith("\n<!-- choice: end -->\nB\n")
    assert "old" not in text
    for same in (text, "# A\n"):
        path.write_text(same)
        assert readme.made_anew(path) == same


def test_the_example_is_as_a_comparison_records(tmp_path):
    """What the tests above read stands in the record of a run, under the same names."""
    import experiments

    found = experiments.compare(
        ["gaussian_lvm"],
        ["amortized", "mean_field"],
        seeds=1,
        out=tmp_path / "out",
        fit={"steps": 5, "batch_size": 700},
        measure=FEW | {"simulations": 20, "rank_draws": 19},
    )
    for made in found.records:
        imagined = record("m", "g", 0, -1.0, -1.0)
        assert imagined["cost"].keys() <= made["cost"].keys()
        for part in ("train", "gaps", "held_out", "pareto", "calibration"):
            assert imagined["measures"][part].keys() <= made["measures"][part].keys()
    assert (tmp_path / "out" / "figures" / "costs.png").exists()
    assert "| model | guide | shortfall |" in found.table
    assert choice.page({"cpu": found.records})
