"""What a step of training is said to take, and what is decided by it."""

import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from training import assert_same_run, interrupt_after, make_recipe, merged, write_workplace

from difformer.engine.config.build import build_backbone, build_classifier
from difformer.engine.config.recipe import BackboneConfig
from difformer.engine.cost import step_memory
from difformer.engine.cost.step_memory import free_memory, images_at_once, needs_checkpointing, step_bytes
from difformer.models.memory import TensorMemory
from difformer.verbs.train.run import Run
from difformer.verbs.train.train import train

pytestmark = pytest.mark.usefixtures("drawn_once")
NAMES = ("a", "b", "c")
ALONE = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True, device=torch.device("cpu"))
PLENTY = 10**15


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """A recipe of DifFeed."""
    feedback = {"feedback_taps": ["out00", "out02"], "taps": ["out03"], "timesteps": [90, 150]}
    folder = tmp_path_factory.mktemp("work")
    return merged(
        write_workplace(folder),
        {
            "extractor": feedback,
            "backbone": {"gradient_checkpointing": "auto"},
            "training": {"epochs": 1},
        },
    )


@pytest.fixture
def recipe(values):
    return make_recipe(values)


def measured(recipe, images, checkpointing):
    """As `step_bytes`, of real tensors."""
    backbone = build_backbone(recipe.backbone, precision=recipe.training.precision)
    backbone.unet.gradient_checkpointing = checkpointing
    classifier = build_classifier(recipe, backbone, NAMES).train()
    noise = {t: torch.zeros(images, 3, 16, 16) for t in recipe.extractor.timesteps}
    inputs, labels = torch.zeros(images, 3, 16, 16), torch.zeros(images, dtype=torch.int64)
    half = recipe.training.precision == "bf16"
    with TensorMemory() as memory:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            logits = classifier(inputs, noise=noise)
        F.cross_entropy(logits.float(), labels).backward()
    return memory.peak


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_counted_is_what_a_step_takes(values, precision, checkpointing):
    recipe = make_recipe(values, training={"precision": precision})
    counted = step_bytes(recipe, NAMES, 3, checkpointing=checkpointing)
    assert counted == pytest.approx(measured(recipe, 3, checkpointing), rel=0.01)


def test_what_a_step_takes_grows_with_what_it_does(values, recipe):
    one = step_bytes(recipe, NAMES, 2, checkpointing=False)
    assert step_bytes(recipe, NAMES, 2, checkpointing=True) < 0.8 * one
    assert step_bytes(recipe, NAMES, 8, checkpointing=False) == pytest.approx(4 * one, rel=0.1)
    half = make_recipe(values, training={"precision": "bf16"})
    assert step_bytes(half, NAMES, 2, checkpointing=False) < 0.9 * one
    draws = make_recipe(values, extractor={"draws": 3})
    assert step_bytes(draws, NAMES, 2, checkpointing=False) == step_bytes(recipe, NAMES, 6, checkpointing=False)
    clean = make_recipe(values, extractor={"clean": True})
    assert step_bytes(clean, NAMES, 2, checkpointing=False) == pytest.approx(one, rel=0.01)
    maths = make_recipe(values, backbone={"attention": "math"})
    assert step_bytes(maths, NAMES, 2, checkpointing=False) > one


def test_counting_computes_nothing_and_reads_no_weights(values, recipe, monkeypatch):
    expected = step_bytes(recipe, NAMES, 2, checkpointing=True)
    monkeypatch.setattr("difformer.backbones.adm.open_weights", lambda *_, **__: pytest.fail("weights were read"))
    state = torch.random.get_rng_state()
    assert step_bytes(recipe, NAMES, 2, checkpointing=True) == expected
    assert torch.random.get_rng_state().equal(state)


@pytest.mark.parametrize(
    ("batch", "processes", "accumulation", "images", "expected"),
    [(8, 1, 1, 100, 8), (8, 1, 3, 100, 3), (8, 3, 1, 100, 3), (9, 2, 2, 100, 3), (8, 1, 1, 5, 5), (2, 4, 1, 100, 1)],
)
def test_the_largest_part_of_a_batch_counts(values, batch, processes, accumulation, images, expected):
    recipe = make_recipe(values, training={"batch_size": batch, "accumulation": accumulation})
    assert images_at_once(recipe, images, processes) == expected


def pretend(recipe, class_names, images, *, checkpointing):
    return images * (100 if checkpointing else 300)


def decide(monkeypatch, recipe, free, images=24, together=ALONE):
    """With a step that takes what `pretend` says."""
    monkeypatch.setattr(step_memory, "step_bytes", pretend)
    monkeypatch.setattr(step_memory, "free_memory", lambda device: free)
    return needs_checkpointing(recipe, NAMES, images, together)


def test_activations_are_kept_where_they_fit(recipe, monkeypatch, caplog):
    with caplog.at_level(logging.INFO, "difformer"):
        assert not decide(monkeypatch, recipe, 3000)
        assert decide(monkeypatch, recipe, 2999)
        assert decide(monkeypatch, recipe, 1000)
        assert [record.levelname for record in caplog.records] == ["INFO"] * 3
        caplog.clear()
        assert decide(monkeypatch, recipe, 999)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert (
        "a step with 8 images at once takes about 800 B even with gradient checkpointing, and 999 B are free"
        in caplog.messages[1]
    )
    assert "training.accumulation above 1" in caplog.messages[1]


def test_parts_of_a_batch_need_less(values, recipe, monkeypatch):
    assert decide(monkeypatch, recipe, 1500)
    assert not decide(monkeypatch, make_recipe(values, training={"accumulation": 2}), 1500)
    # There may be less than a batch.
    assert not decide(monkeypatch, recipe, 1500, images=4)


def test_without_feedback_there_is_nothing_to_save(values, monkeypatch):
    recipe = make_recipe(values, extractor={"feedback_taps": []})
    assert decide(monkeypatch, recipe, 0) is False


def test_the_process_with_the_least_memory_decides(recipe, monkeypatch):
    free = {"others": PLENTY}
    monkeypatch.setattr("accelerate.utils.gather_object", lambda found: [*found, free["others"]])
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda found: None)
    both = SimpleNamespace(**{**vars(ALONE), "num_processes": 2})
    assert not decide(monkeypatch, recipe, PLENTY, together=both)
    free["others"] = 1000
    assert decide(monkeypatch, recipe, PLENTY, together=both)


def test_free_memory_is_shared_by_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1200))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert free_memory(torch.device("cpu")) == 1200
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert free_memory(torch.device("cpu")) == 400


def test_free_memory_of_a_gpu_has_what_torch_keeps(monkeypatch):
    found = {"mem_get_info": (1000, 5000), "memory_reserved": 700, "memory_allocated": 300}
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_memory(torch.device("cuda")) == 1400


def test_a_run_decides_anew_and_ends_the_same(values, tmp_path, monkeypatch):
    seen = []
    init = Run.__init__

    def noting(self, *arguments, **options):
        init(self, *arguments, **options)
        seen.append(self.classifier.backbone.unet.gradient_checkpointing)

    monkeypatch.setattr(Run, "__init__", noting)
    train(make_recipe(values, output=str(tmp_path / "one"), backbone={"gradient_checkpointing": False}))
    recipe = make_recipe(values, output=str(tmp_path / "other"))
    monkeypatch.setattr(step_memory, "free_memory", lambda device: 1000)
    interrupt_after(lambda: train(recipe), 2)
    monkeypatch.setattr(step_memory, "free_memory", lambda device: PLENTY)
    train(recipe)
    assert seen == [False, True, False]
    assert_same_run(tmp_path / "one", tmp_path / "other")


def test_an_evaluation_while_training_finds_its_batch_size(values, tmp_path):
    changes = {"extractor": {"feedback_taps": []}, "backbone": {"gradient_checkpointing": "auto"}}
    fixed, found = (
        train(make_recipe(values, output=str(tmp_path / str(size)), evaluation={"batch_size": size}, **changes))
        for size in (4, "auto")
    )
    assert found["test"]["num_images"] == 15
    assert found["test"]["nll"] == pytest.approx(fixed["test"]["nll"], rel=1e-4)


def test_elsewhere_nothing_is_recomputed(recipe):
    assert build_backbone(recipe.backbone).unet.gradient_checkpointing is False


@pytest.mark.parametrize("value", ["often", 1, 0, None])
def test_other_words_are_refused(value):
    with pytest.raises(ValueError, match=f"gradient_checkpointing must be true, false or auto, got {value!r}"):
        BackboneConfig(gradient_checkpointing=value)
