"The training loss by its definition."
import torch
import torch.nn.functional as F

from film.losses import LossWeights, broad_loss, fusion_loss, gradient_loss, intensity_loss, structure_loss, wanted_brightness


def test_the_loss_is_the_weighted_sum_of_its_terms_each_with_its_settings():
    generator = torch.Generator().manual_seed(0)
    fused, a, b = (torch.rand(1, 1, 32, 32, generator=generator) for _ in "fab")
    bright, form = dict(clipped=0.5, power=0.7, root=0.4), dict(padding="replicate", signed=1.5, gain=1.2, smooth=2.0, brighter=3.0, cold=0.2, detail=0.4, burnt=5.0, noise=0.06)
    terms = fusion_loss(fused, a, b, LossWeights(grad=7.0, ssim=0.3, broad=0.6, **bright, **form))
    by_hand = dict(intensity=intensity_loss(fused, a, b, **bright), gradient=gradient_loss(fused, a, b, **form), broad=broad_loss(fused, a, b, "replicate", signed=1.5, smooth=2.0), structure=structure_loss(a, fused) + structure_loss(b, fused))
    for name, value in by_hand.items(): assert torch.equal(terms[name], value), name
    assert torch.allclose(terms["total"], by_hand["intensity"] + 7 * by_hand["gradient"] + 0.6 * by_hand["broad"] + 0.3 * by_hand["structure"])


def test_brightness_by_definition():
    bright, dark = torch.tensor(0.8), torch.tensor(0.2)
    for one, other in ((bright, dark), (dark, bright)):
        assert torch.allclose(wanted_brightness(one, other, 0.5, 2.0, 0.5), 0.8 - 0.5 * 0.8**2 * (bright - (bright * dark).sqrt()))


def test_broad_loss_by_definition():
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 1, 32, 32, generator=generator) for _ in "fab"]
    assert torch.allclose(broad_loss(*images, "replicate", 1.0, 4.0), sum(gradient_loss(*(F.avg_pool2d(x, n) for x in images), "replicate", 1.0, smooth=2.0) for n in (4, 8)))
