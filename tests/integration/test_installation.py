"""An installation from a clone, and what Python finds by the package's name beside it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import difformer

ROOT = Path(difformer.__file__).parent.parent
BUILD = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
FIND = "import site, sys; site.addsitedir(sys.argv[1]); import difformer; print(difformer.answer)"


def test_the_folder_of_a_clone_does_not_hide_the_package(tmp_path):
    """In the folder that holds a clone named difformer, Python sees a folder of that name without an __init__.py."""
    clone, site = tmp_path / "difformer", tmp_path / "site"
    (clone / "difformer").mkdir(parents=True)
    site.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
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
