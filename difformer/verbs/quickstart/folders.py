"""The splits of a folder of images that somebody has put together."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from difformer.data import DataConfig
from difformer.data.listing import subfolders

# What is set aside of a folder that has no test split.
TEST_FRACTION = 0.25
# What splits are called, in lower case; of several test splits the first is taken.
_TRAIN = ("train", "training", "train_set", "training_set")
_TEST = ("test", "testing", "test_set", "val", "valid", "validation", "val_set", "validation_set")


def with_splits(data: DataConfig, root: Path) -> DataConfig:
    """The images below a folder, with the test split that it has or one set aside.

    Args:
        data: of kind `folder`, without splits.
        root: holds one folder a class, or such folders in `train` and, perhaps, `test` or `val`; case is ignored.

    Raises:
        ValueError: its folders look like splits of other names.
    """
    data = replace(data, root=str(root))
    train, test = _split(root, _TRAIN), _split(root, _TEST)
    if train is None:
        _refuse_unknown_splits(root)
        return replace(data, splits={"train": "."}, test_fraction=TEST_FRACTION)
    if test is None:
        return replace(data, splits={"train": train}, test_fraction=TEST_FRACTION)
    return replace(data, splits={"train": train, "test": test})


def check_output(data: DataConfig, output: Path) -> None:
    """Raises ValueError when results would lie among the classes, where they would be taken for one."""
    if data.root is None or data.splits.get("train") != ".":
        return
    if output.resolve().is_relative_to(Path(data.root).resolve()):
        raise ValueError(f"{output} lies among the images in {data.root}; choose an --output outside that folder")


def _split(root: Path, names: Sequence[str]) -> str | None:
    """The folder's own name of a split; folders that hold no folders are classes, or images without labels."""
    found = {name.lower(): name for name in subfolders(root) if name.lower() in names and subfolders(root / name)}
    return next((found[name] for name in names if name in found), None)


def _refuse_unknown_splits(root: Path) -> None:
    outer = subfolders(root)
    inner = subfolders(root / outer[0]) if len(outer) > 1 else []
    if len(inner) > 1 and all(subfolders(root / name) == inner for name in outer[1:]):
        raise ValueError(
            f"the folders of {root} ({', '.join(outer[:3])}) all hold the same folders ({', '.join(inner[:3])}), so "
            f"they look like splits rather than classes; call them train and test"
        )
