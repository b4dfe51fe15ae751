"""Losses of distillation: golden numbers with their gradients, loops in plain Python, and wrong input."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import read_golden
from torch import nn

from difformer.distillation import Adapter, attention_transfer, hint, logit_kd, rkd_angle, rkd_distance

HINT, _ = read_golden("distill_hint")
ATTENTION, _ = read_golden("distill_attention_transfer")
RKD, _ = read_golden("distill_rkd")
KD, _ = read_golden("distill_logit_kd")
DTYPES = [(torch.float64, 1e-9), (torch.float32, 1e-4)]
VECTORS = [hint, rkd_distance, rkd_angle, logit_kd]
ALL = [*VECTORS, attention_transfer]


def leaf(tensor, dtype):
    return tensor.to(dtype, copy=True).requires_grad_()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(loss, batch=5):
    shape = (batch, 6, 4, 3) if loss is attention_transfer else (batch, 6)
    return normal(*shape, seed=1), normal(*shape, seed=2)


def check_golden(tensors, case, found, student, rtol):
    """A mean of losses and its gradient against what a golden file holds."""
    assert found.shape == (len(student),)
    assert found.dtype == student.dtype
    found.mean().backward()
    assert found.mean().item() == pytest.approx(tensors[f"{case}.loss"].item(), rel=rtol)
    wanted = tensors[f"{case}.grad.student"]
    torch.testing.assert_close(student.grad.double(), wanted, rtol=0, atol=rtol * wanted.abs().max().item())


class TestGolden:
    @pytest.mark.parametrize(("dtype", "rtol"), DTYPES)
    @pytest.mark.parametrize(("case", "places"), [("pooled", "pooled"), ("dense", "resized")])
    def test_hint(self, case, places, dtype, rtol):
        adapter = Adapter(6, 8, places=places).to(dtype)
        with torch.no_grad():
            adapter.project.weight.copy_(HINT["weight"][..., None, None])
            adapter.project.bias.copy_(HINT["bias"])
        student = leaf(HINT["student"], dtype)
        check_golden(HINT, case, hint(*adapter(student, HINT[f"{case}.teacher"].to(dtype))), student, rtol)
        for name, found in (("weight", adapter.project.weight.grad[:, :, 0, 0]), ("bias", adapter.project.bias.grad)):
            torch.testing.assert_close(found.double(), HINT[f"{case}.grad.{name}"], rtol=rtol, atol=rtol)

    @pytest.mark.parametrize(("dtype", "rtol"), DTYPES)
    @pytest.mark.parametrize("case", ["same", "dead", "averaged", "bilinear"])
    def test_attention_transfer(self, case, dtype, rtol):
        student = leaf(ATTENTION[f"{case}.student"], dtype)
        options = {"resize": "average"} if case == "averaged" else {}
        found = attention_transfer(student, ATTENTION["teacher"].to(dtype), **options)
        check_golden(ATTENTION, case, found, student, rtol)
        assert case != "dead" or student.grad[2].eq(0).all()

    @pytest.mark.parametrize(("dtype", "rtol"), DTYPES)
    @pytest.mark.parametrize(
        ("term", "loss"),
        [
            ("distance", rkd_distance),
            ("angle", rkd_angle),
            (
                "weighted",
                lambda student, teacher: 25 * rkd_distance(student, teacher) + 50 * rkd_angle(student, teacher),
            ),
        ],
    )
    @pytest.mark.parametrize("case", ["plain", "duplicate"])
    def test_relations(self, case, term, loss, dtype, rtol):
        student = leaf(RKD[f"{case}.student"], dtype)
        check_golden(RKD, f"{case}.{term}", loss(student, RKD[f"{case}.teacher"].to(dtype)), student, rtol)

    @pytest.mark.parametrize(("dtype", "rtol"), DTYPES)
    @pytest.mark.parametrize("temperature", [1, 4])
    def test_logits(self, temperature, dtype, rtol):
        student = leaf(KD["student"], dtype)
        found = logit_kd(student, KD["teacher"].to(dtype), temperature=temperature)
        check_golden(KD, f"t{temperature}", found, student, rtol)


class TestOracles:
    @pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5), (3, 5, 2, 4)])
    def test_hint_of_vectors_tokens_and_maps_is_torchs_mean_square(self, shape):
        student, teacher = normal(*shape, seed=1), normal(*shape, seed=2)
        found = hint(student, teacher)
        torch.testing.assert_close(found.mean(), F.mse_loss(student, teacher))
        torch.testing.assert_close(found[1], F.mse_loss(student[1], teacher[1]))

    def test_attention_by_a_loop(self):
        student, teacher = normal(2, 3, 2, 4, seed=1).double(), normal(2, 5, 2, 4, seed=2).double()
        for image in range(2):
            maps = []
            for features in (student[image].tolist(), teacher[image].tolist()):
                squares = [sum(c[y][x] ** 2 for c in features) for y in range(2) for x in range(4)]
                maps.append([square / math.hypot(*squares) for square in squares])
            wanted = sum((a - b) ** 2 for a, b in zip(*maps, strict=True)) / 8
            assert attention_transfer(student, teacher)[image].item() == pytest.approx(wanted)

    def test_attention_does_not_see_the_scale_of_an_image(self):
        student, teacher = inputs(attention_transfer)
        scales = torch.tensor([1e-3, 0.1, 1, 10, 1e4])[:, None, None, None]
        torch.testing.assert_close(attention_transfer(scales * student, teacher), attention_transfer(student, teacher))

    def test_relations_by_loops(self):
        """Each image's share: the mean over its pairs, and over the angles at it."""
        student, teacher = normal(4, 3, seed=1).double(), 2 * normal(4, 6, seed=2).double()
        images = range(4)

        def huber(x):
            return x * x / 2 if abs(x) < 1 else abs(x) - 0.5

        def distances(features):
            d = [[math.dist(features[i].tolist(), features[j].tolist()) for j in images] for i in images]
            mean = sum(map(sum, d)) / 12
            return [[x / mean for x in row] for row in d]

        def cosine(features, i, j, k):
            if i in (j, k):
                return 0.0
            return F.cosine_similarity(features[j] - features[i], features[k] - features[i], dim=0).item()

        ours, theirs = distances(student), distances(teacher)
        wanted = [sum(huber(ours[i][j] - theirs[i][j]) for j in images) / 4 for i in images]
        assert rkd_distance(student, teacher).tolist() == pytest.approx(wanted)
        wanted = [
            sum(huber(cosine(student, i, j, k) - cosine(teacher, i, j, k)) for j in images for k in images) / 16
            for i in images
        ]
        assert rkd_angle(student, teacher).tolist() == pytest.approx(wanted)

    @pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
    def test_relations_do_not_see_scale_place_and_rotation(self, loss):
        student, teacher = normal(5, 6, seed=1).double(), normal(5, 6, seed=2).double()
        rotation = torch.linalg.qr(normal(6, 6, seed=3).double())[0]
        torch.testing.assert_close(loss(7 * student @ rotation + 100, teacher), loss(student, teacher))
        assert loss(3 * teacher @ rotation - 1, teacher).max() < 1e-20

    def test_logits_by_torchs_divergence(self):
        student, teacher = normal(4, 6, seed=1), normal(4, 6, seed=2)
        wanted = 9 * F.kl_div((student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="batchmean")
        torch.testing.assert_close(logit_kd(student, teacher, temperature=3).mean(), wanted)

    def test_hot_logits_are_a_regression(self):
        """Section 2.1 of Hinton et al.: for large T, that of centred logits, times 1/2K."""
        student, teacher = normal(4, 6, seed=1).double(), normal(4, 6, seed=2).double()
        apart = student - student.mean(1, keepdim=True) - teacher + teacher.mean(1, keepdim=True)
        wanted = apart.square().sum(dim=1) / 12
        torch.testing.assert_close(logit_kd(student, teacher, temperature=1e4), wanted, rtol=1e-3, atol=0)


class TestPrecision:
    @pytest.mark.parametrize("loss", ALL)
    @pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32(self, loss, half):
        student, teacher = (features.to(half) for features in inputs(loss))
        wanted = loss(student.float(), teacher.float())
        for one, other in ((student, teacher), (student.float(), teacher)):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = loss(one, other)
            assert found.dtype == torch.float32
            assert torch.equal(found, wanted)

    def test_large_maps_of_half_precision(self):
        maps = torch.full((2, 3, 4, 4), 6e4, dtype=torch.float16)
        assert attention_transfer(maps, maps).eq(0).all()
        assert attention_transfer(maps, normal(2, 3, 4, 4)).isfinite().all()

    @pytest.mark.parametrize("loss", ALL)
    def test_the_teacher_gets_no_gradient_and_the_student_a_right_one(self, loss):
        student, teacher = (features.double().requires_grad_() for features in inputs(loss, batch=3))
        loss(student, teacher).sum().backward()
        assert teacher.grad is None
        assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student)

    @pytest.mark.parametrize("loss", ALL)
    @pytest.mark.parametrize("which", ["all equal", "two equal", "zero"])
    def test_features_without_a_direction_have_finite_gradients(self, loss, which):
        student, teacher = inputs(loss)
        if which == "zero":
            student.zero_()
        else:
            student[1 if which == "two equal" else slice(None)] = student[0].clone()
        student.requires_grad_()
        found = loss(student, teacher)
        # As under a scaler of gradients.
        (65536 * found).sum().backward()
        assert found.isfinite().all()
        assert student.grad.isfinite().all()
        assert student.grad.abs().max() < 1e9

    @pytest.mark.parametrize("loss", [hint, logit_kd, attention_transfer])
    def test_an_image_does_not_depend_on_the_batch(self, loss):
        student, teacher = inputs(loss)
        alone = torch.cat([loss(student[i : i + 1], teacher[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(loss(student, teacher), alone)
        assert loss(student[:0], teacher[:0]).shape == (0,)


class TestAdapter:
    def test_as_published_with_torchs_layers(self):
        adapter = Adapter(4, 6)
        student, teacher = normal(3, 4, 5, 7), normal(3, 6, 2, 2, seed=1)
        ours, theirs = adapter(student, teacher)
        projection = nn.Conv2d(4, 6, 1)
        projection.load_state_dict(adapter.project.state_dict())
        torch.testing.assert_close(ours, F.adaptive_avg_pool2d(projection(student), 1).flatten(1))
        torch.testing.assert_close(theirs, F.adaptive_avg_pool2d(teacher, 1).flatten(1))

    def test_tokens_are_laid_out_in_rows(self):
        adapter = Adapter(4, 6, places="resized", grid=(2, 3))
        student, teacher = normal(3, 4, 5, 7), normal(3, 6, 6, seed=1)
        ours, theirs = adapter(student, teacher)
        assert ours.shape == theirs.shape == (3, 6, 2, 3)
        assert torch.equal(theirs[1, :, 1, 0], teacher[1, 3])
        as_map = adapter(student, theirs)
        assert torch.equal(as_map[0], ours)
        torch.testing.assert_close(Adapter(4, 6)(student, teacher)[1], teacher.mean(dim=1))

    @pytest.mark.parametrize("places", ["pooled", "resized"])
    @pytest.mark.parametrize("student", [normal(3, 4), normal(3, 4, 5, 7)], ids=["vectors", "maps"])
    def test_vectors_of_a_teacher(self, places, student):
        ours, theirs = Adapter(4, 6, places=places)(student, normal(3, 6, seed=1))
        assert ours.shape == (3, 6)
        assert torch.equal(theirs, normal(3, 6, seed=1))

    def test_standardises_the_teacher_by_what_it_is_given(self):
        teacher = 5 + 3 * normal(64, 6, 2, 2, seed=1)
        mean, std = teacher.mean(dim=(0, 2, 3)), teacher.std(dim=(0, 2, 3))
        adapter = Adapter(4, 6, places="resized", mean=mean, std=std)
        _, theirs = adapter(normal(64, 4, 2, 2), teacher)
        torch.testing.assert_close(theirs.mean(dim=(0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
        torch.testing.assert_close(theirs.std(dim=(0, 2, 3)), torch.ones(6))
        again = Adapter(4, 6, places="resized", mean=torch.zeros(6), std=torch.ones(6))
        again.load_state_dict(adapter.state_dict())
        assert torch.equal(again(normal(64, 4, 2, 2), teacher)[1], theirs)

    def test_only_the_student_is_trained_and_autocast_rounds_nothing(self):
        adapter = Adapter(4, 6, places="resized")
        student, teacher = normal(3, 4, 5, 7).requires_grad_(), normal(3, 6, 2, 2, seed=1).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = adapter(student, teacher)
        hint(*found).sum().backward()
        assert not found[1].requires_grad
        assert student.grad.abs().sum() > 0
        assert torch.equal(found[0], adapter(student, teacher)[0])
        assert {name for name, _ in adapter.named_parameters()} == {"project.weight", "project.bias"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"student_channels": 0}, "student_channels must be a positive integer"),
            ({"places": "mean"}, "places must be one of pooled, resized"),
            ({"grid": 0}, "grid must be an integer of at least 1"),
            ({"mean": torch.zeros(6)}, "give both, or neither"),
            ({"mean": torch.zeros(5), "std": torch.ones(6)}, r"mean must be finite, of shape \(6,\).*got \(5,\)"),
            ({"mean": torch.zeros(6), "std": torch.full((6,), math.nan)}, r"std must be finite.*got \[nan"),
            ({"mean": torch.zeros(6), "std": torch.tensor([1.0, 1, 0, 1, 1, 1])}, "std must be above 0, got 0; a chan"),
        ],
    )
    def test_refuses(self, options, message):
        with pytest.raises(ValueError, match=message):
            Adapter(**{"student_channels": 4, "teacher_channels": 6, **options})

    @pytest.mark.parametrize(
        ("student", "teacher", "options", "message"),
        [
            ((3, 5), (3, 6), {}, r"student must be .*\(B, 4\) or \(B, 4, h, w\), got .*\(3, 5\).*student_channels=4"),
            ((3, 4, 2), (3, 6), {}, "student must be"),
            ((3, 4), (3, 2, 5), {}, "teacher must be"),
            ((3, 4, 0, 2), (3, 6), {}, "student must be"),
            ((3, 4), (2, 6), {}, "the same images, got 3 and 2"),
            ((3, 4), (3, 6, 2, 2), {"places": "resized"}, 'choose places="pooled"'),
            ((3, 4, 2, 2), (3, 4, 6), {"places": "resized"}, r"give grid=\(rows, columns\)"),
            ((3, 4, 2, 2), (3, 4, 6), {"places": "resized", "grid": 3}, "must have 3×3 tokens, got 4"),
        ],
    )
    def test_refuses_features(self, student, teacher, options, message):
        with pytest.raises(ValueError, match=message):
            Adapter(4, 6, **options)(normal(*student), normal(*teacher))


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "message"),
    [
        (hint, normal(3, 4), normal(3, 5), r"one shape, got \(3, 4\) and \(3, 5\); an Adapter"),
        (hint, normal(3, 4), normal(2, 4), "the same images, got 3 and 2 images"),
        (hint, normal(3), normal(3), r"student must be floating-point numbers \(B, D\), \(B, N, D\) or \(B, C, h, w\)"),
        (hint, normal(3, 4), torch.ones(3, 4, dtype=torch.int64), "teacher must be floating-point.*int64"),
        (hint, normal(3, 0), normal(3, 0), "student must be"),
        (attention_transfer, normal(3, 4), normal(3, 4), "attention is a map, which vectors have not"),
        (rkd_distance, normal(3, 4, 2, 2), normal(3, 4), r"features.mean\(dim=\(2, 3\)\)"),
        (rkd_angle, normal(3, 4), normal(3, 4, 2, 2), "teacher must be.*average maps"),
        (rkd_distance, normal(1, 4), normal(1, 4), "at least two images in a batch, got 1; raise the batch size"),
        (rkd_angle, normal(0, 4), normal(0, 4), "at least two images in a batch, got 0"),
        (logit_kd, normal(3, 4), normal(3, 5), "the same classes, got 4 and 5"),
    ],
)
def test_losses_refuse(loss, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        loss(student, teacher)


@pytest.mark.parametrize("temperature", [0, -1, math.inf, "hot"])
def test_temperatures_that_are_none(temperature):
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        logit_kd(normal(2, 3), normal(2, 3), temperature=temperature)


def test_unknown_ways_to_resize():
    with pytest.raises(ValueError, match="resize must be one of bilinear, average, got 'nearest'"):
        attention_transfer(normal(2, 3, 4, 4), normal(2, 3, 2, 2), resize="nearest")
