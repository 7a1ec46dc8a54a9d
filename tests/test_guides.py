"""Every registered guide with every registered model, and with latents of other supports."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate

import guides
import zoo
from guides.checks import check_sites
from guides.families import DiagonalNormal


def suiting(guide_name, problem):
    """The guide, or None where it says itself that it does not suit the latents."""
    try:
        return guides.build(guide_name, problem)
    except zoo.ZooError:
        return None


def test_guide_is_usable_with_plain_pyro(problem, guide_name):
    """SVI as Pyro's own users write it; loss falls; the last, shorter minibatch works."""
    x = problem.data.train[:50]
    guide = suiting(guide_name, problem.having(data=zoo.data.as_dataset(x)))
    if guide is None:
        return
    if problem.latents[0].support.is_discrete:
        guide, elbo = config_enumerate(guide), TraceEnum_ELBO(max_plate_nesting=1)
    else:
        elbo = Trace_ELBO()
    svi = SVI(problem.model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    batches = torch.arange(len(x)).split(20 if len(x) > 20 else 3)
    losses = [sum(svi.step(x, batch) for batch in batches) for _ in range(60)]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert all(torch.isfinite(value).all() for value in pyro.get_param_store().values())


def test_table_gradient_touches_the_batch_only():
    problem = zoo.load("gaussian_lvm")
    guide = guides.build("mean_field", problem)
    index = torch.tensor([3, 7, 3])
    guide.sources["z"].sparse()
    guide.rows(problem.data.train, index)["z"].sum().backward()
    gradient = guide.sources["z"].rows.weight.grad
    assert gradient.is_sparse
    assert set(gradient.coalesce().indices().flatten().tolist()) == {3, 7}


def test_a_fit_starts_from_the_rows_of_the_family():
    """Resetting all modules, children after parents, leaves torch's Normal(0, 1) nowhere."""
    from experiments.svi.run import reset

    problem = zoo.load("gaussian_lvm")
    guide = guides.build("mean_field", problem)
    for _ in range(2):
        loc, log_scale = guide.sources["z"].rows.weight.detach().chunk(2, -1)
        assert 0.08 < loc.std() < 0.12
        assert (log_scale == 0).all()
        reset(torch.nn.ModuleList([guide]))


def test_table_refuses_other_data():
    problem = zoo.load("gaussian_lvm")
    with pytest.raises(zoo.ZooError, match="1347 rows, the data 450"):
        guides.build("mean_field", problem)(problem.data.test)


SUPPORTED = {
    "real": (dist.Normal(0.0, 1.0), ()),
    "vector": (dist.Normal(torch.zeros(3), 1.0).to_event(1), (3,)),
    "positive": (dist.Gamma(2.0, 1.0), ()),
    "interval": (dist.Beta(2.0, 3.0), ()),
    "simplex": (dist.Dirichlet(torch.ones(4)), (4,)),
    "matrix": (dist.Normal(torch.zeros(2, 3), 1.0).to_event(2), (2, 3)),
}


@pytest.mark.parametrize("support", SUPPORTED)
@pytest.mark.parametrize("local", [True, False])
def test_own_models_of_any_continuous_support(support, local, guide_name):
    """log q of a diagonal normal integrates the transform: against a density built by hand."""
    prior, event_shape = SUPPORTED[support]

    def model(x=None, index=None):
        z = None if local else pyro.sample("z", prior)
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", prior) if local else z
            mean = z.reshape(*z.shape[: z.dim() - len(event_shape)], -1).sum(-1)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=None if rows is None else rows[:, 0])

    problem = zoo.Problem(model, zoo.data.as_dataset(torch.randn(6, 1)))
    guide = suiting(guide_name, problem)
    if guide is None or not isinstance(guide.families.get("z"), DiagonalNormal):
        return
    check_sites(problem, guide)
    trace = poutine.trace(guide).get_trace(problem.data.train)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    assert z.shape == ((6,) if local else ()) + event_shape
    assert prior.support.check(z).all()
    transform = torch.distributions.biject_to(prior.support)
    raw = transform.inv(z)
    rows = guide.rows(problem.data.train)["z"] if local else guide.sources["z"].row
    loc, log_scale = rows.chunk(2, -1)
    raw_flat = raw.reshape(*loc.shape)
    by_hand = dist.Normal(loc, log_scale.exp()).log_prob(raw_flat).sum(-1)
    jacobian = transform.log_abs_det_jacobian(raw, z)
    jacobian = jacobian.reshape(*by_hand.shape, -1).sum(-1) if jacobian.shape else jacobian
    torch.testing.assert_close(
        trace.nodes["z"]["log_prob"], by_hand - jacobian, rtol=1e-4, atol=1e-4
    )


def test_unsuitable_latents_are_refused_by_what_they_are(guide_name):
    def counts(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Poisson(3.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])

    problem = zoo.Problem(counts, zoo.data.as_dataset(torch.randn(6, 1)))
    with pytest.raises(zoo.ZooError, match=r"(does not suit latent 'z'|knows no exact)"):
        guides.build(guide_name, problem)
    if "family" not in guides.resolve(guide_name, {}):
        return
    with pytest.raises(zoo.ZooError, match="it is discrete"):
        guides.build(guide_name, problem, family="diagonal_normal")
    with pytest.raises(zoo.ZooError, match="categorical does not suit"):
        guides.build(guide_name, zoo.load("vae"), family="categorical")
