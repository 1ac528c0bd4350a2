"""Settings of a run: everything that decides a run, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from r3l.config.errors import UserError
from r3l.config.models import ClassifierConfig, NoveltyConfig, SACConfig, VAEConfig
from r3l.config.ranges import MANY as MANY
from r3l.config.ranges import Count, Positive, Range, Weight, ZeroToOne, check_ranges

Action = Literal["skip", "pause", "stop", "warn"]
"""skip: leave the observation out; too many in a row pause the robot. pause: relax and wait until the check passes.
stop: end the run. warn: write an event and go on.
"""
Randomization = Literal["none", "mild", "strong", "shifted", "delayed"]
"""Levels of domain randomization; hardware/variation.py holds their amounts."""
Limit = Annotated[float, Range(0.5, 10**6)]


@dataclass(frozen=True)
class PhasesConfig:
    """How the actor alternates between exploration, task and perturbation."""

    exploration_steps: Annotated[int, Range(10, MANY)] = 2000
    """Env steps of random actions at the start, which train the encoder and the judge."""
    task_steps: Positive = 50
    """Env steps of a task episode."""
    perturbation_steps: Positive = 25
    """Env steps of a perturbation episode."""
    perturbation_share: ZeroToOne = 0.5
    """Share of the episodes that are perturbations."""
    between: Literal["home", "nothing", "diagnostic-reset"] = "home"
    """Between episodes: move the fingers home by script, do nothing, or place the object (ground truth)."""
    homing_steps: Annotated[int, Range(0, 1000)] = 8
    """Control periods of the homing move."""


@dataclass(frozen=True)
class HealthConfig:
    """When the success classifier counts as unhealthy."""

    check_every: Count = 500
    """Env steps between two checks; 0 never checks."""
    min_auc: ZeroToOne = 0.85
    """Min ROC-AUC of held-out goal images against other frames; 0.5 is chance."""
    min_score: ZeroToOne = 0.5
    """Min mean score of the held-out goal images, as a share of its best so far."""
    max_elsewhere: ZeroToOne = 0.5
    """Max mean score of other frames, as a share of the held-out goal images' mean score."""
    grace_steps: Count = 2000
    """Env steps of learning within which the classifier must become healthy for the first time."""


@dataclass(frozen=True)
class SupervisionConfig:
    """How the supervisor keeps actor and learner running."""

    actor_limit_s: Limit = 10.0
    """Max time without progress of the actor; then it is restarted."""
    learner_limit_s: Limit = 120.0
    """Max time without progress of the learner; then it is restarted."""
    start_limit_s: Annotated[float, Range(1, 10**6)] = 120.0
    """Max time that either process may take to start."""
    backoff_s: Annotated[float, Range(0, 3600)] = 0.5
    """Pause before a restart, doubled with each restart of the last hour."""
    max_backoff_s: Annotated[float, Range(0, 86400)] = 60.0
    """Max pause before a restart."""
    max_restarts: Count = 20
    """Max restarts of a process per hour; then the run ends in a safe state."""
    learner_away_s: Limit = 300.0
    """Max time without progress of the learner while the actor acts with its last weights; then the robot relaxes."""
    lead_steps: Positive = 32
    """Max env steps that the actor is ahead of the learner's updates."""
    publish_every_s: Annotated[float, Range(0.01, 3600)] = 1.0
    """Time between two publications of the acting weights."""
    checkpoint_every_s: Annotated[float, Range(1, 10**6)] = 60.0
    """Time between two checkpoints, besides `checkpoint_every`."""
    stop_limit_s: Annotated[float, Range(1, 3600)] = 10.0
    """Max time that a stop may take; then the processes are killed."""


@dataclass(frozen=True)
class Check:
    """When a check of observations fails, and what follows. Only under `warn` is a failed observation stored."""

    threshold: float
    action: Action = "pause"
    """Action after a failed check: skip the observation, pause, stop the run, or warn."""


@dataclass(frozen=True)
class ChecksConfig:
    """Checks of every observation; for example --set checks.dark.action=warn changes what follows."""

    dark: Annotated[Check, Range(0, 255)] = Check(12.0)
    """Min mean grey level, 0 to 255, of an image; half the goal images' level if that is less."""
    saturated: Annotated[Check, Range(0, 1)] = Check(0.5)
    """Max share of saturated pixels, beyond the goal images' share."""
    frozen: Annotated[Check, Range(2, MANY)] = Check(5.0)
    """Identical frames in a row, while joints moved, at which the camera counts as frozen."""
    late: Annotated[Check, Range(1, 10**6)] = Check(3.0, "skip")
    """Max control periods between two observations."""
    joint_impossible: Annotated[Check, Range(0, 10**6)] = Check(0.5, "skip")
    """Max rad that a joint may read beyond its limits; a reading that is not finite always fails."""
    joint_frozen: Annotated[Check, Range(2, MANY)] = Check(10.0)
    """Identical readings in a row, while most joints were sent elsewhere, at which joints count as frozen."""
    moved: Annotated[Check, Range(0, 1)] = Check(0.15)
    """Max gain, 0 to 1, of the goal images' background at another place; a greater gain means that the camera moved."""


@dataclass(frozen=True)
class NumericsConfig:
    """When learning counts as broken. The learner then goes back to the last good checkpoint."""

    check_every: Count = 50
    """Updates between two checks; 0 never checks."""
    max_value: Annotated[float, Range(1e-6, 1e30)] = 10.0
    """Max mean magnitude of a critic's values, per largest return that its rewards and discount allow."""
    min_novelty: ZeroToOne = 1e-6
    """Min mean, and min standard deviation over recent frames, of the novelty reward."""
    min_spread: ZeroToOne = 1e-4
    """Min standard deviation of the classifier's probability over goal images and other frames."""
    max_rollbacks_per_hour: Annotated[int, Range(0, 1000)] = 3
    """Max times per hour that the learner goes back; then the run ends."""


@dataclass(frozen=True)
class PersistenceConfig:
    """When an object counts as stuck. The answers grow: more perturbation, a scripted sweep, a pause."""

    after_steps: Count = 3000
    """Env steps without visible motion of the object after which it counts as stuck; 0 never checks."""
    step_every: Positive = 1500
    """Env steps from one answer to the next, stronger one."""


@dataclass(frozen=True)
class Config:
    """The run as a whole. config.json holds these settings from before the first action."""

    task: str = "valve"
    """Name of a task (`r3l tasks` lists them), or the path of a Python file that has one."""
    robot: str = "twin"
    """Name of a robot; `r3l robots` lists them."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of every random generator."""
    steps: Positive = 30_000
    """Env steps of the run, with exploration and without homing."""
    sync: bool = False
    """Run actor and learner in turns in one process, deterministic by seed, instead of side by side."""
    randomize: Randomization = "none"
    """Domain randomization of the twin, by seed: light, camera, noise, dynamics, delays."""
    real_time: bool = False
    """Run a simulated robot at the control rate of the wall clock, as a real robot always runs."""
    quota_gib: Annotated[float, Range(0, 10**6)] = 0.0
    """Max GiB of the run directory; beyond it the robot pauses. 0: all free space."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the networks."""
    state: Literal["latent", "pixels", "diagnostic-true-state"] = "latent"
    """Input of the policies: the encoder's latent, pixels with convolutions, or the true state (ground truth)."""
    reward: Literal["classifier", "diagnostic-true-reward"] = "classifier"
    """Reward of the task policy: the success classifier's, or the task's true reward (ground truth)."""
    novelty_bonus: Weight = 0.0
    """Weight of the novelty reward that is added to the task reward."""
    window: Annotated[int, Range(1, 16)] = 2
    """Consecutive observations that a policy sees; one frame shows no velocity."""
    update_ratio: Annotated[float, Range(0, 100)] = 1.0
    """Learner updates per env step after exploration."""
    update_acting_only: bool = False
    """Update only the agent that acted."""
    separate_replays: bool = False
    """Train each agent only on transitions of its own phase."""
    replay_capacity: Annotated[int, Range(16, MANY)] = 200_000
    """Rows kept in memory for learning; the experience store keeps all rows."""
    evaluate_every: Count = 2_500
    """Env steps between two evaluations of a weight snapshot in a second twin; 0 never evaluates."""
    checkpoint_every: Positive = 2_500
    """Env steps between two checkpoints."""
    keep_checkpoints: Annotated[int, Range(1, 1000)] = 3
    """Checkpoints kept; older ones are deleted."""
    phases: PhasesConfig = field(default_factory=PhasesConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    sac: SACConfig = field(default_factory=SACConfig)
    novelty: NoveltyConfig = field(default_factory=NoveltyConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    numerics: NumericsConfig = field(default_factory=NumericsConfig)
    persistence: PersistenceConfig = field(default_factory=PersistenceConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)

    def __post_init__(self) -> None:
        """Raise UserError for the first value out of its range, and for settings that contradict each other."""
        check_ranges(self)
        if not self.task.isprintable():
            raise UserError(f"config key 'task' is {self.task!r}, expected a name or the path of a Python file")
        for key, sees, has_latent in (
            ("novelty.sees", self.novelty.sees, self.state != "pixels"),
            ("classifier.sees", self.classifier.sees, self.state == "latent" or self.reward != "classifier"),
        ):
            if sees == "latent" and not has_latent:
                raise UserError(f"config key {key!r} is 'latent', and state {self.state!r} has none; set it to pixels")

    def latent_size(self, diagnostics: int = 0) -> int:
        """Return the length of the latent state, for a robot that shows so many ground-truth values."""
        return {"latent": self.vae.latent_size, "pixels": 0, "diagnostic-true-state": diagnostics}[self.state]

    @property
    def reads_truth(self) -> bool:
        """Whether any part of the loop reads the twin's ground truth: then the run is a diagnostic one."""
        return "diagnostic" in (self.state + self.reward + self.phases.between)
