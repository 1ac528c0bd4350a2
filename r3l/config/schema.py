"""What the user sets: one frozen dataclass, its presets and variants, and how it travels to JSON and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from r3l.config.errors import UserError as UserError
from r3l.config.models import ClassifierConfig, NoveltyConfig, SACConfig, VAEConfig

Action = Literal["skip", "pause", "stop", "warn"]
"""skip: leave the observation out; too many in a row pause. pause: relax and wait until it is over. stop: end the run.
warn: go on all the same.
"""


@dataclass(frozen=True)
class PhasesConfig:
    """How the actor alternates."""

    exploration_steps: int = 2000
    """Random actions first; they train the encoder and the judge."""
    task_steps: int = 50
    """Length of a task episode in env steps."""
    perturbation_steps: int = 25
    """Length of a perturbation episode in env steps."""
    perturbation_share: float = 0.5
    """Share of the episodes that are perturbations; 0 never perturbs."""
    between: Literal["home", "nothing", "diagnostic-reset"] = "home"
    """Between episodes: move the fingers home by script, do nothing, or (ground truth!) place the object."""
    homing_steps: int = 8
    """Control periods of the homing move."""


@dataclass(frozen=True)
class HealthConfig:
    """When the learned reward counts as ill."""

    check_every: int = 500
    """Env steps between two checks; 0 never checks."""
    min_auc: float = 0.85
    """Held-out goal images must rank above other frames at least this well (ROC-AUC; 0.5 is chance)."""
    min_score: float = 0.5
    """The held-out goal images' mean score must stay above this share of its best."""
    max_elsewhere: float = 0.5
    """Other frames' mean score must stay below this share of the held-out goal images'."""
    grace_steps: int = 2000
    """Env steps of learning that a classifier may take to become well for the first time."""


@dataclass(frozen=True)
class SupervisionConfig:
    """How the processes of a run are kept going."""

    actor_limit_s: float = 10.0
    """The actor hangs when it made no progress for so long."""
    learner_limit_s: float = 120.0
    """The learner hangs when it made no progress for so long."""
    start_limit_s: float = 120.0
    """Either process may take so long to begin."""
    backoff_s: float = 0.5
    """Pause before a process is restarted, doubled with each restart of the last hour."""
    max_backoff_s: float = 60.0
    max_restarts: int = 20
    """Restarts of a process within an hour, after which the run ends in a safe state."""
    learner_away_s: float = 300.0
    """The actor acts with its last weights for so long while the learner makes no progress; then it relaxes."""
    lead_steps: int = 32
    """Env steps that the actor may be ahead of the learner's updates."""
    publish_every_s: float = 1.0
    """Seconds between two publications of the weights that act."""
    checkpoint_every_s: float = 60.0
    """Seconds between two checkpoints, besides checkpoint_every."""
    stop_limit_s: float = 10.0
    """Seconds that a stop may take; then processes are killed."""


@dataclass(frozen=True)
class Check:
    """Where one check begins to fail, and what is done then.

    Whatever fails a check never reaches the experience store, but under `warn`.
    """

    threshold: float
    action: Action = "pause"


@dataclass(frozen=True)
class ChecksConfig:
    """Every check by its name. An action is changed like this: --set checks.dark.action=warn."""

    dark: Check = field(default_factory=lambda: Check(12.0))
    """Mean grey level of the image, 0 to 255, below which it is dark; half the goal images', where that is less."""
    saturated: Check = field(default_factory=lambda: Check(0.5))
    """Share of the pixels that are as bright as can be, beyond the goal images', above which it is saturated."""
    frozen: Check = field(default_factory=lambda: Check(5))
    """Identical frames in a row, though joints moved, from which on the camera is frozen."""
    late: Check = field(default_factory=lambda: Check(3.0, "skip"))
    """Control periods from one observation to the next, above which it is late."""
    joint_impossible: Check = field(default_factory=lambda: Check(0.5, "skip"))
    """How far beyond its limits, in rad, a joint is believed to be; what is not finite never is."""
    joint_frozen: Check = field(default_factory=lambda: Check(10))
    """Identical readings of all joints, though most were sent elsewhere, from which on they are frozen."""
    moved: Check = field(default_factory=lambda: Check(0.15))
    """How much better, 0 to 1, the goal images' background fits elsewhere than in its place when the camera moved."""


@dataclass(frozen=True)
class NumericsConfig:
    """When learning counts as broken, and how often it goes back to the last good checkpoint."""

    check_every: int = 50
    """Updates between two looks; 0 never looks."""
    max_value: float = 10.0
    """Mean magnitude of a critic's values from which on it counts as exploding, in units of the largest return that
    its rewards and the discount allow."""
    min_novelty: float = 1e-6
    """Mean novelty reward, and its deviation over recent frames, below which it is dead."""
    min_spread: float = 1e-4
    """Deviation of the classifier's probability over goals and other frames below which it has collapsed."""
    max_rollbacks_per_hour: int = 3
    """How often an hour it goes back; then the run ends."""


@dataclass(frozen=True)
class PersistenceConfig:
    """When an object counts as stuck, and how long each answer is given."""

    after_steps: int = 3000
    """Env steps without motion of the object, seen in the images, from which on it is stuck; 0 never looks."""
    step_every: int = 1500
    """Env steps that each answer is given before the next, stronger one."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a run, saved as config.json before its first action."""

    task: str = "valve"
    robot: str = "twin"
    seed: int = 0
    steps: int = 30_000
    """Env steps of the run, exploration included, homing not."""
    sync: bool = False
    """Actor and learner take turns in one process, deterministic by seed, instead of running side by side."""
    randomize: Literal["none", "mild", "strong", "shifted", "delayed"] = "none"
    """How much the twin's world varies, on purpose and by seed: light, camera, noise, dynamics, delays."""
    real_time: bool = False
    """A simulated robot keeps the control rate of the clock on the wall; a real one always does."""
    quota_gib: float = 0.0
    """GiB that the run directory may take; the robot pauses where more would be needed. 0: all that is free."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    state: Literal["latent", "pixels", "diagnostic-true-state"] = "latent"
    """What the policies see: the VAE's latent, pixels with convolutions of their own, or (ground truth!) the state."""
    reward: Literal["classifier", "diagnostic-true-reward"] = "classifier"
    """The task policy's reward: the success classifier, or (ground truth!) the task's true reward."""
    novelty_bonus: float = 0.0
    """Weight of the novelty reward added to the task reward."""
    window: int = 2
    """Consecutive observations that the policies see: one frame carries no velocity."""
    update_ratio: float = 1.0
    """Updates of each agent per env step after exploration."""
    update_acting_only: bool = False
    """Update only the agent that acted."""
    separate_replays: bool = False
    """Each agent learns only from transitions of its own phase."""
    replay_capacity: int = 200_000
    """Rows kept in memory for learning; the experience store keeps all."""
    evaluate_every: int = 2_500
    """Env steps between evaluations of weight snapshots in a second twin; 0 never evaluates."""
    checkpoint_every: int = 2_500
    """Env steps between checkpoints."""
    keep_checkpoints: int = 3
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
        """Raise UserError for the first value out of its range."""
        for key, (low, high) in RANGES.items():
            value: Any = self
            for part in key.split("."):
                value = getattr(value, part)
            if not low <= value <= high:
                raise UserError(f"config key {key!r} is {value}, expected {low} to {high}")
        if not self.task.isprintable():
            raise UserError(f"config key 'task' is {self.task!r}, expected a name or the path of a Python file")
        if not 1 <= len(self.sac.hidden) <= MAX_LAYERS or not all(1 <= width <= 65536 for width in self.sac.hidden):
            shown = str(list(self.sac.hidden[: MAX_LAYERS + 1]))
            raise UserError(f"config key 'sac.hidden' is {shown}, expected 1 to {MAX_LAYERS} widths of 1 to 65536")
        if self.vae.image_size % 8:
            raise UserError(f"config key 'vae.image_size' is {self.vae.image_size}, expected a multiple of 8")
        classifies = self.reward == "classifier"
        for key, sees, has_latent in (
            ("novelty.sees", self.novelty.sees, self.state != "pixels"),
            ("classifier.sees", self.classifier.sees, self.state == "latent" or not classifies),
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


MAX_LAYERS = 16
MANY = 10**9
RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, MANY),
    "window": (1, 16),
    "novelty_bonus": (0, 1000),
    "update_ratio": (0, 100),
    "replay_capacity": (16, MANY),
    "evaluate_every": (0, MANY),
    "checkpoint_every": (1, MANY),
    "keep_checkpoints": (1, 1000),
    "phases.exploration_steps": (10, MANY),
    "phases.task_steps": (1, MANY),
    "phases.perturbation_steps": (1, MANY),
    "phases.perturbation_share": (0, 1),
    "phases.homing_steps": (0, 1000),
    "vae.latent_size": (1, 1024),
    "vae.image_size": (8, 512),
    "vae.beta": (0, 1000),
    "vae.reconstruction_weight": (0, 1000),
    "vae.learning_rate": (0, 1),
    "vae.batch_size": (1, 65536),
    "vae.pretrain_updates": (0, MANY),
    "vae.update_every": (0, MANY),
    "vae.refresh_every": (1, MANY),
    "vae.tether": (0, 1000),
    "vae.keypoints": (0, 1024),
    "vae.jitter": (0, 2),
    "vae.neighbours": (0, 1000),
    "sac.critics": (1, 64),
    "sac.learning_rate": (0, 1),
    "sac.batch_size": (1, 65536),
    "sac.discount": (0, 1),
    "sac.horizon": (1, 100),
    "sac.tau": (0, 1),
    "sac.averaging": (0, 1),
    "sac.initial_temperature": (1e-6, 100),
    "sac.target_entropy_per_action": (-100, 100),
    "sac.noise_correlation": (0, 0.999),
    "novelty.motion": (0, 1000),
    "novelty.hidden": (1, 65536),
    "novelty.embedding": (1, 65536),
    "novelty.learning_rate": (0, 1),
    "novelty.batch_size": (1, 65536),
    "novelty.update_every": (1, MANY),
    "novelty.max_reward": (0, 1e6),
    "novelty.decay": (0, 0.999999),
    "classifier.hidden": (1, 65536),
    "classifier.learning_rate": (0, 1),
    "classifier.weight_decay": (0, 1),
    "classifier.batch_size": (2, 65536),
    "classifier.update_every": (1, MANY),
    "classifier.pretrain_updates": (0, MANY),
    "classifier.mixup_alpha": (0, 100),
    "classifier.noise": (0, 1000),
    "classifier.exploration_share": (0, 1),
    "classifier.logit_scale": (1e-6, 1e6),
    "health.check_every": (0, MANY),
    "health.min_auc": (0, 1),
    "health.min_score": (0, 1),
    "health.max_elsewhere": (0, 1),
    "health.grace_steps": (0, MANY),
    "quota_gib": (0, 1e6),
    "numerics.check_every": (0, MANY),
    "numerics.max_value": (1e-6, 1e30),
    "numerics.min_novelty": (0, 1),
    "numerics.min_spread": (0, 1),
    "numerics.max_rollbacks_per_hour": (0, 1000),
    "persistence.after_steps": (0, MANY),
    "persistence.step_every": (1, MANY),
    "supervision.actor_limit_s": (0.5, 1e6),
    "supervision.learner_limit_s": (0.5, 1e6),
    "supervision.start_limit_s": (1, 1e6),
    "supervision.backoff_s": (0, 3600),
    "supervision.max_backoff_s": (0, 86400),
    "supervision.max_restarts": (0, MANY),
    "supervision.learner_away_s": (0.5, 1e6),
    "supervision.lead_steps": (1, MANY),
    "supervision.publish_every_s": (0.01, 3600),
    "supervision.checkpoint_every_s": (1, 1e6),
    "supervision.stop_limit_s": (1, 3600),
    "checks.dark.threshold": (0, 255),
    "checks.saturated.threshold": (0, 1),
    "checks.frozen.threshold": (2, MANY),
    "checks.late.threshold": (1, 1e6),
    "checks.joint_impossible.threshold": (0, 1e6),
    "checks.joint_frozen.threshold": (2, MANY),
    "checks.moved.threshold": (0, 1),
}
"""Smallest and largest value of every number; what lies outside cannot work. NaN lies outside everything."""
