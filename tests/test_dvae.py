"""The dVAE: the released networks name for name, the loss against closed forms and numerical integrals, learning."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minidalle.config import DVAEConfig, DVAEStage
from minidalle.dvae import (
    DVAE,
    bernoulli_nll,
    cosine,
    gaussian_nll,
    gumbel_softmax,
    kl_to_uniform,
    logit_laplace_nll,
    map_pixels,
    schedules,
    unmap_pixels,
    usage,
)  # fmt: skip

SMALL = DVAEConfig(codebook_size=16, n_hid=8, n_init=6, n_group=3, n_block=2, input_kernel=5)
TINY = DVAEConfig(
    codebook_size=16, n_hid=16, n_init=8, n_group=1, n_block=1, input_kernel=3, patch=4, normalize_logits=True,
    likelihood="bernoulli",
)  # fmt: skip


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return DVAE(DVAEConfig())


def released_shapes() -> dict[str, dict[str, list[int]]]:
    """{"encoder": {name: shape}, "decoder": …} as written down from the released files."""
    shapes, part = {}, None
    for line in (Path(__file__).parent / "keys" / "dvae.txt").read_text().splitlines():
        if heading := re.match(r"-- (encoder|decoder):", line):
            part = shapes.setdefault(heading[1], {})
        elif entry := re.match(r"\s+(blocks\S+)\s+\[(.*)\]", line):
            part[entry[1]] = [int(n) for n in entry[2].split(",")]
    return shapes


@pytest.mark.parametrize("part, tensors, parameters", [("encoder", 74, 53_786_240), ("decoder", 76, 43_829_766)])
def test_full_size_has_the_released_names_shapes_and_counts(full_size, part, tensors, parameters):
    ours = {name: list(p.shape) for name, p in getattr(full_size, part).named_parameters()}
    assert ours == released_shapes()[part]
    assert len(ours) == tensors
    assert sum(math.prod(shape) for shape in ours.values()) == parameters


def test_full_size_maps_256_pixels_to_32_by_32_codes(full_size):
    logits = full_size.encoder(torch.empty(1, 3, 256, 256, device="meta"))
    assert logits.shape == (1, 8192, 32, 32)
    assert full_size.decoder(logits).shape == (1, 6, 256, 256)


@pytest.mark.parametrize("config", [SMALL, TINY])
def test_pictures_need_not_be_square(config):
    dvae = DVAE(config).eval()
    codes = dvae.encode(torch.rand(2, 3, 16, 8))
    assert codes.shape == (2, 16 // config.downsample, 8 // config.downsample) and codes.dtype == torch.int64
    images = dvae.decode(codes)
    assert images.shape == (2, 3, 16, 8) and images.min() >= 0 and images.max() <= 1


def test_encoder_against_the_layer_formula():
    """The encoder once more, written out with F.conv2d alone."""
    dvae = DVAE(SMALL).double()
    p = dict(dvae.encoder.named_parameters())
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64)

    def conv(name, x):
        w = p[f"blocks.{name}.w"]
        return F.conv2d(x, w, p[f"blocks.{name}.b"], padding=w.shape[-1] // 2)

    h = conv("input", x)
    for g in (1, 2, 3):
        for b in (1, 2):
            block, r = f"group_{g}.block_{b}", h
            for i in (1, 2, 3, 4):
                r = conv(f"{block}.res_path.conv_{i}", r.relu())
            h = (conv(f"{block}.id_path", h) if f"blocks.{block}.id_path.w" in p else h) + r / (3 * 2) ** 2
        if g < 3:
            h = F.max_pool2d(h, 2)
    torch.testing.assert_close(dvae.encoder(x), conv("output.conv", h.relu()))


def test_decoding_reads_the_codebook():
    """A one-hot cell picks a column of the decoder's first convolution."""
    dvae = DVAE(SMALL)
    first = dvae.decoder.blocks.input
    one_hot = F.one_hot(torch.tensor([[[3]]]), 16).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(first(one_hot)[0, :, 0, 0], first.w[:, 3, 0, 0] + first.b)


def test_pixel_map_and_its_inverse():
    x = torch.linspace(0, 1, 11)
    assert map_pixels(x).min() == pytest.approx(0.1) and map_pixels(x).max() == pytest.approx(0.9)
    torch.testing.assert_close(unmap_pixels(map_pixels(x)), x)
    assert unmap_pixels(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("mu, ln_b", [(0.0, 0.0), (1.5, -1.0), (-2.0, 0.7)])
def test_logit_laplace_integrates_to_one(mu, ln_b):
    y = torch.linspace(-40, 40, 400_001, dtype=torch.float64)  # integrate over logit x, where it is smooth
    x = torch.sigmoid(y).clamp(1e-15, 1 - 1e-15)
    keep = y.abs() < 30
    density = torch.exp(-logit_laplace_nll(x, torch.tensor(mu), torch.tensor(ln_b))) * x * (1 - x)
    assert torch.trapezoid(density[keep], y[keep]).item() == pytest.approx(1, abs=1e-4)


def test_bernoulli_is_smallest_at_the_pixel_itself():
    x = torch.tensor([0.3])
    mu = torch.linspace(-3, 3, 601)
    best = mu[bernoulli_nll(x.expand_as(mu), mu).argmin()]
    assert best.item() == pytest.approx(math.log(0.3 / 0.7), abs=0.01)


def test_gaussian_against_the_formula():
    x, mu = torch.rand(50, dtype=torch.float64), 3 * torch.randn(50, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.sigmoid(mu), (2 * math.pi) ** -0.5)
    torch.testing.assert_close(gaussian_nll(x, mu), -normal.log_prob(x))


@pytest.mark.parametrize("likelihood, nll", [("bernoulli", bernoulli_nll), ("gaussian", gaussian_nll)])
def test_the_loss_is_that_of_the_likelihood_asked_for(likelihood, nll):
    torch.manual_seed(0)
    model = DVAE(dataclasses.replace(TINY, likelihood=likelihood)).eval()
    images = torch.rand(2, 3, 16, 16)
    z = gumbel_softmax(model.logits(images), 1.0, generator=torch.Generator().manual_seed(1))
    loss = model.loss(images, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss.nll, nll(map_pixels(images), model.decoder(z)[:, :3]).mean())


def test_kl_to_uniform_closed_forms():
    K = 8
    assert kl_to_uniform(torch.zeros(1, K, 1, 1)).item() == pytest.approx(0, abs=1e-6)
    one_hot = torch.full((1, K, 1, 1), -100.0)
    one_hot[0, 2] = 100
    assert kl_to_uniform(one_hot).item() == pytest.approx(math.log(K), abs=1e-5)
    half = torch.full((1, K, 1, 1), -100.0)
    half[0, :2] = 0
    assert kl_to_uniform(half).item() == pytest.approx(math.log(K / 2), abs=1e-5)
    torch.manual_seed(0)
    logits = torch.randn(2, K, 3, 3, dtype=torch.float64)
    q = torch.distributions.Categorical(logits=logits.movedim(1, -1))
    uniform = torch.distributions.Categorical(probs=torch.full((K,), 1 / K, dtype=torch.float64))
    torch.testing.assert_close(kl_to_uniform(logits), torch.distributions.kl_divergence(q, uniform))


def test_gumbel_argmax_has_the_frequencies_of_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    z = gumbel_softmax(logits.view(1, 4, 1).expand(1, 4, 100_000), 0.5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.sum(1), torch.ones(1, 100_000))
    frequency = torch.bincount(z.argmax(1).flatten(), minlength=4) / 100_000
    assert (frequency - logits.softmax(0)).abs().max() < 0.006  # about 4 standard errors


def test_gumbel_softmax_hardens_as_tau_falls_and_needs_no_noise():
    logits = torch.randn(4, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    softest = [gumbel_softmax(logits, tau, noise=0.0).amax(1).mean().item() for tau in (2.0, 1.0, 0.3, 1 / 16)]
    assert softest == sorted(softest) and softest[-1] > 0.9
    torch.testing.assert_close(gumbel_softmax(logits, 1.0, noise=0.0), logits.softmax(1))


def test_loss_is_the_negative_elbo_per_pixel_value():
    """Against the sums of the definition: (nll over pixel values + beta * KL over cells) / number of pixel values."""
    dvae = DVAE(SMALL)
    images, beta = torch.rand(2, 3, 16, 16), 6.6
    loss = dvae.loss(images, tau=0.5, kl_weight=beta, generator=torch.Generator().manual_seed(1))
    logits = dvae.encoder(map_pixels(images))
    mu, ln_b = dvae.decoder(gumbel_softmax(logits, 0.5, generator=torch.Generator().manual_seed(1))).chunk(2, 1)
    nll = logit_laplace_nll(map_pixels(images), mu, ln_b).sum()
    kl = kl_to_uniform(logits).sum()
    torch.testing.assert_close(loss.total, (nll + beta * kl) / images.numel())


def test_kl_is_weighted_by_1_over_192_at_the_papers_sizes():
    cells, values = 32 * 32, 3 * 256 * 256
    assert cells / values == 1 / 192


def test_evaluation_is_noiseless_and_deterministic():
    dvae = DVAE(TINY)
    dvae.loss(torch.rand(8, 3, 16, 16)).total.backward()
    dvae.eval()
    images = torch.rand(4, 3, 16, 16)
    codes = dvae.encode(images)
    assert torch.equal(codes, dvae.encode(images))
    assert torch.equal(codes[:1], dvae.encode(images[:1]))  # no picture depends on its batch
    assert torch.equal(codes, dvae.logits(images).argmax(1))
    assert torch.equal(dvae.decode(codes), dvae.decode(codes))


@pytest.mark.parametrize("config", [SMALL, TINY])
def test_every_parameter_gets_a_gradient_and_the_loss_falls(config):
    torch.manual_seed(0)
    dvae = DVAE(config)
    images = (torch.rand(16, 3, 4, 4) > 0.5).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.AdamW(dvae.parameters(), 3e-3)
    losses = []
    for step in range(60):
        loss = dvae.loss(images, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.total.backward()
        if step == 0:
            # ln b takes no part in the Bernoulli loss, but shares the output convolution with mu
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in dvae.parameters())
        optimizer.step()
        losses.append(loss.nll.item())
    assert sum(losses[-10:]) < sum(losses[:10])


def test_tiny_only_options_are_off_in_the_papers_preset():
    config = DVAEConfig()
    assert (config.patch, config.normalize_logits, config.likelihood) == (1, False, "logit_laplace")
    assert DVAEStage().noise_updates == 0 and DVAEStage().muon_lr == 0


def test_schedules_follow_the_paper():
    stage = DVAEStage()
    assert schedules(stage, 0) == {"tau": 1.0, "kl_weight": 0.0, "noise": 1.0}
    assert schedules(stage, 150_000)["tau"] == 1 / 16 == schedules(stage, 2_000_000)["tau"]
    assert schedules(stage, 75_000)["tau"] == pytest.approx((1 + 1 / 16) / 2)
    assert schedules(stage, 2_500)["kl_weight"] == pytest.approx(3.3)
    assert schedules(stage, 5_000)["kl_weight"] == pytest.approx(6.6)
    faded = dataclasses.replace(stage, noise_updates=100)
    assert [schedules(faded, s)["noise"] for s in (0, 50, 100, 200)] == [0, 0.5, 1, 1]
    assert cosine(300_000, 1_200_000, 1e-4, 1.25e-6) == pytest.approx(
        1.25e-6 + (1e-4 - 1.25e-6) * (1 + math.cos(math.pi / 4)) / 2
    )


def test_usage_by_hand():
    assert usage(torch.tensor([[0, 0, 0, 0]]), 8) == {"codes_used": 1, "perplexity": 1.0}
    assert usage(torch.tensor([1, 2, 3, 4]), 8) == {"codes_used": 4, "perplexity": 4.0}
    used = usage(torch.tensor([5, 5, 5, 6]), 8)
    assert used["codes_used"] == 2
    assert used["perplexity"] == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), abs=0.01)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 15, 16), (1, 3, 16, 18)])
def test_pictures_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="expected images"):
        DVAE(SMALL).encode(torch.rand(shape))


@pytest.mark.parametrize("codes", [torch.tensor([[[16]]]), torch.tensor([[[-1]]]), torch.tensor([0])])
def test_codes_outside_the_codebook_are_refused(codes):
    with pytest.raises(ValueError, match="expected codes"):
        DVAE(SMALL).decode(codes)


def test_the_codebook_is_what_each_code_adds_to_the_first_layer_of_the_decoder():
    dvae = DVAE(DVAEConfig(codebook_size=8, n_hid=8, n_init=6, n_group=2, n_block=1, input_kernel=3))
    codes = torch.arange(8).view(1, 2, 4)
    painted_from = dvae.decoder.blocks.input(F.one_hot(codes, 8).permute(0, 3, 1, 2).float())  # (1, 6, 2, 4)
    expected = painted_from[0].flatten(1).T - dvae.decoder.blocks.input.b
    torch.testing.assert_close(dvae.codebook, expected.detach())
    assert dvae.codebook.shape == (8, 6) and not dvae.codebook.requires_grad
