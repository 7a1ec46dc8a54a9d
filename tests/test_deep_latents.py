"""Latents in layers, labels that few rows tell, codes, and points: their models and guides."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from scipy import integrate
from scipy.stats import chi2
from sklearn.decomposition import PCA
from torch.nn.functional import conv2d, cross_entropy, softplus

import experiments
import guides
import zoo
from experiments.measure.calibration import calibrate
from experiments.measure.elbo import log_weights
from experiments.measure.evidence import iwae
from experiments.measure.frozen import Frozen
from experiments.measure.gaps import own_and_best
from experiments.measure.labels import label_errors
from experiments.measure.pareto import pareto_k
from experiments.svi.config import FitConfig
from experiments.svi.estimators import elbo, resolve
from guides.top_down import features, width
from tests.away import moved
from zoo import gaussian_lvm, ss_vae, vq_vae
from zoo.distributions import BernoulliVector, Flat
from zoo.problem import Latent

FEW = {
    "num_draws": 8,
    "restarts": 0,
    "simulations": 20,
    "rank_draws": 19,
    "pareto_rows": 20,
    "pareto_draws": 100,
    "interval_rows": 3,
    "interval_draws": 50,
    "interval_temperatures": 5,
}


def binary(*shape):
    return (torch.rand(*shape) < 0.5).to(torch.get_default_dtype())


class TestHierarchicalVAE:
    """With affine maps and a constant scale its marginal is that of a Gaussian LVM."""

    def linear(self, latent_dim, width=3, num_rows=40):
        """The problem, and the Gaussian LVM with the same p(x)."""
        x = torch.randn(num_rows, width)
        options = {"hidden": (), "observations": "normal", "latent_dim": latent_dim}
        problem = zoo.load("hierarchical_vae", data=x, **options)
        model, (k1, _) = moved(problem.model), latent_dim
        with torch.no_grad():
            model.lower[0].weight[k1:] = 0
            model.lower[0].weight.diagonal().fill_(1.5)  # so that the layers hang together
        weight, bias = model.lower[0].weight.detach(), model.lower[0].bias.detach()
        covariance = weight[:k1] @ weight[:k1].T + (2 * bias[k1:]).exp().diag()
        lvm = zoo.load("gaussian_lvm", data=x, latent_dim=k1)
        decoder, scale = model.decoder[0], model.log_scale.exp()
        with torch.no_grad():
            lvm.model.double().weight.copy_(decoder.weight @ torch.linalg.cholesky(covariance))
            lvm.model.loc.copy_(decoder(bias[:k1]))
            lvm.model.log_scale.copy_((scale - gaussian_lvm.MIN_SCALE).log())
        return problem, lvm

    def exact_guide(self, problem):
        """The top-down guide set to the posterior, for one number in each layer."""
        model, guide = problem.model, guides.build("top_down", problem, hidden=()).double()
        (a,), (b, log_s) = model.lower[0].weight[0].tolist(), model.lower[0].bias.tolist()
        w, c = model.decoder[0].weight.detach()[:, 0], model.decoder[0].bias.detach()
        variance, noise = math.exp(2 * log_s), (2 * model.log_scale).exp().item()
        # p(z1 given x, z2): the prior's precision and that of the pixels add.
        precision = 1 / variance + (w @ w).item() / noise
        set_affine(
            guide.sources["z1"],
            w / noise / precision,
            a / variance / precision,
            (b / variance - (w @ c).item() / noise) / precision,
            precision,
        )
        # p(z2 given x): x is normal given z2, with mean w (a z2 + b) + c.
        spread = torch.linalg.inv(variance * torch.outer(w, w) + noise * torch.eye(len(w)))
        gain, precision = a * w @ spread, (1 + a * a * w @ spread @ w).item()
        loc = -(gain @ (b * w + c)).item() / precision
        set_affine(guide.sources["z2"], gain / precision, None, loc, precision)
        return guide

    @pytest.mark.parametrize("latent_dim", [(1, 1), (2, 2), (3, 1)])
    def test_importance_weighting_reaches_the_closed_form(self, latent_dim, double):
        problem, lvm = self.linear(latent_dim, width=4, num_rows=6)
        x, guide = problem.data.train, guides.build("top_down", problem, hidden=()).double()
        bound = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(Frozen(problem.model), guide, pyro.optim.Adam({"lr": 0.03}), bound)
        for _ in range(400):
            svi.step(x)
        found, exact = iwae(problem, guide, x, 10_000), lvm.log_evidence(x)
        # The bound is below by se^2 / 2 on average; 4 se at one of six rows are left out once in
        # 2,000 times.
        assert ((found.value - exact).abs() <= 4 * found.se + found.se.square()).all()
        assert found.se.max() < 0.1

    def test_exact_top_down_guide_has_no_gap(self, double):
        """log p - log q is the evidence at every draw; k is 0 and ranks are uniform."""
        problem, lvm = self.linear((1, 1))
        guide, x = self.exact_guide(problem), problem.data.train
        weights = log_weights(problem, guide, x, 50)
        torch.testing.assert_close(
            weights, lvm.log_evidence(x).expand(50, -1), rtol=1e-9, atol=1e-9
        )
        assert (pareto_k(problem, guide, x) == 0).all()
        assert calibrate(problem, guide, 400, seed=1).calibrated
        assert own_and_best(problem, guide, x) == (guide, None)

    def test_wrong_order_of_layers_is_seen(self, double):
        """The same guide blind to z2 in the encoder of z1: k, ranks and the bound refuse it."""
        torch.manual_seed(2)  # of a model in which much hangs on z2
        problem, lvm = self.linear((1, 1))
        guide, x = self.exact_guide(problem), problem.data.train
        with torch.no_grad():
            guide.sources["z1"].network.parts[1].weight.zero_()
        assert log_weights(problem, guide, x, 200).mean() < lvm.log_evidence(x).mean() - 1
        assert pareto_k(problem, guide, x).max() > 0.7
        assert not calibrate(problem, guide, 400, seed=1).calibrated


def set_affine(encoder, gain, top, bias, precision):
    """Make an encoder of one number answer gain @ x + top * z2 + bias, and 1 / sqrt(precision)."""
    network = encoder.network
    own = network[0] if top is None else network.parts[0]
    with torch.no_grad():
        own.weight.copy_(torch.stack([gain * encoder.spread, torch.zeros_like(gain)]))
        loc = bias + gain @ encoder.center
        own.bias.copy_(torch.stack([loc, torch.tensor(-0.5 * math.log(precision))]))
        if top is not None:
            network.parts[1].weight.copy_(torch.tensor([[top], [0.0]]))


class TestTopDown:
    """An encoder for every latent, given the ones before it."""

    @pytest.mark.parametrize("name", ["vae", "bernoulli_mixture", "autoencoder"])
    def test_one_latent_is_amortized(self, name):
        problem = zoo.load(name)
        traces = []
        for guide_name in ("amortized", "top_down"):
            pyro.set_rng_seed(3)
            guide = guides.build(guide_name, problem)
            traces.append(poutine.trace(guide).get_trace(problem.data.train))
        one, two = traces
        assert torch.equal(one.nodes["z"]["value"], two.nodes["z"]["value"])
        assert torch.equal(one.log_prob_sum(), two.log_prob_sum())

    def finite(self):
        """A whole number, a vector of bits, another whole number, and data that hang on all."""
        shift = torch.tensor([0.5, -1.0])

        def model(x=None, index=None):
            with zoo.datum(x, index) as rows:
                k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
                bits = pyro.sample("bits", BernoulliVector(torch.tensor([0.3, -0.4])))
                y = pyro.sample("y", dist.Categorical(torch.tensor([0.6, 0.4])))
                observed = dist.Normal((k + 1.0) * (bits @ shift) + y, 0.7)
                pyro.sample("x", observed, obs=None if rows is None else rows[:, 0])

        return zoo.Problem(model, zoo.data.as_dataset(torch.randn(7, 2)))

    def test_enumerated_latents_before_others(self, double):
        """Pyro's loss is the sum over all values by hand, each a run of its own."""
        problem = self.finite()
        guide, x = moved(guides.build("top_down", problem, hidden=(5,))), problem.data.train
        index, bound = torch.tensor([4, 0, 2]), 0.0
        pairs = itertools.product(range(3), itertools.product([0.0, 1.0], repeat=2), range(2))
        for k, bits, y in pairs:
            values = {"k": torch.full((3,), k), "bits": torch.tensor(bits).expand(3, 2)}
            values["y"] = torch.full((3,), y)
            terms = []
            for program in (problem.model, guide):
                trace = poutine.trace(poutine.condition(program, values)).get_trace(x, index)
                trace.compute_log_prob()
                sites = (trace.nodes[n] for n in ("k", "bits", "y", "x") if n in trace.nodes)
                terms.append(sum(site["unscaled_log_prob"] for site in sites))
            bound = bound + (terms[1].exp() * (terms[0] - terms[1])).sum()
        guide = config_enumerate(guide)
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(problem.model, guide, x, index)
        assert -loss == pytest.approx(bound.item() * 7 / 3, rel=1e-10)

    def test_comparison_leaves_out_what_has_no_rows(self, tmp_path):
        fit = {"steps": 10, "batch_size": 256}
        found = experiments.compare(
            ["hierarchical_vae"], ["top_down"], seeds=1, out=tmp_path, fit=fit, measure=FEW
        )
        (record,) = found.records
        assert record["status"] == "ok", record
        gaps = record["measures"]["gaps"]
        assert {"elbo_per_datum", "total_gap_lower_per_datum"} < set(gaps)
        assert not [name for name in gaps if "amortization" in name or "approximation" in name]
        assert record["measures"]["pareto"]["num_data"] == 20
        assert record["measures"]["calibration"]["num_simulations"] == 20
        assert "hierarchical_vae-top_down: no parameters of q a datum" in found.table

    def test_any_guide_with_an_answer_is_compared(self, tmp_path):
        """A function that a file registers; Pyro's AutoNormal answers no held-out rows."""
        own, auto = tmp_path / "own_slope.py", tmp_path / "own_auto.py"
        own.write_text(
            "import guides, pyro, torch, zoo\nimport pyro.distributions as dist\n"
            "@guides.register\ndef build(problem):\n    def guide(x=None, index=None):\n"
            "        slope = pyro.param('slope', lambda: torch.zeros(64, 2))\n"
            "        with zoo.datum(x, index) as rows:\n"
            "            pyro.sample('z', dist.Normal(rows @ slope, 1.0).to_event(1))\n"
            "    return guide\n"
        )
        auto.write_text(
            "import guides\nfrom pyro.infer.autoguide import AutoNormal\n@guides.register\n"
            "def build(problem):\n    return AutoNormal(problem.model)\n"
        )
        settings = {"seeds": 1, "measure": FEW, "fit": {"steps": 5, "batch_size": None}}
        with pytest.raises(zoo.ZooError, match="'AutoNormal' of held-out rows, and it has no ans"):
            experiments.compare(["gaussian_lvm"], [str(auto)], out=tmp_path / "no", **settings)
        assert not (tmp_path / "no").exists()
        found = experiments.compare(["gaussian_lvm"], [str(own)], out=tmp_path / "yes", **settings)
        assert not found.failed
        assert found.records[0]["measures"]["gaps"]["total_gap_per_datum"] > 0

    def test_latents_that_do_not_suit(self):
        with pytest.raises(zoo.ZooError, match="has no latents: take guide 'empty'"):
            guides.build("top_down", zoo.load("independent_bernoulli"))
        for hidden in (3, [0], [1.5]):
            with pytest.raises(zoo.ZooError, match="hidden must list layer widths"):
                guides.build("top_down", zoo.load("vae"), hidden=hidden)
        with pytest.raises(zoo.ZooError, match="unknown family 'normal'"):
            guides.build("top_down", zoo.load("vae"), family="normal")


class TestVQVAE:
    """Codes, their prior, and the gradients that the source's equation 3 has."""

    def problem(self, num_codes=3, codebook_size=4, width=5, **options):
        sizes = {"num_codes": num_codes, "codebook_size": codebook_size, "prior_hidden": 6}
        options = {"code_dim": 2, "hidden": (), "commitment": 0.7} | sizes | options
        problem = zoo.load("vq_vae", data=binary(9, width), **options)
        moved(problem.model)
        return problem

    def test_nearest_is_that_of_brute_force(self, double):
        value, codebook = torch.randn(50, 3, 2), torch.randn(7, 2)
        by_hand = torch.tensor(
            [[min(range(7), key=lambda k: math.dist(v, codebook[k])) for v in row] for row in value]
        )
        assert torch.equal(vq_vae.nearest(value, codebook), by_hand)

    def test_score_is_the_second_density_off_the_codebook_too(self, double):
        problem = self.problem(hidden=(4,))
        x, z = problem.data.train, torch.randn(9, 3, 2)
        trace = poutine.trace(poutine.condition(problem.model, {"z": z})).get_trace(x)
        trace.compute_log_prob()
        found = sum(trace.nodes[name]["log_prob"] for name in ("z", "x"))
        torch.testing.assert_close(
            found, problem.log_joint(problem.model, x, z=z), rtol=1e-9, atol=0
        )

    def test_gradients_are_those_of_the_source(self, double):
        """Linear decoder: d/dz log p(x | z) = W' (x - sigmoid(W e + b)), taken at the entry e and
        given to z; the entries get it not, and are pulled to z by 2 (z - e) each."""
        problem = self.problem()
        model, x = problem.model, problem.data.train
        z = torch.randn(9, 3, 2, requires_grad=True)
        trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x)
        trace.compute_log_prob()
        places = vq_vae.nearest(z, model.codebook)
        entries = model.codebook.detach()[places]
        layer = model.decoder[0]
        residual = x - (entries.flatten(-2) @ layer.weight.T + layer.bias).sigmoid()
        straight = (residual @ layer.weight).reshape(z.shape)
        total = trace.nodes["z"]["log_prob"].sum() + trace.nodes["x"]["log_prob"].sum()
        of_z, of_codebook = torch.autograd.grad(total, [z, model.codebook])
        expected = straight - 2 * 0.7 * (z - entries)
        torch.testing.assert_close(of_z, expected.detach(), rtol=1e-9, atol=1e-9)
        pulls = torch.zeros(4, 2)
        for place, pull in zip(places.flatten(), 2 * (z - entries).reshape(-1, 2), strict=True):
            pulls[place] += pull.detach()
        torch.testing.assert_close(of_codebook, pulls, rtol=1e-9, atol=1e-9)

    def test_prior_sums_to_one_and_draws_as_it_says(self, double):
        """All 64 sequences; counts of 20,000 draws by a chi-squared test at 0.1 %."""
        model = self.problem().model
        every = torch.tensor(list(itertools.product(range(4), repeat=3))).double()
        prior = model.prior()
        probabilities = prior.log_prob(every).exp()
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
        z = poutine.trace(vectorized(model, 20_000)).get_trace().nodes["z"]["value"]
        codes = vq_vae.nearest(z, model.codebook)
        assert torch.equal(model.codebook[codes], z)
        places = (codes * torch.tensor([16, 4, 1])).sum(-1).flatten()
        counts = torch.bincount(places, minlength=64)
        expected = 20_000 * probabilities
        statistic = ((counts - expected).square() / expected).sum().item()
        assert statistic < chi2.ppf(0.999, 63)

    def test_each_code_hangs_on_those_before_it_alone(self, double):
        """The gradient of its logits reaches back, and never forth."""
        model = self.problem().model
        codes = torch.zeros(1, 3)
        for place, other in itertools.product(range(3), range(3)):
            changed = codes.clone()
            changed[0, other] = 2.0
            prior = model.prior()
            same = torch.equal(
                prior.conditionals(codes)[0, place], prior.conditionals(changed)[0, place]
            )
            assert same == (other >= place)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_codes": 0}, "num_codes must be a whole number of at least 1, got 0"),
            ({"codebook_size": True}, "codebook_size must be a whole number .*got True"),
            ({"code_dim": 1.5}, "code_dim must be a whole number .*got 1.5"),
            ({"prior_hidden": "3"}, "prior_hidden must be a whole number .*got '3'"),
            ({"commitment": 0}, "commitment must be a positive number, got 0"),
            ({"hidden": 3}, "hidden must list layer widths"),
            ({"data": torch.full((3, 4), 0.5)}, "observes 0.5, outside the support"),
        ],
    )
    def test_bad_input(self, options, message):
        with pytest.raises(zoo.ZooError, match=message):
            zoo.load("vq_vae", **options)


def vectorized(model, count):
    def several():
        with pyro.plate("draws", count, dim=-2):
            model()

    return several


class TestAutoencoder:
    """Points without a prior."""

    def test_linear_one_reconstructs_as_well_as_pca(self):
        """Squared error of the reconstructions within 0.5 % of the best that is possible."""
        x = zoo.data.load("digits").train[:300, 18:38]
        options = {"latent_dim": 3, "hidden": (), "observations": "normal"}
        problem = zoo.load("autoencoder", data=x, **options)
        guide = guides.build("amortized", problem, family="delta", hidden=())
        settings = {"steps": 1500, "batch_size": None, "learning_rate": 0.03, "decay": 0.003}
        fit = experiments.fit(problem, guide, **settings)
        z = fit.guides[0].rows(x)["z"]
        with torch.no_grad():
            ours = (x - problem.predictive_mean(fit.models[0], z)).square().sum().item()
        pca = PCA(3).fit(x.numpy())
        best = ((x.numpy() - pca.inverse_transform(pca.transform(x.numpy()))) ** 2).sum()
        assert best <= ours * (1 + 1e-5)
        assert ours < 1.005 * best

    def test_encoder_gives_a_point_by_itself(self):
        """`amortized` and `top_down` need no family=delta, and say that they are points."""
        problem = zoo.load("autoencoder")
        for name in ("amortized", "top_down", "mean_field", "constant"):
            guide = guides.build(name, problem)
            assert guide.family == "delta"
            assert guides.build(name, problem, family="delta").family == "delta"
            with pytest.raises(zoo.ZooError, match="'z': its prior is no density, so that only a"):
                guides.build(name, problem, family="diagonal_normal")

    @pytest.mark.parametrize("name", ["autoencoder", "vq_vae"])
    def test_measures_that_need_log_q_are_refused_in_one_line(self, name, tmp_path):
        problem = zoo.load(name)
        guide = guides.build("amortized", problem)
        fit = experiments.fit(problem, guide, steps=5)
        assert torch.isfinite(fit.history).all()
        for ask in (lambda: fit.elbo, lambda: experiments.diagnose(fit)):
            with pytest.raises(
                zoo.ZooError, match="has no log q: it is a point estimate of z"
            ) as e:
                ask()
            assert "\n" not in str(e.value)
        with pytest.raises(zoo.ZooError, match="is a point estimate: it has no log q"):
            experiments.compare([name], ["amortized"], out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
        with pytest.raises(zoo.TruthUnavailable, match=r"\(truth level T4"):
            problem.log_evidence(problem.data.test)
        with pytest.raises(zoo.ZooError, match="cannot anneal over latent 'z'"):
            experiments.ais(problem, problem.data.test[:2])

    def test_flat_scores_zero_and_says_that_it_is_no_density(self):
        flat = Flat(3, torch.zeros(())).expand([4])
        assert flat.sample((2,)).shape == (2, 4, 3)
        assert torch.equal(flat.log_prob(1e6 * torch.randn(2, 4, 3)), torch.zeros(2, 4))
        assert not zoo.load("autoencoder").latents[0].proper
        assert zoo.load("vae").latents[0].proper

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("autoencoder", {"latent_dim": 0}, "latent_dim must be a whole number from 1"),
            ("autoencoder", {"latent_dim": True}, "latent_dim must be a whole number .*got True"),
            ("autoencoder", {"observations": "gamma"}, "unknown observations 'gamma'; known: "),
            ("autoencoder", {"hidden": [0]}, "hidden must list layer widths"),
            ("autoencoder", {"data": torch.full((3, 4), 0.5)}, "observes 0.5, outside"),
            ("hierarchical_vae", {"latent_dim": 2}, "latent_dim must be a pair of whole numbers"),
            ("hierarchical_vae", {"latent_dim": [2]}, "latent_dim must be a pair .*got .2."),
            ("hierarchical_vae", {"latent_dim": [2, 0]}, "latent_dim must be a whole number from"),
            ("hierarchical_vae", {"latent_dim": [2, 1.5]}, "latent_dim must be a whole .*got 1.5"),
            ("hierarchical_vae", {"latent_dim": [65, 2]}, "from 1 to the data's 64, got 65"),
            ("hierarchical_vae", {"observations": 1}, "unknown observations 1; known: "),
            ("hierarchical_vae", {"hidden": ["5"]}, "hidden must list layer widths"),
            ("hierarchical_vae", {"data": torch.full((3, 4), 0.5)}, "observes 0.5, outside"),
        ],
    )
    def test_bad_input(self, name, options, message):
        with pytest.raises(zoo.ZooError, match=message):
            zoo.load(name, **options)


class TestSemiSupervisedVAE:
    """Labels that few rows tell."""

    def rows(self, pixels, reports):
        """Every row of pixels with every report: (r n, d + 1)."""
        blocks = [torch.cat([pixels, pixels.new_full((len(pixels), 1), r)], 1) for r in reports]
        return torch.cat(blocks)

    def problem(self, latent_dim=1, width=3, classes=2, hidden=(4,)):
        every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=width)))
        every = every.to(torch.get_default_dtype())
        data = self.rows(every, range(classes + 1))
        problem = zoo.load(
            "ss_vae", data=data, num_classes=classes, latent_dim=latent_dim, hidden=hidden
        )
        moved(problem.model, 1.0)
        return problem

    def test_evidence_sums_to_one_over_all_rows(self, double):
        for latent_dim in (1, 2):
            problem = self.problem(latent_dim)
            total = problem.log_evidence(problem.data.train).exp().sum().item()
            assert total == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("latent_dim", [1, 2])
    def test_evidence_of_told_rows_by_numerical_integration(self, latent_dim, double):
        """log p(x, label) + log of the share of told rows, Simpson's rule over z; of a row that
        does not tell the sum over the labels."""
        problem = self.problem(latent_dim)
        model, x = problem.model, problem.data.train[[3, 9, 20]]
        assert x[:, -1].tolist() == [0, 1, 2]
        share = 2 * model.report[0].item()
        assert share == pytest.approx((16 + 1) / (24 + 2), rel=1e-6)  # of 24 rows 16 tell
        for row, found in zip(x, problem.log_evidence(x).tolist(), strict=True):
            label = int(row[-1])
            labels = [label] if label < 2 else range(2)
            each = [integral(model, row[:-1], y, latent_dim) / 2 for y in labels]
            expected = (share if label < 2 else 1 - share) * sum(each)
            assert found == pytest.approx(math.log(expected), abs=1e-5)

    def test_importance_weighting_reaches_it(self, double):
        problem = self.problem(2, width=4)
        x = problem.data.train[::5]
        exact = problem.log_evidence(x)
        for name in ("semi_supervised", "top_down", "amortized"):
            found = iwae(problem, guides.build(name, problem).double(), x, 5000)
            assert ((found.value - exact).abs() <= 4.4 * found.se + found.se.square()).all(), name

    def test_semi_supervised_guide_is_what_it_says(self, double):
        """log q by hand: uniform where the label is told, else by the classifier of pixels."""
        problem = self.problem(2, classes=3)
        guide, x = moved(guides.build("semi_supervised", problem)), problem.data.train
        trace = poutine.trace(guide).get_trace(x)
        trace.compute_log_prob()
        y, z = trace.nodes["y"], trace.nodes["z"]
        told = x[:, -1] < 3
        logits = guide.classifier(x[:, :-1], None).log_softmax(-1)
        by_classifier = logits.gather(-1, y["value"][:, None])[:, 0]
        expected = torch.where(told, -math.log(3), by_classifier)
        torch.testing.assert_close(y["log_prob"], expected)
        label = torch.where(told, x[:, -1], y["value"]).long()
        row = guide.sources["z"](x[:, :-1], None, torch.eye(3)[label])
        loc, log_scale = row.chunk(2, -1)
        expected = dist.Normal(loc, log_scale.exp()).log_prob(z["value"]).sum(-1)
        torch.testing.assert_close(z["log_prob"], expected)

    def test_a_classifier_by_convolutions(self, double):
        """By torch's own functions, on images of any height and width."""
        problem = zoo.load("ss_vae", num_labels=20)
        guide = guides.build("semi_supervised", problem, image_shape=(8, 8), hidden=(5,)).double()
        encoder, x = guide.classifier, problem.data.train[:6, :-1].double()
        first, second, last = (
            layer for layer in encoder.network.layers if list(layer.parameters())
        )
        images = ((x - encoder.center) / encoder.spread).reshape(6, 1, 8, 8)
        maps = conv2d(images, first.weight, first.bias, stride=2, padding=2).relu()
        maps = conv2d(maps, second.weight, second.bias, stride=2, padding=2).relu()
        assert maps.shape == (6, 32, 2, 2)
        torch.testing.assert_close(encoder(x, None), last(maps.reshape(6, -1)))
        several = encoder(x.expand(3, 6, 64), None)  # draws before the data
        torch.testing.assert_close(several, encoder(x, None).expand(3, 6, 10))

    @pytest.mark.parametrize("estimator", ["enumeration", "score"])
    def test_classification_is_in_the_gradient_and_in_no_loss(self, estimator, double):
        """The difference from a guide of weight 0 is weight * N * mean cross-entropy, by hand."""
        problem = self.problem()
        guide, x = moved(guides.build("semi_supervised", problem, weight=0.3)), problem.data.train
        config = resolve(FitConfig(estimator=estimator), problem)
        losses, gradients = [], []
        for weight in (0.0, 0.3):
            guide.weight = weight
            pyro.set_rng_seed(2)
            loss, surrogate = elbo(config, problem).terms(problem.model, guide, x, None)
            losses.append(loss.item())
            gradients.append(torch.autograd.grad(surrogate, list(guide.classifier.parameters())))
        assert losses[0] == losses[1]
        told = x[x[:, -1] < 2]
        logits = guide.classifier(told[:, :-1], None)
        cross = 0.3 * len(x) * cross_entropy(logits, told[:, -1].long())
        by_hand = torch.autograd.grad(cross, list(guide.classifier.parameters()))
        for without, having, extra in zip(*gradients, by_hand, strict=True):
            torch.testing.assert_close(having - without, extra, rtol=1e-8, atol=1e-10)

    def test_told_rows_are_drawn_evenly_where_they_are_many(self, monkeypatch, double):
        """The mean of the extra loss over steps is that of all told rows."""
        problem = self.problem()
        guide, x = moved(guides.build("semi_supervised", problem)), problem.data.train
        whole = guide.extra_loss(x).item()
        monkeypatch.setattr("guides.semi_supervised.TOLD_AT_ONCE", 5)
        draws = torch.stack([guide.extra_loss(x).detach() for _ in range(4000)])
        se = draws.std().item() / math.sqrt(len(draws))
        assert abs(draws.mean().item() - whole) < 3.3 * se

    @pytest.mark.parametrize("image_shape", [None, (1, 3)])
    def test_both_engines_take_the_same_steps_with_it(self, image_shape, uncompiled, double):
        from steps import assert_close, parameters, started, train, train_eagerly

        problem = self.problem()
        guide = guides.build("semi_supervised", problem, image_shape=image_shape).double()
        settings = {"steps": 5, "batch_size": 8}
        (ours,) = train(started(problem, guide, (3,), **settings), problem)
        (theirs,) = started(problem, guide, (3,), **settings)
        assert_close(ours, train_eagerly(theirs, problem))
        idle = guides.build("semi_supervised", problem, weight=0, image_shape=image_shape)
        (without,) = started(problem, idle.double(), (3,), **settings)
        train([without], problem)
        name = f"guide.classifier.network.{'layers.' if image_shape else ''}0.weight"
        assert not torch.allclose(parameters(ours)[name], parameters(without)[name])

    def test_label_errors_are_counted_on_rows_that_do_not_tell(self):
        problem = self.problem(classes=3)
        x = problem.data.train
        guide = guides.build("semi_supervised", problem)
        with torch.no_grad():
            guide.classifier.network[-1].weight.zero_()
            guide.classifier.network[-1].bias.copy_(torch.tensor([0.0, 30.0, 0.0]))
        labels = torch.arange(len(x)) % 3
        wrong = label_errors(problem, guide, x, labels, num_draws=5)
        hidden = x[:, -1] == 3
        assert torch.equal(wrong, (labels[hidden] != 1).double())

    def test_error_falls_with_labels_and_is_recorded(self, tmp_path):
        fit = {"steps": 250, "batch_size": 256, "learning_rate": 0.01}
        found = experiments.compare(
            ["ss_vae"],
            ["semi_supervised"],
            seeds=1,
            out=tmp_path,
            fit=fit,
            measure=FEW | {"simulations": 0, "interval_rows": 0},
            model_options={"ss_vae": {"num_labels": 1000, "hidden": [30]}},
            guide_options={"semi_supervised": {"weight": 3.0, "hidden": [50]}},
        )
        (record,) = found.records
        assert record["status"] == "ok", record
        held_out = record["measures"]["held_out"]
        assert held_out["label_error"] < 0.15
        assert held_out["label_error_se"] == pytest.approx(
            math.sqrt(held_out["label_error"] * (1 - held_out["label_error"]) / 450), rel=1e-6
        )
        assert "| label error |" in found.table
        assert f"| {100 * held_out['label_error']:.1f} % |" in found.table
        assert "label_error" in (tmp_path / "table.csv").read_text()

    def test_a_named_set_tells_the_same_number_of_each_class(self):
        problem = zoo.load("ss_vae", num_labels=50)
        data = problem.data
        told = data.train[:, -1] < 10
        assert torch.bincount(data.train[told, -1].long()).tolist() == [5] * 10
        assert torch.equal(data.train[told, -1].long(), data.train_labels[told])
        assert (data.test[:, -1] == 10).all()
        again = ss_vae.with_reports(zoo.data.load("digits"), 50, seed=1).train[:, -1]
        assert not torch.equal(again, data.train[:, -1])
        assert (zoo.load("ss_vae", num_labels=0).data.train[:, -1] == 10).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_labels": 95}, "num_labels must be a multiple of the 10 classes, got 95"),
            ({"num_labels": True}, "num_labels must be a multiple .*got True"),
            ({"num_labels": 100.0}, "num_labels must be a multiple .*got 100.0"),
            ({"num_labels": 1340}, "num_labels is 1340, but only 1.. rows are a "),
            ({"num_classes": 1}, "num_classes must be a whole number of at least 2, got 1"),
            ({"num_classes": 9, "num_labels": 90}, "num_classes is 9, but there is label 9"),
            ({"latent_dim": 0}, "latent_dim must be a whole number from 1"),
            ({"hidden": "x"}, "hidden must list layer widths"),
            ({"data": [[1.0], [0.0]]}, "a last column that tells the label; got 1 column"),
            ({"data": [[1.0, 11.0], [0.0, 3.0]]}, "site 'report' observes 11, outside"),
            ({"data": [[1.0, 1.5], [0.0, 3.0]]}, "site 'report' observes 1.5, outside"),
            ({"data": [[0.5, 1.0], [0.0, 3.0]]}, "site 'x' observes 0.5, outside"),
        ],
    )
    def test_bad_input(self, options, message):
        with pytest.raises(zoo.ZooError, match=message):
            zoo.load("ss_vae", **options)

    def test_a_set_without_labels(self):
        rows = zoo.data.as_dataset(torch.zeros(3, 2))
        with pytest.raises(zoo.ZooError, match="set 'own data' has no labels; digits and mnist"):
            ss_vae.with_reports(rows, 10)

    def test_guide_refuses_what_has_no_label(self):
        with pytest.raises(zoo.ZooError, match=r"does not suit vae: none of its latents \(z\)"):
            guides.build("semi_supervised", zoo.load("vae"))
        for weight in (-1, True, math.inf, "1"):
            with pytest.raises(zoo.ZooError, match="weight must be a number of at least 0"):
                guides.build("semi_supervised", self.problem(), weight=weight)
        for shape in ([3], [3, 2], "31", [0, 0], [1.5, 2], 3, [True, 3], [-1, -3]):
            with pytest.raises(zoo.ZooError, match=r"image_shape must be \[height, width\] of 3"):
                guides.build("semi_supervised", self.problem(), image_shape=shape)
        problem = zoo.load("vae")
        with pytest.raises(
            zoo.ZooError, match=r"label must name a finite latent .*none\), got 'z'"
        ):
            zoo.Problem(problem.model, problem.data, label="z")


def integral(model, pixels, label, latent_dim):
    """p(pixels given label), by Simpson's rule over z."""
    axis = torch.linspace(-8, 8, 401)
    z = torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, latent_dim)
    with torch.no_grad():
        logits = model.decoder(z, torch.eye(2)[label].expand(len(z), -1))
        log_likelihood = (pixels * logits - softplus(logits)).sum(-1)
        log_prior = -0.5 * (z.square().sum(-1) + latent_dim * math.log(2 * math.pi))
        density = (log_likelihood + log_prior).exp().reshape([401] * latent_dim).numpy()
    for _ in range(latent_dim):
        density = integrate.simpson(density, x=axis.numpy())
    return float(density)


def test_later_encoders_see_a_positive_latent_in_unconstrained_space():
    latent = Latent("r", dist.Gamma(2.0, 1.0).support, (), ("datum",))
    simplex = Latent("s", dist.Dirichlet(torch.ones(3)).support, (3,), ("datum",))
    far = torch.tensor([1e-8, 1.0, 1e8])
    torch.testing.assert_close(features(latent, far, far.dtype)[:, 0], far.log())
    share = torch.softmax(torch.randn(4, 3), -1)
    assert features(simplex, share, share.dtype).shape == (4, width(simplex)) == (4, 2)
