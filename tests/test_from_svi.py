"""The ArviZ tree of any pair: numbers against densities written again, and ArviZ at work on it."""

import matplotlib.pyplot
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pairs import PAIRS, fitted
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal
from scipy import stats

import experiments
import guides
import zoo
from experiments.measure import bridge
from experiments.measure.bridge import az
from experiments.measure.predictive import posterior_predictive

NUM_DRAWS = 60
LOCAL_PLATES = {"eight_schools": "school", "vae": "data", "subsampled": "unit", "lda": "document"}


@pytest.fixture(scope="module", params=list(PAIRS))
def case(request):
    """(name, example, losses, tree), with the parameters in Pyro's store."""
    example, losses = fitted(request.param)
    state = pyro.get_param_store().get_state()
    tree = experiments.from_svi(
        example.model, example.guide, *example.args, num_draws=NUM_DRAWS, losses=losses
    )
    return request.param, example, losses, tree, state


@pytest.fixture
def at_draw(case):
    """The latents of one draw, in float64."""
    _, _, _, tree, state = case
    pyro.get_param_store().set_state(state)
    posterior = tree["posterior"]
    return lambda draw: {
        name: values.values[0, draw].astype(float) for name, values in posterior.items()
    }


def test_log_densities_are_those_written_again(case, at_draw):
    _, example, _, tree, _ = case
    stats_group = tree["sample_stats"]
    for draw in range(0, NUM_DRAWS, 10):
        z = at_draw(draw)
        pointwise = example.log_likelihood(z)
        together = pointwise.pop("all", sum(v for v in pointwise.values())).sum()
        for site, expected in pointwise.items():
            found = tree["log_likelihood"][site].values[0, draw]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        found = {kind: stats_group[f"total_{kind}"].values[0, draw] for kind in ("log_p", "log_q")}
        np.testing.assert_allclose(found["log_p"], example.log_prior(z) + together, rtol=2e-4)
        np.testing.assert_allclose(found["log_q"], example.log_q(z), rtol=2e-4, atol=2e-3)


def test_totals_are_the_sums_of_their_parts(case):
    name, _, _, tree, _ = case
    found = tree["sample_stats"]
    for kind in ("log_p", "log_q"):
        parts = found[kind]
        if name in LOCAL_PLATES:
            assert parts.dims == ("chain", "draw", LOCAL_PLATES[name])
            parts = parts.sum(LOCAL_PLATES[name]) + found[f"shared_{kind}"]
        assert parts.dims == ("chain", "draw")
        np.testing.assert_allclose(parts, found[f"total_{kind}"], rtol=1e-4, atol=1e-3)


def test_netcdf_round_trip(case, tmp_path):
    tree = case[3]
    bridge.write(tree, tmp_path / "tree.nc")
    with xr.open_datatree(tmp_path / "tree.nc", engine="h5netcdf") as back:
        assert set(back.children) == set(tree.children)
        for group in tree.children:
            xr.testing.assert_equal(back[group].to_dataset(), tree[group].to_dataset())


DIMS = {
    "eight_schools": {"theta": ["school"], "gain": ["school"], "mu": [], "effect": ["school"]},
    "vae": {"z": ["data", "z_dim_0"], "x": ["data", "x_dim_0"]},
    "gaussian_mixture": {"weights": ["weights_dim_0"], "loc": ["component"], "z": ["point"]},
    "hierarchical_regression": {"intercept": ["county"], "slope": [], "radon": ["home"]},
    "lda": {
        "topic_words": ["topic", "topic_words_dim_0"],
        "shares": ["document", "shares_dim_0"],
        "topic_of_word": ["position", "document"],
        "word": ["position", "document"],
    },
    "subsampled": {"mean": [], "level": ["unit"], "y": ["unit"]},
    "hidden_markov": {"loc": ["loc_dim_0"], "state_1": ["sequence"], "y_2": ["sequence"]},
}


def test_groups_and_dimensions(case):
    name, _, losses, tree, _ = case
    for variable, dims in DIMS[name].items():
        groups = ("posterior", "prior", "posterior_predictive", "prior_predictive")
        found = [tree[g][variable] for g in groups if variable in tree[g].data_vars]
        assert len(found) == 2
        assert all(list(v.dims) == ["chain", "draw", *dims] for v in found)
        assert all(v.sizes["draw"] == NUM_DRAWS for v in found)
    for variable, values in tree["observed_data"].items():
        assert tree["posterior_predictive"][variable].dims[2:] == values.dims
        plates = [dim for dim in values.dims if "_dim_" not in dim]
        assert list(tree["log_likelihood"][variable].dims[2:]) == plates
    np.testing.assert_allclose(tree["sample_stats"]["elbo"].values, [np.negative(losses)])
    for group in tree.children.values():
        assert not any(values.isnull().any() for values in group.data_vars.values())


def test_constant_data_are_the_arguments_that_are_not_observed():
    example, _ = fitted("hierarchical_regression", steps=1)
    tree = experiments.from_svi(example.model, example.guide, *example.args, num_draws=2)
    assert set(tree["constant_data"].data_vars) == {"floor", "county"}
    assert tree["constant_data"]["floor"].dims == ("home",)
    np.testing.assert_array_equal(tree["constant_data"]["county"], example.args[1])
    np.testing.assert_array_equal(tree["observed_data"]["radon"], example.args[2])


def standard_normal(values):
    """Whether independent values have mean 0 and variance 1, within 4 standard errors."""
    values = np.asarray(values).ravel()
    assert abs(values.mean()) < 4 / np.sqrt(values.size)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / values.size)


def test_predictive_draws_have_the_moments_of_their_latents():
    example, _ = fitted("eight_schools")
    tree = experiments.from_svi(
        example.model, example.guide, *example.args, num_draws=2000, parallel=True
    )
    sigma = example.args[0].numpy()
    for latents, data in (("posterior", "posterior_predictive"), ("prior", "prior_predictive")):
        standard_normal((tree[data]["effect"] - tree[latents]["theta"]) / sigma)
        np.testing.assert_allclose(
            tree[latents]["gain"], tree[latents]["theta"] - tree[latents]["mu"], atol=1e-4
        )
    prior = tree["prior"]
    standard_normal(prior["mu"] / 5)
    standard_normal(np.log(prior["tau"]) - 1)
    standard_normal((prior["theta"] - prior["mu"]) / prior["tau"])
    tau = tree["posterior"]["tau"]  # the guide's, not the prior's
    standard_normal((np.log(tau) - pyro.param("tau_loc").item()) / 0.5)


def test_predictive_agrees_with_pyros_own():
    example, _ = fitted("hierarchical_regression")
    tree = experiments.from_svi(
        example.model, example.guide, *example.args, num_draws=150, prior=False
    )
    args = (*example.args[:2], None)
    theirs = Predictive(example.model, guide=example.guide, num_samples=150)(*args)["radon"]
    ours = tree["posterior_predictive"]["radon"].values[0]
    theirs = theirs.numpy()
    se = np.sqrt((ours.var(0) + theirs.var(0)) / 150)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4.5 * se).all()
    np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.06)


@pytest.mark.parametrize("name", ["gaussian_mixture", "lda"])
def test_enumerated_latents_have_their_conditional_frequencies(name):
    """Mean of [z = k] - p(z = k given x and the rest) is zero within its standard error."""
    example, _ = fitted(name)
    tree = experiments.from_svi(
        example.model, example.guide, *example.args, num_draws=200, prior=False, predictive=False
    )
    values = {variable: v.values[0].astype(float) for variable, v in tree["posterior"].items()}
    data = example.args[0].numpy()
    if name == "lda":
        drawn = values["topic_of_word"]
        word = values["topic_words"][:, :, data]  # (draw, topic, position, document)
        joint = word * values["shares"].transpose(0, 2, 1)[:, :, None]
    else:
        drawn = values["z"]
        normal = stats.norm.pdf(data, values["loc"][..., None], 1.5)
        joint = normal * values["weights"][..., None]
    p = joint / joint.sum(1, keepdims=True)
    for k in range(p.shape[1]):
        difference = (drawn == k) - p[:, k]
        se = np.sqrt((p[:, k] * (1 - p[:, k])).mean(0) / len(p))
        assert (np.abs(difference.mean(0)) <= 4.5 * se + 3 / len(p)).all()
    assert 0 < drawn.mean() < p.shape[1] - 1


def test_scale_never_enters_a_density():
    """A minibatch at every step, and a scaled model, beside the same model without either."""
    y = torch.randn(12)

    def model(y, subsample_size=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("unit", len(y), subsample_size=subsample_size) as index:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])

    guide = AutoNormal(model)
    guide(y)
    plain = experiments.from_svi(model, guide, y, num_draws=9)
    batches = experiments.from_svi(model, guide, y, num_draws=9, kwargs={"subsample_size": 3})
    scaled = experiments.from_svi(poutine.scale(model, 0.25), guide, y, num_draws=9)
    for other in (batches, scaled):
        for group in ("posterior", "log_likelihood", "sample_stats"):
            xr.testing.assert_equal(other[group].to_dataset(), plain[group].to_dataset())


def test_an_index_that_is_given_is_what_is_drawn():
    """Also by an autoguide, which draws another minibatch of its own."""
    y, index = torch.arange(10.0), torch.tensor([7, 2, 4])

    def model(y, index=None):
        with pyro.plate("unit", len(y), subsample=index) as rows:
            level = pyro.sample("level", dist.Normal(0.0, 9.0))
            pyro.sample("y", dist.Normal(level, 1.0), obs=y[rows])

    guide = AutoNormal(model, init_loc_fn=lambda site: y.clone(), init_scale=0.01)
    guide(y)
    tree = experiments.from_svi(model, guide, y, index, num_draws=5)
    level = tree["posterior"]["level"]
    assert level["unit"].values.tolist() == [7, 2, 4]
    np.testing.assert_allclose(level.mean(("chain", "draw")), [7, 2, 4], atol=0.1)
    expected = stats.norm.logpdf(y[index], level.values, 1.0)
    np.testing.assert_allclose(tree["log_likelihood"]["y"], expected, rtol=1e-4)


def test_parallel_draws_have_the_same_densities():
    for name in ("eight_schools", "vae", "subsampled"):
        example, _ = fitted(name)
        tree = experiments.from_svi(
            example.model, example.guide, *example.args, num_draws=7, parallel=True
        )
        for draw in range(7):
            z = {k: v.values[0, draw].astype(float) for k, v in tree["posterior"].items()}
            for site, expected in example.log_likelihood(z).items():
                found = tree["log_likelihood"][site].values[0, draw]
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
            found = tree["sample_stats"]["total_log_q"].values[0, draw]
            np.testing.assert_allclose(found, example.log_q(z), rtol=2e-4, atol=2e-3)


def test_parallel_enumeration():
    """Many draws at once, with an enumerated latent, in plates of one and of five data."""
    p = torch.tensor([0.3, 0.7])

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("point", len(x)):
            z = pyro.sample("z", dist.Bernoulli(p[1]), infer={"enumerate": "sequential"})
            pyro.sample("x", dist.Normal(loc + 2 * z, 1.0), obs=x)

    guide = AutoNormal(poutine.block(model, expose=["loc"]))
    for x in (torch.zeros(1), torch.linspace(-1, 3, 5)):
        guide(x)
        tree = experiments.from_svi(model, guide, x, num_draws=800, parallel=True)
        loc = tree["posterior"]["loc"].values[..., None]
        parts = p.numpy() * np.stack([stats.norm.pdf(x, loc), stats.norm.pdf(x, loc + 2)], -1)
        found = tree["log_likelihood"]["x"]
        np.testing.assert_allclose(found, np.log(parts.sum(-1)), rtol=1e-3, atol=1e-4)
        log_p = stats.norm.logpdf(loc[..., 0]) + np.log(parts.sum(-1)).sum(-1)
        np.testing.assert_allclose(tree["sample_stats"]["total_log_p"], log_p, rtol=1e-4)
        share = parts[..., 1] / parts.sum(-1)
        difference = (tree["posterior"]["z"].values - share).mean((0, 1))
        assert (np.abs(difference) < 4 / np.sqrt(4 * 800)).all()


def test_masked_data_leave_no_trace_in_the_densities():
    x, mask = torch.tensor([0.0, 5.0, 1.0]), torch.tensor([True, False, True])

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("point", len(x)), poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Categorical(torch.ones(4) / 4))
            pyro.sample("x", dist.Normal(loc + z, 1.0), obs=x)

    guide = AutoNormal(poutine.block(model, expose=["loc"]))
    guide(x)
    tree = experiments.from_svi(model, guide, x, num_draws=5)
    loc = tree["posterior"]["loc"].values[..., None, None]
    log_x = np.log(stats.norm.pdf(x[:, None], loc + np.arange(4)).mean(-1))
    expected = np.where(mask, log_x, 0)
    np.testing.assert_allclose(tree["log_likelihood"]["x"], expected, atol=1e-5)
    log_p = stats.norm.logpdf(loc[..., 0, 0]) + expected.sum(-1)
    np.testing.assert_allclose(tree["sample_stats"]["total_log_p"], log_p, rtol=1e-5)


def test_a_discrete_latent_outside_the_plates_stays_in_the_condition():
    x = torch.tensor([0.2, 1.1, 0.4])

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        flip = pyro.sample("flip", dist.Bernoulli(0.5))
        with pyro.plate("point", len(x)):
            pyro.sample("x", dist.Normal(loc + flip, 1.0), obs=x)

    guide = AutoNormal(poutine.block(model, expose=["loc"]))
    guide(x)
    tree = experiments.from_svi(model, guide, x, num_draws=20)
    loc, flip = (tree["posterior"][n].values[..., None] for n in ("loc", "flip"))
    found = tree["log_likelihood"]["x"]
    np.testing.assert_allclose(found, stats.norm.logpdf(x, loc + flip), rtol=1e-4)
    both = [stats.norm.logpdf(x, loc + k).sum(-1) + np.log(0.5) for k in (0, 1)]
    log_p = stats.norm.logpdf(loc[..., 0]) + np.logaddexp(*both)
    np.testing.assert_allclose(tree["sample_stats"]["total_log_p"], log_p, rtol=1e-5)


def test_a_joint_autoguide_has_no_density_by_datum():
    example, _ = fitted("eight_schools", steps=1)
    guide = AutoMultivariateNormal(example.model)
    guide(*example.args)
    tree = experiments.from_svi(example.model, guide, *example.args, num_draws=6)
    assert tree["sample_stats"]["log_q"].dims == ("chain", "draw")
    assert "shared_log_q" not in tree["sample_stats"]
    posterior, scale = tree["posterior"], guide.scale.diag() @ guide.scale_tril
    for draw in range(6):
        z = {name: v.values[0, draw].astype(float) for name, v in posterior.items()}
        flat = np.concatenate([[z["mu"]], [np.log(z["tau"])], z["theta"]])
        covariance = (scale @ scale.T).detach().double().numpy()
        normal = stats.multivariate_normal(guide.loc.detach().numpy(), covariance)
        expected = normal.logpdf(flat) - np.log(z["tau"])
        found = tree["sample_stats"]["total_log_q"].values[0, draw]
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def two_stores(name="eight_schools"):
    """(example, the store's state after each of two fits)."""
    states = []
    for seed in (1, 2):
        example, _ = fitted(name, seed=seed, steps=5)
        states.append(pyro.get_param_store().get_state())
    return example, states


def test_states_of_the_store_are_chains():
    example, states = two_stores()
    with torch.no_grad():
        states[1]["params"]["theta_loc"] += 5.0
    pyro.clear_param_store()
    tree = experiments.from_svi(
        example.model, example.guide, *example.args, num_draws=400, params=states, parallel=True
    )
    for chain, state in enumerate(states):
        z = (tree["posterior"]["theta"][chain] - state["params"]["theta_loc"].detach().numpy()) / (
            state["params"]["theta_scale"].detach().exp().numpy()
        )
        standard_normal(z)
    assert not list(pyro.get_param_store().keys())
    diagnosed = az.summary(tree, var_names=["mu", "theta"])["r_hat"].astype(float)
    assert diagnosed["mu"] < 1.05 < 1.1 < diagnosed.drop("mu").max()


def test_states_reach_the_networks_of_a_function():
    """`pyro.module` leaves a network as it was, whatever the store says."""
    example, states = two_stores("vae")
    before = example.model.__self__.decoder.weight.detach().clone()
    tree = experiments.from_svi(
        example.model, example.guide, *example.args, num_draws=4, params=states, prior=False
    )
    assert torch.equal(example.model.__self__.decoder.weight, before)
    for chain, state in enumerate(states):
        weight, bias = (state["params"][f"decoder$$${n}"].detach() for n in ("weight", "bias"))
        z, x = torch.tensor(tree["posterior"]["z"].values[chain]), example.args[0]
        normal = dist.Bernoulli(logits=z @ weight.T + bias).log_prob(x).sum(-1)
        np.testing.assert_allclose(tree["log_likelihood"]["x"][chain], normal, rtol=1e-4)


def test_lists_of_guides_are_chains():
    """Two autoguides of one name, each fitted in a cleared store, answer for themselves."""
    fits = []
    for seed in (1, 2):
        example, _ = fitted("hierarchical_regression", seed=seed, steps=30)
        fits.append(example.guide)
    tree = experiments.from_svi(example.model, fits, *example.args, num_draws=20, predictive=False)
    for chain, guide in enumerate(fits):
        alone = experiments.from_svi(
            example.model,
            guide,
            *example.args,
            num_draws=20,
            seed=chain,
            params={},
            predictive=False,
        )
        xr.testing.assert_equal(
            alone["posterior"].to_dataset().isel(chain=0, drop=True),
            tree["posterior"].to_dataset().isel(chain=chain, drop=True),
        )
    locs = [guide.locs.slope.item() for guide in fits]
    assert locs[0] != locs[1]
    sd = fits[0].scales.slope.item()
    slope = tree["posterior"]["slope"].mean("draw").values
    np.testing.assert_allclose(slope, locs, atol=5 * sd / np.sqrt(20))
    assert "posterior_predictive" not in tree.children


def test_a_module_beside_another_one_of_its_name_in_the_store():
    """Fitted without clearing the store, they share parameters, and the second knows nothing."""
    example, _ = fitted("hierarchical_regression", steps=5)
    second = AutoNormal(example.model, init_scale=0.7)
    state = pyro.get_param_store().get_state()
    with pyro.get_param_store().scope():
        second(*example.args)
    with pytest.raises(zoo.ZooError, match=r"another in Pyro's store than in the module"):
        experiments.from_svi(example.model, second, *example.args, num_draws=2)
    own, store = (
        experiments.from_svi(
            example.model, second, *example.args, num_draws=50, params=params, predictive=False
        )
        for params in ({}, state)
    )
    assert own["posterior"]["slope"].std() > 2 * store["posterior"]["slope"].std()


def with_param(y):
    loc = pyro.param("a", torch.tensor(0.5))
    pyro.sample("level", dist.Normal(loc, 1.0))


def test_several_fits_of_functions_need_their_states():
    """The store has the parameters of the last fit alone."""
    example, states = two_stores()
    for guides_given in ([example.guide] * 2, (example.guide, lambda *args: example.guide(*args))):
        with pytest.raises(
            zoo.ZooError, match=r"'mu_loc' of several fits .* params=\[state, \.\.\."
        ):
            experiments.from_svi(example.model, guides_given, *example.args, num_draws=2)
    tree = experiments.from_svi(
        example.model, [example.guide] * 2, *example.args, num_draws=2, params=states
    )
    assert tree["posterior"].sizes["chain"] == 2
    nets = [PAIRS["vae"]() for _ in range(2)]  # networks of one name
    pyro.clear_param_store()
    for net in nets:
        net.guide(*net.args)
    programs = [net.model for net in nets], [net.guide for net in nets]
    with pytest.raises(zoo.ZooError, match="weight' of several fits stands once"):
        experiments.from_svi(*programs, *nets[0].args, num_draws=2)


@pytest.mark.parametrize("params", [None, {"params": {}, "constraints": {}}])
def test_parameters_that_are_not_in_the_store(params):
    y = torch.zeros(4)
    pyro.clear_param_store()
    with pytest.raises(zoo.ZooError, match=r"parameter 'a' is not in Pyro's store: fit first"):
        experiments.from_svi(good, with_param, y, num_draws=2, params=params)
    assert not list(pyro.get_param_store().keys())
    tree = experiments.from_svi(good, with_param, y, num_draws=400, params={})
    standard_normal(tree["posterior"]["level"] - 0.5)
    with pytest.raises(zoo.ZooError, match="parameter 'a' is not in Pyro's store"):
        posterior_predictive(good, with_param, y, num_draws=2)


def test_what_modules_hold_needs_no_store():
    example, _ = fitted("vae", steps=2)
    before = experiments.from_svi(example.model, example.guide, *example.args, num_draws=2)
    pyro.clear_param_store()
    after = experiments.from_svi(example.model, example.guide, *example.args, num_draws=2)
    xr.testing.assert_equal(before["posterior"].to_dataset(), after["posterior"].to_dataset())
    example, _ = fitted("hierarchical_regression", steps=2)
    pyro.clear_param_store()
    experiments.from_svi(example.model, example.guide, *example.args, num_draws=2)


def test_an_unfitted_autoguide_is_refused():
    y = torch.zeros(4)
    guide = AutoNormal(good)
    with pytest.raises(zoo.ZooError, match="AutoNormal, has no parameters yet: fit it first"):
        experiments.from_svi(good, guide, y, num_draws=2)
    assert guide.prototype_trace is None
    experiments.from_svi(good, guide, y, num_draws=2, params={})
    parts = AutoGuideList(two_latents)
    parts.append(AutoNormal(poutine.block(two_latents, expose=["level"])))
    parts.append(lambda y: {"other": pyro.sample("other", dist.Normal(0.0, 1.0))})
    with pytest.raises(zoo.ZooError, match="AutoGuideList, has no parameters yet"):
        experiments.from_svi(two_latents, parts, y, num_draws=2)
    parts(y)
    tree = experiments.from_svi(two_latents, parts, y, num_draws=2)
    assert tree["posterior"].sizes["chain"] == 1  # a list of parts is one guide


def test_nothing_outside_changes():
    example, _ = fitted("eight_schools", steps=2)
    store = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    random = torch.get_rng_state()
    args = [arg.clone() for arg in example.args]
    trees = [
        experiments.from_svi(example.model, example.guide, *example.args, num_draws=3, seed=seed)
        for seed in (4, 4, 5)
    ]
    assert torch.equal(random, torch.get_rng_state())
    assert set(pyro.get_param_store().keys()) == set(store)
    assert all(torch.equal(pyro.param(name), value) for name, value in store.items())
    assert all(torch.equal(*pair) for pair in zip(args, example.args, strict=True))
    mu = [tree["posterior"]["mu"].values for tree in trees]
    np.testing.assert_array_equal(mu[0], mu[1])
    assert (mu[0] != mu[2]).all()
    with pyro.plate("unit", 8, subsample_size=2) as index:  # plates draw minibatches again
        assert len(index) == 2


def matrix_of_means(width, num_data=6):
    """A plain `pyro.deterministic` of a row a datum, and of what is reduced from the plate."""
    weight = torch.randn(2, width)

    def model(x=None, index=None):
        with zoo.datum(x, index, "data") as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = pyro.deterministic("mean", z @ weight)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=rows)
        pyro.deterministic("top", z[..., 0].amax(-1))
        pyro.deterministic("firsts", z[..., 0])

    return model, torch.randn(num_data, width), weight.numpy()


@pytest.mark.parametrize("width", [3, 6])
@pytest.mark.parametrize("num_draws", [4, 6])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_deterministic_event_stands_right_of_its_plates(width, num_draws, parallel):
    """Also where it is as wide as the plate, or as there are draws."""
    model, x, weight = matrix_of_means(width)
    guide = AutoNormal(model)
    guide(x)
    tree = experiments.from_svi(model, guide, x, num_draws=num_draws, parallel=parallel)
    for group in ("posterior", "prior"):
        found = tree[group]
        assert found["mean"].dims == ("chain", "draw", "data", "mean_dim_0")
        assert found["mean"].shape == (1, num_draws, 6, width)
        z = found["z"].values
        np.testing.assert_allclose(found["mean"], z @ weight, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["firsts"], z[..., 0])
        np.testing.assert_allclose(found["top"], z[..., 0].max(-1))


def test_a_deterministic_event_in_the_tree_of_a_fit():
    model, x, weight = matrix_of_means(6)
    problem = zoo.Problem(model, zoo.data.as_dataset(x))
    fit = experiments.fit(problem, guides.build("amortized", problem), steps=3, seeds=2)
    found = fit.to_datatree(6)["posterior"]
    assert found["mean"].dims == ("chain", "draw", "data", "mean_dim_0")
    np.testing.assert_allclose(found["mean"], found["z"].values @ weight, rtol=1e-4, atol=1e-5)


def test_an_event_that_may_be_a_plate_asks_for_its_dimensions():
    def model(x, **told):
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("mean", z[..., None], **told)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide, x = AutoNormal(model), torch.zeros(1)
    guide(x)
    with pytest.raises(zoo.ZooError, match=r"'mean' of shape \(1, 1\) may .* give it event_dim="):
        experiments.from_svi(model, guide, x, num_draws=2)
    told = experiments.from_svi(model, guide, x, num_draws=2, kwargs={"event_dim": 1})
    assert told["posterior"]["mean"].dims == ("chain", "draw", "data", "mean_dim_0")
    with pytest.raises(zoo.ZooError, match=r"'wide' has batch shape .* no plate declares"):
        experiments.from_svi(wide, level_guide, x, num_draws=2)


def test_coords_dims_and_names_that_are_taken():
    def model(sigma, y):
        with pyro.plate("draw", 2), pyro.plate("side", 3):
            loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(loc.sum(-1), sigma), obs=y)

    guide, y = AutoNormal(model), torch.randn(3, 2)
    guide(1.0, y)
    tree = experiments.from_svi(
        model,
        guide,
        1.0,
        y,
        num_draws=4,
        coords={"side": ["a", "b", "c"], "draw": [5, 6]},
        dims={"loc": ["axis"]},
        constant_data={"weight": np.ones(3)},
    )
    assert tree["posterior"]["loc"].dims == ("chain", "draw", "side", "draw_plate", "axis")
    assert tree["posterior"]["side"].values.tolist() == ["a", "b", "c"]
    assert tree["observed_data"]["draw_plate"].values.tolist() == [5, 6]
    assert tree["constant_data"]["weight"].dims == ("weight_dim_0",)
    np.testing.assert_array_equal(tree["observed_data"]["y"], y)


def normal_pair(shift=0.0, stretch=1.0, n=30):
    """y_n ~ Normal(mean, 1), mean ~ Normal(0, 2); the exact posterior, shifted and stretched."""
    y = 0.7 + torch.randn(n, generator=torch.Generator().manual_seed(3))
    precision = n + 1 / 4
    loc, sd = y.sum() / precision + shift, stretch / precision**0.5

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(y):
        pyro.sample("mean", dist.Normal(loc, sd))

    others = (y.sum() - y).numpy()
    exact = stats.norm.logpdf(y, others / (n - 0.75), np.sqrt(1 + 1 / (n - 0.75))).sum()
    return model, guide, y, exact


def test_loo_is_the_exact_leave_one_out_density():
    """PSIS from the exact posterior, and from a wrong guide with its log p and log q."""
    model, guide, y, exact = normal_pair()
    tree = experiments.from_svi(model, guide, y, num_draws=2000, parallel=True)
    assert abs(az.loo(tree).elpd - exact) < 0.1
    model, guide, y, exact = normal_pair(shift=0.15, stretch=1.5)
    tree = experiments.from_svi(model, guide, y, num_draws=2000, parallel=True)
    wrong = az.loo(tree).elpd
    stats_group = tree["sample_stats"]
    right = az.loo_approximate_posterior(
        tree, stats_group["total_log_p"], stats_group["total_log_q"], pointwise=True
    )
    assert abs(right.elpd - exact) < 0.1 < abs(wrong - exact)


def test_loo_of_masked_data_is_that_of_the_others():
    """A masked datum has log likelihood 0 in every draw, and takes no part."""
    y = normal_pair()[2]
    seen = torch.arange(len(y)) % 3 > 0

    def masked(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("row", len(y)), poutine.mask(mask=seen):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def posterior(y):
        pyro.sample("mean", dist.Normal(y[seen].sum() / (20 + 1 / 4), (20 + 1 / 4) ** -0.5))

    tree = experiments.from_svi(masked, posterior, y, num_draws=1000, parallel=True)
    found = az.loo(tree, pointwise=True)
    others = (y[seen].sum() - y[seen]).numpy()
    sd = np.sqrt(1 + 1 / (19 + 1 / 4))
    exact = stats.norm.logpdf(y[seen], others / (19 + 1 / 4), sd)
    np.testing.assert_allclose(found.elpd_i[~seen.numpy()], 0, atol=1e-8)
    np.testing.assert_allclose(found.elpd, exact.sum(), atol=0.15)
    assert np.isfinite(found.elpd)


def test_one_draw_and_impossible_data():
    y = torch.tensor([0.5, 3.0])

    def model(y):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 2):
            pyro.sample("y", dist.Uniform(0 * level, 1.0, validate_args=False), obs=y)

    for num_draws in (1, 3):
        tree = experiments.from_svi(model, level_guide, y, num_draws=num_draws)
        found = tree["log_likelihood"]["y"].values
        np.testing.assert_allclose(found, np.broadcast_to([0, -np.inf], found.shape), atol=1e-8)


# A short fit has no good answer, and ArviZ says so; the data of some pairs are binary or counts.
@pytest.mark.filterwarnings(
    "ignore:Estimated shape parameter of Pareto",
    "ignore:.*discrete data",
    "ignore:The (observed|predictive) data looks binary",
    "ignore:.*categorical",
    "ignore:divide by zero",
    "ignore:invalid value",
    "ignore:The inplace keyword in DataFrame",  # ArviZ's own call of pandas
)
def test_arviz_works_on_it(case):
    tree = case[3]
    site = next(iter(tree["observed_data"].data_vars))
    found = tree["sample_stats"]
    assert len(az.summary(tree)) == sum(
        values[0, 0].size for values in tree["posterior"].data_vars.values()
    )
    loo = az.loo_approximate_posterior(
        tree, found["total_log_p"], found["total_log_q"], var_name=site, pointwise=True
    )
    assert np.isfinite(loo.elpd)
    assert az.plot_khat(loo) is not None
    plain = az.loo(tree, var_name=site, pointwise=True)
    compared = az.compare({"plain": plain, "again": plain})
    assert set(compared.index) == {"plain", "again"}
    assert az.plot_ppc_dist(tree, var_names=site, num_samples=10, kind="ecdf") is not None
    if tree["log_likelihood"][site].dims == tree["posterior_predictive"][site].dims:
        pit = az.loo_pit(tree, var_names=site)
        dims = list(pit[site].dims)
        if len(dims) == 1:
            assert az.plot_ecdf_pit(pit, group=None, sample_dims=dims) is not None
    matplotlib.pyplot.close("all")


def no_data(y):
    with pyro.plate("row", len(y)):
        pyro.sample("level", dist.Normal(0.0, 1.0))


def no_plate(y):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(level, 1.0).expand([len(y)]).to_event(1), obs=y)


def no_vectorized_plate(y):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    for row in pyro.plate("row", len(y)):
        pyro.sample(f"y_{row}", dist.Normal(level, 1.0), obs=y[row])


def stray_dimension(y):
    level = pyro.sample("level", dist.Normal(torch.zeros(3), 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(level.sum(), 1.0), obs=y)


def improper(y):
    level = pyro.sample("level", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def good(y):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def wide(y):
    good(y)
    pyro.deterministic("wide", torch.zeros(3), event_dim=0)


def named_step(y):
    good(y)
    pyro.deterministic("step", torch.zeros(()))


def mask_over_all(y):
    with poutine.mask(mask=torch.ones(len(y), dtype=torch.bool)):
        good(y)


class NoSampler(dist.Normal):
    """A likelihood that can be evaluated alone."""

    has_rsample = False

    def sample(self, sample_shape=()):
        raise NotImplementedError


def no_sampler(y):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", NoSampler(level.expand(len(y)), 1.0), obs=y)


def batch_of_more(y):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 100, subsample_size=len(y)):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def two_latents(y):
    pyro.sample("other", dist.Normal(0.0, 1.0))
    good(y)


def level_guide(y):
    pyro.sample("level", dist.Normal(0.0, 1.0))


def plated_guide(y):
    with pyro.plate("row", len(y)):
        level_guide(y)


def nan_guide(y):
    pyro.sample("level", dist.Normal(torch.tensor(float("nan")), 1.0, validate_args=False))


def vector_guide(y):
    pyro.sample("level", dist.Normal(torch.zeros(3), 1.0))


def unsampled_guide(y):
    pyro.sample("level", NoSampler(0.0, 1.0))


def delta_guide(y):
    pyro.sample("level", dist.Delta(torch.tensor(1.5)))


@pytest.mark.parametrize(
    ("model", "guide", "options", "sentence"),
    [
        (no_data, plated_guide, {}, "the model observes no data"),
        (no_plate, level_guide, {}, "observed site 'y' stands in no plate"),
        (no_vectorized_plate, level_guide, {}, "observed site 'y_0' stands in no plate"),
        (stray_dimension, vector_guide, {}, "'level' has batch shape .*no plate declares"),
        (improper, level_guide, {}, "the prior cannot be drawn, leave it out with prior=False"),
        (batch_of_more, level_guide, {}, "does not run on these arguments with its plates whole"),
        (two_latents, level_guide, {}, "the guide misses latent 'other'"),
        (good, two_latents, {}, "the guide has latent 'other', unknown to the model"),
        (good, delta_guide, {}, "'level' is a single point in the guide .a delta., .* no log q"),
        (good, nan_guide, {}, "log_p is not a number"),
        (good, lambda: None, {}, "the guide does not run"),
        (good, 3, {}, "a Pyro program is called with the data, got 3"),
        (good, level_guide, {"num_draws": 0}, "num_draws must be at least 1, got 0"),
        (good, [], {}, "a tree needs at least one fit"),
        (good, [level_guide] * 2, {"params": [{}] * 3}, "2 guides and 3 params"),
        (good, level_guide, {"params": 3}, "params are states of Pyro's store"),
        (good, level_guide, {"losses": [[1.0], [2.0]]}, "got 2 for 1 fits"),
        (good, level_guide, {"coords": {"raw": [1]}}, "unknown plate in coords 'raw'; known: row"),
        (good, level_guide, {"dims": {"raw": ["a"]}}, "unknown variable in dims 'raw'; known: "),
        (good, level_guide, {"coords": {"row": [1]}}, "coords of 'row' have 1 labels for 4"),
        (mask_over_all, level_guide, {}, r"'level' has batch shape \(4,\), of which no plate"),
        (good, unsampled_guide, {}, "the guide does not run on these arguments"),
        (named_step, level_guide, {}, "'step' is a dimension of every tree: rename the site"),
        (no_sampler, level_guide, {"prior": False}, "data cannot be drawn, .* predictive=False"),
        (good, level_guide, {"num_draws": 2.0}, "num_draws must be a whole number, got 2.0"),
        (good, level_guide, {"num_draws": "10"}, "num_draws must be a whole number, got '10'"),
        (good, level_guide, {"num_draws": None}, "num_draws must be a whole number, got None"),
        (good, level_guide, {"num_draws": True}, "num_draws must be a whole number, got True"),
        (good, level_guide, {"seed": None}, "seed must be a whole number, got None"),
        (good, level_guide, {"losses": 3.0}, "losses are lists of numbers, one a fit"),
        (good, level_guide, {"losses": ["a"]}, "losses are lists of numbers, one a fit"),
        (good, level_guide, {"coords": ["a"]}, r"coords must be a dict, got \['a'\]"),
        (good, level_guide, {"coords": {"row": 3}}, "coords of 'row' must be a list of labels"),
        (good, level_guide, {"kwargs": [1]}, r"kwargs must be a dict, got \[1\]"),
        (good, level_guide, {"dims": {"y": "abc"}}, "dims of 'y' must be a list of names, got 'ab"),
        (good, level_guide, {"dims": 3}, "dims must be a dict, got 3"),
        (good, level_guide, {"constant_data": 3}, "constant_data must be a dict, got 3"),
    ],
)
def test_bad_input_gets_a_sentence(model, guide, options, sentence):
    with pytest.raises(zoo.ZooError, match=sentence) as caught:
        experiments.from_svi(model, guide, torch.zeros(4), **{"num_draws": 2} | options)
    assert "\n" not in str(caught.value)


def test_map_autoguide_is_refused():
    example, _ = fitted("hierarchical_regression", steps=1)
    guide = AutoDelta(example.model)
    guide(*example.args)
    with pytest.raises(zoo.ZooError, match="single point"):
        experiments.from_svi(example.model, guide, *example.args, num_draws=2, params={})


def test_an_improper_prior_can_be_left_out():
    tree = experiments.from_svi(improper, level_guide, torch.zeros(4), num_draws=3, prior=False)
    assert not {"prior", "prior_predictive"} & set(tree.children)
    np.testing.assert_allclose(
        tree["sample_stats"]["total_log_p"], tree["log_likelihood"]["y"].sum("row"), rtol=1e-5
    )


def test_data_without_a_sampler_can_be_left_out():
    options = {"num_draws": 3, "prior": False, "predictive": False}
    tree = experiments.from_svi(no_sampler, level_guide, torch.zeros(4), **options)
    assert set(tree.children) == {"posterior", "log_likelihood", "sample_stats", "observed_data"}


def test_losses_of_several_fits_may_differ_in_length():
    tree = experiments.from_svi(
        good, [level_guide] * 2, torch.zeros(4), num_draws=2, losses=[[3.0, 2.0], [1.0]]
    )
    np.testing.assert_array_equal(tree["sample_stats"]["elbo"], [[-3, -2], [-1, np.nan]])
