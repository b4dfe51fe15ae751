"""Fine-grained data sets in their official formats: CUB-200-2011, NABirds and Stanford Dogs."""

import re
from pathlib import Path

from difformer._optional import require
from difformer.data.source import DataError, Source, file_source, find_root, read_lines, unique_names, unknown_split
from difformer.data.spec import DataConfig

SPLITS = ("train", "test")


def read_cub(config: DataConfig, split: str) -> Source:
    """CUB-200-2011 (Wah et al. 2011): `images.txt`, `image_class_labels.txt`, `train_test_split.txt`, `classes.txt`.

    Class names lose their number: `001.Black_footed_Albatross` is `Black footed Albatross`.

    Raises:
        FileNotFoundError: no root, or one of the files is not there.
        DataError: no such split, or files that contradict each other.
    """
    return _read_birds(config, split, "CUB-200-2011", "CUB_200_2011")


def read_nabirds(config: DataConfig, split: str) -> Source:
    """NABirds (Van Horn et al. 2015): the same files as CUB's.

    `classes.txt` lists inner nodes of the hierarchy too; the classes are those that images have, by their number.

    Raises:
        FileNotFoundError, DataError: as `read_cub`.
    """
    return _read_birds(config, split, "NABirds", "nabirds")


def read_dogs(config: DataConfig, split: str) -> Source:
    """Stanford Dogs (Khosla et al. 2011): `Images/n02085620-Chihuahua/*.jpg`, and `train_list.mat` and `test_list.mat`
    in root or in `lists/`.

    Raises:
        FileNotFoundError: no root, images or lists.
        DataError: no such split, or a list without files and labels, or with two names for a class.
        ImportError: SciPy is missing.
    """
    title = "Stanford Dogs"
    root = find_root(config.root, title)
    if split not in SPLITS:
        raise unknown_split(title, split, SPLITS)
    if not (root / "Images").is_dir():
        raise FileNotFoundError(f"{title}: there is no folder {root / 'Images'}; unpack images.tar in root")
    lists = {name: _dog_list(root, f"{name}_list.mat") for name in SPLITS}
    breeds: dict[int, str] = {}
    for name, label in (sample for samples in lists.values() for sample in samples):
        breed = name.partition("/")[0]
        if breeds.setdefault(label, breed) != breed:
            raise DataError(f"{title}: class {label + 1} is both {breeds[label]} and {breed} in the lists of {root}")
    if sorted(breeds) != list(range(len(breeds))):
        raise DataError(f"{title}: the lists of {root} must number the classes from 1 without gaps")
    folders = [breeds[label] for label in sorted(breeds)]
    classes = unique_names([name.partition("-")[2].replace("_", " ") or name for name in folders], folders)
    names, labels = zip(*lists[split], strict=True) if lists[split] else ((), ())
    return file_source(f"{title} {split} in {root}", root / "Images", list(names), list(labels), classes)


def _read_birds(config: DataConfig, split: str, title: str, archive: str) -> Source:
    root = find_root(config.root, title, archive)
    if split not in SPLITS:
        raise unknown_split(title, split, SPLITS)
    files = _table(root / "images.txt", title)
    labels = _table(root / "image_class_labels.txt", title)
    training = _table(root / "train_test_split.txt", title)
    words = _table(root / "classes.txt", title)
    for image in files:
        if not re.fullmatch("[0-9]{1,9}", labels.get(image, "")) or training.get(image) not in ("0", "1"):
            raise DataError(f"{title}: image {image} of {root / 'images.txt'} has no class number, or no split 0 or 1")
    classes = sorted({labels[image] for image in files}, key=int)
    unknown = [name for name in classes if name not in words]
    if unknown:
        raise DataError(f"{title}: class {unknown[0]} has images but is not in {root / 'classes.txt'}")
    place = {name: i for i, name in enumerate(classes)}
    wanted = {"train": "1", "test": "0"}[split]
    chosen = [image for image in files if training[image] == wanted]
    names = []
    for word in (words[name] for name in classes):
        number, dot, rest = word.partition(".")
        names.append(rest.replace("_", " ") if dot and number.isdigit() else word)
    numbers = [place[labels[image]] for image in chosen]
    paths = [files[image] for image in chosen]
    return file_source(f"{title} {split} in {root}", root / "images", paths, numbers, unique_names(names, classes))


def _table(path: Path, title: str) -> dict[str, str]:
    """The lines of a file by their first word."""
    if not path.is_file():
        raise FileNotFoundError(f"{title}: there is no file {path}; root must be the folder the archive unpacks to")
    rows = [line.strip().split(" ", 1) for line in read_lines(path) if line.strip()]
    short = [row for row in rows if len(row) < 2]
    if short:
        raise DataError(f"{title}: {path} has a line with one word only: {short[0][0]!r}")
    return {row[0]: row[1].strip() for row in rows}


def _dog_list(root: Path, name: str) -> list[tuple[str, int]]:
    """File and label, from 0, of every image of a list."""
    path = next((folder / name for folder in (root, root / "lists") if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"Stanford Dogs: there is no {name} in {root} or {root / 'lists'}; unpack lists.tar there"
        )
    loadmat = require("scipy.io", "reading Stanford Dogs", install="scipy").loadmat
    # Damaged files make the reader raise errors of many kinds.
    try:
        content = loadmat(str(path))
        files = [str(cell.item()) for cell in content["file_list"].ravel()]
        labels = [int(label) - 1 for label in content["labels"].ravel()]
        return list(zip(files, labels, strict=True))
    except Exception as error:
        raise DataError(f"{path} is not a list of Stanford Dogs: {error!r}") from error
