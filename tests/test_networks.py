from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r3l.models.networks import ConvNet, EnsembleMLP, mlp


def test_an_mlp_has_an_activation_between_its_layers_and_none_at_the_end() -> None:
    layers = list(mlp((3, 5, 4, 2)))
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert mlp((3, 5, 4, 2))(torch.zeros(7, 3)).shape == (7, 2)


def member_alone(ensemble: EnsembleMLP, member: int, inputs: Tensor) -> Tensor:
    layers = list(zip(ensemble.weights, ensemble.biases, strict=True))
    x = inputs
    for weight, bias in layers[:-1]:
        x = x @ weight[member] + bias[member]
        if ensemble.layer_norm:
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        x = F.relu(x)
    weight, bias = layers[-1]
    return torch.addmm(bias[member], x, weight[member]).squeeze(-1)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_an_ensemble_returns_what_each_member_returns_alone(layer_norm: bool) -> None:
    torch.manual_seed(0)
    ensemble = EnsembleMLP(3, 4, (16, 16), layer_norm=layer_norm)
    inputs = torch.randn(5, 4)
    together = ensemble(inputs)
    assert together.shape == (3, 5)
    for member in range(3):
        torch.testing.assert_close(together[member], member_alone(ensemble, member, inputs))


def test_ensemble_members_start_different_and_share_no_gradient() -> None:
    torch.manual_seed(0)
    ensemble = EnsembleMLP(2, 4, (8,))
    outputs = ensemble(torch.randn(5, 4))
    assert not torch.allclose(outputs[0], outputs[1])
    outputs[0].sum().backward()
    for parameter in ensemble.parameters():
        assert parameter.grad is not None
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1].abs().sum() == 0


@pytest.mark.parametrize("side", [8, 33, 64])
def test_a_conv_net_maps_uint8_images_of_any_side_into_the_unit_interval(side: int) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 6, side, side), dtype=torch.uint8)
    features = ConvNet(6, side, 16)(images)
    assert features.shape == (2, 16)
    assert features.dtype == torch.float32
    assert features.abs().max() <= 1
    assert not torch.allclose(features[0], features[1])


@pytest.mark.parametrize("layer_norm", [True, False])
def test_the_hand_written_gradient_of_an_ensemble_is_right(layer_norm: bool) -> None:
    torch.manual_seed(0)
    ensemble = EnsembleMLP(2, 5, (7, 6), layer_norm=layer_norm).double()
    inputs = torch.randn(4, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *parameters: ensemble(x), (inputs, *ensemble.parameters()))


def test_a_frozen_ensemble_gives_its_inputs_the_same_gradient_and_its_parameters_none() -> None:
    torch.manual_seed(0)
    ensemble = EnsembleMLP(2, 5, (7, 6))
    inputs = torch.randn(4, 5, requires_grad=True)
    expected = torch.autograd.grad(ensemble(inputs).sum(), inputs)[0]
    ensemble(inputs, frozen=True).sum().backward()
    torch.testing.assert_close(inputs.grad, expected)
    assert all(parameter.grad is None for parameter in ensemble.parameters())
