from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from r3l.config.models import SACConfig
from r3l.models.sac import SAC, Batch, build_actor, soft_target, squashed_log_probability

SMALL = SACConfig(hidden=(32, 32), batch_size=64)
FEATURES, ACTIONS = 5, 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_of(count: int = 64, draw: torch.Generator | None = None) -> Tensor:
    return torch.randn(2, count, ACTIONS, generator=draw or generator())


def agent_of(config: SACConfig = SMALL, image: tuple[int, int] | None = None) -> SAC:
    torch.manual_seed(1)
    return SAC(FEATURES, ACTIONS, config, image=image)


def random_batch(count: int = 64, seed: int = 2, side: int = 0) -> Batch:
    draw = generator(seed)
    images = [torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draw) for _ in range(2)]
    return Batch(
        observation=torch.randn(count, FEATURES, generator=draw),
        action=torch.rand(count, ACTIONS, generator=draw) * 2 - 1,
        reward=torch.randn(count, generator=draw),
        next_observation=torch.randn(count, FEATURES, generator=draw),
        discount=torch.full((count,), SMALL.discount),
        image=images[0] if side else None,
        next_image=images[1] if side else None,
    )


def copy_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def is_unchanged(module: torch.nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def freeze(optimiser: torch.optim.Optimizer) -> None:
    for group in optimiser.param_groups:
        group["lr"] = 0.0


def test_log_probability_of_a_squashed_action_is_that_of_torch_distributions() -> None:
    draw = generator()
    mean, log_std = torch.randn(64, 3, generator=draw).double(), torch.randn(64, 3, generator=draw).double() * 0.5
    noise = torch.randn(64, 3, generator=draw).double()
    raw = mean + noise * log_std.exp()
    squashed = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(cache_size=1)])
    expected = squashed.log_prob(torch.tanh(raw)).sum(-1)
    torch.testing.assert_close(squashed_log_probability(log_std, noise, raw), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("raw", [-50.0, 50.0])
def test_log_probability_and_its_gradient_are_finite_where_tanh_saturates(raw: float) -> None:
    mean = torch.tensor([[raw]], requires_grad=True)
    value = squashed_log_probability(torch.zeros(1, 1), torch.zeros(1, 1), mean * 1.0)
    value.sum().backward()
    # The density of tanh(x) at large |x|: the Gaussian's divided by 4 exp(-2 |x|).
    assert value.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - math.log(4) + 2 * abs(raw), rel=1e-5)
    assert mean.grad is not None
    assert torch.isfinite(mean.grad).all()


def test_soft_target_bootstraps_the_smallest_critic_by_each_transition_s_discount() -> None:
    next_value = torch.tensor([[2.0, 5.0, 1.0], [3.0, 4.0, -1.0]])
    target = soft_target(
        reward=torch.tensor([1.0, 0.5, 2.0]),
        discount=torch.tensor([0.9, 0.81, 0.0]),  # one step, two steps, a terminal
        next_value=next_value,
        next_log_probability=torch.tensor([-1.0, 0.5, 7.0]),
        alpha=torch.tensor(0.2),
    )
    expected = [1 + 0.9 * (2 + 0.2), 0.5 + 0.81 * (4 - 0.1), 2.0]
    torch.testing.assert_close(target, torch.tensor(expected))


def test_critic_loss_without_bootstrapping_is_the_squared_error_to_the_reward() -> None:
    agent, batch = agent_of(), random_batch()
    batch = replace(batch, discount=torch.zeros(64))
    with torch.no_grad():
        value = agent.critic(torch.cat([batch.observation, batch.action], -1))
    expected = (value - batch.reward).square().mean(1).sum()
    torch.testing.assert_close(agent.update(batch, noise_of())["critic_loss"], expected)


@pytest.mark.parametrize(("discount", "value"), [(0.5, 2.0), (0.0, 1.0)])
def test_critic_of_a_constant_reward_converges_to_its_discounted_sum(discount: float, value: float) -> None:
    config = replace(SMALL, tau=0.2, learning_rate=3e-3, initial_temperature=1e-6)
    agent, draw = agent_of(config), generator()
    batch = replace(random_batch(), reward=torch.ones(64), discount=torch.full((64,), discount))
    for _ in range(250):
        metrics = agent.update(batch, noise_of(64, draw))
    assert metrics["value"].item() == pytest.approx(value, abs=0.1)


def test_same_seed_makes_the_same_updates_bit_for_bit() -> None:
    first, second, other = agent_of(), agent_of(), agent_of()
    draws = [generator(7), generator(7), generator(8)]
    for agent, draw in zip((first, second, other), draws, strict=True):
        for seed in range(3):
            agent.update(random_batch(seed=seed), noise_of(64, draw))
    assert is_unchanged(first, copy_of(second))
    assert not is_unchanged(first, copy_of(other))


@pytest.mark.parametrize(("target_entropy", "direction"), [(-5.0, -1), (0.6, 1)])
def test_temperature_moves_so_that_entropy_moves_towards_its_target(target_entropy: float, direction: int) -> None:
    agent = agent_of(replace(SMALL, target_entropy_per_action=target_entropy))
    before = agent.log_alpha.item()
    metrics = agent.update(random_batch(), noise_of())
    assert math.copysign(1, agent.target_entropy - metrics["entropy"].item()) == direction
    assert math.copysign(1, agent.log_alpha.item() - before) == direction


def test_target_critic_moves_by_tau_towards_the_critic_and_learns_nothing_itself() -> None:
    agent = agent_of(replace(SMALL, tau=0.25, learning_rate=1e-2))
    before = copy_of(agent.target_critic)
    assert is_unchanged(agent.critic, before)
    agent.update(random_batch(), noise_of())
    critic = agent.critic.state_dict()
    assert not is_unchanged(agent.critic, before)
    for name, tensor in agent.target_critic.state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * before[name] + 0.25 * critic[name])
    assert not any(parameter.requires_grad for parameter in agent.target_critic.parameters())


def test_actor_update_leaves_the_critic_untouched() -> None:
    agent = agent_of()
    freeze(agent.critic_optimiser)
    critic, actor = copy_of(agent.critic), copy_of(agent.actor)
    for _ in range(3):
        agent.update(random_batch(), noise_of())
    assert is_unchanged(agent.critic, critic)
    assert not is_unchanged(agent.actor, actor)


@pytest.mark.parametrize(("frozen", "learns"), [("critic", False), ("actor", True)])
def test_convolutions_learn_from_the_critic_loss_alone(frozen: str, learns: bool) -> None:
    agent = agent_of(image=(3, 16))
    freeze(agent.optimisers()[frozen])
    trunk = agent.actor.trunk
    assert trunk is not None
    before = copy_of(trunk)
    agent.update(random_batch(count=8, side=16), noise_of(8))
    assert is_unchanged(trunk, before) is not learns


def test_an_agent_that_sees_pixels_says_so_when_it_gets_none() -> None:
    actor = build_actor(FEATURES, ACTIONS, SMALL, (3, 16))
    with pytest.raises(ValueError, match="given no image"):
        actor.act(torch.zeros(1, FEATURES))


def test_actions_are_the_mean_without_noise_and_samples_with_it() -> None:
    actor = agent_of().actor
    observation = torch.randn(200, FEATURES, generator=generator())
    mean = actor.act(observation)
    assert torch.equal(mean, actor.act(observation))
    noises = [torch.randn(200, ACTIONS, generator=generator(seed)) for seed in (0, 0, 1)]
    samples = [actor.act(observation, noise=noise) for noise in noises]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    assert samples[0].abs().max() <= 1
    assert not samples[0].requires_grad


def test_sac_learns_which_action_is_best_in_a_one_step_world() -> None:
    config = replace(SMALL, learning_rate=3e-3, target_entropy_per_action=-2.0)
    torch.manual_seed(0)
    agent, draw = SAC(2, 1, config), generator()
    for _ in range(500):
        observation = torch.rand(64, 2, generator=draw) * 2 - 1
        action = torch.rand(64, 1, generator=draw) * 2 - 1
        reward = -(action[:, 0] - 0.5 * observation[:, 0]).square()
        agent.update(
            Batch(observation, action, reward, observation, torch.zeros(64)), torch.randn(2, 64, 1, generator=draw)
        )
    observation = torch.rand(200, 2, generator=draw) * 2 - 1
    error = (agent.actor.act(observation)[:, 0] - 0.5 * observation[:, 0]).abs()
    assert error.mean() < 0.08
