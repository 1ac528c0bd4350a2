"""The PyBullet twin: a three-finger hand over a task's scene, seen by one camera near the hand."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r3l.config.errors import missing_package
from r3l.robot import (
    CameraSettings,
    CameraSpec,
    FloatArray,
    Image,
    Joint,
    Observation,
    RobotError,
    RobotSpec,
    SimulatedRobot,
    Truth,
    world_numbers,
)
from r3l.task import CameraPose, Scene, Task

from .quiet import quiet
from .variation import REACH, Worlds

with quiet():
    import pybullet as p
    from pybullet_utils.bullet_client import BulletClient

if TYPE_CHECKING:
    from .dclaw.actuators import Actuators

FOLDER = Path(__file__).parent
SUBSTEPS_PER_S = 240
TABLE_M = [1.5, 1.5, 0.01]
"""Half extents: wide enough that a camera at the side sees nothing behind it."""
FOR_PEOPLE = CameraPose((0.15, -0.26, 0.36), (0.0, 0.0, 0.05), 32.0)
"""Viewpoint of films."""
FINGERS = 3
RADIUS_M, HEIGHT_M = 0.075, 0.20
POSITION_GAIN, MAX_TORQUE_NM, MAX_SPEED_RAD_S = 0.15, 0.6, 4.0
JOINTS = tuple(
    Joint(f"finger{finger}_{name}", -limit, limit)
    for finger in range(FINGERS)
    for name, limit in (("swing", math.radians(60)), ("curl", math.radians(60)), ("tip", math.radians(90)))
)


class Twin(SimulatedRobot):
    """A simulated three-finger hand. Simulated time advances one control period per `command`, `observe` pair.

    `connect` loads the bodies once; `place` moves them. The same calls after the same seed give the same bytes.
    `diagnostic` adds ground truth to observations: for the diagnostic variants alone. With `actuators` the fingers move
    as a rig's servos do, within the limits of its driver; without them they are strong, fast and follow every target.
    """

    def __init__(
        self,
        scene: Scene,
        *,
        home_rad: FloatArray,
        control_hz: float = 10.0,
        camera: CameraSpec | None = None,
        workspace: tuple[Joint, ...] = JOINTS,
        diagnostic: bool = False,
        actuators: Actuators | None = None,
    ) -> None:
        self.scene, self._actuators = scene, actuators
        self._limits = np.array([(joint.min_rad, joint.max_rad) for joint in workspace], np.float32).T
        self._home_rad = np.asarray(home_rad, np.float32)
        names = scene.state_names if diagnostic else ()
        self._spec = RobotSpec(JOINTS, control_hz, camera or CameraSpec(), names)
        self._diagnostic = diagnostic
        self._client: Any = None
        self._fingers: list[int] = []
        self._pending_s = 0.0
        self._time_s = 0.0
        self.worlds: Worlds | None = None
        self._nominal: dict[tuple[int, int], tuple[float, float]] = {}
        """Mass and friction of each link in the nominal world."""
        self._late: tuple[FloatArray, float, float] | None = None
        """A delayed command: target, torque, speed."""
        self._seen: tuple[Image, FloatArray] | None = None
        """The observation to be shown late."""

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def camera_settings(self) -> CameraSettings:
        return {"randomize": REACH["none" if self.worlds is None else self.worlds.level]}

    def connect(self) -> None:
        if self._client is not None:
            raise RobotError("the twin is already connected; close it first")
        with quiet():
            client = BulletClient(p.DIRECT)
        client.setGravity(0, 0, -9.81)
        client.setPhysicsEngineParameter(fixedTimeStep=1 / SUBSTEPS_PER_S, deterministicOverlappingPairs=1)
        table = client.createCollisionShape(p.GEOM_BOX, halfExtents=TABLE_M)
        look = client.createVisualShape(p.GEOM_BOX, halfExtents=TABLE_M, rgbaColor=[0.36, 0.45, 0.55, 1])
        client.createMultiBody(0, table, look, [0, 0, -0.01])
        for finger in range(FINGERS):
            yaw = 2 * math.pi * finger / FINGERS + math.pi / 3
            position = [-RADIUS_M * math.cos(yaw), -RADIUS_M * math.sin(yaw), HEIGHT_M]
            turn = client.getQuaternionFromEuler([0, 0, yaw])
            body = client.loadURDF(str(FOLDER / "finger.urdf"), position, turn, useFixedBase=True)
            for link in range(3):
                client.changeDynamics(body, link, lateralFriction=0.8, linearDamping=0.02, angularDamping=0.02)
            self._fingers.append(body)
        self.scene.load(client)
        self._client = client
        self._time_s = self._pending_s = 0.0
        self._nominal = {}
        self._forget_command()
        if self.worlds is not None:
            self.worlds.go_to(0, 0)
        self.apply_variation()
        self._place_fingers(self._home_rad)

    def observe(self) -> Observation:
        self._connected()
        if self._pending_s > 0.0:
            self._advance(round(self._pending_s * SUBSTEPS_PER_S))
            self.end_period(self._pending_s)
            if self.worlds is not None and self.worlds.tick():
                self.apply_variation()
        state = self.scene.state() if self._diagnostic else np.zeros(0, np.float32)
        image, joint_rad = self._seen or (self._render(), self._joint_rad())
        if self._actuators is not None:
            joint_rad = self._actuators.counted(joint_rad)
        return Observation(self._varied(image), joint_rad.copy(), self._time_s, state)

    def _advance(self, substeps: int) -> None:
        """Simulate substeps; a delayed command takes effect among them, and a delayed view is taken there."""
        delay, latency = self._lags(substeps)
        self._seen = None
        for substep in range(substeps + 1):
            if substep == delay and self._late is not None:
                self._drive(*self._late)
                self._late = None
            if latency and substep == substeps - latency:
                self._seen = (self._render(), self._joint_rad())
            if substep < substeps:
                self.substep()

    def _lags(self, most: int) -> tuple[int, int]:
        """Return the delay of commands and of observations in substeps."""
        if self.worlds is None:
            return 0, 0
        found = self.worlds.current
        delay, latency = (round(lag_s * SUBSTEPS_PER_S) for lag_s in (found.delay_s, found.latency_s))
        return min(delay, most), min(latency, most)

    def command(self, target_rad: FloatArray) -> FloatArray:
        self._connected()
        target = np.clip(np.asarray(target_rad, np.float32), self._spec.lower_rad, self._spec.upper_rad)
        actuators = self._actuators
        if actuators is None:
            self._send(target, MAX_TORQUE_NM, MAX_SPEED_RAD_S)
        else:
            target = actuators.limit(target, actuators.counted(self._joint_rad()))
            self._send(actuators.counted(target), actuators.torque_nm, actuators.speed_rad_s)
        self._pending_s = 1 / self._spec.control_hz
        return target

    def _send(self, target_rad: FloatArray, torque_nm: float, speed_rad_s: float) -> None:
        """Drive the joints, at once or after the delay of this world."""
        if self.worlds is not None:
            torque_nm *= self.worlds.current.strength
        if self._lags(1)[0]:
            self._late = (target_rad.copy(), torque_nm, speed_rad_s)
        else:
            self._drive(target_rad, torque_nm, speed_rad_s)

    def relax(self) -> None:
        if self._client is not None:
            self._drive(self._joint_rad(), 0.0)
        self._forget_command()

    def vary(self, level: str, seed: int) -> None:
        self.worlds = Worlds(level, seed, 1 / self._spec.control_hz)
        self._forget_command()
        if self._client is not None:
            self.apply_variation()

    def apply_variation(self) -> None:
        """Apply the current variation to the world."""
        if self.worlds is None:
            return
        client, found = self._connected(), self.worlds.current
        for body in (*self._fingers, *self.scene.bodies):
            for link in range(-1, client.getNumJoints(body)):
                mass, friction = self._nominal.setdefault((body, link), client.getDynamicsInfo(body, link)[:2])
                client.changeDynamics(body, link, lateralFriction=friction * found.friction)
                if body in self.scene.bodies and mass > 0:
                    client.changeDynamics(body, link, mass=mass * found.mass)

    def _varied(self, image: Image) -> Image:
        """Return an image as this world's camera shows it."""
        if self.worlds is None:
            return image.copy()
        return self.worlds.current.seen(image, self.worlds.noise())

    # What emulated servos move the fingers with

    def turn(self, joint: int, target_rad: float, torque_nm: float, speed_rad_s: float) -> None:
        """Drive one joint towards an angle, with a max torque and a max speed, from the next substep on."""
        self._connected().setJointMotorControl2(
            self._fingers[joint // 3],
            joint % 3,
            p.POSITION_CONTROL,
            targetPosition=target_rad,
            positionGain=POSITION_GAIN,
            force=torque_nm,
            maxVelocity=speed_rad_s,
        )

    def substep(self) -> None:
        """Simulate 1 / SUBSTEPS_PER_S seconds."""
        self._connected().stepSimulation()

    def end_period(self, period_s: float) -> None:
        """End a control period."""
        self._time_s += period_s
        self._pending_s = 0.0
        if self.on_period is not None:
            self.on_period(self._time_s, self.scene.truth())

    def joint_states(self) -> list[tuple[float, float, float]]:
        """Return angle (rad), speed (rad/s) and torque (N·m) of every joint."""
        states = (self._connected().getJointStates(body, [0, 1, 2]) for body in self._fingers)
        return [(joint[0], joint[1], joint[3]) for finger in states for joint in finger]

    @property
    def time_s(self) -> float:
        """The world's clock, s."""
        return self._time_s

    def camera_image(self) -> Image:
        """Return the camera's current picture, [H, W, 3]."""
        return self._varied(self._render())

    def close(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client, self._fingers = None, []

    def place(self, state: FloatArray, rng: np.random.Generator | None = None) -> None:
        client = self._connected()
        self.scene.place(state)
        self._place_fingers(self._home_rad)
        if rng is not None:
            for _ in range(200):
                self._place_fingers(self._random_pose(rng))
                client.performCollisionDetection()
                if not self._touching():
                    break
            else:
                self._place_fingers(self._home_rad)
        self._pending_s = 0.0
        self._forget_command()
        if self.worlds is not None:
            self.worlds.go_to(self.worlds.number + 1, 0)
        self.apply_variation()

    def view(self, side: int) -> Image:
        """Return a picture from in front and above, the viewpoint of a person."""
        return self._camera_image(side, side, FOR_PEOPLE)[0]

    def truth(self) -> Truth:
        self._connected()
        return self.scene.truth()

    def save_world(self) -> bytes:
        """Return the clock, and position and velocity of every body; a restored world is close, not bit-exact.

        The bytes are plain numbers, not a file of PyBullet's: untrusted bytes are read as numbers alone.
        """
        client = self._connected()
        numbers = [self._time_s]
        for body in range(client.getNumBodies()):
            for part in (*client.getBasePositionAndOrientation(body), *client.getBaseVelocity(body)):
                numbers += part
            for joint in self._joints_of(body):
                numbers += client.getJointState(body, joint)[:2]
        numbers += self._world_numbers()
        numbers += self._goal_numbers()
        return np.array(numbers, np.float64).tobytes()

    def restore_world(self, world: bytes) -> None:
        client = self._connected()
        bodies = range(client.getNumBodies())
        joints = [self._joints_of(body) for body in bodies]
        others = len(self._world_numbers()) + len(self._goal_numbers())
        count = 1 + sum(13 + 2 * len(each) for each in joints) + others
        numbers = iter(world_numbers(world, count))
        self._time_s, self._pending_s = next(numbers), 0.0
        for body in bodies:
            place, turn, speed, spin = (list(islice(numbers, size)) for size in (3, 4, 3, 3))
            client.resetBasePositionAndOrientation(body, place, turn)
            client.resetBaseVelocity(body, speed, spin)
            for joint in joints[body]:
                client.resetJointState(body, joint, next(numbers), next(numbers))
        self._drive(self._joint_rad(), MAX_TORQUE_NM)
        self._forget_command()
        if self.worlds is not None:
            self.worlds.go_to(*(int(max(each, 0)) for each in islice(numbers, 2)))
        self.apply_variation()
        if self._actuators is not None and next(numbers):
            self._actuators.goal_rad = np.array(list(numbers), np.float32)

    def _world_numbers(self) -> list[float]:
        """Return the number of the varied world; empty without variation."""
        return [] if self.worlds is None else [float(self.worlds.number), float(self.worlds.periods)]

    def _forget_command(self) -> None:
        """Clear the joints' target, delayed commands and delayed observations."""
        self._late = self._seen = None
        if self._actuators is not None:
            self._actuators.goal_rad = None

    def _goal_numbers(self) -> list[float]:
        """Return whether there is a target, and the target, as numbers; empty without actuators."""
        if self._actuators is None:
            return []
        goal_rad = self._actuators.goal_rad
        return [0.0] * (1 + len(JOINTS)) if goal_rad is None else [1.0, *map(float, goal_rad)]

    def _joints_of(self, body: int) -> list[int]:
        """Return the joints of a body that turn or slide."""
        kinds = [self._client.getJointInfo(body, joint)[2] for joint in range(self._client.getNumJoints(body))]
        return [joint for joint, kind in enumerate(kinds) if kind in (p.JOINT_REVOLUTE, p.JOINT_PRISMATIC)]

    def occlusion(self) -> float:
        """Return the share of the object's pixels that the fingers hide from the camera, in [0, 1]."""
        client = self._connected()
        seen = self.object_pixels()
        saved = [client.getBasePositionAndOrientation(body) for body in self._fingers]
        for body in self._fingers:
            client.resetBasePositionAndOrientation(body, [0, 0, 100], [0, 0, 0, 1])
        whole = self.object_pixels()
        for body, (position, orientation) in zip(self._fingers, saved, strict=True):
            client.resetBasePositionAndOrientation(body, position, orientation)
        return 1.0 - seen / max(whole, 1)

    @property
    def client(self) -> Any:
        """The pybullet client of the connected twin, for scenes that move their bodies themselves."""
        return self._connected()

    @property
    def fingers(self) -> list[int]:
        """The pybullet bodies of the fingers."""
        return self._fingers

    def _connected(self) -> Any:
        if self._client is None:
            raise RobotError("the twin is not connected; call connect() first")
        return self._client

    def _joint_rad(self) -> FloatArray:
        states = [self._connected().getJointStates(body, [0, 1, 2]) for body in self._fingers]
        return np.array([joint[0] for finger in states for joint in finger], np.float32)

    def _drive(self, target_rad: FloatArray, torque_nm: float, speed_rad_s: float = MAX_SPEED_RAD_S) -> None:
        for index, angle in enumerate(target_rad):
            self.turn(index, float(angle), torque_nm, speed_rad_s)

    def _random_pose(self, rng: np.random.Generator) -> FloatArray:
        lower, upper = self._limits
        pose: FloatArray = rng.uniform(lower, upper).astype(np.float32)
        return pose

    def _place_fingers(self, joint_rad: FloatArray) -> None:
        for index, angle in enumerate(joint_rad):
            self._client.resetJointState(self._fingers[index // 3], index % 3, float(angle), 0.0)
        self._drive(np.asarray(joint_rad, np.float32), MAX_TORQUE_NM)

    def _touching(self) -> bool:
        others = range(self._client.getNumBodies())
        return any(
            self._client.getClosestPoints(body, other, 0.004)
            for body in self._fingers
            for other in others
            if other != body
        )

    def _camera_image(self, width: int, height: int, pose: CameraPose | None = None) -> tuple[Image, Any]:
        """Return the colours, and the body of each pixel."""
        pose = pose or self.scene.camera
        view = p.computeViewMatrix(pose.eye_m, pose.target_m, pose.up)
        lens = p.computeProjectionMatrixFOV(pose.field_of_view_deg, width / height, 0.02, 1.0)
        _, _, colour, _, bodies = self._connected().getCameraImage(
            width, height, view, lens, shadow=0, lightDirection=[0.3, 0.2, 1.0], renderer=p.ER_TINY_RENDERER
        )
        if isinstance(colour, tuple):  # pybullet-arm64 is built without NumPy
            colour = bytearray(colour)
        pixels = np.asarray(colour, np.uint8).reshape(height, width, 4)[:, :, :3]
        return np.ascontiguousarray(pixels), bodies

    def _render(self) -> Image:
        pose = None if self.worlds is None else self.worlds.current.pose(self.scene.camera)
        return self._camera_image(self._spec.camera.width, self._spec.camera.height, pose)[0]

    def object_pixels(self) -> int:
        """Return the number of pixels of an image of 96 x 96 that show the object."""
        _, bodies = self._camera_image(96, 96)
        ids = np.asarray(bodies).reshape(-1)
        return int(np.isin(np.where(ids < 0, -1, ids & ((1 << 24) - 1)), self.scene.bodies).sum())


def from_task(task: Task, *, diagnostic: bool = False, rig: Path | None = None) -> Twin:
    """Build the twin of a task's rig, the robot of `--robot twin`; with a hand's rig file it moves as the hand does."""
    return Twin(
        task.scene(),
        home_rad=task.rig.home_rad,
        control_hz=task.rig.control_hz,
        camera=task.rig.camera,
        workspace=task.rig.limits,
        diagnostic=diagnostic,
        actuators=None if rig is None else _actuators(task, rig),
    )


def _actuators(task: Task, path: Path) -> Actuators:
    try:
        from .dclaw.actuators import Actuators
        from .dclaw.rig import read_rig_for
    except ModuleNotFoundError as error:
        raise missing_package("a rig file", error) from error

    return Actuators(read_rig_for(path, task))
