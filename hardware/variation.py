"""Domain randomization of the twin: light, colours, camera pose, noise, dynamics and delays, as real rigs vary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r3l.robot import Image
from r3l.task import CameraPose

REACH = {"none": (0.0, 0.0), "mild": (0.0, 0.5), "strong": (0.0, 1.0), "shifted": (1.0, 1.5), "delayed": (0.0, 0.0)}
"""Min and max distance of each quantity from its nominal value, in units of AMOUNTS, by level of `randomize`.

mild and strong are for training; shifted is beyond either, for evaluation; delayed is the nominal world, each command
one control period late.
"""
EVERY = 60
"""Control periods per world, more than an episode has; `place` draws a new world too."""


@dataclass(frozen=True)
class Amounts:
    """The size of one unit of REACH."""

    brightness: float = 0.25
    """Relative brightness."""
    colour: float = 0.10
    """Relative change per colour channel."""
    eye_m: float = 0.008
    """Shift of the camera's position per axis."""
    aim_m: float = 0.005
    """Shift of the camera's target."""
    noise_levels: float = 6.0
    """Standard deviation of each pixel, grey levels."""
    friction: float = 0.4
    """Relative friction of fingers and object."""
    mass: float = 0.4
    """Relative mass of the object."""
    strength: float = 0.3
    """Relative torque of the joints."""
    delay_s: float = 0.05
    """Delay from a command to its effect on the joints."""
    latency_s: float = 0.05
    """Age of an observation."""


AMOUNTS = Amounts()


@dataclass(frozen=True)
class Variation:
    """One world: factors and offsets of the nominal one."""

    light: NDArray[np.float64]
    """[3], one factor per channel."""
    eye_m: NDArray[np.float64]
    aim_m: NDArray[np.float64]
    noise_levels: float
    friction: float
    mass: float
    strength: float
    delay_s: float
    latency_s: float

    def pose(self, nominal: CameraPose) -> CameraPose:
        """Return the camera's pose in this world; a camera that looks down keeps its orientation under a shift."""
        eye, target = np.array(nominal.eye_m), np.array(nominal.target_m)
        right = np.cross(target - eye, nominal.up)
        eye_m, target_m, up = (
            (float(x), float(y), float(z))
            for x, y, z in (eye + self.eye_m, target + self.aim_m, np.cross(right, target - eye))
        )
        return CameraPose(eye_m, target_m, nominal.field_of_view_deg, up)

    def seen(self, image: Image, rng: np.random.Generator) -> Image:
        """Return an image [H, W, 3] in this world's light, with its camera's noise."""
        lit = image * self.light + rng.normal(0.0, self.noise_levels, image.shape)
        return np.clip(np.round(lit), 0, 255).astype(np.uint8)


class Worlds:
    """A sequence of worlds, the same for the same seed."""

    def __init__(self, level: str, seed: int, period_s: float) -> None:
        """Draw from a level of REACH, for a control period of `period_s`."""
        self.level, self._seed, self._period_s = level, seed, period_s
        self.number = self.periods = 0
        """Worlds drawn before this one, and control periods in it."""
        self.current = self._draw()

    def go_to(self, number: int, periods: int) -> None:
        """Continue in the world of that number, after so many control periods."""
        self.number, self.periods = number, periods
        self.current = self._draw()

    def tick(self) -> bool:
        """Count a control period; return whether a new world begins."""
        self.periods += 1
        if self.periods < EVERY:
            return False
        self.go_to(self.number + 1, 0)
        return True

    def noise(self) -> np.random.Generator:
        """Return the noise generator of this control period."""
        return np.random.default_rng((self._seed, self.number, self.periods))

    def _draw(self) -> Variation:
        rng = np.random.default_rng((self._seed, self.number))
        near, far = REACH[self.level]

        def either(amount: float, size: int) -> NDArray[np.float64]:
            found: NDArray[np.float64] = amount * rng.uniform(near, far, size) * rng.choice((-1.0, 1.0), size)
            return found

        def more(amount: float) -> float:
            return float(amount * rng.uniform(near, far))

        def factor(amount: float) -> float:
            return float(np.exp(either(amount, 1))[0])

        return Variation(
            light=np.exp(either(AMOUNTS.brightness, 1) + either(AMOUNTS.colour, 3)),
            eye_m=either(AMOUNTS.eye_m, 3),
            aim_m=either(AMOUNTS.aim_m, 3),
            noise_levels=more(AMOUNTS.noise_levels),
            friction=factor(AMOUNTS.friction),
            mass=factor(AMOUNTS.mass),
            strength=factor(AMOUNTS.strength),
            delay_s=self._period_s if self.level == "delayed" else min(more(AMOUNTS.delay_s), self._period_s),
            latency_s=min(more(AMOUNTS.latency_s), self._period_s),
        )
