"""Backbones of timm: named, cut into stages, filled from files, stored, explained."""

import numpy as np
import pytest
import torch

from petface.data.images import Preprocessing
from petface.errors import SettingsError, UserError
from petface.inference.gradcam import gradcams
from petface.models import backbones, checkpoints
from petface.models.architecture import Architecture, build_classifier
from petface.models.checkpoints import CheckpointError
from petface.models.first_weights import initialise
from petface.models.network import Network
from petface.training.phases import make_phases

timm = pytest.importorskip("timm", reason="the extra timm is not installed")
SIDES = {"resnet18": 64, "mobilenetv3_small_050": 64, "swin_tiny_patch4_window7_224": 224}


@pytest.mark.parametrize("name", SIDES)
def test_a_backbone_is_stored_loaded_folded_and_explained(tmp_path, name):
    architecture = Architecture(f"timm/{name}")
    model = build_classifier(architecture, 3)
    names = [n for n, _ in model.named_parameters() if n.startswith("timm.")]
    order = [backbones.STAGE_NAMES.index(backbones.stage_of(f"timm/{name}", n)) for n in names]
    assert set(order) == set(range(5)) and order == sorted(order)
    rule = Preprocessing(SIDES[name])
    table = {"class_to_index": {"a": 0, "b": 1, "c": 2}, **architecture.stored()}
    checkpoints.save(tmp_path / "best.pt", {**table, "model": model.state_dict()})
    read = checkpoints.read_stage1(tmp_path / "best.pt")
    network = Network.for_inference(read.model, rule, "cpu", "fp32")
    pixels = torch.randint(0, 256, (2, *[SIDES[name]] * 2, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model.eval()(pixels.permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(network.answer_pixels(pixels)[0], expected, atol=1e-4, rtol=1e-4)
    if "swin" in name:
        with pytest.raises(UserError, match="Grad-CAM needs the maps of layer4"):
            gradcams(network, pixels, 0, np.zeros(2))
    else:
        assert gradcams(network, pixels, 0, np.zeros(2), "layer3").shape == (2, 64, 64)


@pytest.mark.parametrize("kind", ["own.pth", "own.safetensors"])
def test_weights_come_from_a_file_of_timm(tmp_path, kind):
    state = timm.create_model("mobilenetv3_small_050").state_dict()
    save = pytest.importorskip("safetensors.torch").save_file if "safe" in kind else torch.save
    save(state, tmp_path / kind)
    model = build_classifier(Architecture("timm/mobilenetv3_small_050"), 3)
    assert initialise(model, str(tmp_path / kind), "require", {}).startswith(f"file {kind}")
    own = model.timm.state_dict()
    assert all(torch.equal(own[key], state[key]) for key in own) and len(own) > 200


def in_one_row(state):
    """What efficientnet_pytorch calls these weights: the last layers of a block are in each."""
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in state))
    outside = ("conv_stem", "bn1", "conv_head", "bn2", "classifier")
    names = dict(zip(outside, ("_conv_stem", "_bn0", "_conv_head", "_bn1", "_fc"), strict=True))
    row = list(dict.fromkeys(name[:11] for name in layers if name.startswith("blocks.")))
    for k, block in enumerate(row):
        own = [name for name in layers if name.startswith(block)]
        for mark, theirs in (
            (".conv_", ("_expand_conv", "_depthwise_conv", "_project_conv")),
            (".bn", ("_bn0", "_bn1", "_bn2")),
            (".se.", ("_se_reduce", "_se_expand")),
        ):
            found = [
                name for name in own if mark in name and (mark != ".conv_" or "se." not in name)
            ]
            pairs = zip(reversed(found), reversed(theirs), strict=False)
            names |= {name: f"_blocks.{k}.{old}" for name, old in pairs}
    split = {key: key.rpartition(".") for key in state}
    return {f"{names[split[key][0]]}.{split[key][2]}": tensor for key, tensor in state.items()}


@pytest.mark.parametrize("model", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
def test_weights_come_from_a_row_of_blocks(tmp_path, model):
    state, path = timm.create_model(model).state_dict(), tmp_path / "theirs.pth"
    rows, network = in_one_row(state), build_classifier(Architecture(f"timm/{model}"), 3)
    torch.save(rows, path)
    assert initialise(network, str(path), "require", {}) == "file theirs.pth"
    own = network.timm.state_dict()
    assert len(own) == len(state) - 2 and all(torch.equal(own[key], state[key]) for key in own)
    stem, more = "_conv_stem.weight", {"_blocks.99._bn0.weight": torch.ones(3)}
    for wrong, words in (
        ({**rows, **more}, r"_blocks\.99\._bn0\.weight"),
        (
            {key: t for key, t in rows.items() if "2._bn1.bias" not in key},
            r"blocks\.\d\.\d\.bn2\.bias",
        ),
        ({**rows, stem: torch.ones(32, 3, 5, 5)}, r"conv_stem\.weight is \[32, 3, 5, 5\], not"),
    ):
        torch.save(wrong, path)
        with pytest.raises(
            CheckpointError, match=f"does not fit a timm/{model} body.*{words}"
        ) as told:
            initialise(network, str(path), "require", {})
        assert "\n" not in str(told.value)
    torch.save(rows, path)
    other = f"timm/{model.removeprefix('tf_')}"  # of the same shapes, padded in another way
    with pytest.raises(UserError, match=f"{other} is of other weights.*timm/tf_"):
        initialise(build_classifier(Architecture(other), 3), str(path), "require", {})


def test_what_timm_does_not_have_is_refused_by_name():
    with pytest.raises(UserError, match="unknown backbone 'timm/resnet19'; nearest: timm/resn"):
        make_phases(["all"], 1e-3, 1, 0, "timm/resnet19")
    with pytest.raises(UserError, match="unknown"):
        Architecture("timm/hf-hub:somebody/model")  # an untrusted checkpoint must fetch nothing
    vit = "timm/vit_tiny_patch16_224"
    with pytest.raises(SettingsError, match="224 px alone"):
        backbones.input_rule(vit, 64, "stretch", "none")
    own = backbones.input_rule(vit, 0, "stretch", "backbone")
    assert own == Preprocessing(224, "stretch", (0.5,) * 3, (0.5,) * 3)
