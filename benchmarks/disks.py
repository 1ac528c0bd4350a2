"""File systems to fill up and to break; mounting them needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE_BYTES = 400 << 20


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """Mount a tmpfs of `mib` MiB and yield its folder."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


class FailingDisk:
    """An ext4 file system in a file that turns read-only at its first error, as most Linux disks do."""

    def __init__(self, folder: Path) -> None:
        self.image, self.folder = folder / "image", folder / "disk"
        self.folder.mkdir(parents=True)
        with self.image.open("wb") as file:
            file.truncate(SIZE_BYTES)
        self._do("mkfs.ext4", "-q", str(self.image))
        self._mount()

    def break_down(self) -> None:
        """Make the kernel report an error in the file system."""
        device = os.stat(self.folder).st_dev
        block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        Path(f"/sys/fs/ext4/{block}/trigger_fs_error").write_text("1")

    def repair(self) -> None:
        """Unmount the file system, repair it and mount it again."""
        self._do("umount", str(self.folder))
        subprocess.run(["e2fsck", "-fy", str(self.image)], check=False, capture_output=True)
        self._mount()

    def close(self) -> None:
        """Unmount the file system."""
        self._do("umount", "-l", str(self.folder))

    def _mount(self) -> None:
        self._do("mount", "-o", "loop,errors=remount-ro", str(self.image), str(self.folder))

    def _do(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)
