"""The classifier file that a run, a folder, a file or a name refers to."""

from logging import getLogger
from pathlib import Path

from difformer.checkpoints import locate, shipped
from difformer.checkpoints.hub import HUB
from difformer.classifier.hub import CLASSIFIER_FILE
from difformer.config.reading import read_yaml, value_at
from difformer.engine.runtime.run_folder import RunFolder
from difformer.files import expand_user

_log = getLogger(__name__)


def classifier_file(source: str, *, download: bool = False) -> Path:
    """The file of a classifier.

    Args:
        source: a run's folder, a folder from `save_pretrained`, the file itself, the name of a classifier that ships
            with the package, or hf://owner/name.
        download: whether it may be downloaded when it is not on this machine.

    Raises:
        FileNotFoundError: it does not exist here, and may not or cannot be downloaded.
    """
    folder = RunFolder(source)
    if not folder.path.is_dir():
        if source.startswith(HUB):
            return locate(source, download=download)
        if source in shipped() and not folder.path.is_file():
            return locate(source)
        if not folder.path.is_file():
            raise FileNotFoundError(f"there is no run and no classifier {source}")
        return folder.path
    exported = folder.path / CLASSIFIER_FILE
    if exported.is_file() and not folder.recipe.exists():
        return exported
    if not folder.recipe.exists():
        if seeds := sorted(folder.path.glob("seed*/recipe.yaml")):
            raise FileNotFoundError(
                f"{source} holds runs of several seeds; give one of them, such as {seeds[0].parent}"
            )
        raise FileNotFoundError(
            f"{source} is not the folder of a run: it has no {folder.recipe.name}; give one that `difformer train` "
            f"wrote, or a classifier file"
        )
    if not folder.classifier.exists():
        raise FileNotFoundError(f"the run in {source} has no {folder.classifier.name} yet; train it further")
    return folder.classifier


def warn_of_unfinished(source: str) -> None:
    """Logs a warning if a classifier is that of a run that has not ended.

    Args:
        source: as for `classifier_file`.
    """
    path = expand_user(source)
    run = RunFolder(path.parent if path.is_file() else path)
    if path in (run.path, run.classifier, run.latest) and run.recipe.exists() and not run.results.exists():
        _log.warning("%s is not finished; its classifier so far is used", run.path)


def backbone_of_run(source: str) -> str | None:
    """The file of the backbone that a run's recipe names; None where it names none, or `source` is no run."""
    recipe = RunFolder(source).recipe
    name = value_at(read_yaml(recipe), "backbone.name") if recipe.exists() else None
    return name if isinstance(name, str) and expand_user(name).is_file() else None
