"""Layer normalisation."""

from torch import Tensor

from exact import functions, grid
from exact.registry import implements


@implements("native_layer_norm")
def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and mean and 1/deviation with the normalised dimensions of size 1."""
    grid.require_floating_point(x)
    sizes = [list(parameter.shape) for parameter in (weight, bias) if parameter is not None]
    if any(size != list(shape) for size in [list(x.shape[x.dim() - len(shape) :]), *sizes]):
        raise RuntimeError(f"expected numbers of shape (…, {shape}), not {x.shape} with {sizes}")
    dims = list(range(x.dim() - len(shape), x.dim()))
    mean = grid.mean(x, dims, keepdim=True)
    centred = x.double() - mean
    variance = grid.mean(centred * centred, dims, keepdim=True)
    rstd = 1 / functions.sqrt(variance + eps)
    y = centred * rstd
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(x.dtype), mean.to(x.dtype), rstd.to(x.dtype)


@implements("native_layer_norm_backward")
def _layer_norm_backward(
    grad: Tensor, x: Tensor, shape: list[int], mean: Tensor, rstd: Tensor,
    weight: Tensor | None, bias: Tensor | None, mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    split = x.dim() - len(shape)
    inner, outer = list(range(split, x.dim())), list(range(split))
    g = grad.double()
    normed = (x.double() - mean) * rstd
    scaled = g if weight is None else g * weight
    x_grad = None
    if mask[0]:
        along = grid.mean(scaled * normed, inner, keepdim=True)
        towards_mean = grid.mean(scaled, inner, keepdim=True) + normed * along
        x_grad = ((scaled - towards_mean) * rstd).to(x.dtype)
    weight_grad, bias_grad = g * normed, g
    if outer:
        weight_grad, bias_grad = grid.sum(weight_grad, outer), grid.sum(bias_grad, outer)
    return (
        x_grad,
        weight_grad.to(x.dtype) if mask[1] else None,
        bias_grad.to(x.dtype) if mask[2] else None,
    )
