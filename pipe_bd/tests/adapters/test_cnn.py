"""CNNs in the style of torchvision and timm, cut at named submodules."""

from __future__ import annotations

import cloudpickle
import pytest
import torch
import torch.nn.functional as F
from shorthaul.errors import UserError
from torch import nn

from pipe_bd.adapters import from_named, separable, split
from pipe_bd.api import distill
from pipe_bd.stitch import stitch, teacher_of


class VGG(nn.Module):
    """Children in order, with a flatten in between that is no child."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(8 * 4, 5))

    def forward(self, x):
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, 2)
        x = torch.flatten(x, 1)
        return self.classifier(x)


class Basic(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.down = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.conv2(out)
        out += self.down(x)
        return F.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1 = nn.Sequential(Basic(8, 8), Basic(8, 8))
        self.layer2 = nn.Sequential(Basic(8, 12), Basic(12, 12))
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x) * self.scale
        x = self.layer2(self.layer1(x))
        x = F.dropout(x.mean((2, 3)), 0.5, training=self.training)
        return self.fc(x * self.scale)


X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vgg():
    torch.manual_seed(0)
    return VGG()


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    model = ResNet()
    model(X)  # running statistics that are not the initial ones
    return model


def _run(blocks, x):
    for block in blocks.values():
        x = block(x)
    return x


def test_a_vgg_is_cut_inside_features_in_any_order(vgg):
    blocks = split(vgg, ["features.5", "features.1"])
    assert list(blocks) == ["features.1", "features.5", "rest"]
    assert torch.equal(_run(blocks, X), vgg.eval()(X))
    assert blocks["features.1"](X).shape == (16, 8, 8, 8)


def test_a_resnet_is_cut_after_blocks_and_whole_layers(resnet):
    blocks = split(resnet, ["stem", "layer1.0", "layer1", "layer2.0"])
    assert torch.equal(_run(blocks, X), resnet.eval()(X))


def test_the_blocks_share_weights_and_the_model_stays_as_it_was(vgg):
    blocks = split(vgg, ["features.2"])
    assert vgg.training
    assert blocks["features.2"].get_submodule("features.0").weight is vgg.features[0].weight


def test_blocks_can_be_sent(resnet):
    blocks = split(resnet, ["layer1"])
    there = cloudpickle.loads(cloudpickle.dumps(blocks))
    assert torch.equal(_run(there, X), _run(blocks, X))


def test_distilling_with_separable_convolutions(resnet):
    whole = resnet.eval()(X)
    task = from_named(
        resnet, ["stem", "layer1", "layer2"], separable, source=X, batch_size=8, steps=3
    )
    kinds = [p.candidates["student"].steps for p in task.pairs]
    assert kinds == [0, None, None, 0]  # stem has 3 input channels, the head no convolution
    assert torch.equal(teacher_of(task)(X), whole)
    distill(task, schedule="sequential")
    assert stitch(task)(X).shape == (16, 5)


def test_an_inplace_relu_after_a_cut_leaves_the_boundary_alone(vgg):
    task = from_named(vgg, ["features.0"], separable, source=X, batch_size=8, steps=2)
    distill(task, schedule="sequential")
    assert vgg.features[1].inplace


def test_an_unknown_name_is_answered_with_the_nearest(vgg):
    with pytest.raises(UserError, match=r"no submodule 'feature\.4'.*did you mean 'features\.4'"):
        split(vgg, ["feature.4"])


def test_a_cut_inside_a_residual_block_names_what_crosses(resnet):
    with pytest.raises(UserError, match=r"'layer1\.1\.conv1' is crossed by 2 values"):
        split(resnet, ["layer1.1.conv1"])


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        ([], "no cuts"),
        (["fc"], "nothing follows 'fc'"),
        (["layer2", "layer2.1"], "the same place"),
        (["layer1.0.bn1", "layer1"], "crossed by 2"),
    ],
)
def test_cuts_that_cannot_be(resnet, cuts, words):
    with pytest.raises(UserError, match=words):
        split(resnet, cuts)


def test_a_submodule_that_runs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)

        def forward(self, x):
            return self.b(self.a(self.a(x)))

    with pytest.raises(UserError, match="'a' runs 2 times"):
        split(Twice(), ["a"])


def test_a_forward_that_depends_on_values():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else x

    with pytest.raises(UserError, match="Branches cannot be traced"):
        split(Branches(), ["a"])


def test_separable_keeps_shape_stride_and_bias():
    for conv in (
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.Conv2d(8, 4, 5, padding=2, dilation=1, bias=False),
    ):
        student = separable("x", nn.Sequential(conv))
        assert student(torch.randn(2, 8, 9, 9)).shape == conv(torch.randn(2, 8, 9, 9)).shape
        assert (student[0][1].bias is None) == (conv.bias is None)
    assert separable("x", nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1))) is None
