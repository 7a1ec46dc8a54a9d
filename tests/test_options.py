"""Models at options that are not their defaults: the density is written twice, and is one."""

import pytest
import torch

import zoo
from zoo.checks import check_density

OPTIONS = [
    ("autoencoder", {"observations": "normal"}),
    ("bernoulli_lvm", {"hidden": (7,)}),
    ("bernoulli_lvm", {"latent_dim": 40}),
    ("deep_sigmoid_belief_net", {"latent_dim": (9, 9)}),
    ("gmvae", {"latent_dim": 5}),
    ("gmvae", {"latent_dim": 5, "collapsed": True}),
    ("hierarchical_vae", {"observations": "normal", "latent_dim": (5, 3)}),
    ("hmm", {"steps": 16, "num_states": 1}),
    ("latent_class", {"num_levels": 2}),
    ("linear_gaussian_ssm", {"latent_dim": 3}),
    ("mixture_of_factor_analyzers", {"latent_dim": 4}),
    ("nade", {"orderless": True}),
    ("pixel_cnn", {"num_levels": 17}),
    ("pixel_rnn", {"num_levels": 17, "variant": "diagonal_bilstm"}),
    ("ss_vae", {"latent_dim": 5, "num_labels": 0}),
    ("vae", {"latent_dim": 5, "observations": "normal"}),
    ("vq_vae", {"num_codes": 3, "codebook_size": 5, "code_dim": 4}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_density_is_the_one_written_down(name, options):
    check_density(zoo.load(name, **options))


@pytest.mark.parametrize("name", ["bernoulli_lvm", "bernoulli_mixture", "made", "nade", "vae"])
def test_density_is_finite_where_a_coin_is_certain(name):
    """Logits of a hundred: the probability of a 1 is 1 to rounding, and that of a 0 is not."""
    problem = zoo.load(name)
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.mul_(0).add_(100.0)
    latents = {
        latent.name: torch.ones(20, *latent.event_shape)
        if latent.values is None
        else latent.values[:1].expand(20, *latent.event_shape)
        for latent in problem.latents
    }
    found = problem.log_joint(problem.model, problem.data.test[:20], **latents)
    assert found.isfinite().all()
    assert found.max() < -50


@pytest.mark.parametrize("kind", [torch.float64, torch.int64, torch.bool])
def test_rows_of_any_type_are_taken(kind):
    rows = zoo.load("nade").data.train[:30]
    plain, typed = (
        zoo.load("nade", data=zoo.data.DataSet("own", x, x)) for x in (rows, rows.to(kind))
    )
    typed.model.load_state_dict(plain.model.state_dict())
    torch.testing.assert_close(typed.log_evidence(rows.to(kind)), plain.log_evidence(rows))


def test_lists_in_a_data_set_are_taken():
    data = zoo.data.DataSet("own", [[0, 1], [1, 1]], [[1, 0]])
    assert zoo.load("made", data=data).log_evidence([[1, 0]]).shape == (1,)
