"""The verbs about corresponding points: match and match-pairs."""

from pathlib import Path
from typing import Literal

from difformer.annotations import read_pairs
from difformer.backbones import create_backbone
from difformer.data import DataConfig, read_image
from difformer.engine.runtime.result_folder import ResultFolder
from difformer.engine.runtime.run_folder import environment
from difformer.verbs.match import match as matching
from difformer.verbs.match import results
from difformer.verbs.match.pairs import chosen_pairs, find_points, pair_scores, pairs_digest
from difformer.verbs.match.points import checked_points, parse_points
from difformer.verbs.match.reading import MapReader, Reading

# Points that are printed.
_FEW = 20


def match(
    image_a: Path,
    image_b: Path,
    *,
    points: str | None = None,
    grid: int = 6,
    backbone: str = "adm256_uncond",
    tap: str | None = None,
    t: int | None = None,
    draws: int = 8,
    size: int | None = None,
    aspect: Literal["stretch", "keep"] = "stretch",
    seed: int = 0,
    label: int | None = None,
    subpixel: bool = False,
    mutual: bool = False,
    output: Path = Path("runs/match"),
    overwrite: bool = False,
    chunk_size: int | None = None,
    device: str | None = None,
    weights_folder: Path | None = None,
    family: str | None = None,
    download: bool = False,
) -> None:
    """Finds points of one image in another by diffusion features, without training, as DIFT does.

    Writes points.csv, matches.png, matches.pdf and match.json. Points are x,y in pixels of the upright images, from the
    left and from the top; 0.5,0.5 is the centre of the first pixel.

    Args:
        image_a: the image that points are given in.
        image_b: the image that they are looked for in.
        points: "x,y x,y …" in quotes, or a .csv file with columns x and y; a regular grid when left out, of which only
            mutual matches are drawn.
        grid: points of that grid along the longer side.
        backbone: a preset, weights that ship, a weight file or hf://owner/name.
        tap: block that is read, such as out04, or its number; as deep as out04 of ADM-256 when left out.
        t: noise timestep; 101 for ADM-256 and what suits the backbone's images for others.
        draws: noise draws that features are averaged over.
        size: side in pixels of the square that images are scaled to; twice the backbone's own when left out.
        aspect: stretch images to that square, as DIFT does; or keep their proportions, with about as many pixels.
        seed: of the noise. An image's noise depends on it and on the image's pixels alone.
        label: class of a class-conditional backbone.
        subpixel: move what is found between pixels, to the top of a parabola through the similarities.
        mutual: draw only points whose way back ends where it began.
        output: the folder to write.
        overwrite: replace results that are there.
        chunk_size: noisy images at once; about two of 512 pixels by default.
        device: where to run, such as cuda; the CPU by default.
        weights_folder: where named weights lie, in place of the usual folders.
        family: of the backbone, where it is one of your own, as package.module:Name.
        download: allow the download of a backbone that is not on this machine.
    """
    folder = ResultFolder(output, matching.FILES)
    folder.check(overwrite=overwrite)
    reading = Reading(tap, t, draws, size, aspect, seed, label, chunk_size)
    pictures = read_image(image_a), read_image(image_b)
    given = None if points is None else checked_points(parse_points(points), pictures[0].height, pictures[0].width)
    opened = create_backbone(backbone, folder=weights_folder, download=download, device=device, family=family)
    found = matching.match_images(opened, *pictures, given, reading=reading, grid=grid, subpixel=subpixel)
    only_mutual = mutual or given is None
    with folder.write() as temporary:
        names = (image_a.name, image_b.name)
        matching.write_matches(temporary, pictures, found, names, only_mutual=only_mutual)
    print(found.title)
    if given is not None and len(given) <= _FEW:
        for number, (start, end, similarity, way_back) in enumerate(
            zip(found.points, found.found, found.similarity, found.mutual, strict=True), 1
        ):
            note = "" if way_back else "  not mutual"
            print(f"{number:>3}  {start[0]:.1f},{start[1]:.1f} -> {end[0]:.1f},{end[1]:.1f}  {similarity:.3f}{note}")
    print(f"{found.mutual.sum()} of {len(found.points)} matches are mutual")
    print(folder.path / matching.PICTURE)


def match_pairs(
    root: Path,
    *,
    split: str = "test",
    limit: int | None = None,
    examples: int = 6,
    backbone: str = "adm256_uncond",
    tap: str | None = None,
    t: int | None = None,
    draws: int = 8,
    size: int | None = None,
    aspect: Literal["stretch", "keep"] = "stretch",
    seed: int = 0,
    label: int | None = None,
    subpixel: bool = False,
    keep_mb: int = 1024,
    output: Path = Path("runs/match-pairs"),
    overwrite: bool = False,
    chunk_size: int | None = None,
    device: str | None = None,
    weights_folder: Path | None = None,
    family: str | None = None,
    download: bool = False,
) -> None:
    """Measures how many points of pairs of images are found (PCK), on SPair-71k or data in its layout.

    Writes results.json, pairs.csv and pairs.html. By default, everything is as DIFT has it for ADM-256.

    Args:
        root: folder of the data set: JPEGImages, PairAnnotation and Layout, or a folder with SPair-71k in it.
        split: train, val or test.
        limit: measure that many pairs only, evenly spaced.
        examples: pairs that are drawn, evenly spaced; 0 for none.
        backbone: a preset, weights that ship, a weight file or hf://owner/name.
        tap: block that is read, such as out04, or its number; as deep as out04 of ADM-256 when left out.
        t: noise timestep; 101 for ADM-256 and what suits the backbone's images for others.
        draws: noise draws that features are averaged over.
        size: side in pixels of the square that images are scaled to; twice the backbone's own when left out.
        aspect: stretch images to that square, as DIFT does; or keep their proportions, with about as many pixels.
        seed: of the noise and of the bootstrap.
        label: class of a class-conditional backbone.
        subpixel: move what is found between pixels, to the top of a parabola through the similarities.
        keep_mb: megabytes of features that are kept, so that each image is read once.
        output: the folder to write.
        overwrite: replace results that are there.
        chunk_size: noisy images at once; about two of 512 pixels by default.
        device: where to run, such as cuda; the CPU by default.
        weights_folder: where named weights lie, in place of the usual folders.
        family: of the backbone, where it is one of your own, as package.module:Name.
        download: allow the download of a backbone that is not on this machine.
    """
    for name, value in (("keep_mb", keep_mb), ("examples", examples)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    folder = ResultFolder(output, results.FILES)
    folder.check(overwrite=overwrite)
    reading = Reading(tap, t, draws, size, aspect, seed, label, chunk_size)
    data = read_pairs(DataConfig(name="pairs", root=str(root)), split)
    places = chosen_pairs(data, limit)
    opened = create_backbone(backbone, folder=weights_folder, download=download, device=device, family=family)
    reader = MapReader(opened, reading)
    found = find_points(reader, data, places, subpixel=subpixel, keep_bytes=keep_mb << 20)
    scores = pair_scores(data, places, found, seed=seed)
    record = {
        "data": {"split": split, "pairs": len(places), "of": len(data.pairs), "digest": pairs_digest(data, places)},
        "reading": reader.describe(),
        "subpixel": subpixel,
        "environment": environment(1, reader.device),
    }
    print(f"{reader}\n\n{results.text_table(scores)}")
    with folder.write() as temporary:
        results.write_results(temporary, data, places, found, scores, record, title=str(reader), examples=examples)
    print(folder.path / results.PAGE)
