"""The weights that ship lie in `checkpoints/`; a wheel has them inside the package. All else is in setup.cfg."""

import json
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithWeights(build_py):
    """Copies the weights that ship and their cards; an editable installation finds them where they are."""

    def run(self) -> None:
        """Builds the package."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "difformer", "weights")
            shutil.rmtree(target, ignore_errors=True)
            # No others that lie there: users put gigabytes into the folder.
            entries = json.loads(Path("checkpoints", "manifest.json").read_text(encoding="utf-8"))
            for name in ("manifest.json", *(entry[kind] for entry in entries for kind in ("file", "card"))):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path("checkpoints", name), target / name)


setup(cmdclass={"build_py": BuildWithWeights})
