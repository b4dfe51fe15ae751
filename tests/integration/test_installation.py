"""An installation from a clone, and what Python finds by the package's name beside it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import difformer

ROOT = Path(difformer.__file__).parent.parent
WHEEL = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
FIND = "import site, sys; site.addsitedir(sys.argv[1]); import difformer; print(difformer.answer)"


def test_the_folder_of_a_clone_does_not_hide_the_package(tmp_path):
    """In the folder that holds a clone named difformer, Python sees a folder of that name without an __init__.py."""
    clone, site = tmp_path / "difformer", tmp_path / "site"
    (clone / "difformer").mkdir(parents=True)
    site.mkdir()
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    (clone / "difformer" / "_version.py").write_text('__version__ = "0"')
    (clone / "difformer" / "__init__.py").write_text("answer = 42")
    subprocess.run([sys.executable, "-c", BUILD, str(site)], cwd=clone, check=True, capture_output=True)
    (wheel,) = site.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    for folder in (tmp_path, clone, site):
        found = subprocess.run(
            # Without the environment's own installations.
            [sys.executable, "-S", "-c", FIND, str(site)], cwd=folder, capture_output=True, text=True, env={}
        )  # fmt: skip
        assert found.stdout == "42\n", found.stderr


def test_a_wheel_has_the_weights(tmp_path):
    """Without the repository, what ships is found, and verified by the manifest that is with it."""
    clone, wheels, site = tmp_path / "clone", tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "tests", "runs", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=ignored)
    subprocess.run([sys.executable, "-c", WHEEL, str(wheels)], cwd=clone, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    shutil.rmtree(clone)
    find = (
        "import difformer, torch; from difformer.checkpoints import shipped; "
        "classifier = difformer.load_classifier('adm_elpv/difformer'); "
        "print(sorted(shipped()), classifier(torch.zeros(1, 3, 64, 64)).shape, difformer.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", find]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert "adm32_cifar10" in found.stdout, found.stderr
    assert f"torch.Size([1, 2]) {site}" in found.stdout
