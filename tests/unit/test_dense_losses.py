"""Losses of maps: golden numbers with their gradients, closed forms, and one number an image."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import read_golden

from difformer.tasks.keypoints import heatmap_mse
from difformer.tasks.segmentation import lovasz_softmax, pixel_cross_entropy, resize_logits, soft_dice

TENSORS, _ = read_golden("segmentation")
LOGITS, LABELS = TENSORS["loss.logits"], TENSORS["loss.target"].long()
LOSSES = [pixel_cross_entropy, soft_dice, lovasz_softmax]


def random_batch(seed, batch=3, classes=4, size=(5, 6)):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (batch, *size), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.2] = 255
    return 3 * torch.randn(batch, classes, *size, generator=rng), labels


class TestGolden:
    @pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
    @pytest.mark.parametrize(
        ("name", "loss", "options"),
        [
            ("lovasz.present", lovasz_softmax, {}),
            ("lovasz.all", lovasz_softmax, {"classes": "all"}),
            ("dice.present", soft_dice, {}),
            ("dice.all", soft_dice, {"classes": "all"}),
            ("dice.smooth0", soft_dice, {"smooth": 0}),
        ],
    )
    def test_over_a_batch(self, name, loss, options, dtype, rtol):
        logits = LOGITS.clone().to(dtype).requires_grad_()
        labels = LABELS.flatten(0, 1)[None]
        found = loss(logits.movedim(1, 0).flatten(1, 2)[None], labels, **options)
        assert found.shape == (1,)
        found.sum().backward()
        assert found.item() == pytest.approx(TENSORS[f"loss.{name}"].item(), rel=rtol)
        wanted = TENSORS[f"loss.{name}.grad"]
        torch.testing.assert_close(logits.grad.double(), wanted, rtol=0, atol=10 * rtol * wanted.abs().max().item())

    def test_image_by_image(self):
        logits = LOGITS.double().requires_grad_()
        found = lovasz_softmax(logits, LABELS)
        assert found.mean().item() == pytest.approx(TENSORS["loss.lovasz.per_image"].item(), rel=1e-10)
        found.mean().backward()
        torch.testing.assert_close(logits.grad, TENSORS["loss.lovasz.per_image.grad"], rtol=0, atol=1e-9)


class TestClosedForms:
    @pytest.mark.parametrize("classes", [2, 7])
    def test_without_a_preference_the_cross_entropy_is_the_logarithm_of_the_classes(self, classes):
        found = pixel_cross_entropy(torch.zeros(2, classes, 3, 4), torch.zeros(2, 3, 4, dtype=torch.int64))
        assert found.tolist() == pytest.approx([math.log(classes)] * 2)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_certain_and_right_is_zero(self, loss):
        labels = torch.tensor([[[0, 1, 2], [2, 255, 1]]])
        logits = 200.0 * F.one_hot(labels.clamp(max=2), 3).movedim(3, 1)
        assert loss(logits, labels).item() == pytest.approx(0, abs=1e-6)

    def test_certain_and_wrong_is_one(self):
        labels = torch.tensor([[[0, 0], [1, 1]]])
        logits = 200.0 * F.one_hot(1 - labels, 2).movedim(3, 1)
        assert lovasz_softmax(logits, labels).item() == pytest.approx(1)
        assert soft_dice(logits, labels, smooth=0).item() == pytest.approx(1)
        assert soft_dice(logits, labels).item() == pytest.approx(1 - 1 / 5)

    def test_of_certain_predictions_the_lovasz_extension_is_one_minus_the_iou(self):
        """Two of four pixels of class 0 are taken for class 1: IoU 2/4 and 4/6."""
        labels = torch.tensor([[[0, 0, 0, 0], [1, 1, 1, 1]]])
        predicted = torch.tensor([[[0, 0, 1, 1], [1, 1, 1, 1]]])
        logits = 200.0 * F.one_hot(predicted, 2).movedim(3, 1)
        assert lovasz_softmax(logits, labels).item() == pytest.approx((1 / 2 + 1 / 3) / 2)

    def test_dice_of_even_probabilities(self):
        """Of two pixels of each class with probability 1/2: (2 · 1 + 1) / (2 + 2 + 1)."""
        labels = torch.tensor([[[0, 0], [1, 1]]])
        assert soft_dice(torch.zeros(1, 2, 2, 2), labels).item() == pytest.approx(1 - 3 / 5)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32), st.sampled_from(LOSSES))
    def test_bounds_and_what_does_not_matter(self, seed, loss):
        """Classes' numbers, the pixels' order, a constant added to a pixel's logits."""
        logits, labels = random_batch(seed)
        found = loss(logits, labels)
        assert (found >= -1e-6).all()
        assert loss is pixel_cross_entropy or (found <= 1 + 1e-6).all()
        rng = torch.Generator().manual_seed(seed)
        order = torch.randperm(4, generator=rng)
        renamed = torch.where(labels == 255, 255, order.argsort()[labels.clamp(max=3)])
        torch.testing.assert_close(loss(logits[:, order], renamed), found)
        torch.testing.assert_close(loss(logits.flip(2, 3), labels.flip(1, 2)), found)
        torch.testing.assert_close(loss(logits + torch.randn(3, 1, 5, 6, generator=rng), labels), found)


class TestImages:
    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 2**32), st.sampled_from(LOSSES))
    def test_the_batch_does_not_matter(self, seed, loss):
        logits, labels = random_batch(seed)
        alone = torch.cat([loss(logits[i : i + 1], labels[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(loss(logits, labels), alone)

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("options", [{}, {"classes": "all"}, {"classes": "all", "smooth": 0}])
    def test_an_image_without_labels_has_loss_zero(self, loss, options):
        options = {key: value for key, value in options.items() if key in loss.__kwdefaults__}
        logits, labels = random_batch(0)
        labels[1] = 255
        logits.requires_grad_()
        found = loss(logits, labels, **options)
        assert found[1] == 0
        assert (found[[0, 2]] > 0).all()
        found.sum().backward()
        assert torch.isfinite(logits.grad).all()
        assert not logits.grad[1].any()
        logits.grad = None
        loss(logits[1:2], labels[1:2], **options).sum().backward()
        assert not logits.grad.any()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_what_is_ignored_has_no_gradient(self, loss):
        logits, labels = random_batch(1)
        loss(logits.requires_grad_(), labels).sum().backward()
        ignored = (labels == 255)[:, None].expand_as(logits)
        assert not logits.grad[ignored].any()
        assert logits.grad[~ignored].any()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_not_a_number_stays_in_its_image(self, loss):
        logits, labels = random_batch(2)
        logits[1, 0, 0, 0] = torch.nan
        labels[1, 0, 0] = 0
        assert torch.isnan(loss(logits, labels)).tolist() == [False, True, False]

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, loss, dtype):
        logits, labels = random_batch(3)
        halves = logits.to(dtype)
        found = loss(halves, labels)
        assert found.dtype == torch.float32
        assert found.equal(loss(halves.float(), labels))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(loss(logits, labels), loss(logits.float(), labels))

    @pytest.mark.parametrize("loss", LOSSES)
    def test_gradients(self, loss):
        logits, labels = random_batch(4, batch=2, size=(2, 3))
        assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits.double().requires_grad_())


class TestSizes:
    @pytest.mark.parametrize("loss", LOSSES)
    def test_logits_are_enlarged_to_the_labels(self, loss):
        logits, labels = random_batch(5, size=(8, 12))
        small = logits[:, :, ::4, ::4]
        large = F.interpolate(small, (8, 12), mode="bilinear", align_corners=False)
        assert loss(small, labels).equal(loss(large, labels))

    def test_a_map_of_the_size_is_left_as_it_is(self):
        assert resize_logits(LOGITS, *LOGITS.shape[2:]) is LOGITS

    def test_a_ramp_stays_one(self):
        """Pixels are areas: their centres lie at 0.5, 1.5 …, and the border repeats."""
        found = resize_logits(torch.arange(4.0).reshape(1, 1, 1, 4), 1, 8).flatten()
        assert found.tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]


class TestHeatmaps:
    def test_a_small_case_worked_out(self):
        heatmaps, targets = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
        heatmaps[0, 0] = 2
        heatmaps[0, 1] = torch.tensor([[1, 0], [0, 0]])
        heatmaps[0, 2] = torch.inf
        heatmaps[1] = torch.nan
        visible = torch.tensor([[True, True, False], [False, False, False]])
        found = heatmap_mse(heatmaps.requires_grad_(), targets, visible)
        assert found.tolist() == [(4 + 1 / 4) / 2, 0]
        found.sum().backward()
        assert not heatmaps.grad[0, 2].any()
        assert not heatmaps.grad[1].any()
        assert (heatmaps.grad[0, 0] == 2 * 2 / 4 / 2).all()

    def test_with_all_points_it_is_the_mean_squared_error(self):
        a, b = torch.randn(2, 4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
        wanted = (a - b).square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(heatmap_mse(a, b, torch.ones(4, 3, dtype=torch.bool)), wanted)
        alone = torch.cat([heatmap_mse(a[i : i + 1].half(), b[i : i + 1], torch.ones(1, 3).bool()) for i in range(4)])
        assert alone.dtype == torch.float32
        torch.testing.assert_close(alone, wanted, rtol=1e-2, atol=0)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"heatmaps": torch.zeros(2, 3, 4)}, r"\(B, P, h, w\), got torch.float32 \(2, 3, 4\)"),
            ({"heatmaps": torch.zeros(2, 3, 4, 4).int()}, "floating-point"),
            ({"targets": torch.zeros(2, 3, 4, 5)}, r"shape \(2, 3, 4, 4\), got torch.float32 \(2, 3, 4, 5\)"),
            ({"visible": torch.ones(2, 3)}, "visible must be truth values"),
            ({"visible": torch.ones(2, 4).bool()}, r"shape \(2, 3\)"),
        ],
    )
    def test_what_is_refused(self, changes, message):
        arguments = {"heatmaps": torch.zeros(2, 3, 4, 4), "targets": torch.zeros(2, 3, 4, 4)}
        with pytest.raises(ValueError, match=message):
            heatmap_mse(**(arguments | {"visible": torch.ones(2, 3).bool()} | changes))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 4, 4).long(), r"logits must be floating-point numbers \(B, K, h, w\)"),
        (torch.zeros(2, 3, 4, 4).long(), torch.zeros(2, 4, 4).long(), "got torch.int64"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4).long(), r"int64 of shape \(2, H, W\), got"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4).int(), "got torch.int32"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4).long(), "labels must be int64"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 4, 4), 3), r"in \[0, 3\) or be 255, got 3 in image 0 of the batch"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 4, 4), -1), "got -1 in image 0 of the batch at row 0, column 0"),
    ],
)
def test_what_is_refused(loss, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        loss(logits, labels)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ignored", [0, 2, 1.5])
def test_a_class_can_not_be_ignored(loss, ignored):
    with pytest.raises(ValueError, match="ignore_index must"):
        loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4).long(), ignore_index=ignored)
    assert loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4).long(), ignore_index=-1).shape == (2,)


def test_choices_that_are_refused():
    with pytest.raises(ValueError, match="classes must be one of present, all, got 'some'"):
        lovasz_softmax(LOGITS, LABELS, classes="some")
    with pytest.raises(ValueError, match="smooth must be a number of at least 0, got -1"):
        soft_dice(LOGITS, LABELS, smooth=-1)


def test_another_number_may_be_ignored():
    logits, labels = random_batch(6)
    for loss in LOSSES:
        assert loss(logits, labels.masked_fill(labels == 255, -1), ignore_index=-1).equal(loss(logits, labels))


@pytest.mark.gpu
@pytest.mark.parametrize("loss", LOSSES)
def test_on_cuda_the_losses_are_the_same(loss):
    logits, labels = random_batch(7, batch=2, size=(64, 64))
    on_cuda = logits.cuda().requires_grad_()
    with torch.autocast("cuda", dtype=torch.float16):
        found = loss(on_cuda, labels.cuda())
    found.sum().backward()
    torch.testing.assert_close(found.cpu(), loss(logits.requires_grad_(), labels))
    loss(logits, labels).sum().backward()
    torch.testing.assert_close(on_cuda.grad.cpu(), logits.grad, rtol=1e-4, atol=1e-7)
