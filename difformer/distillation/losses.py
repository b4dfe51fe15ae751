"""What a student learns from a teacher: losses of logits, vectors, tokens and maps, one number an image.

Computed in float32, or in float64 where an input is float64, under autocast too. No gradient reaches the teacher.
Published weights belong to these means: a sum over places, pairs or triples needs others.
"""

from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from difformer.config import as_positive_number, check_choice

Resize: TypeAlias = Literal["bilinear", "average"]


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features of one shape.

    Eq. 3 of FitNets (Romero et al. 2015, arXiv 1412.6550), with the mean in place of half the sum, as RepFusion (Yang &
    Wang 2023, arXiv 2308.10916) has it. `Adapter` makes features of one shape of those that are not.

    Args:
        student: (B, D) vectors, (B, N, D) tokens or (B, C, h, w) maps, of any floating-point type.
        teacher: of the same shape.

    Returns:
        (B,), not negative.

    Raises:
        ValueError: wrong types or shapes.
    """
    student, teacher = _prepared(student, teacher, {2: "(B, D)", 3: "(B, N, D)", 4: "(B, C, h, w)"})
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}; an "
            "Adapter projects and resizes the student's features to the teacher's"
        )
    return (student - teacher).square().flatten(1).mean(dim=1)


def attention_transfer(student: Tensor, teacher: Tensor, *, resize: Resize = "bilinear") -> Tensor:
    """Mean squared difference of attention maps of unit length; the published weight is 1000.

    Attention is the mean of squares over channels, F²_sum of Zagoruyko & Komodakis 2017 (arXiv 1612.03928, section
    3.1); channels may differ. Their eq. 2 has the norm of the difference, their code the mean of its squares, as here.

    Args:
        student: (B, C, h, w) of any floating-point type.
        teacher: (B, C', H, W).
        resize: for maps of different sizes: "bilinear" resizes the student's to the teacher's (RepFusion); "average"
            averages the larger to the smaller (RepDistiller, Tian et al. 2020).

    Returns:
        (B,) in [0, 2 / places]; a map of zeros has no attention and gets no gradient.

    Raises:
        ValueError: wrong types or shapes, or an unknown way to resize.
    """
    check_choice("resize", resize, get_args(Resize))
    student, teacher = _prepared(student, teacher, {4: "(B, C, h, w)"})
    if student.shape[2:] != teacher.shape[2:] and resize == "bilinear":
        student = F.interpolate(student, teacher.shape[2:], mode="bilinear", align_corners=False)
    elif student.shape[2:] != teacher.shape[2:]:
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        student, teacher = (F.adaptive_avg_pool2d(maps, size) for maps in (student, teacher))
    ours, theirs = (F.normalize(maps.square().mean(dim=1).flatten(1), dim=1) for maps in (student, teacher))
    return (ours - theirs).square().mean(dim=1)


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """How far distances between images differ from the teacher's, each relative to their mean; published weight 25.

    The distance-wise loss of Park et al. 2019 (Relational Knowledge Distillation, arXiv 1904.05068, section 3.2.1), as
    the mean over all B² pairs that the authors' code takes. It compares the images of one batch: an image's number is
    its share, the mean over its B pairs, and depends on the other images. Each process compares its own images.

    Args:
        student: (B, D) of at least two images, of any floating-point type.
        teacher: (B, E).

    Returns:
        (B,), not negative. Images with equal features are at distance 0, which counts in the mean and has no gradient.

    Raises:
        ValueError: wrong types or shapes, or fewer than two images.
    """
    ours, theirs = (_relative_distances(vectors) for vectors in _pairs(student, teacher))
    return F.smooth_l1_loss(ours, theirs, reduction="none").mean(dim=1)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """How far the cosines of angles between three images differ from the teacher's; published weight 50.

    The angle-wise loss of Park et al. 2019 (arXiv 1904.05068, section 3.2.2), as the mean over all B³ triples that the
    authors' code takes. An image's number is its share, the mean over the angles at it, and depends on the other images
    as in `rkd_distance`. Memory grows with B² (B + D + E).

    Args:
        student: (B, D) of at least two images, of any floating-point type.
        teacher: (B, E).

    Returns:
        (B,), not negative. Images with equal features have no direction between them: cosine 0, without gradient.

    Raises:
        ValueError: wrong types or shapes, or fewer than two images.
    """
    ours, theirs = (_cosines(vectors) for vectors in _pairs(student, teacher))
    return F.smooth_l1_loss(ours, theirs, reduction="none").mean(dim=(1, 2))


def logit_kd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """T² KL(teacher ‖ student) of the softmax at a temperature.

    Section 2 of Hinton et al. 2015 (arXiv 1503.02531), with the divergence in place of the cross-entropy, which has the
    same gradient.

    Args:
        student: (B, K) logits of any floating-point type.
        teacher: (B, K) logits of the same classes.
        temperature: T, above 0; 4 in the code of attention transfer.

    Returns:
        (B,) nats times T², not negative but for rounding.

    Raises:
        ValueError: wrong types or shapes, or a temperature that is not above 0.
    """
    temperature = as_positive_number("temperature", temperature)
    student, teacher = _prepared(student, teacher, {2: "(B, K)"})
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have logits of the same classes, got {student.shape[1]} and {teacher.shape[1]}; "
            "give the student's head the teacher's number of classes"
        )
    ours, theirs = ((logits / temperature).log_softmax(dim=1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)


def _prepared(student: Tensor, teacher: Tensor, forms: dict[int, str]) -> tuple[Tensor, Tensor]:
    """Both in float32 at least, the teacher without gradient, where their numbers of axes are among the forms'."""
    for name, features in (("student", student), ("teacher", teacher)):
        if not features.dtype.is_floating_point or features.ndim not in forms or 0 in features.shape[1:]:
            raise ValueError(
                f"{name} must be floating-point numbers {_listed(forms.values())}, got {features.dtype} "
                f"{tuple(features.shape)}{_remedy(features, forms)}"
            )
    if len(student) != len(teacher):
        raise ValueError(
            f"student and teacher must be features of the same images, got {len(student)} and {len(teacher)} images"
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def _listed(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _remedy(features: Tensor, forms: dict[int, str]) -> str:
    if features.ndim == 4 and 2 in forms:
        return "; average maps over their places: features.mean(dim=(2, 3))"
    return "; attention is a map, which vectors have not: use hint" if features.ndim == 2 and 4 in forms else ""


def _pairs(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = _prepared(student, teacher, {2: "(B, D)"})
    if len(student) < 2:
        raise ValueError(f"relations need at least two images in a batch, got {len(student)}; raise the batch size")
    return student, teacher


def _differences(vectors: Tensor) -> Tensor:
    """(B, B, D) of entries x_j - x_i. Differences themselves lose less to rounding than the Gram matrix does."""
    return vectors[None] - vectors[:, None]


def _relative_distances(vectors: Tensor) -> Tensor:
    """(B, B) distances, divided by their mean over i ≠ j."""
    # The gradient of vector_norm is zero at zero.
    distances = torch.linalg.vector_norm(_differences(vectors), dim=2)
    mean = distances.sum() / (len(vectors) * (len(vectors) - 1))
    return distances / torch.where(mean > 0, mean, 1)


def _cosines(vectors: Tensor) -> Tensor:
    """(B, B, B) cosines at i between the directions to j and to k."""
    differences = _differences(vectors)
    lengths = torch.linalg.vector_norm(differences, dim=2, keepdim=True)
    same = lengths == 0
    directions = torch.where(same, 0, differences) / torch.where(same, 1, lengths)
    # Autocast would round the products to half precision.
    with torch.autocast(vectors.device.type, enabled=False):
        return directions @ directions.transpose(1, 2)
