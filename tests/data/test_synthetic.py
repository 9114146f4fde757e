import pytest
import torch
from torch import Tensor, nn
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


@pytest.mark.parametrize(
    ("n", "counts"), [(1, [1] + 9 * [0]), (10, 10 * [1]), (27, 7 * [3] + 3 * [2]), (600, 10 * [60])]
)
def test_classes_are_balanced_and_the_remainder_goes_to_the_first(n: int, counts: list[int]) -> None:
    assert generate(n, seed=3)[1].bincount(minlength=10).tolist() == counts


def test_same_seed_same_bits_and_another_seed_others() -> None:
    images, labels = generate(500, seed=7)
    same_images, same_labels = generate(500, seed=7)
    other_images, other_labels = generate(500, seed=8)
    assert torch.equal(images, same_images)
    assert torch.equal(labels, same_labels)
    assert not torch.equal(images, other_images)
    assert not torch.equal(labels, other_labels)


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
    assert (corners.median(dim=1).values == 0).float().mean() > 0.99  # 0.999 of Fashion-MNIST
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
    assert mean[SNEAKER, :8].max() < 0.1 * mean[SNEAKER].max()  # low
    assert mean[BAG, 9, 13:15].mean() < 0.8 * mean[BAG, 6, 13:15].mean()  # air below the handle
    assert mean[ANKLE_BOOT, 8, 4:8].max() < 0.5 * mean[ANKLE_BOOT, 8, 18:22].min()  # the toe points left


def accuracy_of(model: nn.Module, drawn: tuple[Tensor, Tensor]) -> float:
    """On the last 2,000 images, after twenty epochs of 10,000."""
    x, y = drawn[0].float() / 255, drawn[1].long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(20):
        for rows in torch.arange(10_000).split(256):
            optimizer.zero_grad()
            cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    predicted: Tensor = model(x[10_000:]).argmax(dim=1)
    return int((predicted == y[10_000:]).sum()) / 2000


@pytest.mark.slow
def test_a_linear_model_learns_it_but_not_to_the_end_and_a_hidden_layer_more(drawn: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    linear = accuracy_of(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), drawn)
    deep = accuracy_of(nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)), drawn)
    assert 0.75 < linear < 0.9 < deep
