"""Networks ready to predict against the models they came from: folded, cast and in pieces."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from petface.data.images import Preprocessing
from petface.errors import UserError
from petface.models.architecture import (
    PLAIN,
    Architecture,
    ChinchillaMultiHeadResNet18,
    build_classifier,
)
from petface.models.backbones import BACKBONES
from petface.models.network import Network, fold_batchnorm, tempered

RULE = Preprocessing(32, "stretch", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
WHOLE = {"attention": "se", "hidden": 6, "dropout": 0.4, "bodies": 2}
ARCHITECTURES = [*map(Architecture, BACKBONES), Architecture("mobilenet_v3_small", **WHOLE)]


def trained(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and scales of its own, as training would."""
    draw = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = 0.5 + torch.rand(module.num_features, generator=draw)
            module.bias.data = torch.randn(module.num_features, generator=draw) * 0.2
            module.running_mean = torch.randn(module.num_features, generator=draw) * 0.2
            module.running_var = 0.5 + torch.rand(module.num_features, generator=draw)
    return model.eval()


def pixels(num: int = 6) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (num, 32, 32, 3), generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_a_folded_network_predicts_as_before(architecture: Architecture) -> None:
    torch.manual_seed(0)
    model = trained(ChinchillaMultiHeadResNet18({"breed": 7, "gender": 2}, architecture))
    x = (pixels().permute(0, 3, 1, 2) / 255 - torch.tensor(RULE.mean).view(3, 1, 1)) / (
        torch.tensor(RULE.std).view(3, 1, 1)
    )
    with torch.inference_mode():
        expected = model(x)
    names = [name for name, _ in model.named_modules()]
    network = Network.for_inference(model, RULE, "cpu", "fp32")
    for found, wanted in zip(network.answer_pixels(pixels()), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=5e-5, atol=1e-5)
    assert [name for name, _ in model.named_modules()] == names
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


class Odd(nn.Module):
    """A convolution that two read, and a BatchNorm with none in front: neither can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shared = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.alone, self.head = nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.alone(x))
        return self.head((self.shared(y) + y).mean((2, 3)))


class Untraceable(Odd):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if bool(x.sum() > 0) else -x)


@pytest.mark.parametrize("kind", [Odd, Untraceable])
def test_what_cannot_be_folded_is_left_alone_and_counted(kind: type[nn.Module]) -> None:
    model = trained(kind())
    before = copy.deepcopy(model)
    x = torch.rand(4, 3, 8, 8)
    assert fold_batchnorm(model) == 2
    assert torch.equal(model(x), before(x))
    assert not Network.for_inference(model, RULE, "cpu", "bf16").is_cast


def test_what_trains_is_not_folded() -> None:
    network = Network.build(build_classifier(PLAIN, 2), RULE, "cpu", "fp32")
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.model.modules())
    with pytest.raises(AssertionError, match="folding would freeze"):
        fold_batchnorm(network.model)


@pytest.mark.parametrize(
    "architecture", [PLAIN, Architecture("mobilenet_v3_small", **WHOLE)], ids=str
)
def test_heads_of_a_bf16_network_do_not_round_their_logits(architecture: Architecture) -> None:
    torch.manual_seed(0)
    model = trained(build_classifier(architecture, 5))
    exact = Network.for_inference(copy.deepcopy(model), RULE, "cpu", "fp32")
    fast = Network.for_inference(model, RULE, "cpu", "bf16")
    (found,), (wanted,) = fast.answer_pixels(pixels()), exact.answer_pixels(pixels())
    assert found.dtype == torch.float32 and not torch.equal(found, found.bfloat16().float())
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


class Cramped(nn.Module):
    """Runs out of memory above a number of rows; each row is computed by itself."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.sizes = most, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (made up)")
        return torch.stack([row.mean((1, 2)) for row in x])


@pytest.mark.parametrize("most", [1, 2, 5, 9, 64])
def test_a_batch_that_does_not_fit_is_halved_with_equal_answers(most: int) -> None:
    roomy = Network.build(Cramped(99), RULE, "cpu", "fp32")
    tight = Network.build(Cramped(most), RULE, "cpu", "fp32")
    batch = pixels(41)
    (wanted,), (found,) = roomy.answer_pixels(batch), tight.answer_pixels(batch)
    assert torch.equal(found, wanted)
    num_tries = len(tight.model.sizes)
    assert torch.equal(tight.answer_pixels(batch)[0], wanted)
    assert max(tight.model.sizes[num_tries:]) <= most, "the size that fitted is remembered"
    with pytest.raises(UserError, match="not enough memory on cpu for one image"):
        Network.build(Cramped(0), RULE, "cpu", "fp32").answer_pixels(batch)


def test_training_may_use_tf32_and_what_answers_may_not() -> None:
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags], torch.backends.cudnn.benchmark
    try:
        for make, wanted in ((Network.build, True), (Network.for_inference, False)):
            make(build_classifier(Architecture(), 2).eval(), Preprocessing(32), "cpu", "fp32")
            assert [flag.allow_tf32 for flag in flags] == [wanted] * 2
            assert torch.backends.cudnn.benchmark is wanted
    finally:
        for flag, allowed in zip(flags, before[0], strict=True):
            flag.allow_tf32 = allowed
        torch.backends.cudnn.benchmark = before[1]


def test_a_cpu_takes_as_many_pixels_at_once_as_eight_photos_of_224_px() -> None:
    for size_px, most in ((224, 8), (112, 32), (300, 4), (4000, 1)):
        network = Network.for_inference(Odd().eval(), Preprocessing(size_px), "cpu", "fp32")
        assert network.max_rows == most


def test_a_temperature_divides_the_logits_and_a_photo_without_finite_ones_has_no_answer() -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, torch.inf, 1.0], [3.0, 0.0, 0.0]])
    (plain,), (cool,) = tempered((logits,), ()), tempered((logits,), (2.0,))
    assert torch.isnan(plain[1]).all() and torch.isnan(cool[1]).all()
    for row in (0, 2):
        torch.testing.assert_close(plain[row], logits[row].exp() / logits[row].exp().sum())
        torch.testing.assert_close(cool[row], (logits[row] / 2).softmax(0))


@pytest.mark.slow
def test_a_compiled_network_trains_as_it_is():
    torch.manual_seed(0)
    models = [build_classifier(PLAIN, 4)]
    models.append(copy.deepcopy(models[0]))
    first, second = (
        Network.build(model.train(), RULE, "cpu", "fp32", compiled=model is models[1])
        for model in models
    )
    for _ in range(2):  # the second step sees the statistics of the first
        x = torch.rand(8, 3, 32, 32)
        assert first(x)[0].detach().numpy() == pytest.approx(
            second(x)[0].detach().numpy(), abs=1e-4
        )
    for one, other in zip(*(model.buffers() for model in models), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-4)
    assert models[0].state_dict().keys() == models[1].state_dict().keys()


@pytest.mark.parametrize("rule", [RULE, Preprocessing(32)])
def test_what_was_normalised_becomes_the_picture_again(rule: Preprocessing) -> None:
    network = Network.for_inference(trained(build_classifier(PLAIN, 3)), rule, "cpu", "fp32")
    picture = pixels().permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(network.unprepared(network.prepare(picture)), picture)
