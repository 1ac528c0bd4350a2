"""Robots with LeRobot's methods, by duck typing; lerobot itself is not imported."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, Protocol

import numpy as np
import PIL.Image

from r3l.config import UserError
from r3l.config.schema import Action
from r3l.robot import (
    CameraSpec,
    FloatArray,
    Image,
    Joint,
    Observation,
    Punctuality,
    Robot,
    RobotError,
    RobotSpec,
    Schedule,
    Trouble,
)
from r3l.run.images import fit

DEGREE_RAD = math.pi / 180
POSITION = ".pos"
"""Suffix of a joint's name in LeRobot's observations and actions."""
MAX_FAILURES = 5
"""Readings or commands in a row that may fail before the robot pauses."""


class Peer(Protocol):
    """The used part of LeRobot's `Robot`. The object may also have `is_calibrated`, and `bus` with its torque."""

    @property
    def observation_features(self) -> Mapping[str, Any]:
        """float for a joint, (height, width, 3) for a camera, by name; known before `connect`."""
        ...

    @property
    def action_features(self) -> Mapping[str, Any]:
        """float by name; known before `connect`."""
        ...

    def connect(self, *arguments: Any, **options: Any) -> None:
        """Open the devices. `calibrate=False` is passed if accepted: calibration asks a person questions."""
        ...

    def get_observation(self) -> Mapping[str, Any]:
        """Return the values that `observation_features` names."""
        ...

    def send_action(self, action: dict[str, Any]) -> Mapping[str, Any]:
        """Send joints to a target; return the target that was really sent."""
        ...

    def disconnect(self) -> None:
        """Release the devices."""
        ...


class LeRobot(Robot):
    """A robot behind LeRobot's methods, with torque control: off until the first command, and at the end.

    `connect` calls the peer's, which may put torque on for a moment. An exception of the peer's methods leaves an
    observation out; repeated exceptions pause the robot.
    """

    def __init__(
        self,
        peer: Peer,
        limits: Mapping[str, tuple[float, float]],
        *,
        control_hz: float,
        unit_rad: float = DEGREE_RAD,
        camera: CameraSpec | None = None,
        view: str | None = None,
        release: Callable[[], object] | None = None,
        hold: Callable[[], object] | None = None,
    ) -> None:
        """Take a peer that is not yet connected.

        Args:
            peer: the object.
            limits: min and max of every joint that it acts on, by its name without `.pos`, in the peer's unit.
            control_hz: control periods per second.
            unit_rad: the peer's unit in rad; degrees by default.
            camera: size of the images; the view is cropped to this shape and averaged down.
            view: the camera of the peer to use; needed if it has more than one.
            release: takes torque off; `peer.bus.disable_torque` by default.
            hold: puts torque on; `peer.bus.enable_torque` by default.

        Raises:
            UserError: the peer has other joints, no such camera, or no way to take torque off.
        """
        self._peer, self._unit_rad, self._view = peer, unit_rad, _view(peer, view)
        bus = getattr(peer, "bus", None)
        release, hold = release or getattr(bus, "disable_torque", None), hold or getattr(bus, "enable_torque", None)
        if release is None or hold is None:
            raise UserError(f"{_name(peer)} has no bus to take torque off; pass release= and hold= to LeRobot")
        self._release, self._hold = release, hold
        _require_joints(peer, limits)
        joints = tuple(Joint(name, low * unit_rad, high * unit_rad) for name, (low, high) in limits.items())
        self._spec = RobotSpec(joints, control_hz, camera or CameraSpec())
        self._schedule = Schedule(1 / control_hz)
        self._image: Image | None = None
        self._is_connected = self._is_holding = self._is_moving = False
        self._failures = 0
        self._failure = ""

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def punctuality(self) -> Punctuality:
        return self._schedule.punctuality

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        if not self._failures:
            return ()
        action: Action = "pause" if self._failures >= MAX_FAILURES else "skip"
        return (Trouble("lerobot", action, f"{_name(self._peer)} does not answer ({self._failure}); check its cables"),)

    def connect(self) -> None:
        if self._is_connected:
            raise RobotError(f"{_name(self._peer)} is already connected; close it first")
        self._is_connected = True
        try:
            self._demand(self._open, "cannot be connected")
            if not getattr(self._peer, "is_calibrated", True):
                raise RobotError(f"{_name(self._peer)} is not calibrated; calibrate it as LeRobot says, then go on")
            self._image = self._view_of(self._demand(self._peer.get_observation, "cannot be observed"))
        except BaseException:
            with contextlib.suppress(RobotError):  # the first error tells more
                self.close()
            raise

    def observe(self) -> Observation:
        image = self._connected()
        if self._is_moving:
            self._schedule.wait_to_observe()
            self._is_moving = False
        if self._failures >= MAX_FAILURES:
            self._attempt(self._reopen)
        joint_rad = np.full(len(self._spec.joints), np.nan, np.float32)
        found = self._attempt(self._peer.get_observation)
        if found is not None:
            joint_rad = self._joints(found)
            self._image = image = self._view_of(found)
        return Observation(image.copy(), joint_rad, time.monotonic(), np.zeros(0, np.float32))

    def command(self, target_rad: FloatArray) -> FloatArray:
        self._connected()
        target = np.asarray(target_rad, np.float32)
        if target.shape != self._spec.lower_rad.shape or not np.isfinite(target).all():
            raise RobotError(f"command refused: {target}, expected {len(self._spec.joints)} finite values in rad")
        target = np.clip(target, self._spec.lower_rad, self._spec.upper_rad)
        self._schedule.wait_to_command()
        if self._failures < MAX_FAILURES and self._holds():
            sent = self._attempt(lambda: self._peer.send_action(self._action(target)))
            if sent is not None:
                where = self._joints(sent)
                target = np.where(np.isfinite(where), where, target).astype(np.float32)
        self._schedule.written()
        self._is_moving = True
        return target

    def relax(self) -> None:
        self._schedule.forget()
        self._is_moving = self._is_holding = False
        if self._is_connected:
            self._demand(self._release, "did not confirm to have no torque; take its power away")

    def close(self) -> None:
        if not self._is_connected:
            return
        try:
            self.relax()
        finally:
            self._is_connected, self._image, self._failures = False, None, 0
            if getattr(self._peer, "is_connected", True):
                self._demand(self._peer.disconnect, "cannot be disconnected")

    def _open(self) -> None:
        """Connect the peer, without questions, and take its torque off."""
        asks = "calibrate" in signature(self._peer.connect).parameters
        self._peer.connect(**({"calibrate": False} if asks else {}))
        self._release()

    def _reopen(self) -> None:
        """Connect the peer again: its adapter may have been away."""
        self._is_holding = False
        with contextlib.suppress(Exception):  # the peer may think that it is not connected
            self._peer.disconnect()
        self._open()

    def _holds(self) -> bool:
        """Put torque on at the joints' positions, if it is off; return whether it is on."""
        if self._is_holding:
            return True
        found = self._attempt(self._peer.get_observation)
        here = None if found is None else self._joints(found)
        if here is None or not np.isfinite(here).all():
            return False
        self._is_holding = (
            self._attempt(lambda: self._peer.send_action(self._action(here))) is not None
            and self._attempt(lambda: (self._hold(),)) is not None
        )
        return self._is_holding

    def _action(self, joint_rad: FloatArray) -> dict[str, Any]:
        return {
            joint.name + POSITION: float(angle) / self._unit_rad
            for joint, angle in zip(self._spec.joints, joint_rad, strict=True)
        }

    def _joints(self, found: Mapping[str, Any]) -> FloatArray:
        """Return joints in rad, NaN for a missing joint."""
        values = [found.get(joint.name + POSITION) for joint in self._spec.joints]
        return np.array([np.nan if value is None else float(value) * self._unit_rad for value in values], np.float32)

    def _view_of(self, found: Mapping[str, Any]) -> Image:
        picture = np.asarray(found.get(self._view))
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise RobotError(
                f"{_name(self._peer)} shows {picture.dtype} {list(picture.shape)} as {self._view!r}, expected uint8 "
                "[H, W, 3] in RGB; set its camera's color_mode"
            )
        return fit(PIL.Image.fromarray(picture), (self._spec.camera.height, self._spec.camera.width))

    def _attempt(self, do: Callable[[], Any]) -> Any | None:
        """Make a call that may fail at times; None if it fails."""
        try:
            found = do()
        except Exception as error:  # noqa: BLE001 (a stranger's object may raise anything)
            self._failures += 1
            self._failure = " ".join(str(error).split())[:120] or type(error).__name__
            return None
        self._failures = 0
        return found

    def _demand(self, do: Callable[[], Any], what: str) -> Any:
        """Make a call that must not fail; RobotError if it does."""
        try:
            return do()
        except Exception as error:  # an object of unknown code may raise anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise RobotError(f"{_name(self._peer)} {what} ({reason})") from error

    def _connected(self) -> Image:
        if self._image is None:
            raise RobotError(f"{_name(self._peer)} is not connected; call connect() first")
        return self._image


def _name(peer: Peer) -> str:
    return str(getattr(peer, "name", type(peer).__name__))


def _view(peer: Peer, view: str | None) -> str:
    """Return the name of the camera to use."""
    views = [name for name, kind in peer.observation_features.items() if isinstance(kind, tuple) and len(kind) == 3]
    if view is None and len(views) == 1:
        return views[0]
    if view in views:
        return str(view)
    shown = ", ".join(views) or "none"
    raise UserError(f"{_name(peer)} has cameras {shown}; view is {view!r}: pass the name of one of them")


def _require_joints(peer: Peer, limits: Mapping[str, tuple[float, float]]) -> None:
    acts = {name.removesuffix(POSITION) for name in peer.action_features if name.endswith(POSITION)}
    others = [name for name in peer.action_features if not name.endswith(POSITION)]
    if others or acts != set(limits):
        raise UserError(
            f"{_name(peer)} acts on {', '.join(sorted(peer.action_features)) or 'nothing'}, limits are of "
            f"{', '.join(sorted(limits)) or 'nothing'}; expected those of every joint, and positions alone"
        )
    unseen = [name for name in limits if name + POSITION not in peer.observation_features]
    if unseen:
        raise UserError(f"{_name(peer)} does not observe {unseen[0]}{POSITION}; expected every joint that it acts on")
    for name, (low, high) in limits.items():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"limits of {name} are {low:g} to {high:g}, expected two numbers, the lower one first")
