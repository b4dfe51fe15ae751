"""The batch size that is found: by a clock of the tests' own, so that no test depends on the machine's speed."""

import logging
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from difformer.config.reading import create_parser, parse
from difformer.data import DataConfig, Sample
from difformer.engine.config.fitting import fit_to_backbone
from difformer.engine.config.recipe import EvaluationConfig, Recipe
from difformer.engine.extraction.estimate import collate_readable
from difformer.engine.runtime import outputs
from difformer.engine.runtime.batch_size import fastest_batch_size, most_at_once
from difformer.engine.runtime.outputs import evaluate
from difformer.verbs.eval.recipe import EvaluationRecipe
from difformer.verbs.probe.recipe import ProbeRecipe
from difformer.verbs.select.recipe import SelectRecipe
from difformer.verbs.sweep.recipe import SweepRecipe

CPU = torch.device("cpu")
ALONE = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True, device=CPU, autocast=nullcontext)


class Machine:
    """Passes batches in a time of its own; `fits` images at once."""

    def __init__(self, seconds, fits=10**9):
        self.now = 0.0
        self.sizes = []
        self._seconds = seconds
        self._fits = fits

    def clock(self):
        return self.now

    def work(self, batch):
        self.sizes.append(len(batch))
        if len(batch) > self._fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.now += self._seconds(len(batch))

    def fastest(self, most):
        return fastest_batch_size(range, self.work, most, clock=self.clock)


def test_the_search_ends_where_more_images_are_hardly_faster(caplog):
    # Images a second: 9.27 with 128 at once, and 3.8 % more with 256.
    machine = Machine(lambda size: 1 + 0.1 * size)
    with caplog.at_level(logging.INFO, "difformer"):
        assert machine.fastest(512) == 128
    assert max(machine.sizes) == 256
    assert caplog.messages == ["128 images at once, at 9.28 images a second"]


@pytest.mark.parametrize("seconds", [lambda size: size, lambda size: size**2])
def test_one_image_where_more_are_not_faster(seconds):
    machine = Machine(seconds)
    assert machine.fastest(512) == 1
    assert set(machine.sizes) == {1, 2}


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (3, 2), (100, 64), (512, 512)])
def test_there_are_never_more_images_than_asked_for(most, expected):
    machine = Machine(lambda size: 1)
    assert machine.fastest(most) == expected
    assert max(machine.sizes) == expected


def test_the_first_pass_of_a_size_does_not_count_where_it_is_slow():
    seen = set()

    def seconds(size):
        first = size not in seen
        seen.add(size)
        return 100 * size if first and size <= 16 else 1 + 0.1 * size

    assert Machine(seconds).fastest(16) == 16


def test_what_does_not_fit_is_not_taken(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    assert Machine(lambda size: 1, fits=20).fastest(512) == 16
    assert emptied == [True]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        Machine(lambda size: 1, fits=0).fastest(512)


def test_a_cpu_and_a_small_share_get_fewer():
    assert most_at_once(10_000, torch.device("cuda")) == 512
    assert 1 < most_at_once(10_000, CPU) < 512
    assert [most_at_once(images, CPU) for images in (0, 1, 5)] == [1, 1, 5]


class Images:
    """Random images, of which some cannot be read."""

    def __init__(self, count, bad=()):
        self.ids = np.arange(100, 100 + count)
        self.read = []
        self._bad = set(bad)

    @property
    def skipped(self):
        return self.ids[sorted(self._bad)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, place):
        self.read.append(place)
        if place in self._bad:
            return None
        rng = torch.Generator().manual_seed(place)
        return Sample(torch.randn(3, 4, 4, generator=rng), place % 3, int(self.ids[place]))


class Model(nn.Module):
    """Sums pixels, on a machine."""

    def __init__(self):
        super().__init__()
        self.machine = Machine(lambda size: max(size, 4))
        self.layer = nn.Linear(48, 2).train()

    def forward(self, images, ids):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.machine.work(ids)
        return self.layer(images.flatten(1)) + ids[:, None]


@pytest.fixture
def model(monkeypatch):
    torch.manual_seed(0)
    model = Model()
    monkeypatch.setattr(outputs, "fastest_batch_size", partial(fastest_batch_size, clock=model.machine.clock))
    return model


def run(model, images, batch_size, accelerator=ALONE):
    return evaluate(model, images, collate_readable, accelerator, batch_size=batch_size)


@pytest.mark.parametrize("bad", [(), (0, 1, 7)])
def test_results_are_those_of_a_size_that_is_given(model, bad):
    expected = run(model, Images(11, bad), 3)
    model.machine.sizes.clear()
    images = Images(11, bad)
    found = run(model, images, "auto")
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-6)
    assert found.ids.tolist() == expected.ids.tolist() == [100 + i for i in range(11) if i not in bad]
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.skipped == expected.skipped == tuple(100 + i for i in bad)
    # Four are passed in the time of one; then come the images themselves.
    assert model.machine.sizes == [1, 1, 2, 2, 4, 4, 8, 8, *([4, 4, 3] if not bad else [2, 3, 3])]
    # The search has read to the first that there is.
    first = min(set(range(11)) - set(bad))
    assert images.read == [*range(first + 1), *range(11)]
    assert model.training


def test_each_process_searches_in_its_own_share(model):
    # What comes before the results of all are put together.
    second = SimpleNamespace(**{**vars(ALONE), "num_processes": 2, "process_index": 1})
    images = Images(7)
    reading = outputs._Reading(model.eval(), images, collate_readable, second)
    with torch.no_grad():
        found = reading.own_share("auto", 0, SimpleNamespace(update=lambda count: None))
    assert [ids.tolist() for _, _, ids in found] == [[103, 104, 105, 106]]
    assert images.read[0] == 3


def test_a_split_of_which_nothing_can_be_read_is_refused_as_ever(model):
    for size in ("auto", 2):
        with pytest.raises(RuntimeError, match="there is no image to evaluate"):
            run(model, Images(3, range(3)), size)


@pytest.mark.parametrize("value", ["big", 0, True, -1, 2.0, None])
def test_other_batch_sizes_are_refused(model, value):
    message = f"batch_size must be a positive integer or auto, got {value!r}"
    with pytest.raises(ValueError, match=message):
        run(model, Images(3), value)
    data = DataConfig("folder")
    for make in (partial(EvaluationRecipe, "run"), ProbeRecipe, SweepRecipe, SelectRecipe):
        with pytest.raises(ValueError, match=message):
            make(data=data, batch_size=value)
    if value is not None:
        with pytest.raises(ValueError, match=rf"evaluation\.{message}"):
            EvaluationConfig(batch_size=value)


@pytest.mark.parametrize("configuration", [EvaluationRecipe, ProbeRecipe, SweepRecipe, SelectRecipe])
def test_files_and_options_can_ask_for_it(configuration, tmp_path):
    parser = create_parser(configuration, "verb", "", {})
    values = {"data": {"name": "folder"}, "batch_size": "auto"}
    values |= {"classifier": "run"} if configuration is EvaluationRecipe else {}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))

    def read(*options):
        return parse(parser, configuration, (), [str(tmp_path / "recipe.yaml"), *options], adapt=fit_to_backbone)[
            0
        ].batch_size

    assert (read(), read("--batch_size", "7"), read("--batch_size=7", "--batch_size", "auto")) == ("auto", 7, "auto")
    assert configuration.batch_size == 128
    with pytest.raises(ValueError, match="batch_size"):
        read("--batch_size", "big")


def test_training_can_ask_for_both(tmp_path):
    parser = create_parser(Recipe, "train", "", {})
    (tmp_path / "recipe.yaml").write_text(
        "data: {name: folder}\nbackbone: {gradient_checkpointing: auto}\nevaluation: {batch_size: auto}\n"
    )

    def read(*options):
        recipe = parse(parser, Recipe, (), [str(tmp_path / "recipe.yaml"), *options], adapt=fit_to_backbone)[0]
        return recipe.backbone.gradient_checkpointing, recipe.evaluation.batch_size

    assert read() == ("auto", "auto")
    assert read("--backbone.gradient_checkpointing", "true", "--evaluation.batch_size", "null") == (True, None)
    changed = read("--backbone.gradient_checkpointing=false", "--evaluation.batch_size=3")
    assert changed == (False, 3)
    assert isinstance(changed[0], bool)
    for option in ("--backbone.gradient_checkpointing", "--evaluation.batch_size"):
        with pytest.raises(ValueError, match=option[2:].partition(".")[2]):
            read(option, "big")
