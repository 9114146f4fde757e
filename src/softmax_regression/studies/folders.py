"""The names of the folders of studies, different for each model, data set and size, so that no page is replaced.

They are not in logs/, where TensorBoard would show the configurations of a sweep as runs.
"""

from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.model import SoftmaxRegression

STUDIES = Path("studies")


def folder_name(
    name: str,
    model: type[LightningModule] = SoftmaxRegression,
    data: type[LightningDataModule] = FashionMNISTDataModule,
    source: str = "files",
    quick: bool = False,
) -> str:
    """Return a name with endings for everything that is not the default: model, data, source of the data, `quick`.

    >>> folder_name("overfit", source="synthetic", quick=True)
    'overfit-synthetic-quick'
    """
    parts = [name]
    parts += [kind.__name__ for kind in (model, data) if kind not in (SoftmaxRegression, FashionMNISTDataModule)]
    if source != "files":
        parts.append(source)
    if quick:
        parts.append("quick")
    return "-".join(parts)
