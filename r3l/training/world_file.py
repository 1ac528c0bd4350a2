"""The world of a simulated robot on the disk, for the next actor process. A real world keeps its own state."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from r3l.robot.base import RobotError, SimulatedRobot
from r3l.run.files import read, write_file

MAX_BYTES = 64 << 20


class WorldFile:
    """Saves and restores the world of a simulated robot; a thread writes the file."""

    def __init__(self, path: Path, robot: SimulatedRobot, tell: Callable[[str, str], None]) -> None:
        """`tell(kind, message)` writes an event."""
        self._path, self._robot, self._tell = path, robot, tell
        self._thread = ThreadPoolExecutor(1, "world")
        self._writing: Future[None] | None = None

    def save(self) -> None:
        """Begin to write the world, unless the last one is still being written."""
        if self._writing is not None:
            if not self._writing.done():
                return
            if self._writing.exception() is not None:
                print(f"the world cannot be saved: {self._writing.exception()}", flush=True)
        self._writing = self._thread.submit(write_file, self._path, self._robot.save_world())

    def restore(self) -> bool:
        """Put the robot into the saved world; False where there is none."""
        if not self._path.exists():
            return False
        try:
            self._robot.restore_world(read(self._path, MAX_BYTES))
        except (RobotError, OSError, ValueError) as error:
            self._tell("world", f"{error}; the world begins anew")
        return True

    def close(self) -> None:
        """Wait until the world is written."""
        self._thread.shutdown()
