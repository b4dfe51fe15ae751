"""The splits of a folder of images, found by the names of its folders."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from difformer.data import DataConfig
from difformer.data.listing import subfolders

# The share of the images that becomes the test split of a folder without one.
TEST_FRACTION = 0.25
# Names of splits, in lower case; of several test splits the first is taken.
_TRAIN = ("train", "training", "train_set", "training_set")
_TEST = ("test", "testing", "test_set", "val", "valid", "validation", "val_set", "validation_set")


def with_splits(data: DataConfig, root: Path) -> DataConfig:
    """The images below a folder, with its own test split, or one that is set aside.

    Args:
        data: of kind `folder`, without splits.
        root: holds one folder a class, or such folders in `train` and, perhaps, `test` or `val`; case is ignored.

    Raises:
        ValueError: its folders look like splits with other names.
    """
    data = replace(data, root=str(root))
    train, test = _split(root, _TRAIN), _split(root, _TEST)
    if train is not None and test is not None:
        return replace(data, splits={"train": train, "test": test})
    if train is None:
        outer = subfolders(root)
        inner = subfolders(root / outer[0]) if len(outer) > 1 else []
        if len(inner) > 1 and all(subfolders(root / name) == inner for name in outer[1:]):
            raise ValueError(
                f"the folders of {root} ({', '.join(outer[:3])}) all hold the same folders ({', '.join(inner[:3])}), "
                "so they look like splits rather than classes; call them train and test"
            )
    return replace(data, splits={"train": train or "."}, test_fraction=TEST_FRACTION)


def check_output(data: DataConfig, output: Path) -> None:
    """Raises ValueError when the output lies among the folders of classes, where it would be taken for a class."""
    if data.root is None or data.splits.get("train") != ".":
        return
    if output.resolve().is_relative_to(Path(data.root).resolve()):
        raise ValueError(f"{output} lies among the images in {data.root}; choose an --output outside that folder")


def _split(root: Path, names: Sequence[str]) -> str | None:
    """The first of these names, as spelled on disk, whose folder holds folders; one without folders is no split."""
    found = {name.lower(): name for name in subfolders(root) if name.lower() in names and subfolders(root / name)}
    return next((found[name] for name in names if name in found), None)
