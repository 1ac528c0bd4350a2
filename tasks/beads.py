"""Slide four beads along a rail until two are at its left end and two at its right end."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from r3l.robot import FloatArray, Rig, Truth, load_rig
from r3l.task import CameraPose, Scene, Task, Values

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = Path(__file__).parent
BEADS = 4
TRAVEL_M = 0.0475
"""Travel of each bead to either side of its centre; neighbours push one another."""
FRICTION_N = 0.3
BACKDROP_M = (0.005, 0.6, 0.5)
"""Half extents of a board behind the hand: against a bright sky fingers would stand out more than beads."""
GOAL_M = np.array([-TRAVEL_M, -TRAVEL_M, TRAVEL_M, TRAVEL_M], np.float32)
LAYOUTS = np.array(
    [
        [-1, -1, -1, -1],
        [1, 1, 1, 1],
        [0, 0, 0, 0],
        [-0.5, 0, 0, 0.5],
        [-1, -1, -1, 0],
        [0, 1, 1, 1],
        [-1, -1, -0.5, -0.5],
        [0.5, 0.5, 1, 1],
    ],
    np.float32,
)
"""The fixed starts, in units of the travel."""
QUARTERS = 4
ORDERS = {order: index for index, order in enumerate(combinations_with_replacement(range(QUARTERS), BEADS))}
"""Possible quarters of the travel for the beads: their order on the rail never changes."""
UNSOLVED_M = 0.03
"""Min mean error of a start: one nudge does not solve it."""


class BeadsScene(Scene):
    """Beads on their rail; friction holds them in place."""

    state_names = tuple(f"diagnostic_{what}{bead}" for what in ("place", "velocity") for bead in range(BEADS))
    camera = CameraPose((0.32, 0.0, 0.03), (0.0, 0.0, 0.05), 36.0)
    """Low, near the table: from there the fingers hide half a bead in 5% of frames, from above in a third."""

    def __init__(self) -> None:
        self._client: Any = None
        self.bodies = ()

    def load(self, client: Any) -> None:
        flags = client.URDF_USE_SELF_COLLISION
        body = client.loadURDF(str(FOLDER / "beads.urdf"), useFixedBase=True, flags=flags)
        for bead in range(BEADS):
            client.changeDynamics(body, bead, lateralFriction=0.8, jointLowerLimit=-TRAVEL_M, jointUpperLimit=TRAVEL_M)
            client.setJointMotorControl2(body, bead, client.VELOCITY_CONTROL, targetVelocity=0.0, force=FRICTION_N)
        backdrop = client.createVisualShape(client.GEOM_BOX, halfExtents=BACKDROP_M, rgbaColor=[0.30, 0.38, 0.47, 1])
        client.createMultiBody(0, -1, backdrop, [-0.3, 0, 0])
        self._client, self.bodies = client, (body,)

    def place(self, state: FloatArray) -> None:
        for bead, place in enumerate(state):
            self._client.resetJointState(self.bodies[0], bead, float(place), 0.0)

    def truth(self) -> Truth:
        places = self._joints()[0]
        errors = np.abs(places - GOAL_M)
        parts = {f"bead{bead}_m": float(place) for bead, place in enumerate(places)}
        parts |= {f"bead{bead}_error_m": float(error) for bead, error in enumerate(errors)}
        return parts | {"error": float(errors.mean())}

    def state(self) -> FloatArray:
        places, velocities = self._joints()
        return np.concatenate([places / TRAVEL_M, 5 * velocities]).astype(np.float32)

    def _joints(self) -> tuple[FloatArray, FloatArray]:
        states = self._client.getJointStates(self.bodies[0], list(range(BEADS)))
        return np.array([joint[0] for joint in states]), np.array([joint[1] for joint in states])


class Beads(Task):
    """Slide two beads to the left end and two to the right."""

    name = "beads"
    description = "slide four beads on a rail: two to the left end, two to the right"
    episode_steps = 50
    success_error = 0.02
    error_unit = "m"
    other_thresholds = (0.01,)
    parts = tuple((f"bead {bead} within 2 cm", f"bead{bead}_error_m", 0.02) for bead in range(BEADS))
    cell_count = len(ORDERS)

    @property
    def rig(self) -> Rig:
        return load_rig(FOLDER / "beads.toml")

    def scene(self) -> BeadsScene:
        return BeadsScene()

    def start_states(self, count: int, seed: int) -> FloatArray:
        """Return the fixed layouts first, then random ones by `seed`."""
        rng = np.random.default_rng(seed)
        states = list(LAYOUTS * TRAVEL_M)
        while len(states) < count:
            state = self.random_states(1, rng)[0]
            if np.abs(state - GOAL_M).mean() >= UNSOLVED_M:
                states.append(state)
        return np.stack(states[:count])

    def goal_states(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Every bead within 1.5 cm of its end, the authors' tolerance: the accuracy of a hand without a measure."""
        inwards = rng.uniform(0, 0.015, (count, BEADS)) * -np.sign(GOAL_M)
        # The outer bead of a pair is never farther from the end than the inner one.
        inwards[:, 0], inwards[:, 1] = inwards[:, :2].min(1), inwards[:, :2].max(1)
        inwards[:, 2], inwards[:, 3] = inwards[:, 2:].min(1), inwards[:, 2:].max(1)
        return (GOAL_M + inwards).astype(np.float32)

    def random_states(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Positions in the order of the rail."""
        return np.sort(rng.uniform(-TRAVEL_M, TRAVEL_M, (count, BEADS))).astype(np.float32)

    def true_reward(self, state: Tensor) -> Tensor:
        """Return exp(-(mean error / 0.02 m)^2 / 2) from [positions, velocities]."""
        goal = state.new_tensor(GOAL_M) / TRAVEL_M
        error = (state[:, :BEADS] - goal).abs().mean(-1) * TRAVEL_M
        return (-0.5 * (error / 0.02).square()).exp()

    def cells(self, truth: Mapping[str, Values]) -> NDArray[np.int64]:
        """Each combination of quarters of travel in which the beads lie is a cell."""
        places = np.stack([np.asarray(truth[f"bead{bead}_m"]) for bead in range(BEADS)], 1)
        quarters = ((places / TRAVEL_M + 1) / 2 * QUARTERS).clip(0, QUARTERS - 1).astype(int)
        return np.array([ORDERS[tuple(sorted(row))] for row in quarters.tolist()], np.int64)
