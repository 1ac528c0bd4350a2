"""Divergence: learning that broke in a way that further learning does not repair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from r3l.config.schema import Config, NumericsConfig
from r3l.learner.learner import Learner

ROWS, GOALS = 32, 8
"""Frames and goal images on which rewards are checked."""
VALUES = 16
"""Rows on which the critics' values are checked."""
THOROUGH_EVERY = 5
"""Checks per thorough check, which also covers optimisers and rewards: these cost more and break slowly."""
PATIENCE = 2
"""Thorough checks in a row that must find a reward dead; one alone may be chance."""
WELL = 100
"""A reward counts as broken only if its spread was once this many times the minimum."""
MAX_LOGIT = 100.0
"""Bound assumed for the classifier's logit, which has none; no training run exceeded it."""
MIN_DISCOUNTING = 1e-3
"""Min of 1 - discount: without discounting a return has no bound."""


@dataclass(frozen=True)
class Divergence:
    """Why learning counts as broken."""

    name: str
    """loss, gradient, weight, critics, novelty or classifier."""
    message: str
    """One line: the measured value and the limit."""


def largest_return(config: Config, agent: str) -> float:
    """Return the largest discounted sum of rewards that an agent can earn."""
    reward = config.novelty.max_reward
    if agent == "task":
        is_logit = config.reward == "classifier" and config.classifier.reward == "logit"
        reward = MAX_LOGIT / config.classifier.logit_scale if is_logit else 1.0
        reward += config.novelty_bonus * config.novelty.max_reward
    return reward / max(1 - config.sac.discount, MIN_DISCOUNTING)


@dataclass(frozen=True)
class Signal:
    """How far a reward tells frames apart."""

    of: str
    value: float
    minimum: float
    divergence: Divergence
    """The finding if `value` is below `minimum`."""


class DivergenceMonitor:
    """Checks a learner at intervals. It draws no random number and changes nothing."""

    def __init__(self, learner: Learner, config: NumericsConfig) -> None:
        self._learner, self._config = learner, config
        # Modules keep their tensors: listed once, since walking through the modules takes longer than the check.
        models = torch.nn.ModuleDict(learner.modules())
        self._parameters, self._buffers = list(models.named_parameters()), list(models.named_buffers())
        self._checks, self._updates = 0, 0
        self._well: set[str] = set()
        self._dead: dict[str, int] = {}

    def check(self, metrics: Mapping[str, Tensor | float] | None = None) -> Divergence | None:
        """Return what is wrong, or None; `metrics` are those of the newest update."""
        learner = self._learner
        if learner.updates < self._updates:  # the learner went back to a checkpoint
            self._dead = {}
        self._checks, self._updates = self._checks + 1, learner.updates
        is_thorough = self._checks % THOROUGH_EVERY == 0
        found = self.numbers(metrics or {}, is_thorough=is_thorough)
        if found is None and is_thorough:
            found = self._compare(list(self.signals()))
        return found

    def well(self) -> list[str]:
        """Return the rewards whose spread was once well above the minimum."""
        return sorted(self._well)

    def remember(self, well: object) -> None:
        """Take over the result of `well` from an earlier process; anything but a list is ignored."""
        if isinstance(well, list):
            self._well |= {each for each in well if isinstance(each, str)}

    def is_well(self) -> bool:
        """Return whether one thorough check, without patience, finds nothing wrong."""
        return self.numbers({}, is_thorough=True) is None and all(each.value >= each.minimum for each in self.signals())

    def _compare(self, signals: list[Signal]) -> Divergence | None:
        self._well |= {signal.of for signal in signals if signal.value >= WELL * signal.minimum}
        dead = {signal.of: signal.divergence for signal in signals if signal.value < signal.minimum}
        self._dead = {of: self._dead.get(of, 0) + 1 for of in dead if of in self._well}
        return next((dead[of] for of, times in self._dead.items() if times >= PATIENCE), None)

    def numbers(self, metrics: Mapping[str, Tensor | float], *, is_thorough: bool) -> Divergence | None:
        """Return the first number that is not finite, or critics whose values explode."""
        losses = ((name, torch.as_tensor(value, dtype=torch.float32)) for name, value in metrics.items())
        gradients = ((name, each.grad) for name, each in self._parameters if each.grad is not None)
        weights = chain(self._parameters, self._buffers, self._moments() if is_thorough else ())
        for name, named in (("loss", losses), ("gradient", gradients), ("weight", weights)):
            where = first_not_finite(named)
            if where is not None:
                return Divergence(name, f"the {name} {where} is not finite")
        return self._check_critics(metrics)

    def signals(self) -> Iterator[Signal]:
        """Yield how well each learned reward tells frames apart; nothing before pretraining."""
        learner = self._learner
        if not learner.is_pretrained or len(learner.replay) < ROWS:
            return
        for owner in learner.novelty:
            yield self._novelty_signal(owner)
        if learner.config.reward == "classifier":
            yield self._classifier_signal()

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        for of, optimiser in self._learner.optimisers().items():
            for index, state in enumerate(optimiser.state.values()):
                yield from ((f"{of}.{index}.{key}", each) for key, each in state.items() if isinstance(each, Tensor))

    def _check_critics(self, metrics: Mapping[str, Tensor | float]) -> Divergence | None:
        config = self._learner.config
        for name, value in self._mean_values():
            limit = self._config.max_value * largest_return(config, name)
            loss = float(metrics.get(f"{name}/critic_loss", 0.0))
            if not value <= limit or loss > limit**2:
                text = f"the {name} critics' mean value is {value:.3g} and their loss {loss:.3g}"
                return Divergence("critics", f"{text}, values of at most {limit:.3g} expected (numerics.max_value)")
        return None

    @torch.no_grad()
    def _mean_values(self) -> Iterator[tuple[str, float]]:
        """Yield each agent's mean magnitude of values over the newest rows."""
        replay, window = self._learner.replay, self._learner.config.window
        rows = replay.newest(VALUES + window)
        if len(rows) <= window:
            return
        windows, actions = rows[:-1].unfold(0, window, 1), replay.requested[rows[window:]]
        images = replay.pixels(windows) if self._learner.config.state == "pixels" else None
        observations = replay.observations(windows)
        for name, agent in self._learner.agents.items():
            features = agent.actor.features(observations, images)
            yield name, float(agent.critic(torch.cat([features, actions], -1)).abs().mean())

    def _novelty_signal(self, owner: str) -> Signal:
        reward, minimum = (
            self._learner.rewards.novelty(self._learner.replay.newest(ROWS), owner),
            self._config.min_novelty,
        )
        mean, spread = float(reward.mean()), float(reward.std())
        if mean >= self._learner.config.novelty.max_reward:
            spread = mean  # every frame has the max reward until the running deviation has adapted
        text = f"the novelty reward of recent frames is {mean:.3g} with a deviation of {spread:.3g}"
        divergence = Divergence("novelty", f"{text}, at least {minimum:g} expected (numerics.min_novelty)")
        return Signal(f"{owner} novelty", min(mean, spread), minimum, divergence)

    def _classifier_signal(self) -> Signal:
        learner, minimum = self._learner, self._config.min_spread
        rows, goals = (spaced(len(of), count) for of, count in ((learner.replay, ROWS), (learner.goals, GOALS)))
        of_frames = learner.rewards.success(rows.to(learner.device))
        seen = torch.cat([of_frames, learner.success_of_images(learner.goals[goals])])
        mean, spread = float(seen.mean()), float(seen.std())
        text = (
            f"the classifier gives goals and other frames a probability of {mean:.3g} with a deviation of {spread:.3g}"
        )
        divergence = Divergence("classifier", f"{text}, at least {minimum:g} expected (numerics.min_spread)")
        return Signal("classifier", spread, minimum, divergence)


def spaced(length: int, count: int) -> Tensor:
    """Return up to `count` positions spaced evenly over `length`: [N] int64."""
    return torch.linspace(0, length - 1, min(count, length)).long()


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor whose sum is not finite; checking each number takes five times as long."""
    found = [(name, tensor) for name, tensor in named if tensor.is_floating_point()]
    if not found:
        return None
    sums = torch.stack([tensor.detach().sum(dtype=torch.float32) for _, tensor in found])
    broken = torch.isfinite(sums).logical_not().nonzero()
    return found[int(broken[0])][0] if len(broken) else None
