"""`r3l emulate`: emulated Dynamixel servos."""

from __future__ import annotations

from dataclasses import dataclass

from r3l.cli.options import OptionalPath


@dataclass(frozen=True)
class EmulateCommand:
    """Emulate Dynamixel servos on a pseudo-terminal, for drivers without hardware.

    Prints the port to open, which carries the real protocol. The options add faults of the wire and the adapter.
    SIGUSR1 unplugs the adapter for two seconds, SIGUSR2 interrupts the servos' power for a moment, Ctrl-C ends.
    """

    ids: tuple[int, ...] = (10, 11, 12, 20, 21, 22, 30, 31, 32)
    """Ids of the servos, D'Claw's nine by default; an id given twice makes two servos with the same id."""
    model: str = "XM430-W210"
    """Model of the servos: XM430-W210, XM430-W350 or XL330-M288."""
    baud: int = 1_000_000
    """Baud rate of the servos; at any other rate they receive nothing."""
    link: OptionalPath = None
    """Symbolic link to the port; its name stays the same after the adapter was unplugged."""
    drop: float = 0.0
    """Share of packets that are lost."""
    corrupt: float = 0.0
    """Share of packets with one flipped bit."""
    duplicate: float = 0.0
    """Share of answers that come twice."""
    garbage: float = 0.0
    """Share of answers with noise before them."""
    late: float = 0.0
    """Share of answers that come late."""
    late_s: float = 0.1
    """Delay of a late answer, s."""
    echo: bool = False
    """Let the adapter send back every byte that it is sent."""
    silent: tuple[int, ...] = ()
    """Ids of servos that receive everything and answer nothing."""
    seed: int = 0
    """Seed of the faults."""

    def __call__(self) -> int:
        from .emulate import emulate
        from .emulator import Faults

        faults = Faults(
            drop=self.drop,
            corrupt=self.corrupt,
            duplicate=self.duplicate,
            garbage=self.garbage,
            late=self.late,
            late_s=self.late_s,
            echo=self.echo,
            silent=set(self.silent),
        )
        emulate(self.ids, self.model, self.baud, link=self.link, faults=faults, seed=self.seed)
        return 0
