"The training loss by its definition."
from inspect import signature

import pytest
import torch
import torch.nn.functional as F

from film.core import FilmError
from film.losses import LossSettings, broad_loss, fusion_loss, gradient_loss, intensity_loss, sobel, ssim, structure_loss, wanted_brightness


def test_the_loss_is_the_weighted_sum_of_its_terms_each_with_its_settings():
    generator = torch.Generator().manual_seed(0)
    fused, a, b = (torch.rand(1, 1, 32, 32, generator=generator) for _ in "fab")
    bright, form = dict(clipped=0.5, power=0.7, root=0.4), dict(padding="replicate", signed=1.5, gain=1.2, smooth=2.0, brighter=3.0, cold=0.2, detail=0.4, burnt=5.0, noise=0.06)
    terms = fusion_loss(fused, a, b, LossSettings(grad=7.0, ssim=0.3, broad=0.6, **bright, **form))
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


def test_every_setting_is_a_weight_or_an_option_of_a_term():
    options = {name for term in (intensity_loss, gradient_loss, broad_loss) for name in signature(term).parameters} - {"fused", "a", "b"}
    assert options | {"grad", "ssim", "broad"} == set(LossSettings.__dataclass_fields__)
    defaults = LossSettings()
    for term in (intensity_loss, gradient_loss, broad_loss):
        assert defaults.of(term) == {name: option.default for name, option in signature(term).parameters.items() if name in options}


@pytest.mark.parametrize("term", [intensity_loss, gradient_loss, broad_loss, fusion_loss, lambda fused, a, b: ssim(fused, a), lambda fused, a, b: structure_loss(fused, a)])
def test_shapes_that_torch_would_broadcast_are_refused(term):
    image = torch.rand(2, 1, 16, 16)
    for wrong in (image[:1], image[..., :1], image[0], image[:, 0]):
        for images in ((wrong, image, image), (image, wrong, image)):
            with pytest.raises(FilmError, match=r"\(2, 1, 16, 16\).*: must be \(B, 1, H, W\), all alike"): term(*images)
    with pytest.raises(FilmError, match=r"\(2, 3, 16, 16\)"): term(*[image.expand(2, 3, 16, 16)] * 3)


def test_images_too_small_for_the_broad_term_are_refused():
    with pytest.raises(FilmError, match="H and W at least 8"): fusion_loss(*[torch.rand(1, 1, 6, 6)] * 3, LossSettings(broad=1.0))
    with pytest.raises(FilmError, match=r"x \(1, 3, 8, 8\)"): sobel(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("wrong", [dict(power=1.0), dict(root=0.5), dict(smooth=2.0), dict(gain=0.0), dict(padding="none"), dict(clipped=2.0)])
def test_loss_settings_that_are_wrong_or_without_effect(wrong):
    with pytest.raises(FilmError, match=next(iter(wrong))): LossSettings(**wrong)
