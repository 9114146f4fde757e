import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from softmax_regression.data.synthetic import generate

TROUSER, DRESS, SANDAL, SNEAKER, BAG, ANKLE_BOOT = 1, 3, 5, 7, 8, 9


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor]:
    return generate(12_000, seed=0)


def test_images_and_labels_have_the_shapes_and_types_of_fashion_mnist() -> None:
    images, labels = generate(25, seed=0)
    assert images.shape == (25, 28, 28)
    assert labels.shape == (25,)
    assert images.dtype == labels.dtype == torch.uint8


@pytest.mark.parametrize("n", [0, 1, 10, 27, 600])
def test_classes_are_balanced_and_the_remainder_goes_to_the_first(n: int) -> None:
    counts = generate(n, seed=3)[1].bincount(minlength=10)
    assert counts.tolist() == [n // 10 + (label < n % 10) for label in range(10)]


def test_same_seed_same_bits_and_another_seed_others() -> None:
    first, again, other = generate(500, seed=7), generate(500, seed=7), generate(500, seed=8)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = generate(50, seed=7)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(generate(50, seed=7)[0], first)


def test_the_order_is_shuffled(drawn: tuple[Tensor, Tensor]) -> None:
    labels = drawn[1].float()
    neighbours = torch.corrcoef(torch.stack((labels[:-1], labels[1:])))[0, 1]
    assert neighbours.abs() < 0.05
    assert (labels[:-1] == labels[1:]).float().mean() == pytest.approx(0.1, abs=0.02)


def test_garments_are_light_on_black_and_no_two_alike(drawn: tuple[Tensor, Tensor]) -> None:
    images = drawn[0]
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners.median(dim=1).values == 0).float().mean() > 0.999  # 0.999 of Fashion-MNIST too
    lit = (images > 0).flatten(1).float().mean(dim=1)
    assert lit.min() > 0.02
    assert lit.max() < 0.9
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images)


def test_each_label_has_its_silhouette(drawn: tuple[Tensor, Tensor]) -> None:
    images, labels = drawn
    mean = torch.stack([images[labels == label].float().mean(dim=0) for label in range(10)])  # (10, 28, 28)
    assert mean[TROUSER, 22, 14] < 0.7 * mean[TROUSER, 22, 10]  # a gap between the legs
    assert (mean[DRESS, 22] > 20).sum() > (mean[DRESS, 12] > 20).sum()  # wider at the hem than at the waist
    assert mean[SANDAL].mean() == mean.mean(dim=(1, 2)).min()  # mostly straps
    assert mean[SNEAKER, :8].max() < 5  # low
    assert mean[BAG, 8, 13:15].mean() < 0.5 * mean[BAG, 6, 13:15].mean()  # air below the handle
    assert mean[ANKLE_BOOT, 6, 4:8].max() < 20 < mean[ANKLE_BOOT, 6, 18:22].min()  # the toe points left


def test_a_linear_model_learns_it_but_not_to_the_end(drawn: tuple[Tensor, Tensor]) -> None:
    x, y = drawn[0].flatten(1) / 255, drawn[1].long()
    weight, bias = torch.zeros(784, 10, requires_grad=True), torch.zeros(10, requires_grad=True)
    for _ in range(10):
        for batch in range(0, 10_000, 256):
            rows = slice(batch, min(batch + 256, 10_000))
            loss = cross_entropy(x[rows] @ weight + bias, y[rows])
            gradients = torch.autograd.grad(loss, (weight, bias))
            with torch.no_grad():
                weight -= 0.1 * gradients[0]
                bias -= 0.1 * gradients[1]
    accuracy = ((x[10_000:] @ weight + bias).argmax(dim=1) == y[10_000:]).float().mean()
    assert 0.8 < accuracy < 0.95
