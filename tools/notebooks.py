"""Writes examples as notebooks with their outputs: python tools/notebooks.py FOLDER

For maintainers; needs nbclient, ipykernel and matplotlib. FOLDER holds one folder a class; the notebooks that are here
were run on the first 80 training images of CIFAR-10's airplane, automobile and bird.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_DATA = "What is printed here is of 240 training images of CIFAR-10: airplanes, automobiles and birds."
EXAMPLES = Path(__file__).parents[1] / "examples"
# Each with a last cell that draws what the script prints or writes.
PICTURES = {
    "features_loop": """\
import matplotlib.pyplot as plt

# The two directions in which the features vary most.
points = arrays["mid_t50"] - arrays["mid_t50"].mean(axis=0)
points = points @ np.linalg.svd(points, full_matrices=False)[2][:2].T
for label, name in enumerate(images.class_names):
    plt.scatter(*points[torch.cat(labels).numpy() == label].T, s=12, label=name)
plt.legend()
plt.title("mid, t = 50: two principal components");""",
    "few_shot": """\
import matplotlib.pyplot as plt

counts = [2**i for i in range(10) if 2**i <= most]
means, spreads = [], []
for k in counts:
    found = []
    for seed in range(3):
        weights = ridge(*read("train", k_shot=k, seed=seed))
        found.append(((np.c_[test_vectors, np.ones(len(test_vectors))] @ weights).argmax(axis=1) == test_labels).mean())
    means.append(np.mean(found))
    spreads.append(np.std(found, ddof=1))
plt.errorbar(counts, means, spreads, marker="o", capsize=3)
plt.xscale("log", base=2)
plt.xlabel("labelled images a class")
plt.ylabel("accuracy");""",
    "block_and_timestep": """\
import matplotlib.pyplot as plt
import numpy as np

cells = []
for tap in backbone.taps:
    fits = [ridge_path(train[FeatureKey(tap, t)], train_labels, classes, strengths=[0.1])[0] for t in timesteps]
    held_out = [held[FeatureKey(tap, t)] for t in timesteps]
    cells.append([accuracy(fit.model.logits(x), held_labels) for fit, x in zip(fits, held_out, strict=True)])
plt.imshow(np.array(cells).T, aspect="auto")
plt.xticks(range(len(cells)), list(backbone.taps), rotation=90)
plt.yticks(range(len(timesteps)), timesteps)
plt.ylabel("t")
plt.colorbar(label="accuracy on held-out images");""",
}


def cells_of(name: str, folder: str) -> Iterator[tuple[str, str]]:
    """The cells of an example, each with its kind: its text, its code by paragraphs, and a picture.

    Args:
        name: of the example.
        folder: of the images, in place of the command line's argument.
    """
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    first = ast.parse(source).body[0]
    title, _, text = ast.literal_eval(first.value).partition("\n")
    yield "markdown", f"# {title.partition(':')[0]}\n{text.replace('FOLDER', f'`{folder}`')}\n{_DATA}"
    code = "\n".join(source.splitlines()[first.end_lineno :]).strip()
    code = code.replace("sys.argv[1]", json.dumps(folder)).replace("import sys\n\n", "", 1)
    # A paragraph that is indented belongs to the one before it.
    paragraphs = re.split(r"\n\n+(?=[^\s])", code)
    imports = [one for one in paragraphs if re.match(r"import |from ", one)]
    yield "code", "\n\n".join(imports)
    for paragraph in paragraphs[len(imports) :]:
        yield "code", paragraph
    yield "code", PICTURES[name]


def main() -> None:
    """Runs them and writes them."""
    import nbformat
    from nbclient import NotebookClient

    place = Path(sys.argv[1]).resolve()
    for name in PICTURES:
        make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
        cells = [make[kind](text) for kind, text in cells_of(name, place.name)]
        notebook = nbformat.v4.new_notebook(cells=cells)
        # Cells are known by their places, so that the file changes with its content alone.
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"{name.replace('_', '-')}-{number}"
        NotebookClient(notebook, coalesce_streams=True, resources={"metadata": {"path": str(place.parent)}}).execute()
        for cell in notebook.cells:
            cell["metadata"] = {}
            if cell["cell_type"] == "code":
                # Progress bars and warnings.
                cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
        notebook["metadata"] = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        nbformat.write(notebook, EXAMPLES / f"{name}.ipynb")
        print(f"wrote {EXAMPLES / name}.ipynb")


if __name__ == "__main__":
    main()
