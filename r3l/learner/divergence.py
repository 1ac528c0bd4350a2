"""The numerical watch: learning that went wrong in a way that no further learning mends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from r3l.config.schema import NumericsConfig

if TYPE_CHECKING:
    from r3l.config.schema import Config
    from r3l.learner.learner import Learner

ROWS, GOALS = 32, 8
"""Frames and goal images that rewards are looked at on."""
VALUES = 16
"""Rows that the critics' values are looked at on."""
THOROUGH_EVERY = 5
"""Looks between two thorough ones, which see optimisers and rewards too: they cost more, and go wrong slowly."""
PATIENCE = 2
"""Thorough looks in a row that must find a reward dead: one alone may be chance."""
WELL = 100
"""How many times its least value a reward's signal must have been for its loss to count: what never told frames apart
is no learning that broke, and going back would not mend it."""
LARGEST_LOGIT = 100.0
"""The classifier's logit is not bounded; beyond this no training has been seen."""
MIN_SHARE = 1e-3
"""Of 1 - discount: without discounting nothing bounds a return."""


@dataclass(frozen=True)
class Trouble:
    """Why learning counts as broken."""

    name: str
    """loss, gradient, weight, critics, novelty or classifier."""
    message: str
    """One line: what was found, and what is allowed."""


def largest_return(config: Config, agent: str) -> float:
    """Return the largest discounted sum of rewards that an agent can earn."""
    reward = config.novelty.max_reward
    if agent == "task":
        is_logit = config.reward == "classifier" and config.classifier.reward == "logit"
        reward = LARGEST_LOGIT / config.classifier.logit_scale if is_logit else 1.0
        reward += config.novelty_bonus * config.novelty.max_reward
    return reward / max(1 - config.sac.discount, MIN_SHARE)


@dataclass(frozen=True)
class Signal:
    """How well a reward tells one frame from another."""

    of: str
    value: float
    least: float
    trouble: Trouble
    """What there is to say where `value` is below `least`."""


class NumericalWatch:
    """Looks at a learner now and then. It draws no random number and changes nothing: looking leaves learning alone."""

    def __init__(self, learner: Learner, config: NumericsConfig) -> None:
        self._learner, self._config = learner, config
        # Modules keep their tensors for good: listed once, since walking through them takes longer than looking.
        models = torch.nn.ModuleDict(learner.modules())
        self._parameters, self._buffers = list(models.named_parameters()), list(models.named_buffers())
        self._looks, self._updates = 0, 0
        self._well: set[str] = set()
        self._dead: dict[str, int] = {}

    def look(self, metrics: Mapping[str, Tensor | float] | None = None) -> Trouble | None:
        """Return what is wrong, None where all is well; `metrics` are those of the newest update."""
        learner = self._learner
        if learner.updates < self._updates:  # it went back
            self._dead = {}
        self._looks, self._updates = self._looks + 1, learner.updates
        is_thorough = self._looks % THOROUGH_EVERY == 0
        found = self.numbers(metrics or {}, is_thorough=is_thorough)
        if found is None and is_thorough:
            found = self._compare(list(self.signals()))
        return found

    def well(self) -> list[str]:
        """Return the rewards that have told frames apart well."""
        return sorted(self._well)

    def remember(self, well: object) -> None:
        """Know from another process which rewards told frames apart; what is no list of them is left out."""
        if isinstance(well, list):
            self._well |= {each for each in well if isinstance(each, str)}

    def is_well(self) -> bool:
        """Look once, thoroughly and without patience."""
        return self.numbers({}, is_thorough=True) is None and all(each.value >= each.least for each in self.signals())

    def _compare(self, signals: list[Signal]) -> Trouble | None:
        self._well |= {signal.of for signal in signals if signal.value >= WELL * signal.least}
        dead = {signal.of: signal.trouble for signal in signals if signal.value < signal.least}
        self._dead = {of: self._dead.get(of, 0) + 1 for of in dead if of in self._well}
        return next((dead[of] for of, times in self._dead.items() if times >= PATIENCE), None)

    def numbers(self, metrics: Mapping[str, Tensor | float], *, is_thorough: bool) -> Trouble | None:
        """Return what is not finite or explodes."""
        losses = ((name, torch.as_tensor(value, dtype=torch.float32)) for name, value in metrics.items())
        gradients = ((name, each.grad) for name, each in self._parameters if each.grad is not None)
        weights = chain(self._parameters, self._buffers, self._moments() if is_thorough else ())
        for name, named in (("loss", losses), ("gradient", gradients), ("weight", weights)):
            where = first_not_finite(named)
            if where is not None:
                return Trouble(name, f"the {name} {where} is not finite")
        return self._look_at_critics(metrics)

    def signals(self) -> Iterator[Signal]:
        """Yield how well each learned reward tells frames apart; nothing before there is anything to learn from."""
        learner = self._learner
        if not learner.is_pretrained or len(learner.replay) < ROWS:
            return
        for owner in learner.novelty:
            yield self._look_at_novelty(owner)
        if learner.config.reward == "classifier":
            yield self._look_at_classifier()

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        for of, optimiser in self._learner.optimisers().items():
            for index, state in enumerate(optimiser.state.values()):
                yield from ((f"{of}.{index}.{key}", each) for key, each in state.items() if isinstance(each, Tensor))

    def _look_at_critics(self, metrics: Mapping[str, Tensor | float]) -> Trouble | None:
        config = self._learner.config
        for name, value in self._mean_values():
            limit = self._config.max_value * largest_return(config, name)
            loss = float(metrics.get(f"{name}/critic_loss", 0.0))
            if not value <= limit or loss > limit**2:
                text = f"the {name} critics' mean value is {value:.3g} and their loss {loss:.3g}"
                return Trouble("critics", f"{text}, values of at most {limit:.3g} expected (numerics.max_value)")
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

    def _look_at_novelty(self, owner: str) -> Signal:
        reward, least = self._learner.novelty_reward(self._learner.replay.newest(ROWS), owner), self._config.min_novelty
        mean, spread = float(reward.mean()), float(reward.std())
        if mean >= self._learner.config.novelty.max_reward:
            spread = mean  # all are as new as can be, until the running deviation has followed
        text = f"the novelty reward of recent frames is {mean:.3g} with a deviation of {spread:.3g}"
        trouble = Trouble("novelty", f"{text}, at least {least:g} expected (numerics.min_novelty)")
        return Signal(f"{owner} novelty", min(mean, spread), least, trouble)

    def _look_at_classifier(self) -> Signal:
        learner, least = self._learner, self._config.min_spread
        rows, goals = (spaced(len(of), count) for of, count in ((learner.replay, ROWS), (learner.goals, GOALS)))
        of_rows = learner.success_of_rows(rows.to(learner.device))
        seen = torch.cat([of_rows, learner.success_of_images(learner.goals[goals])])
        mean, spread = float(seen.mean()), float(seen.std())
        text = (
            f"the classifier gives goals and other frames a probability of {mean:.3g} with a deviation of {spread:.3g}"
        )
        trouble = Trouble("classifier", f"{text}, at least {least:g} expected (numerics.min_spread)")
        return Signal("classifier", spread, least, trouble)


def spaced(length: int, count: int) -> Tensor:
    """Return up to `count` positions spaced evenly over `length`: [N] int64."""
    return torch.linspace(0, length - 1, min(count, length)).long()


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor whose sum is not finite: a fifth of the time of looking at each number."""
    found = [(name, tensor) for name, tensor in named if tensor.is_floating_point()]
    if not found:
        return None
    sums = torch.stack([tensor.detach().sum(dtype=torch.float32) for _, tensor in found])
    broken = torch.isfinite(sums).logical_not().nonzero()
    return found[int(broken[0])][0] if len(broken) else None
