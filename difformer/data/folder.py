"""Plain image folders, one folder a class, and ImageNet in its usual layout."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from difformer._optional import require
from difformer.data.images import IMAGE_SUFFIXES
from difformer.data.source import DataError, Source, file_source, find_root, unique_names, unknown_split
from difformer.data.spec import DataConfig

# Files that pair ImageNet's synsets with words: Kaggle's, and the one of the Caffe tutorials.
SYNSET_FILES = ("LOC_synset_mapping.txt", "synset_words.txt")


def read_folder(config: DataConfig, split: str) -> Source:
    """`root/SPLIT/CLASS/image`, or `root/CLASS/image` for the split ".".

    The classes are `class_names` where given, else the folders of the training split, so that labels mean the same in
    every split.

    Raises:
        FileNotFoundError: no root.
        DataError: no such split, no class folder, a class without images, or a folder that is no class.
    """
    root = find_root(config.root, "folder")
    folder = root / split
    if not folder.is_dir():
        raise _unknown_folder(f"folder {root}", split, root)
    training = root / config.split_name("train")
    classes = config.class_names or subfolders(training if training.is_dir() else folder)
    return scan_classes(f"folder {folder}", folder, classes, classes)


def read_imagenet(config: DataConfig, split: str) -> Source:
    """ImageNet: `root/train/n01440764/*.JPEG` and `root/val/n01440764/*.JPEG`.

    The classes are those of the synset file in root, or in its parent, where there is one, else the training folders.
    Names come from that file, else from timm's list, else they are the synsets.

    Raises:
        FileNotFoundError, DataError: as `read_folder`.
    """
    root = find_root(config.root, "imagenet", "ILSVRC/Data/CLS-LOC")
    folder = root / split
    if not folder.is_dir():
        raise _unknown_folder(f"imagenet in {root}", split, root)
    training = root / config.split_name("train")
    words = _synset_file(root, Path(config.root or root))
    synsets = list(words) or subfolders(training if training.is_dir() else folder)
    names = config.class_names or unique_names(_words(synsets, words), synsets)
    return scan_classes(f"imagenet {folder}", folder, synsets, names)


def scan_classes(title: str, folder: Path, classes: Sequence[str], names: Sequence[str]) -> Source:
    """The images below the class folders of a split, ordered by folder and path.

    Args:
        title: for messages.
        folder: holds one folder a class.
        classes: their names, in the order of the labels.
        names: what the classes are called.

    Raises:
        DataError: a class folder is missing, empty or unknown, or there is none.
    """
    found = subfolders(folder)
    if not found:
        raise DataError(f"{title} has no class folders; images must lie in one folder for each class")
    _compare("has no folder for", title, [name for name in classes if name not in set(found)])
    _compare("has folders that are no class of the training split:", title, set(found) - set(classes))
    if len(names) != len(classes):
        raise DataError(f"{title} has {len(classes)} classes, but {len(names)} class names were given")
    make_dataset = require("torchvision.datasets.folder", "reading folders", install="torchvision").make_dataset
    try:
        samples = make_dataset(str(folder), {name: i for i, name in enumerate(classes)}, is_valid_file=is_image_name)
    except FileNotFoundError as error:
        raise DataError(f"{title}: {error}") from error
    start = len(str(folder)) + 1
    files = [path[start:].replace(os.sep, "/") for path, _ in samples]
    _refuse_loops(title, folder, {name.rpartition("/")[0] for name in files})
    return file_source(title, folder, files, [label for _, label in samples], names)


def is_image_name(path: str) -> bool:
    """Whether a path ends like an image and is not hidden (as the `._x.jpg` that macOS leaves behind)."""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _refuse_loops(title: str, folder: Path, inside: set[str]) -> None:
    """Raises DataError when a link leads from a folder back to one above it: its images would be there many times."""
    for name in inside:
        path = folder / name
        above = {os.path.realpath(parent) for parent in path.parents if parent.is_relative_to(folder)}
        if os.path.realpath(path) in above:
            raise DataError(f"{title}: {name} is a link to a folder above it; remove it")


def _unknown_folder(title: str, split: str, root: Path) -> DataError:
    names = subfolders(root)
    error = unknown_split(title, split, names)
    return error if "train" in names else DataError(f"{error}. If these are the classes, use splits: {{{split}: .}}")


def _compare(problem: str, title: str, names: Sequence[str] | set[str]) -> None:
    if names:
        listed = sorted(names)
        more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
        raise DataError(f"{title} {problem} {', '.join(listed[:5])}{more}")


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _synset_file(*folders: Path) -> dict[str, str]:
    """Words by synset, in the order of the file: lines of `n01440764 tench, Tinca tinca`."""
    for folder in folders:
        for name in SYNSET_FILES:
            if (folder / name).is_file():
                lines = (folder / name).read_text(encoding="utf-8").splitlines()
                pairs = [line.strip().split(" ", 1) for line in lines if line.strip()]
                return {pair[0]: pair[-1].strip() for pair in pairs}
    return {}


def _words(synsets: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """What synsets are called: as known, else in timm's lists, else their own name."""
    if all(synset in known for synset in synsets):
        return [known[synset] for synset in synsets]
    info = require("timm.data", "ImageNet's class names", install="timm").ImageNetInfo
    # The large list lacks one class of the small one.
    lists = [info("imagenet-1k"), info("imagenet-22k")]
    words = {s: str(names.label_name_to_description(s)) for names in lists for s in names.label_names()}
    return [words.get(synset, synset) for synset in synsets]
