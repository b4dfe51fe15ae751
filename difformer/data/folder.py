"""Plain image folders, one folder a class, and ImageNet in its usual layout."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from logging import getLogger
from pathlib import Path

from difformer._optional import require
from difformer.data.listing import Found, find_images, in_words, is_hidden, is_image_name, leads_to, subfolders
from difformer.data.source import (
    DataError,
    Source,
    file_source,
    find_root,
    read_lines,
    same_letters,
    unique_names,
    unknown_split,
)
from difformer.data.spec import DataConfig

_log = getLogger(__name__)

# Files that pair ImageNet's synsets with words: Kaggle's, and the one of the Caffe tutorials.
SYNSET_FILES = ("LOC_synset_mapping.txt", "synset_words.txt")


def read_folder(config: DataConfig, split: str) -> Source:
    """`root/SPLIT/CLASS/image`, or `root/CLASS/image` for the split ".".

    The classes are `class_names` where given, else the folders of the training split, so that labels mean the same in
    every split. A split other than training may lack some of them; the log names these.

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
    return scan_classes(f"folder {folder}", folder, classes, classes, every_class=folder == training)


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
    files = [place / name for place in (root, Path(config.root or root)) for name in SYNSET_FILES]
    file = next((path for path in files if path.is_file()), None)
    # In the order of the file, whose lines are such as `n01440764 tench, Tinca tinca`.
    pairs = [] if file is None else [line.strip().split(" ", 1) for line in read_lines(file) if line.strip()]
    words = {pair[0]: pair[-1].strip() for pair in pairs}
    synsets = list(words) or subfolders(training if training.is_dir() else folder)
    names = config.class_names or unique_names(_words(synsets, words), synsets)
    return scan_classes(f"imagenet {folder}", folder, synsets, names, every_class=folder == training)


def scan_classes(
    title: str, folder: Path, classes: Sequence[str], names: Sequence[str], *, every_class: bool
) -> Source:
    """The images below the class folders of a split, ordered by folder and path. Other files are counted in the log.

    Args:
        title: for messages.
        folder: holds one folder a class.
        classes: their names, in the order of the labels.
        names: what the classes are called.
        every_class: whether each class must have images; else those without are named in the log.

    Raises:
        DataError: a class folder is missing, empty or unknown, or there is none.
    """
    there = subfolders(folder)
    if not there:
        raise DataError(f"{title} has no class folders; images must lie in one folder for each class")
    if len(names) != len(classes):
        raise DataError(f"{title} has {len(classes)} classes, but {len(names)} class names were given")
    _refuse_strangers(title, there, classes)
    found = {name: find_images(folder / name) for name in there}
    absent = []
    for name in classes:
        if name not in found:
            absent.append(f"{name} (no such folder)")
        elif not found[name].images:
            others = found[name].left_out
            absent.append(f"{name} (whose files are {in_words(others)})" if others else name)
    if absent:
        problem = f"{title} has no image of {_some(absent)}"
        if every_class or len(absent) == len(classes):
            raise DataError(problem)
        _log.warning("%s; it has images of %d of the %d classes", problem, len(classes) - len(absent), len(classes))
    _report_left_out(title, folder, found.values())
    place = {name: i for i, name in enumerate(classes)}
    files = [(f"{name}/{image}", place[name]) for name in there for image in found[name].images]
    return file_source(title, folder, [file for file, _ in files], [label for _, label in files], names)


def _report_left_out(title: str, folder: Path, found: Iterable[Found]) -> None:
    left_out = sum((part.left_out for part in found), Counter[str]())
    if left_out:
        _log.warning("%s: left out %d files that are no images: %s", title, left_out.total(), in_words(left_out))
    beside = sum(
        is_image_name(entry.name) and not is_hidden(entry.name) and leads_to(entry.is_file)
        for entry in os.scandir(folder)
    )
    if beside:
        _log.warning("%s: left out %d images that lie in no class folder", title, beside)


def _refuse_strangers(title: str, there: Sequence[str], classes: Sequence[str]) -> None:
    """Raises DataError when there are folders that are no class."""
    strangers, absent = sorted(set(there) - set(classes)), sorted(set(classes) - set(there))
    if not strangers:
        return
    problem = f"{title} has folders that are no class of the training split: {_some(strangers)}"
    if absent:
        problem += f"; and no folder for {_some(absent)}"
    if not {same_letters(name) for name in strangers}.isdisjoint(map(same_letters, absent)):
        problem += "; these are the same letters in other code points (Unicode normalisation): rename the folders"
    raise DataError(problem)


def _unknown_folder(title: str, split: str, root: Path) -> DataError:
    names = subfolders(root)
    error = unknown_split(title, split, names)
    return error if "train" in names else DataError(f"{error}. {_without_splits(split)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _words(synsets: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """What synsets are called: as known, else in timm's lists, else their own name."""
    if all(synset in known for synset in synsets):
        return [known[synset] for synset in synsets]
    info = require("timm.data", "ImageNet's class names", install="timm").ImageNetInfo
    # The large list lacks one class of the small one.
    lists = [info("imagenet-1k"), info("imagenet-22k")]
    words = {s: str(names.label_name_to_description(s)) for names in lists for s in names.label_names()}
    return [words.get(synset, synset) for synset in synsets]


def _without_splits(split: str) -> str:
    """What to do with a folder that holds the classes themselves."""
    if split == "test":
        return "If these are the classes, use splits: {train: .} and test_fraction: 0.25, which sets a quarter aside"
    return f"If these are the classes, use splits: {{{split}: .}}"
