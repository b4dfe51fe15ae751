"""From the student's features to the teacher's: channels by a 1×1 convolution, sizes by averaging or resizing."""

from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer.config import Size, as_positive_integer, as_size, check_choice, sides

Places: TypeAlias = Literal["pooled", "resized"]


class Adapter(nn.Module):
    """Gives a student's features the teacher's channels and size, for `hint`.

    As RepFusion (Yang & Wang 2023, arXiv 2308.10916): a 1×1 convolution of the student's maps, then both averaged over
    their places, or the student's resized bilinearly to the teacher's. The teacher's features get no trainable weights,
    so nothing can lower the loss by shrinking them.

    Args:
        student_channels: C.
        teacher_channels: D.
        places: "pooled" compares averages over places; "resized" compares place by place.
        grid: rows and columns of the teacher's tokens, or one number where these are equal. "resized" needs it where
            the teacher gives tokens.
        mean, std: (D,) of the teacher's channels, in the form that is compared; with them, its features are
            standardised. `difformer.analysis.FeatureMoments` gives both: `statistics().mean`, and the root of the
            diagonal of `statistics().covariance`.

    Raises:
        ValueError: a bad number, unknown places, one of mean and std alone, or statistics of the wrong shape or that
            are not finite, or a std that is not above 0.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        places: Places = "pooled",
        grid: Size | None = None,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.student_channels = as_positive_integer("student_channels", student_channels)
        self.teacher_channels = as_positive_integer("teacher_channels", teacher_channels)
        check_choice("places", places, get_args(Places))
        self.places = places
        self.grid = None if grid is None else sides(as_size("grid", grid))
        if (mean is None) != (std is None):
            raise ValueError("mean and std belong together: give both, or neither")
        for name, values in (("mean", mean), ("std", std)):
            # In the precision that divides: what is positive in float64 may be 0 in float32.
            kept = values.detach().float().clone() if isinstance(values, Tensor) else values
            if kept is not None:
                _check_statistics(name, kept, self.teacher_channels)
            self.register_buffer(name, kept)
        self.project = nn.Conv2d(self.student_channels, self.teacher_channels, 1)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both features in one form, in float32 at least, under autocast too.

        Args:
            student: (B, C) or (B, C, h, w) of any floating-point type.
            teacher: (B, D), (B, N, D) tokens in row-major order, or (B, D, H, W).

        Returns:
            The student's and the teacher's: (B, D) where places are pooled or the teacher's is a vector, else
            (B, D, H, W), with tokens laid out as a map. No gradient reaches the teacher.

        Raises:
            ValueError: wrong types or shapes.
        """
        self._check(student, teacher)
        vectors = self.places == "pooled" or teacher.ndim == 2
        student, teacher = _as_maps(student, None), _as_maps(teacher.detach(), self.grid)
        if vectors:
            student, teacher = (maps.mean(dim=(2, 3), keepdim=True) for maps in (student, teacher))
        # Autocast would round the projection to half precision.
        with torch.autocast(student.device.type, enabled=False):
            weight, bias = (weights.to(student.dtype) for weights in self.project.parameters())
            student = F.conv2d(student, weight, bias)
        if student.shape[2:] != teacher.shape[2:]:
            student = F.interpolate(student, teacher.shape[2:], mode="bilinear", align_corners=False)
        if self.mean is not None and self.std is not None:
            teacher = (teacher - self.mean[:, None, None]) / self.std[:, None, None]
        return (student.flatten(1), teacher.flatten(1)) if vectors else (student, teacher)

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        for name, features, channels, forms in (
            ("student", student, self.student_channels, {2: "(B, {0})", 4: "(B, {0}, h, w)"}),
            ("teacher", teacher, self.teacher_channels, {2: "(B, {0})", 3: "(B, N, {0})", 4: "(B, {0}, H, W)"}),
        ):
            axis = 2 if features.ndim == 3 else 1
            if (
                features.ndim not in forms
                or not features.dtype.is_floating_point
                or features.shape[axis] != channels
                or 0 in features.shape[1:]
            ):
                raise ValueError(
                    f"{name} must be floating-point numbers {' or '.join(forms.values()).format(channels)}, got "
                    f"{features.dtype} {tuple(features.shape)}; the adapter is built for {name}_channels={channels}"
                )
        if len(student) != len(teacher):
            raise ValueError(
                f"student and teacher must be features of the same images, got {len(student)} and {len(teacher)} images"
            )
        if self.places == "resized" and student.ndim == 2 and teacher.ndim > 2:
            raise ValueError('places="resized" compares maps, and the student gives vectors; choose places="pooled"')
        if self.places == "resized" and teacher.ndim == 3 and self.grid is None:
            raise ValueError('places="resized" needs to know where tokens are; give grid=(rows, columns)')
        if teacher.ndim == 3 and self.grid is not None and teacher.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(f"the teacher must have {self.grid[0]}×{self.grid[1]} tokens, got {teacher.shape[1]}")


def _as_maps(features: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """Vectors, tokens or maps as (B, C, h, w), in float32 at least; tokens without a grid stand in one column."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if features.ndim == 3:
        return features.transpose(1, 2).unflatten(2, grid or (-1, 1))
    return features[:, :, None, None] if features.ndim == 2 else features


def _check_statistics(name: str, values: Tensor, channels: int) -> None:
    """Raises ValueError for statistics that features cannot be standardised with."""
    if values.shape != (channels,) or not values.isfinite().all():
        raise ValueError(
            f"{name} must be finite, of shape ({channels},), one number a channel of the teacher; got "
            f"{tuple(values.shape) if values.shape != (channels,) else values[~values.isfinite()].tolist()}"
        )
    if name == "std" and not (values > 0).all():
        raise ValueError(
            f"std must be above 0, got {values.min().item():g}; a channel that never changes can have 1: "
            "std.where(std > 0, 1)"
        )
