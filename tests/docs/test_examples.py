"""The examples run, each as its user starts it, on a few images."""

import json
import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
# Arguments, and what is printed at the end.
RUNS = {
    "features_loop": (["pets"], r"out01_t200 \(16, 128\)"),
    "head_loop": (["pets", "2"], r"test: \d of 4 images are right"),
    "diffeed_loop": (["pets", "1"], r"feedback: [\d,]+ parameters learn\n.*epoch 1: .*% of the training images"),
    "retrieval": (["pets", "pets/cat/3.jpg"], r"^1\.000  pets/cat/3\.jpg"),
    "few_shot": (["pets"], r"1 images a class: .*\n(.*\n)*.*4 images a class: .*± .*%"),
    "block_and_timestep": (["pets"], r"block   t = 10 .*\nin00 .*\n(.*\n)+out05 "),
    "own_head": (["pets"], r"epoch 3: loss of the last batch \d"),
    "own_network": (["pets"], r"half  *\(16, 8, 16, 16\)"),
    "own_data_set": (["named"], r"4 images, 2 classes.*\n.*cat_\d\.jpg cat \(3, 32, 32\)"),
    "sklearn_pipeline": (["pets"], r"% in cross-validation, .*% of the test images"),
    "decoder": (["pets"], r"\(2, 21, 32, 32\)"),
    "many_gpus": (["pets"], r"16 images on 1 processes"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`pets/cat/0.jpg …`, and the same by name in `named/train/`."""
    folder = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    (folder / "named" / "train").mkdir(parents=True)
    for label, colour in (("cat", (160, 90, 40)), ("dog", (40, 90, 160))):
        (folder / "pets" / label).mkdir(parents=True)
        for number in range(8):
            image = Image.fromarray(np.clip(rng.normal(colour, 40, (40, 48, 3)), 0, 255).astype(np.uint8))
            image.save(folder / "pets" / label / f"{number}.jpg")
            image.save(folder / "named" / "train" / f"{label}_{number}.jpg")
    return folder


def test_every_example_is_tried_and_listed():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == set(RUNS)
    listed = re.findall(r"^\| `(\w+)\.py`", (EXAMPLES / "README.md").read_text(), re.M)
    assert names == set(listed)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_examples(folder, name):
    arguments, expected = RUNS[name]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout, re.M), done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path):
    assert len(path.read_text().splitlines()) <= 80


def test_notebooks_are_the_examples():
    spec = spec_from_file_location("notebooks", EXAMPLES.parent / "tools" / "notebooks.py")
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(tool.PICTURES)
    for name in tool.PICTURES:
        cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text())["cells"]
        found = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
        assert found == list(tool.cells_of(name, "pictures")), "run python tools/notebooks.py FOLDER"
        # They ran to the end, and drew.
        assert any("image/png" in output.get("data", {}) for output in cells[-1]["outputs"])
        assert [cell["execution_count"] for cell in cells[1:]] == list(range(1, len(cells)))
