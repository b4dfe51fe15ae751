"""Data sets whose images have a class a pixel: folders of images and masks, and ADE20K."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from difformer.annotations.records import Colour, MaskFiles, annotated
from difformer.data.listing import find_images, is_image_name, subfolders
from difformer.data.source import DataError, Files, Names, Source, find_root, read_lines, unknown_split
from difformer.data.spec import DataConfig
from difformer.maps import IGNORE

# What ADE20K calls its splits.
_ADE20K_SPLITS = {"train": "training", "val": "validation"}


def read_masks(config: DataConfig, split: str) -> Source:
    """Folders of images and of masks, PNG files with the same names up to the suffix.

    A split is a folder of each (`images/SPLIT` and `masks/SPLIT`, or `SPLIT/images` and `SPLIT/masks`), or what a text
    file (`SPLIT.txt` or `splits/SPLIT.txt`) names of `images` and `masks`, one name a line; "." is all of these.

    `classes.txt` names the classes, one a line, in the order of their numbers in the masks, whose pixels are grey or
    of a palette. 255 is ignored. With lines of `R G B name`, the colours of pixels count; that of the name `ignore` is
    ignored. `class_names` may stand in place of a file without colours.

    Raises:
        FileNotFoundError: no root.
        DataError: no such split, no classes, or an image of it without a mask or a mask without an image.
    """
    root = find_root(config.root, "masks")
    title = f"masks {root}, {split}"
    classes, colours = _classes(root, config, title)
    images, masks = _split_folders(root, split, title)
    listed = next((path for path in _lists(root, split) if path.is_file()), None)
    of_list = listed if images == root / "images" and split != "." else None
    return mask_source(title, root, _pairs(root, images, masks, title, of_list), classes, colours=colours)


def read_ade20k(config: DataConfig, split: str) -> Source:
    """ADE20K as the scene parsing challenge has it (Zhou et al. 2017): `images/training`, `annotations/training`, the
    same of `validation`, and `objectInfo150.txt`. 0, which is no class, is ignored, and class 1 becomes 0.

    Raises:
        FileNotFoundError: no root.
        DataError: as `read_masks`.
    """
    root = find_root(config.root, "ade20k", "ADEChallengeData2016")
    title = f"ade20k {root}, {split}"
    folder = split if (root / "images" / split).is_dir() else _ADE20K_SPLITS.get(split, split)
    if not (root / "images" / folder).is_dir():
        raise unknown_split(title, split, subfolders(root / "images") if (root / "images").is_dir() else ())
    file = root / "objectInfo150.txt"
    if not file.is_file() and config.class_names is None:
        raise DataError(f"{title}: there is no {file}, which names the classes; give class_names in its place")
    rows = [line.split("\t") for line in read_lines(file)[1:] if line.strip()] if file.is_file() else []
    classes = config.class_names or tuple(row[-1].strip() for row in rows)
    pairs = _pairs(root, root / "images" / folder, root / "annotations" / folder, title)
    return mask_source(title, root, pairs, classes, first=1)


def mask_source(
    title: str,
    root: Path,
    pairs: Sequence[tuple[str, str]],
    classes: Sequence[str],
    *,
    colours: Sequence[tuple[Colour, int]] = (),
    first: int = 0,
) -> Source:
    """A split of images with masks.

    Args:
        title: for messages.
        root: the folder of both.
        pairs: paths of images and their masks, relative to it.
        classes: names.
        colours, first: see `MaskFiles`.

    Raises:
        DataError: more classes than a mask of 8 bits has room for, or as `Source`.
    """
    if not 0 < len(classes) <= IGNORE:
        raise DataError(
            f"{title} must have 1 to {IGNORE} classes, since {IGNORE} is what is ignored; got {len(classes)}"
        )
    place = Files(root, Names(mask for _, mask in pairs))
    masks = MaskFiles(place, len(classes), tuple(colours), first)
    return annotated(title, root, Names(image for image, _ in pairs), classes, masks)


def _classes(root: Path, config: DataConfig, title: str) -> tuple[tuple[str, ...], list[tuple[Colour, int]]]:
    """Names, and colours where the file has them."""
    file = root / "classes.txt"
    if not file.is_file():
        if config.class_names is None:
            raise DataError(f"{title}: there is no {file}; write one name of a class a line, or give class_names")
        return config.class_names, []
    words = [line.split(maxsplit=3) for line in read_lines(file) if line.strip()]
    coloured = [len(word) == 4 and all(n.isdecimal() and len(n) < 4 for n in word[:3]) for word in words]
    if not all(coloured):
        if any(coloured):
            line = " ".join(words[coloured.index(False)])
            raise DataError(f"{file} has colours, but none in the line {line!r}; write `R G B name` in each")
        return tuple(" ".join(word) for word in words), []
    names = tuple(word[3].strip() for word in words if word[3].strip() != "ignore")
    colours = [((int(r), int(g), int(b)), name.strip()) for r, g, b, name in words]
    wrong = [colour for colour, _ in colours if max(colour) > 255]
    repeated = [colour for colour, count in Counter(colour for colour, _ in colours).items() if count > 1]
    if wrong or repeated:
        raise DataError(f"{file}: the colour {(wrong + repeated)[0]} is above 255, or stands there twice")
    return names, [(colour, IGNORE if name == "ignore" else names.index(name)) for colour, name in colours]


def _lists(root: Path, split: str) -> tuple[Path, Path]:
    return root / f"{split}.txt", root / "splits" / f"{split}.txt"


def _split_folders(root: Path, split: str, title: str) -> tuple[Path, Path]:
    """The folders of images and masks that a split lies in."""
    for images, masks in ((f"images/{split}", f"masks/{split}"), (f"{split}/images", f"{split}/masks")):
        if (root / images).is_dir() and split != ".":
            return root / images, root / masks
    if (root / "images").is_dir() and (split == "." or any(path.is_file() for path in _lists(root, split))):
        return root / "images", root / "masks"
    known = subfolders(root / "images") if (root / "images").is_dir() else []
    raise unknown_split(title, split, known or sorted(path.stem for path in (root / "splits").glob("*.txt")))


def _pairs(root: Path, images: Path, masks: Path, title: str, listed: Path | None = None) -> list[tuple[str, str]]:
    """Images and masks of the same name up to the suffix, as paths relative to root: all, or those of a list."""
    if not masks.is_dir():
        raise DataError(f"{title}: there is no folder of masks, {masks}")
    stems = None if listed is None else _listed_stems(listed)
    found = [_by_stem(folder, title, stems) for folder in (images, masks)]
    if stems is not None and (unknown := sorted(stems - found[0].keys())):
        raise DataError(f"{listed} names {len(unknown)} images that are not there, such as {unknown[0]}")
    refuse_missing(title, "mask", [name for stem, name in found[0].items() if stem not in found[1]])
    refuse_missing(title, "image", [name for stem, name in found[1].items() if stem not in found[0]])
    above = [folder.relative_to(root).as_posix() for folder in (images, masks)]
    order = found[0] if stems is None else sorted(found[0])
    return [(f"{above[0]}/{found[0][stem]}", f"{above[1]}/{found[1][stem]}") for stem in order]


def _by_stem(folder: Path, title: str, stems: Collection[str] | None) -> dict[str, str]:
    """The images in a folder, relative to it, by their name without the suffix: all, or those of some names."""
    found: dict[str, str] = {}
    for name in find_images(folder).images:
        stem = _stem(name)
        if stems is None or stem in stems:
            other = found.setdefault(stem, name)
            if other != name:
                raise DataError(f"{title}: {other} and {name} in {folder} differ in their suffix only; remove one")
    return found


def _listed_stems(file: Path) -> set[str]:
    """The names of images in a text file, without their suffix."""
    lines = [line.strip() for line in read_lines(file) if line.strip()]
    return {_stem(line) if is_image_name(line) else line for line in lines}


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def refuse_missing(title: str, what: str, names: Sequence[str]) -> None:
    """Raises DataError when files lack their partner of the same name."""
    if names:
        raise DataError(f"{title}: {len(names)} files have no {what} of the same name, such as {names[0]}")
