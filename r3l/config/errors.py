"""Errors that the command line tells in one line."""

import sys

EXTRAS = {"serial": "dynamixel", "cv2": "camera", "gymnasium": "gym"}
"""The extra of this package that brings an optional package."""
PYBULLET = "pybullet==3.2.7" if sys.version_info < (3, 12) else "pybullet-arm64==3.2.8"
"""The distribution of the simulator: pybullet has no wheels for Python 3.12 and later, its fork pybullet-arm64 has."""


class ReportedError(Exception):
    """A failure that a person can act on: the message is the one line that the command line prints; exit code 2."""


class UserError(ReportedError):
    """Bad input: the message says what is wrong, what is expected and the next step."""


def missing_package(what: str, error: ModuleNotFoundError) -> UserError:
    """Return the error for a part that needs a package which is not installed; it says how to install the package."""
    message = f"{what} needs the package {error.name!r}, which is not installed"
    if error.name in ("pybullet", "pybullet_utils"):
        message += f"; pip install {PYBULLET}"
    elif error.name in EXTRAS:
        message += f"; in the clone: pip install '.[{EXTRAS[error.name]}]'"
    return UserError(message)
