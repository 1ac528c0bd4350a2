"""Network bodies shared by the learned models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

aten = torch.ops.aten
LAYER_NORM_EPSILON = 1e-5


def channels_first(images: NDArray[np.uint8]) -> Tensor:
    """Return camera images uint8 [N, H, W, 3] as a tensor [N, 3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Build Linear layers of the given sizes with a ReLU between them; the last layer is linear."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class EnsembleMLP(nn.Module):
    """`members` independent MLPs with one output and LayerNorm before each ReLU, evaluated as batched products.

    LayerNorm (without affine parameters) bounds the critic's extrapolation beyond the data.

    Source: Ball et al. 2023 (RLPD), section 4.2, for LayerNorm in the critics.
    """

    def __init__(self, members: int, inputs: int, hidden: Sequence[int], *, layer_norm: bool = True) -> None:
        super().__init__()
        self.members, self.layer_norm = members, layer_norm
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise((inputs, *hidden, 1)):
            bound = 1 / math.sqrt(before)
            self.weights.append(nn.Parameter(torch.empty(members, before, after).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(members, 1, after).uniform_(-bound, bound)))

    def forward(self, inputs: Tensor, *, frozen: bool = False) -> Tensor:
        """Map [B, I] to [K, B], the outputs of K members. `frozen` skips the gradient of the parameters."""
        parameters = [*self.weights, *self.biases]
        if frozen:
            parameters = [parameter.detach() for parameter in parameters]
        outputs: Tensor = _Ensemble.apply(inputs, self.layer_norm, *parameters)  # type: ignore[no-untyped-call]
        return outputs


class _Ensemble(torch.autograd.Function):
    """`EnsembleMLP` with a hand-written gradient: this function is half of an SAC update.

    It works in place, without an autograd graph, and takes a fifth less time than autograd's version
    (`scripts/benchmark speed`). Weights are [K, I, O], biases [K, 1, O].
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer_norm: bool, *parameters: Tensor) -> Tensor:
        depth = len(parameters) // 2
        weights, biases = parameters[:depth], parameters[depth:]
        # A contiguous copy per member: batched products over an expanded view take twice as long.
        x = inputs.expand(len(weights[0]), *inputs.shape).contiguous()
        layers, saved = [x], []
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            before = torch.baddbmm(bias, x, weight)
            if layer_norm:
                x, mean, inverse = torch.native_layer_norm(before, before.shape[-1:], None, None, LAYER_NORM_EPSILON)
                saved += [before, mean, inverse]
                x = x.relu_()
            else:
                x = before.relu_()
            layers.append(x)
        ctx.save_for_backward(*layers, *saved, *weights)
        ctx.depth, ctx.layer_norm = depth, layer_norm
        # Products with one column take several times as long in a batch.
        return torch.stack([torch.mv(x[k], weights[-1][k, :, 0]) + biases[-1][k, 0] for k in range(len(x))])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        depth = ctx.depth
        layers, saved, weights = (
            ctx.saved_tensors[:depth],
            ctx.saved_tensors[depth:-depth],
            ctx.saved_tensors[-depth:],
        )
        if not any(ctx.needs_input_grad[2:]):
            return _input_gradient(gradients[0], layers, saved, weights), *[None] * (1 + 2 * depth)
        outer = gradients[0][:, :, None]  # [K, B, 1]
        last = [torch.mv(x.T, gradient) for x, gradient in zip(layers[-1], gradients[0], strict=True)]
        of_weights, of_biases = [torch.stack(last)[:, :, None]], [outer.sum(1, keepdim=True)]
        gradient = outer * weights[-1].transpose(1, 2)
        for index in reversed(range(depth - 1)):
            gradient = _through_activation(gradient, layers[index + 1], saved[3 * index : 3 * index + 3])
            of_weights.insert(0, torch.bmm(layers[index].transpose(1, 2), gradient))
            of_biases.insert(0, gradient.sum(1, keepdim=True))
            if index or ctx.needs_input_grad[0]:
                gradient = torch.bmm(gradient, weights[index].transpose(1, 2))
        return gradient.sum(0) if ctx.needs_input_grad[0] else None, None, *of_weights, *of_biases


def _through_activation(gradient: Tensor, output: Tensor, saved: Sequence[Tensor]) -> Tensor:
    """Return the gradient before ReLU and, if `saved` (input, mean, inverse) is given, before LayerNorm. In place."""
    aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)
    if not saved:
        return gradient
    before, mean, inverse = saved
    parts = aten.native_layer_norm_backward(
        gradient, before, before.shape[-1:], mean, inverse, None, None, [True, False, False]
    )
    return parts[0]  # type: ignore[no-any-return]


def _input_gradient(
    gradient: Tensor, layers: Sequence[Tensor], saved: Sequence[Tensor], weights: Sequence[Tensor]
) -> Tensor:
    """Return the gradient of the inputs: [K, B] to [B, I]. Zeros are skipped: a minimum leaves one member per row."""
    total = layers[0].new_zeros(layers[0].shape[1:])
    for member, outer in enumerate(gradient):
        rows = outer.nonzero().squeeze(-1)
        x = outer[rows, None] * weights[-1][member, :, 0]
        for index in reversed(range(len(layers) - 1)):
            chosen = [part[member][rows] for part in (layers[index + 1], *saved[3 * index : 3 * index + 3])]
            x = torch.mm(_through_activation(x, chosen[0], chosen[1:]), weights[index][member].T)
        total.index_add_(0, rows, x)
    return total


class ConvNet(nn.Module):
    """Stride-2 convolutions over uint8 images followed by one linear layer with LayerNorm and tanh."""

    def __init__(self, channels: int, side: int, outputs: int, widths: Sequence[int] = (32, 32, 32)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
            channels, side = width, (side + 1) // 2
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Sequential(nn.Linear(channels * side * side, outputs), nn.LayerNorm(outputs), nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 [B, C, H, W] to float32 [B, O] in [-1, 1]."""
        return self.head(self.body(images.float() / 255 - 0.5))  # type: ignore[no-any-return]
