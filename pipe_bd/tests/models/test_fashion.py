"""Fashion-MNIST: the blocks never see a label, and the student learns."""

from __future__ import annotations

import cloudpickle
import pytest
import torch
from shorthaul.data import FASHION_MNIST
from shorthaul.errors import UserError

from pipe_bd.api import clone, distill
from pipe_bd.blocks import check
from pipe_bd.models import fashion
from pipe_bd.stitch import block_errors, stitch
from pipe_bd.verify import compare


def fake_data(images=96):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (images,), generator=generator)
    pictures = torch.randint(0, 80, (images, 28, 28), generator=generator).to(torch.uint8)
    for i, label in enumerate(labels):  # a bright bar whose place is the class
        pictures[i, 2 * int(label) + 2 : 2 * int(label) + 5] = 255
    half = images // 2
    return fashion.FashionData(
        pictures[:half],
        pictures[half:],
        fashion.Labels(labels[:half]),
        fashion.Labels(labels[half:]),
    )


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data():
    return fake_data()


def make(data, folder, **options):
    blocks = fashion.train_teacher(data, width=4, epochs=1, batch=16, folder=folder)
    return fashion.build_fashion(data, blocks, batch=16, **{"steps": 4, **options})


def test_labels_are_counted_and_stay_at_home(data):
    data.train_labels.read(torch.tensor([1, 2, 3]), "teacher")
    data.train_labels.read(slice(0, 5), "evaluation")
    assert data.train_labels.reads == {"teacher": 3, "evaluation": 5}
    with pytest.raises(TypeError, match="labels stay"):
        cloudpickle.dumps(data.train_labels)


def test_the_blocks_read_no_label(data, tmp_path):
    task = make(data, tmp_path)
    assert data.train_labels.reads["teacher"] == 48
    reads = dict(data.train_labels.reads), dict(data.test_labels.reads)
    cloudpickle.dumps(task)  # would raise if a label could be reached
    distill(task, schedule="sequential")
    assert (dict(data.train_labels.reads), dict(data.test_labels.reads)) == reads


def test_the_students_block_shapes_and_size(data, tmp_path):
    task = make(data, tmp_path)
    boundaries = check(task)
    assert [b.shape for b in boundaries[1:]] == [
        (4, 14, 14), (8, 14, 14), (8, 7, 7), (16, 7, 7), (16, 7, 7), (10,),
    ]  # fmt: skip
    first = task.pairs[0]
    assert torch.equal(first.student[0].weight, first.teacher[0].weight)  # the dense first layer
    assert not any(p.has_training_batchnorm() for p in task.pairs)


def test_every_block_learns_and_dpu_is_sequential_to_the_bit(data, tmp_path):
    task = make(data, tmp_path, steps=24)
    other = clone(task)
    images = fashion.pixels(data.test)
    before = block_errors(task, images)
    distill(task, schedule="sequential")
    distill(other, schedule="dpu", devices=2)
    assert compare(task, other) == (True, 0.0)
    after = block_errors(task, images)
    for name in list(before)[:-1]:
        assert after[name]["student"] < before[name]["student"]
    accuracy = fashion.evaluate(stitch(task), data.test, data.test_labels)
    assert 0 <= accuracy <= 100
    assert data.test_labels.reads["evaluation"] == 48


def test_the_seed_decides_everything(data, tmp_path):
    a = fashion.train_teacher(data, width=4, epochs=1, batch=16, folder=tmp_path / "a")
    b = fashion.train_teacher(data, width=4, epochs=1, batch=16, folder=tmp_path / "b")
    assert all(
        torch.equal(x, y)
        for m, n in zip(a, b, strict=True)
        for x, y in zip(m.parameters(), n.parameters(), strict=True)
    )


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_real_images():
    data = fashion.load(32, 16)
    x = fashion.pixels(data.train)
    assert x.shape == (32, 1, 28, 28)
    assert -1 < float(x.mean()) < 1
    with pytest.raises(UserError, match="60000"):
        fashion.load(0)
