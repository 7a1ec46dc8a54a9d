"""Every registered guide with every registered model, and with latents of other supports."""

from functools import partial
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from registered import A_DATUM, CONTINUOUS, DENSITIES, SAMPLE, SMALL, UNSUITED, few_rows

import guides
import zoo
from guides.checks import check_sites
from guides.families import FAMILIES, Categorical, Delta, DiagonalNormal, FullRank, LowRank
from guides.laplace import Laplace


@pytest.mark.parametrize(("name", "guide_name"), SAMPLE)
def test_guide_is_usable_with_plain_pyro(name, guide_name):
    """SVI as Pyro's own users write it; loss falls; the last, shorter minibatch works."""
    problem = few_rows(name, 10 if guide_name == "oracle" else 50)  # it searches a grid each step
    x = problem.data.train
    guide = guides.build(guide_name, problem, **SMALL.get(guide_name, {}))
    if any(latent.num_values is not None for latent in problem.latents):
        guide, elbo = config_enumerate(guide), TraceEnum_ELBO(max_plate_nesting=1)
    else:
        elbo = Trace_ELBO()
    svi = SVI(problem.model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    batches = torch.arange(len(x)).split(2 * len(x) // 5)
    assert len(batches[-1]) < len(batches[0])
    few = len(zoo.load(name).data.train) <= 20
    epochs = 200 if few else 40  # few rows leave little to gain beside the noise
    losses = [sum(svi.step(x, batch) for batch in batches) for _ in range(epochs)]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert all(torch.isfinite(value).all() for value in pyro.get_param_store().values())


def test_exactly_the_declared_pairs_are_refused():
    for name, guide_name in product(zoo.names(), guides.names()):
        problem = few_rows(name)
        if (name, guide_name) in UNSUITED:
            refused = f"{guide_name} does not suit|has no latents|has no q for the latents"
            with pytest.raises(zoo.ZooError, match=refused):
                guides.build(guide_name, problem)
        else:
            check_sites(problem, guides.build(guide_name, problem))


def refusal(name, problem, **options):
    """The one line with which a guide refuses a problem."""
    with pytest.raises(zoo.ZooError) as caught:
        guides.build(name, problem, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def named(sentence, kind):
    """The names that a refusal ends with."""
    return sentence.partition(f"; {kind} that suit: ")[2].split(", ")


REFUSED = [
    ("autoencoder", "structured", {}),
    ("bernoulli_lvm", "delta", {}),
    ("beta_bernoulli", "flow", {"kind": "iaf"}),
    ("beta_bernoulli", "oracle", {}),
    ("gmvae", "oracle", {}),
    ("hmm", "full_rank", {}),
    ("nade", "oracle", {}),
    ("nade", "semi_supervised", {}),
    ("normal_hierarchical", "amortized_flow", {}),
    ("normal_hierarchical", "amortized_full_rank", {}),
    ("normal_hierarchical", "full_rank", {}),
    ("normal_hierarchical", "structured", {}),
    ("ss_vae", "laplace", {}),
    ("vae", "empty", {}),
    ("vq_vae", "importance", {}),
]


@pytest.mark.parametrize(("name", "guide_name", "options"), REFUSED)
def test_guides_that_a_refusal_names_are_those_that_suit(name, guide_name, options):
    """Each can be built, and of the others none can."""
    problem = zoo.load(name)
    suit = named(refusal(guide_name, problem, **options), "guides")
    for one in suit:
        guides.build(one, problem)
    for other in {*guides.names()} - {*suit, guide_name}:
        refusal(other, problem)


def test_a_refusal_names_the_guide_that_holds_the_posterior():
    assert {"oracle", "structured"} < {*named(refusal("full_rank", zoo.load("hmm")), "guides")}
    assert named(refusal("oracle", zoo.load("nade")), "guides") == ["empty"]


def test_a_refusal_where_no_guide_suits_says_so():
    def counts(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Poisson(3.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])

    problem = zoo.Problem(counts, zoo.data.as_dataset(torch.randn(6, 1)))
    for name in guides.names():
        assert refusal(name, problem).endswith("; no registered guide does")


def test_a_refusal_leaves_torchs_stream_alone():
    problem, before = zoo.load("vae"), torch.get_rng_state()
    refusal("structured", problem)
    assert (torch.get_rng_state() == before).all()


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("autoencoder", "diagonal_normal"),
        ("bernoulli_lvm", "diagonal_normal"),
        ("bernoulli_lvm", "categorical"),
        ("bernoulli_mixture", "discrete_vector"),
        ("bernoulli_mixture", "delta"),
        ("vae", "categorical"),
        ("vae", "discrete_vector"),
    ],
)
@pytest.mark.parametrize("guide_name", ["mean_field", "top_down"])
def test_families_that_a_refusal_names_are_those_that_suit(name, family, guide_name):
    problem = zoo.load(name)
    suit = named(refusal(guide_name, problem, family=family), "families")
    for one in suit:
        guides.build(guide_name, problem, family=one)
    for other in {*FAMILIES} - {*suit}:
        refusal(guide_name, problem, family=other)


@pytest.mark.parametrize("refused", ["mean_field", "structured"])
def test_bases_that_importance_names_are_those_that_suit(refused):
    """Of a base with no answer for new rows, and of one that does not suit the model."""
    problem = zoo.load("gaussian_lvm")
    sentence = refusal("importance", problem, base=refused)
    bases = sentence.partition("; guides that do: ")[2].split(", ")
    assert {"amortized", "laplace", "oracle"} < {*bases}
    for base in bases:
        guides.build("importance", problem, base=base)


@pytest.mark.parametrize("guide_name", ["amortized", "constant", "mean_field", "top_down"])
def test_families_by_latent(guide_name):
    """As names or functions; and a line where the dict does not name just the latents."""
    problem = zoo.load("gmvae")
    family = {"y": "auto", "z": "full_rank"}
    built_ = guides.build(guide_name, problem, family=family)
    assert isinstance(built_.families["z"], FullRank)
    check_sites(problem, built_)
    family = {"y": Categorical, "z": partial(LowRank, rank=2)}
    assert guides.build(guide_name, problem, family=family).families["z"].rank == 2
    lines = {
        "family names none for latent 'z'; give one for each of: y, z": {"y": "auto"},
        "family names none for latent 'y'; give one for each of: y, z": {},
        "unknown latent in family: 'x'; known: y, z": family | {"x": "auto"},
        "unknown family 'fullrank'; known: full_rank, ": {"y": "auto", "z": "fullrank"},
        "unknown family ['full_rank']; known: ": ["full_rank"],
    }
    for line, given in lines.items():
        assert refusal(guide_name, problem, family=given).startswith(line)


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


def diagonal(rows, raw):
    """log Normal(raw; loc, scale) of each row."""
    loc, log_scale = rows.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).log_prob(raw).sum(-1)


def full_rank(rows, raw):
    """The same with a covariance, whose factor is filled entry by entry."""
    size = raw.shape[-1]
    loc, log_scale, below = rows[..., :size], rows[..., size : 2 * size], rows[..., 2 * size :]
    lower = torch.eye(size).repeat(*raw.shape[:-1], 1, 1)
    for k, place in enumerate((i, j) for i in range(size) for j in range(i)):
        lower[..., *place] = below[..., k]
    lower = log_scale.exp()[..., None] * lower
    return dist.MultivariateNormal(loc, lower @ lower.mT).log_prob(raw)


def low_rank(rows, raw):
    """The same with one factor beside each number's own noise."""
    size = raw.shape[-1]
    loc, log_scale, factor = rows[..., :size], rows[..., size : 2 * size], rows[..., 2 * size :]
    factor = log_scale.exp() * factor
    covariance = torch.einsum("...i,...j->...ij", factor, factor)
    covariance = covariance + torch.diag_embed((2 * log_scale).exp())
    return dist.MultivariateNormal(loc, covariance).log_prob(raw)


BY_HAND = {DiagonalNormal: diagonal, FullRank: full_rank, LowRank: low_rank}


def built(guide_name, problem):
    """A guide, also of a model that has nothing to fit."""
    return Laplace(problem) if guide_name == "laplace" else guides.build(guide_name, problem)


@pytest.mark.parametrize("guide_name", CONTINUOUS)
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
    if guide_name in A_DATUM and not local:
        with pytest.raises(zoo.ZooError, match="whose data share a latent"):
            guides.build(guide_name, problem)
        return
    guide = built(guide_name, problem)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    check_sites(problem, guide)
    trace = poutine.trace(guide).get_trace(problem.data.train)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    assert z.shape == ((6,) if local else ()) + event_shape
    assert prior.support.check(z).all()
    transform = torch.distributions.biject_to(prior.support)
    raw = transform.inv(z)
    family = type(getattr(guide, "families", {}).get("z"))
    if family not in {*BY_HAND, Delta}:  # whose densities test_families.py has
        return
    source = guide.sources["z"]
    x = problem.data.train
    if not local:
        rows = source.row
    else:
        rows = guide.rows(x)["z"] if hasattr(guide, "rows") else source(x, None)
    raw_flat = raw.reshape(*rows.shape[:-1], -1)
    if guide_name == "delta":
        torch.testing.assert_close(raw_flat, rows, rtol=1e-3, atol=1e-4)
        assert (trace.nodes["z"]["log_prob"] == 0).all()
        return
    by_hand = BY_HAND[family](rows, raw_flat)
    jacobian = transform.log_abs_det_jacobian(raw, z)
    jacobian = jacobian.reshape(*by_hand.shape, -1).sum(-1) if jacobian.shape else jacobian
    torch.testing.assert_close(
        trace.nodes["z"]["log_prob"], by_hand - jacobian, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("guide_name", CONTINUOUS)
def test_unsuitable_latents_are_refused_by_what_they_are(guide_name):
    def counts(x=None, index=None):
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Poisson(3.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows[:, 0])

    problem = zoo.Problem(counts, zoo.data.as_dataset(torch.randn(6, 1)))
    own = guide_name == "delta" or guide_name in DENSITIES
    family = guide_name if own else "categorical"
    with pytest.raises(zoo.ZooError, match=f"{family} does not suit latent 'z'"):
        built(guide_name, problem)
    if own:  # its only one
        return
    with pytest.raises(zoo.ZooError, match="it is discrete"):
        guides.build(guide_name, problem, family="diagonal_normal")
    with pytest.raises(zoo.ZooError, match="categorical does not suit"):
        guides.build(guide_name, zoo.load("vae"), family="categorical")
