"""The verbs about weights: info, convert, predict, export."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from difformer.backbones import create_backbone
from difformer.checkpoints import PRESETS, describe, locate, open_weights, write_backbone
from difformer.checkpoints.sources import ScheduleLike
from difformer.checkpoints.weights import read_metadata
from difformer.classifier import (
    is_classifier_file,
    load_classifier,
    read_classifier,
    save_classifier,
    write_classifier,
)
from difformer.classifier.files import read_description, stored_task
from difformer.classifier.published import PublishedOptions, is_published, read_published
from difformer.cli.help import SKIPPED
from difformer.cli.listing import classifier_table
from difformer.config import UNetConfig
from difformer.data.listing import in_words
from difformer.diffusion import NoiseSchedule
from difformer.engine.runtime.locating import backbone_of_run, classifier_file, warn_of_unfinished
from difformer.files import check_target, expand_user, sha256
from difformer.models.plan import tap_specs
from difformer.tasks.registry import is_dense
from difformer.verbs.export.export import export_classifier
from difformer.verbs.predict.dense import predict_dense
from difformer.verbs.predict.predict import predict_folder, prediction_lines

ScheduleName = Literal["linear", "cosine"]
# With as many steps, rescaled timesteps are the timesteps.
_USUAL_TIMESTEPS = 1000


@dataclass(frozen=True)
class Unseen:
    """What the weights of an unknown .pt cannot show.

    Attributes:
        image_size: side in pixels of the images it was trained on.
        num_heads: attention heads, when their number is fixed.
        num_head_channels: channels an attention head, when that is fixed.
        use_new_attention_order: whether q, k and v are split before the heads.
    """

    image_size: int | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    use_new_attention_order: bool | None = None

    def given(self) -> dict[str, Any] | None:
        return {name: value for name, value in asdict(self).items() if value is not None} or None


def info(
    source: str,
    *,
    preset: str | None = None,
    arch: Unseen | None = None,
    schedule: ScheduleName | None = None,
    num_timesteps: int | None = None,
    rescale_timesteps: bool | None = None,
    entry: str | None = None,
    folder: Path | None = None,
    download: bool = False,
    as_json: bool = False,
) -> None:
    """Prints what a backbone offers, block by block, or what a classifier consists of; alone, lists all by name.

    A preset needs no weights.

    Args:
        source: the name of a preset or of weights that ship, a weight file or hf://owner/name.
        preset: for an unknown .pt: the published checkpoint it is.
        arch: for an unknown .pt: what its weights cannot show.
        schedule: for an unknown .pt: the noise schedule.
        num_timesteps: for an unknown .pt: the schedule's steps, guided-diffusion's --diffusion_steps.
        rescale_timesteps: for an unknown .pt of other than 1000 steps: guided-diffusion's flag of that name.
        entry: for a .pt with several state dicts, such as model and ema: which of them.
        folder: where named weights lie, in place of the usual folders.
        download: allow the download of what is not on this machine.
        as_json: print JSON instead of a table.
    """
    given = arch.given() if arch else None
    noise = _noise(schedule, num_timesteps, rescale_timesteps)
    if source not in PRESETS:
        path = locate(source, folder=folder, download=download)
        if is_classifier_file(read_metadata(path)):
            _check_none_given(source, preset, given, noise, entry)
            print(classifier_table(source, path, as_json=as_json))
            return
    config, found = describe(
        source, preset=preset, config=given, schedule=noise, entry=entry, folder=folder, download=download
    )
    if as_json:
        taps = [asdict(spec) for spec in tap_specs(config).values()]
        print(json.dumps({"config": asdict(config), "schedule": found.to_dict(), "taps": taps}, indent=2))
    else:
        print(_table(source, config, found))


def convert(
    source: str,
    out: Path,
    *,
    preset: str | None = None,
    arch: Unseen | None = None,
    schedule: ScheduleName | None = None,
    num_timesteps: int | None = None,
    rescale_timesteps: bool | None = None,
    entry: str | None = None,
    backbone: str = "adm256_uncond",
    published: PublishedOptions | None = None,
    folder: Path | None = None,
    download: bool = False,
    verify: bool = True,
    overwrite: bool = False,
) -> None:
    """Writes a backbone, or a classifier, as one self-describing safetensors file under a digest of all it says.

    Args:
        source: a preset's name, a weight file, hf://owner/name, the published code's latest.pth, or a backbone or
            classifier of an earlier version, which is written as this version writes them.
        out: the file to write.
        preset: for an unknown .pt: the published checkpoint it is.
        arch: for an unknown .pt: what its weights cannot show.
        schedule: for an unknown .pt: the noise schedule.
        num_timesteps: for an unknown .pt: the schedule's steps, guided-diffusion's --diffusion_steps.
        rescale_timesteps: for an unknown .pt of other than 1000 steps: guided-diffusion's flag of that name.
        entry: for a .pt with several state dicts, such as model and ema: which of them.
        backbone: for a latest.pth: the backbone it was trained on. Its weights are read for their digest, which the
            file keeps, so that another backbone is noticed.
        published: for a latest.pth: what it cannot show.
        folder: where named weights lie, in place of the usual folders.
        download: allow the download of what is not on this machine.
        verify: check digests.
        overwrite: replace the output if it exists.
    """
    check_target(out, overwrite=overwrite, ending=".safetensors")
    path = locate(source, folder=folder, download=download)
    given = arch.given() if arch else None
    noise = _noise(schedule, num_timesteps, rescale_timesteps)
    if is_published(path):
        _convert_published(path, out, backbone, published or PublishedOptions(), folder, download, verify)
        return
    if published is not None:
        raise ValueError(f"{source} is not a checkpoint of the published code; leave out --published")
    if is_classifier_file(read_metadata(path)):
        _check_none_given(source, preset, given, noise, entry)
        state, description = read_classifier(path, verify=verify)
        write_classifier(out, state, description)
        print(f"wrote {out}: a classifier, {len(state)} tensors")
        return
    state, stored = open_weights(
        source, preset=preset, config=given, schedule=noise, entry=entry, folder=folder, download=download,
        verify=verify,
    )  # fmt: skip
    write_backbone(out, state, stored, overwrite=overwrite)
    print(f"wrote {out}: {stored.name}, {len(state)} tensors, digest {stored.digest}")
    if origin := stored.provenance.get("file_sha256"):
        print(f"from {stored.provenance['file']}, SHA-256 {origin}")


def _convert_published(
    path: Path, out: Path, backbone: str, published: PublishedOptions, folder: Path | None, download: bool, verify: bool
) -> None:
    try:
        opened = create_backbone(backbone, folder=folder, download=download, verify=verify)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}. They are read for their digest, which the classifier's file keeps, so that another backbone is "
            "noticed; --backbone names another file of them"
        ) from error
    classifier = read_published(path, opened, published)
    origin = sha256(path)
    save_classifier(out, classifier, converted_from=path.name, converted_from_sha256=origin)
    kind = f"{type(classifier.head).__name__}, {len(classifier.class_names)} classes, on {opened.name}"
    print(f"wrote {out}: {kind}\nfrom {path.name}, SHA-256 {origin}")


def _noise(schedule: str | None, num_timesteps: int | None, rescale_timesteps: bool | None) -> ScheduleLike | None:
    """The noise schedule that options describe; its name alone where they do not say how many steps it has."""
    if num_timesteps is None:
        if rescale_timesteps is not None:
            raise ValueError("--rescale_timesteps goes with --num_timesteps; give both")
        return schedule
    if schedule is None:
        raise ValueError("--num_timesteps goes with --schedule; give both")
    noise = NoiseSchedule.from_name(schedule, num_timesteps, rescale_timesteps=bool(rescale_timesteps))
    if rescale_timesteps is None and num_timesteps != _USUAL_TIMESTEPS:
        raise ValueError(
            f"with {num_timesteps} steps, say --rescale_timesteps true or false, as guided-diffusion's flag was in "
            f"training: whether the network was told its timesteps scaled to {_USUAL_TIMESTEPS}"
        )
    return noise


def _check_none_given(source: str, *options: Any) -> None:
    if any(option is not None for option in options):
        raise ValueError(f"{source} is a classifier; --preset, --arch, --schedule and --entry are for backbones")


def predict(
    model: str,
    folder: Path,
    *,
    csv: Path | None = None,
    output: Path | None = None,
    backbone: str | None = None,
    weights_folder: Path | None = None,
    batch_size: int = 32,
    device: str | None = None,
    download: bool = False,
    trust: list[str] | str | None = None,
    overwrite: bool = False,
) -> int:
    """Predicts for every image in a folder and its subfolders, or for one image: classes, or masks, boxes or points at
    the images' own sizes. Images that cannot be read are reported and skipped; the exit status is then 3.

    Args:
        model: the folder of a run or of an export, a saved classifier, the name of one that ships, or hf://owner/name.
        folder: the images, or the file of one.
        csv: the table to write, of classes: file, label, probability, and the probability of each class. Without it,
            the likeliest classes of one image are printed.
        output: the folder to write, of masks, boxes or points: predictions.csv, and masks, overlays, or objects in
            COCO's format. The same command resumes where it was stopped.
        backbone: where the classifier's backbone is, when it is not found by its name. Of a run, its own is taken.
        weights_folder: where backbones lie, in place of the usual folders.
        batch_size: images to classify at once.
        device: where to run, such as cuda; the CPU by default.
        download: allow the download of what is not on this machine.
        trust: packages whose code may run, for a classifier with a head, task or backbone of one of them.
        overwrite: replace the table if it exists.
    """
    if csv is not None:
        check_target(csv, overwrite=overwrite, ending=".csv")
    if not folder.is_dir() and not folder.is_file():
        raise FileNotFoundError(f"there is no folder and no image {folder}")
    file = (
        classifier_file(model)
        if expand_user(model).is_dir()
        else locate(model, folder=weights_folder, download=download)
    )
    task = stored_task(read_description(file), trust or ())
    if is_dense(task) and (output is None or csv is not None):
        raise ValueError(f"{model} predicts masks, boxes or points: give --output, a folder, in place of --csv")
    if not is_dense(task) and (output is not None or (csv is None and folder.is_dir())):
        raise ValueError(
            f"{model} predicts classes: give --csv, the table to write, in place of --output, or without it the file "
            f"of one image, not {folder}"
        )
    warn_of_unfinished(model)
    classifier = load_classifier(
        file,
        backbone=backbone or backbone_of_run(model),
        folder=weights_folder,
        download=download,
        device=device,
        trust=trust or (),
    )
    if is_dense(task) and output is not None:
        report, target = predict_dense(classifier, task, folder, output, overwrite=overwrite), output
    elif csv is not None:
        report, target = predict_folder(classifier, folder, csv, batch_size=batch_size, overwrite=overwrite), csv
    else:
        (prediction,) = classifier.predict(folder)
        print("\n".join(prediction_lines(classifier, prediction)))
        return 0
    for error in report.skipped:
        print(f"difformer: skipped: {error}", file=sys.stderr)
    if report.left_out:
        print(f"difformer: left out files that are no images: {in_words(report.left_out)}", file=sys.stderr)
    where = f"{expand_user(target).resolve()}.partial" if report.interrupted and not is_dense(task) else target
    print(f"wrote {where}: {report.done} of {report.total} images, {len(report.skipped)} skipped")
    if report.interrupted:
        raise KeyboardInterrupt
    return SKIPPED if report.skipped else 0


def export(
    classifier: str,
    *,
    output: Path,
    backbone: str | None = None,
    weights_folder: Path | None = None,
    download: bool = False,
    trust: list[str] | str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a classifier together with its backbone into one folder, for somebody else to use as it is.

    Args:
        classifier: the folder of a run, the name of a classifier that ships, a saved classifier or hf://owner/name.
        output: the folder to write: model.safetensors, backbone.safetensors, config.json and a model card, README.md.
        backbone: where the classifier's backbone is, when it is not found by its name.
        weights_folder: where backbones lie, in place of the usual folders.
        download: allow the download of what is not on this machine.
        trust: packages whose code may run, for a classifier with a head, task or backbone of one of them.
        overwrite: replace an earlier export.
    """
    folder = export_classifier(
        classifier, output,
        backbone=backbone, weights_folder=weights_folder, download=download, trust=trust or (), overwrite=overwrite,
    )  # fmt: skip
    dense = is_dense(stored_task(read_description(classifier_file(str(folder))), trust or ()))
    written = "--output OUT" if dense else "--csv out.csv"
    print(f"wrote {folder}; `difformer predict {folder} IMAGES {written}` works with nothing else")


def _table(source: str, config: UNetConfig, schedule: NoiseSchedule) -> str:
    specs = tap_specs(config)
    total = list(specs.values())[-1].flops
    lines = [source, *(f"  {name}: {value}" for name, value in asdict(config).items())]
    rescaled = f", told to the network in {_USUAL_TIMESTEPS}" if schedule.rescale_timesteps else ""
    lines += [f"  schedule: {schedule.name}, {schedule.num_timesteps} timesteps{rescaled}", ""]
    lines.append(f"{'block':>5}  {'tap':<6} {'channels':>8} {'size':>9} {'GFLOP':>9} {'share':>7}")
    for spec in specs.values():
        size = f"{spec.height}×{spec.width}"
        cost, share = f"{spec.flops / 1e9:,.1f}", f"{spec.flops / total:.1%}"
        lines.append(f"{spec.block:>5}  {spec.name:<6} {spec.channels:>8} {size:>9} {cost:>9} {share:>7}")
    lines.append("GFLOP: one image from the input to the end of the block, a multiply-add counted as two")
    return "\n".join(lines)
