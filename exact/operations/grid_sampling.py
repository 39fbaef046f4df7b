"""Sampling of images (N, C, H, W) at points between their pixels, as of spatial transformers."""

import torch
from torch import Tensor

from exact import grid
from exact.errors import NotExactError
from exact.registry import implements

_BILINEAR, _NEAREST = 0, 1
_ZEROS, _BORDER = 0, 1  # padding; 2: by reflection
_Corner = tuple[Tensor, Tensor, Tensor, Tensor]


@implements("affine_grid_generator")
def _affine_grid(theta: Tensor, size: list[int], align: bool) -> Tensor:
    """Where matrices (N, d, d + 1) move the pixels of an image from -1 to 1: points (N, …, d)."""
    grid.require_floating_point(theta)
    dims = len(size) - 2
    matrix = theta.double().view(len(theta), *[1] * dims, dims, dims + 1)
    points = matrix[..., -1]
    for axis, n in enumerate(reversed(size[2:])):  # x comes first, and is the last dimension
        place = torch.arange(n, dtype=torch.float64, device=theta.device) * 2 + 1 - n
        place = place / (max(n - 1, 1) if align else n)
        shape = [1, *(n if i == dims - 1 - axis else 1 for i in range(dims)), 1]
        points = points + matrix[..., axis] * place.view(shape)
    return points.to(theta.dtype)


@implements("grid_sampler_2d")
def _sample(x: Tensor, points: Tensor, mode: int, padding: int, align: bool) -> Tensor:
    """X at the points (N, h, w, 2), which are (x, y) from -1 to 1: (N, C, h, w)."""
    grid.require_same_type(x, points)
    grid.require_floating_point(x)
    corners, _ = _corners(x, points, mode, padding, align)
    total = None
    for index, known, wx, wy in corners:
        part = _gathered(x, index, known) * (wx * wy).unsqueeze(1)
        total = part if total is None else total + part
    assert total is not None  # noqa: S101 -- a point has a corner
    return total.to(x.dtype)


@implements("grid_sampler_2d_backward")
def _sample_backward(
    grad: Tensor,
    x: Tensor,
    points: Tensor,
    mode: int,
    padding: int,
    align: bool,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor]:
    corners, slopes = _corners(x, points, mode, padding, align)
    g, pixels = grad.double(), x.shape[2] * x.shape[3]
    x_grad = None
    if output_mask[0]:
        planes = torch.arange(x.shape[0] * x.shape[1], device=x.device)
        planes = planes.view(*x.shape[:2], 1, 1) * pixels
        sources = [g * (wx * wy * known).unsqueeze(1) for _, known, wx, wy in corners]
        segments = [planes + index.unsqueeze(1) for index, *_ in corners]
        sums = grid.segment_sum(
            torch.stack(sources).flatten(), torch.stack(segments).flatten(), x.numel()
        )
        x_grad = sums.view(x.shape).to(x.dtype)
    if mode == _NEAREST:
        return x_grad, torch.zeros_like(points)
    along_x = along_y = torch.zeros_like(g)
    for which, (index, known, wx, wy) in enumerate(corners):
        values = _gathered(x, index, known)
        along_x = along_x + values * (wy if which % 2 else -wy).unsqueeze(1)
        along_y = along_y + values * (wx if which > 1 else -wx).unsqueeze(1)
    sums = torch.stack([grid.sum(along * g, [1]) for along in (along_x, along_y)], -1)
    return x_grad, (sums * slopes).to(points.dtype)


def _corners(
    x: Tensor, points: Tensor, mode: int, padding: int, align: bool
) -> tuple[list[_Corner], Tensor]:
    """The pixels around each point: index, whether in the image, and weights along x and y.

    And how fast the places among the pixels move with the points, (N, h, w, 2).
    """
    if mode not in (_BILINEAR, _NEAREST):
        raise NotExactError("grid_sample by bicubic interpolation has no exact implementation")
    height, width = x.shape[2:]
    places, slopes = zip(
        *(
            _placed(points[..., i].double(), n, padding, align)
            for i, n in enumerate((width, height))
        ),
        strict=True,
    )
    first = [place.round() if mode == _NEAREST else place.floor() for place in places]
    corners = []
    for j in range(1 if mode == _NEAREST else 2):
        for i in range(1 if mode == _NEAREST else 2):
            column, row = first[0] + i, first[1] + j
            known = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            wx, wy = (
                torch.ones_like(place) if mode == _NEAREST else 1 - (place - at).abs()
                for place, at in zip(places, (column, row), strict=True)
            )
            corners.append((index.long(), known, wx, wy))
    return corners, torch.stack(slopes, -1)


def _placed(points: Tensor, n: int, padding: int, align: bool) -> tuple[Tensor, Tensor]:
    """Where points from -1 to 1 lie among n pixels, and how fast they move there."""
    slope = torch.full_like(points, (n - 1) / 2 if align else n / 2)
    place = (points + 1) * ((n - 1) / 2) if align else ((points + 1) * n - 1) / 2
    if padding not in (_ZEROS, _BORDER):
        low, span = (0.0, n - 1.0) if align else (-0.5, float(n))
        away = place - low
        slope = torch.where(away < 0, -slope, slope)
        turns = (away.abs() / span).floor() if span else torch.zeros_like(away)
        within = away.abs() - turns * span
        odd = turns.remainder(2) == 1
        place = torch.where(odd, span - within, within) + low if span else torch.zeros_like(place)
        slope = torch.where(odd, -slope, slope) if span else torch.zeros_like(slope)
    if padding != _ZEROS:
        slope = slope.masked_fill((place <= 0) | (place >= n - 1), 0)
        place = place.clamp(0, n - 1)
    # As PyTorch, which has NaN and numbers beyond its integers lie outside.
    return torch.where(place.abs() < 2.0**31 - 1, place, -100.0), slope


def _gathered(x: Tensor, index: Tensor, known: Tensor) -> Tensor:
    """The pixels of each channel at (N, h, w), in float64, 0 for what is outside the image."""
    flat = index.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
    values = x.double().flatten(2).gather(2, flat).view(*x.shape[:2], *index.shape[1:])
    return values.masked_fill(~known.unsqueeze(1), 0)
