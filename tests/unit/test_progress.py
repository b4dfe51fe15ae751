"""The bar over all stages."""

import pytest

from difformer.engine.runtime.progress import Stages, progress_bar


@pytest.fixture
def moved(monkeypatch):
    """Places of the upper bar, in its costs' unit."""
    places = []
    move = Stages._move
    monkeypatch.setattr(Stages, "_move", lambda self, place: (places.append(place), move(self, place)))
    return places


def test_bars_below_move_the_upper_one_through_their_stage(moved, capsys):
    stages = Stages("all", [2.0, 6.0])
    with stages.stage("first", "reading"), progress_bar(4, "reading train") as bar:
        bar.update(1)
        bar.update(3)
    with stages.stage("second"), progress_bar(10, "training") as large:
        large.update(5)
        # Does not say how far the stage is.
        with progress_bar(30, "evaluating") as other:
            other.update(30)
        large.update(5)
    stages.close()
    assert moved == [0.5, 2.0, 2.0, 5.0, 8.0, 8.0]
    with progress_bar(2) as alone:
        alone.update(2)
    assert len(moved) == 6
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["[1/2] first", "[2/2] second"]
    assert "all: 100%" in printed.err


def test_what_is_skipped_or_fails_counts_as_passed(moved):
    stages = Stages("all", [1.0, 1.0, 1.0], shown=False)
    with pytest.raises(ValueError, match="no"), stages.stage("first"):
        raise ValueError("no")
    stages.skip(2)
    stages.close()
    assert moved == [3.0]
