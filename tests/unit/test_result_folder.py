import os

import numpy as np
import pytest
from PIL import Image

from difformer.data.classes import check_same_classes
from difformer.engine.runtime.result_folder import ResultFolder, write_json
from difformer.engine.runtime.run_folder import RunFolder
from difformer.report import draw_confusion
from difformer.tables import write_table


@pytest.fixture
def folder(tmp_path):
    return ResultFolder(tmp_path / "deep" / "results", ["a.json", "b.csv"])


def fill(folder, text="1", error=None):
    with folder.write() as temporary:
        (temporary / "a.json").write_text(text)
        if error is not None:
            raise error


def content(folder):
    assert os.listdir(folder.path.parent) == ["results"]
    return {path.name: path.read_text() for path in folder.path.iterdir()}


def test_results_appear_whole_and_are_replaced_whole(folder):
    folder.check(overwrite=False)
    fill(folder)
    assert content(folder) == {"a.json": "1"}
    with pytest.raises(FileExistsError, match="holds results already"):
        folder.check(overwrite=False)
    folder.check(overwrite=True)
    fill(folder, "2")
    assert content(folder) == {"a.json": "2"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_changes_nothing(folder, error):
    fill(folder)
    with pytest.raises(error):
        fill(folder, "half", error)
    assert content(folder) == {"a.json": "1"}


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_a_failed_exchange_leaves_what_was_there(folder, monkeypatch, error):
    fill(folder)
    original = os.replace

    def replace(source, target):
        if str(source).endswith(".tmp"):
            raise error
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(type(error)):
        fill(folder, "2")
    assert content(folder) == {"a.json": "1"}


def test_what_is_no_result_is_left_alone(folder):
    folder.path.mkdir(parents=True)
    (folder.path / "thesis.txt").write_text("important")
    with pytest.raises(FileExistsError, match=r"holds thesis\.txt, which is no result"):
        folder.check(overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"):
        ResultFolder(folder.path / "thesis.txt", []).check(overwrite=True)


def test_numbered_files_may_have_been_more_before(tmp_path):
    for name in ("page.html", "image-000.png", "image-001.png"):
        (tmp_path / name).touch()
    ResultFolder(tmp_path, ["page.html", "image-*.png"]).check(overwrite=True)
    (tmp_path / "image.png").touch()
    with pytest.raises(FileExistsError, match=r"holds image\.png, which is no result"):
        ResultFolder(tmp_path, ["page.html", "image-*.png"]).check(overwrite=True)


def test_tables_hold_any_name(tmp_path):
    write_table(tmp_path / "t.csv", ["name", "value"], [("a,b", None), ("odd\udcff", 0.5)])
    assert (tmp_path / "t.csv").read_bytes() == b'name,value\r\n"a,b",\r\nodd\xff,0.5\r\n'
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"value": float("nan")})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "dog"), r"\(2\).*\(3\): only of the data set: none; only of the classifier: 'cow'$"),
        (("cat", "dog", "Cow"), "only of the data set: 'Cow'; only of the classifier: 'cow'; .* data.class_names"),
        (("cat", "cow", "dog"), "class 1 is 'cow' of the data set and 'dog' of the classifier, so"),
        (tuple("abcdefg"), "'a', 'b', 'c', 'd', 'e' and 2 more"),
    ],
)
def test_other_classes_are_shown(names, message):
    with pytest.raises(ValueError, match=message):
        check_same_classes(names, ("cat", "dog", "cow"), "of the data set", "of the classifier")


@pytest.mark.parametrize("classes", [1, 2, 21, 300])
def test_confusion_is_drawn_for_few_and_many_classes(classes, tmp_path):
    confusion = np.eye(classes, dtype=np.int64)
    confusion[0, 0] = 0
    draw_confusion(confusion, [f"a long name with $ and _ {i}" for i in range(classes)], tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert min(image.size) >= max(400, classes)


def test_a_run_is_claimed_with_half_written_results_in_its_folder(folder):
    run = RunFolder(folder.path.parent)
    with folder.write() as temporary:
        (run.path / ".state.pt.0123456789abcdef.tmp").write_text("half")
        run.claim()
        run.release()
        assert [path.name for path in run.path.glob(".*.tmp")] == [temporary.name]
        (temporary / "a.json").write_text("1")
    assert (folder.path / "a.json").read_text() == "1"


def test_a_place_where_nothing_can_be_written_is_found_beforehand():
    for path in ("/proc/results", "/proc/deep/results"):
        with pytest.raises(OSError, match="nothing can be written there"):
            ResultFolder(path, ["a.json"]).check(overwrite=False)


def test_a_full_disk_is_named_by_the_folder(folder):
    with pytest.raises(OSError, match=rf"No space left on device: '{folder.path}'"):
        fill(folder, "half", OSError(28, "No space left on device"))
