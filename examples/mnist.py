"""Another data set in the same format, here MNIST: python train.py fit --data examples.mnist.MNIST."""

from softmax_regression import FashionMNISTDataModule, FileSet


class MNIST(FashionMNISTDataModule):
    """Handwritten digits, 60,000 and 10,000."""

    files = FileSet(
        name="MNIST",
        class_names=tuple("0123456789"),
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        dirs=("data/mnist", "data/MNIST/raw", "../data/MNIST/raw"),
        mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/",),
    )


class Own(FashionMNISTDataModule):
    """Four IDX files of your own, not verified: --data examples.mnist.Own --data.dirs '[my/files]'."""

    files = FileSet("own", class_names=tuple("abcdefghij"), sha256=None, dirs=("data/own",))
