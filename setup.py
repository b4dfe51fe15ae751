"""The weights that ship lie in `checkpoints/`; a wheel has them inside the package. All else is in setup.cfg."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithWeights(build_py):
    """Copies the weights, their cards and their manifest; an editable installation finds them where they are."""

    def run(self) -> None:
        """Builds the package."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "difformer", "weights")
            shutil.copytree("checkpoints", target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithWeights})
