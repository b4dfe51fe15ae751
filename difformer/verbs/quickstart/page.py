"""The quickstart's page: numbers first, then curves and pictures, and how to use the classifiers."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from difformer.backbones import Backbone
from difformer.classifier import load_classifier
from difformer.data import ImageDataset
from difformer.data.subset import TEST
from difformer.engine.runtime.resources import Resources
from difformer.engine.runtime.run_folder import RunFolder
from difformer.files import expand_user
from difformer.report.attention import draw_attention
from difformer.report.confusion import draw_confusion
from difformer.report.learning import draw_learning
from difformer.report.page import Block, Code, Gallery, GalleryItem, Paragraph, Picture, Row, Section, Table, write_page
from difformer.verbs.quickstart.methods import FEATURES, MethodResult, seconds_of
from difformer.verbs.quickstart.pictures import (
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
# The method whose predictions and attention are shown: fixed beforehand, not the best on the test images.
SHOWN = "difformer"
_EXAMPLES = 12
_DRAWN = "Each seed draws its own training images, so the deviation includes the choice of images. "


def write_report(
    plan: Plan, results: Sequence[MethodResult], backbone: Backbone, folder: RunFolder, resources: Resources
) -> Path:
    """Draws the pictures and writes the page.

    Args:
        plan: what was done.
        results: what each method reached.
        backbone: of all methods.
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
        *_results(plan, results, seconds_of(folder).get(FEATURES, 0.0), images.class_names, pictures),
        *_predictions(plan, shown, backbone, images, pictures),
        *_backbone(plan, backbone, images, pictures),
        _next(plan, shown, backbone, folder),
    ]
    footer = f"{backbone.name}, weights {backbone.digest[:12]}; {plan.data.name}, split seed {plan.data.split_seed}."
    write_page(page, plan.title, sections, lead=plan.about, footer=footer)
    return page


def _results(
    plan: Plan, results: Sequence[MethodResult], shared: float, names: Sequence[str], pictures: Path
) -> list[Section]:
    """Table, learning curves and confusion matrices; `shared` is the seconds that it took to write shared features."""
    seeds = max(len(result.scores) for result in results)
    chosen = "; ".join(f"{plan.titles[result.method]}: {result.note}" for result in results if result.note)
    note = (
        f"Test images only, in %: mean ± standard deviation over up to {seeds} seeds; without ±, one seed. "
        "Balanced accuracy is the mean of the classes' accuracies, F1 the mean of the classes' F1. Seconds are of all "
        f"seeds together; writing the features that heads share took {shared:.0f} s. Nothing was chosen on the test "
        f"images. {_DRAWN if len(plan.draws) > 1 else ''}{chosen}."
    )
    best = list(results).index(best_method(results))
    table = Table(HEADER, table_rows(plan, results), note=note, highlight=best)
    runs: dict[str, list[list[dict[str, float]]]] = {}
    for run in plan.runs:
        runs.setdefault(plan.titles[run.method], []).append(RunFolder(run.recipe.output).read_history())
    path = pictures / "learning.png"
    draw_learning(runs, path)
    caption = "Loss and accuracy on the augmented training images by epoch; one line for each seed."
    curves = Picture(path, "Training loss and accuracy of every trained method by epoch", caption)
    confusions: list[Block] = []
    for result in results:
        path = pictures / f"confusion-{result.method}.png"
        draw_confusion(np.array(result.confusion), names, path)
        title = plan.titles[result.method]
        confusions.append(Picture(path, f"Confusion matrix of {title}", f"{title}, all seeds together"))
    blocks: dict[str, Block] = {"Results": table, "Training": curves, "Confusion matrices": Row(confusions)}
    return [Section(title, [block]) for title, block in blocks.items()]


def _predictions(
    plan: Plan, run: PlannedRun, backbone: Backbone, images: ImageDataset, pictures: Path
) -> list[Section]:
    """Example predictions, and attention shares if the head has them."""
    file = RunFolder(run.recipe.output).classifier
    classifier = load_classifier(file, backbone=backbone, trust=run.recipe.own_modules)
    found = predict_test(classifier, images)
    rows = choose_examples(found, _EXAMPLES)
    files = write_examples(plan.data, [int(found.places[row]) for row in rows], pictures)
    items, names = [], classifier.class_names
    for row, file in zip(rows, files, strict=True):
        label, predicted = int(found.labels[row]), int(found.probabilities[row].argmax())
        text = f"predicted {names[predicted]}, {found.probabilities[row, predicted]:.0%}; is {names[label]}"
        items.append(GalleryItem(file, found.names[row], text, "right" if label == predicted else "wrong"))
    caption = f"{plan.titles[run.method]}, seed {run.seed}: drawn at random, half of them mistakes if there are enough."
    sections = [Section("Examples", [Gallery(items, caption)])]
    if found.attention:
        path = pictures / "attention.png"
        draw_attention(found.attention, path)
        caption = "Mean over all test images of the attention that the class token pays to each block and timestep."
        blocks = [Picture(path, "Share of the attention by block and timestep", caption)]
        sections.append(Section(f"Where {plan.titles[run.method]} looks", blocks))
    return sections


def _backbone(plan: Plan, backbone: Backbone, images: ImageDataset, pictures: Path) -> list[Section]:
    """The backbone's features, if a test image can be read, and what it generates, if it does."""
    sections = []
    path = pictures / "features.png"
    if draw_components(plan, backbone, images, path):
        caption = (
            "The first three principal components of each block's features as red, green and blue, for a few test "
            "images: blocks from left to right, more noise from top to bottom."
        )
        shown = Picture(path, "Principal components by block and timestep", caption)
        sections.append(Section("What the features see", [shown]))
    path = pictures / "samples.png"
    if draw_samples(backbone, path):
        blocks: list[Block] = []
        if draw_images(images, pictures / "images.png"):
            blocks.append(Picture(pictures / "images.png", "Test images", "Test images, as the network sees them"))
        blocks.append(Picture(path, "Generated images", f"Generated by {backbone.name}, the same weights"))
        sections.append(Section("The same weights generate", blocks))
    return sections


def _next(plan: Plan, run: PlannedRun, backbone: Backbone, folder: RunFolder) -> Section:
    """Code and a command that use the classifier of a run."""
    # An absolute path, so that the lines work from any folder.
    file = str((folder.path / run.name / folder.classifier.name).resolve())
    name, option, argument = plan.knn.backbone.name, "", ""
    if name != backbone.name:
        # A classifier looks for its backbone by the name in the weights, which is not the name in the recipe.
        own = expand_user(name)
        name = str(own.resolve()) if own.is_file() else name
        option, argument = f" --backbone {shlex.quote(name)}", f", backbone={name!r}"
    if packages := run.recipe.own_packages:
        option += f" --trust {' '.join(packages)}"
        argument += f", trust={packages!r}"
    load = f"""from difformer import load_classifier

classifier = load_classifier({file!r}{argument})
for prediction in classifier.predict(["image.png"]):
    print(prediction)
"""
    shell = f"difformer predict {shlex.quote(file)} FOLDER --csv predictions.csv{option}"
    text = "Every classifier is in a folder beside this page, with its recipe, curves and results."
    return Section("Use it", [Paragraph(text), Code(load), Code(shell, "sh")])
