"""The quickstart's page: numbers first, then what is behind them, and what to do next."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from difformer.backbones import Backbone
from difformer.classifier import load_classifier
from difformer.data import ImageDataset
from difformer.data.dataset import TEST
from difformer.engine.runtime.resources import Resources
from difformer.engine.runtime.run_folder import RunFolder
from difformer.files import expand_user
from difformer.report.attention import draw_attention
from difformer.report.confusion import draw_confusion
from difformer.report.learning import draw_learning
from difformer.report.page import Block, Code, Gallery, GalleryItem, Paragraph, Picture, Row, Section, Table, write_page
from difformer.verbs.quickstart.methods import FEATURES, MethodResult, seconds_of
from difformer.verbs.quickstart.pictures import (
    Predictions,
    choose_examples,
    draw_components,
    draw_images,
    draw_samples,
    predict_test,
    write_examples,
)
from difformer.verbs.quickstart.plan import Plan, PlannedRun
from difformer.verbs.quickstart.tables import HEADER, best_method, table_rows

PAGE, PICTURES = "report.html", "pictures"
# Whose predictions and attention are shown: fixed beforehand, not the best on the test images.
SHOWN = "difformer"
_EXAMPLES = 12
_DRAWN = "Each seed draws training images of its own, so that the deviation has in it which these were. "


def write_report(
    plan: Plan, results: Sequence[MethodResult], backbone: Backbone, folder: RunFolder, resources: Resources
) -> Path:
    """Draws the pictures and writes the page.

    Args:
        plan: what was done.
        results: what came of it.
        backbone: the one all methods used.
        folder: of everything; the pictures go into `pictures`, the page is `report.html`.
        resources: shared by all methods.

    Raises:
        OSError: something cannot be read or written.
    """
    pictures = folder.path / PICTURES
    pictures.mkdir(exist_ok=True)
    shown = next((run for run in plan.runs if run.method == SHOWN), plan.runs[-1])
    page = folder.path / PAGE
    images = resources.splits(plan.data, ("train", TEST))[TEST]
    sections = [
        _results(plan, results, seconds_of(folder).get(FEATURES, 0.0)),
        _learning(plan, pictures),
        _confusions(plan, results, images.class_names, pictures),
        *_predictions(plan, shown, backbone, images, pictures),
        *_features(plan, backbone, images, pictures),
        *_generation(backbone, images, pictures),
        _next(plan, shown, backbone, folder),
    ]
    footer = f"{backbone.name}, weights {backbone.digest[:12]}; {plan.data.name}, split seed {plan.data.split_seed}."
    write_page(page, plan.title, sections, lead=plan.about, footer=footer)
    return page


def _results(plan: Plan, results: Sequence[MethodResult], shared: float) -> Section:
    """Args: the plan, its results, and the seconds that shared features took."""
    rows = table_rows(plan, results)
    seeds = max(len(result.scores) for result in results)
    chosen = "; ".join(f"{plan.titles[result.method]}: {result.note}" for result in results if result.note)
    note = (
        f"Test images only, in %: mean ± standard deviation over seeds (up to {seeds}; one where there is no ±). "
        "Balanced accuracy is the mean of the classes' accuracies, F1 the mean of the classes' F1. Seconds are of all "
        f"seeds together; writing the features that heads share took {shared:.0f} s. Here nothing was chosen on "
        f"the test images. {_DRAWN if len(plan.draws) > 1 else ''}{chosen}."
    )
    table = Table(HEADER, rows, note=note, highlight=list(results).index(best_method(results)))
    return Section("Results", [table])


def _learning(plan: Plan, pictures: Path) -> Section:
    runs: dict[str, list[list[dict[str, float]]]] = {}
    for run in plan.runs:
        runs.setdefault(plan.titles[run.method], []).append(RunFolder(run.recipe.output).read_history())
    path = pictures / "learning.png"
    draw_learning(runs, path)
    caption = "Loss and accuracy on the augmented training images, by epoch; a line for each seed."
    return Section("Training", [Picture(path, "Training loss and accuracy of every trained method by epoch", caption)])


def _confusions(plan: Plan, results: Sequence[MethodResult], names: Sequence[str], pictures: Path) -> Section:
    blocks: list[Block] = []
    for result in results:
        path = pictures / f"confusion-{result.method}.png"
        draw_confusion(np.array(result.confusion), names, path)
        title = plan.titles[result.method]
        blocks.append(Picture(path, f"Confusion matrix of {title}", f"{title}, all seeds together"))
    return Section("What is taken for what", [Row(blocks)])


def _predictions(
    plan: Plan, run: PlannedRun, backbone: Backbone, images: ImageDataset, pictures: Path
) -> list[Section]:
    """Examples, and where the attention went."""
    file = RunFolder(run.recipe.output).classifier
    classifier = load_classifier(file, backbone=backbone, trust=run.recipe.own_modules)
    found = predict_test(classifier, images)
    rows = choose_examples(found, _EXAMPLES)
    files = write_examples(plan.data, [int(found.places[row]) for row in rows], pictures)
    items = [_example(found, row, file, classifier.class_names) for row, file in zip(rows, files, strict=True)]
    caption = (
        f"{plan.titles[run.method]}, seed {run.seed}: drawn at random, half of them mistakes where there are some."
    )
    sections = [Section("Examples", [Gallery(items, caption)])]
    if found.attention:
        path = pictures / "attention.png"
        draw_attention(found.attention, path)
        caption = "Mean over all test images of the attention that the class token pays to each block and timestep."
        blocks = [Picture(path, "Share of the attention by block and timestep", caption)]
        sections.append(Section(f"Where {plan.titles[run.method]} looks", blocks))
    return sections


def _example(found: Predictions, row: int, file: Path, names: Sequence[str]) -> GalleryItem:
    label, predicted = int(found.labels[row]), int(found.probabilities[row].argmax())
    text = f"predicted {names[predicted]}, {found.probabilities[row, predicted]:.0%}; is {names[label]}"
    return GalleryItem(file, found.names[row], text, "right" if label == predicted else "wrong")


def _features(plan: Plan, backbone: Backbone, images: ImageDataset, pictures: Path) -> list[Section]:
    """One section, or none where there is no image to show."""
    path = pictures / "features.png"
    if not draw_components(plan, backbone, images, path):
        return []
    caption = (
        "The first three principal components of each block's features as red, green and blue, for a few test images: "
        "blocks from left to right, more noise from top to bottom."
    )
    return [Section("What the features see", [Picture(path, "Principal components by block and timestep", caption)])]


def _generation(backbone: Backbone, images: ImageDataset, pictures: Path) -> list[Section]:
    """One section, or none where the backbone does not generate."""
    blocks: list[Block] = []
    if not draw_samples(backbone, pictures / "samples.png"):
        return []
    if draw_images(images, pictures / "images.png"):
        blocks.append(Picture(pictures / "images.png", "Test images", "Test images, as the network sees them"))
    caption = f"Generated by {backbone.name}, the same weights"
    blocks.append(Picture(pictures / "samples.png", "Generated images", caption))
    return [Section("The same weights generate", blocks)]


def _next(plan: Plan, run: PlannedRun, backbone: Backbone, folder: RunFolder) -> Section:
    # Whole, so that the lines work from any folder.
    file = str((folder.path / run.name / folder.classifier.name).resolve())
    name, option, argument = plan.knn.backbone.name, "", ""
    if name != backbone.name:
        # Classifiers find their backbone by the name it carries.
        own = expand_user(name)
        name = str(own.resolve()) if own.is_file() else name
        option, argument = f" --backbone {shlex.quote(name)}", f", backbone={name!r}"
    if packages := run.recipe.own_packages:
        option += "".join(f" --trust {package}" for package in packages)
        argument += f", trust={packages!r}"
    load = f"""from difformer import load_classifier

classifier = load_classifier({file!r}{argument})
for prediction in classifier.predict(["image.png"]):
    print(prediction)
"""
    shell = f"difformer predict {shlex.quote(file)} FOLDER --csv predictions.csv{option}"
    text = "Every classifier lies in a folder beside this page, with its recipe, curves and results."
    return Section("Use it", [Paragraph(text), Code(load), Code(shell, "sh")])
