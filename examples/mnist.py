"""Another data set of torchvision's, here MNIST: python train.py fit --data examples.mnist.MNIST."""

from torchvision import datasets

from softmax_regression import FashionMNISTDataModule


class MNIST(FashionMNISTDataModule):
    """Handwritten digits, 60,000 and 10,000; or datasets.KMNIST, or partial(datasets.EMNIST, split="digits")."""

    dataset = datasets.MNIST


class OwnFiles(datasets.MNIST):
    """Four files of your own with MNIST's names, not verified: the classes, and no place to download them from."""

    classes = tuple("abcdefghij")
    mirrors = ()


class Own(FashionMNISTDataModule):
    """Four IDX files of your own: --data examples.mnist.Own --data.dirs '[my/files]'."""

    dataset = OwnFiles
