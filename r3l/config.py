"""What the user sets: one frozen dataclass, its presets and variants, and how it travels to JSON and back."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from r3l.checks import ChecksConfig
from r3l.classifier import ClassifierConfig
from r3l.errors import UserError as UserError
from r3l.novelty import NoveltyConfig
from r3l.numerics import NumericsConfig
from r3l.persistence import PersistenceConfig
from r3l.sac import SACConfig
from r3l.vae import VAEConfig

T = TypeVar("T")


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
        if not 1 <= len(self.sac.hidden) <= MOST_LAYERS or not all(1 <= width <= 65536 for width in self.sac.hidden):
            shown = str(list(self.sac.hidden[: MOST_LAYERS + 1]))
            raise UserError(f"config key 'sac.hidden' is {shown}, expected 1 to {MOST_LAYERS} widths of 1 to 65536")
        if self.vae.image_size % 8:
            raise UserError(f"config key 'vae.image_size' is {self.vae.image_size}, expected a multiple of 8")
        classifies = self.reward == "classifier"
        for key, sees, has_latent in (
            ("novelty.sees", self.novelty.sees, self.state != "pixels"),
            ("classifier.sees", self.classifier.sees, self.state == "latent" or not classifies),
        ):
            if sees == "latent" and not has_latent:
                raise UserError(f"config key {key!r} is 'latent', and state {self.state!r} has none; set it to pixels")

    @property
    def reads_truth(self) -> bool:
        """Whether any part of the loop reads the twin's ground truth: then the run is a diagnostic one."""
        return "diagnostic" in (self.state + self.reward + self.phases.between)


MOST_LAYERS = 16
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


def _without_perturbation(config: Config) -> Config:
    return replace(config, phases=replace(config.phases, perturbation_share=0.0))


def _true_state(config: Config) -> Config:
    return replace(
        config, state="diagnostic-true-state", window=1, novelty=replace(config.novelty, sees="latent", motion=0.0)
    )


def _true_reward(config: Config) -> Config:
    return replace(config, reward="diagnostic-true-reward")


def _resets(config: Config) -> Config:
    return replace(
        _without_perturbation(config), phases=replace(config.phases, between="diagnostic-reset", perturbation_share=0.0)
    )


VARIANTS: dict[str, Callable[[Config], Config]] = {
    "no-perturbation": _without_perturbation,
    "pixels": lambda config: replace(
        config,
        state="pixels",
        novelty=replace(config.novelty, sees="pixels"),
        classifier=replace(config.classifier, sees="pixels"),
    ),
    "refreshed-encoder": lambda config: replace(config, vae=replace(config.vae, update_every=10)),
    "diagnostic-true-reward": _true_reward,
    "diagnostic-true-state": lambda config: _true_state(_true_reward(config)),
    "diagnostic-resets": lambda config: _resets(_true_state(_true_reward(config))),
}
"""Changes to a preset, on the same loop. What reads the twin's ground truth says `diagnostic`."""


def _paper() -> Config:
    return Config(
        window=1,
        novelty_bonus=1.0,
        update_acting_only=True,
        separate_replays=True,
        phases=PhasesConfig(task_steps=50, perturbation_steps=50, perturbation_share=0.5, homing_steps=15),
        vae=VAEConfig(conditional=False, beta=0.5, keypoints=0, neighbours=0),
        sac=SACConfig(
            batch_size=256,
            discount=0.99,
            learning_rate=3e-4,
            tau=5e-3,
            layer_norm=False,
            averaging=1.0,
            noise_correlation=0.0,
        ),
        novelty=NoveltyConfig(sees="pixels", motion=0.0, embedding=512, max_reward=1000.0),
        classifier=ClassifierConfig(
            sees="pixels",
            reward="logit",
            learning_rate=1e-4,
            batch_size=128,
            update_every=200,
            pretrain_updates=0,
            noise=0.0,
            exploration_share=0.0,
        ),
    )


PRESETS: dict[str, Callable[[], Config]] = {"default": Config, "paper": _paper}


def nearest(name: str, known: Any) -> str:
    """Return `known` names as a hint, the nearest to `name` first."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build dataclass `kind` from plain values; nested dataclasses from nested mappings.

    Raises:
        UserError: a key is unknown (the nearest is named), missing, or of the wrong type.
    """
    types = get_type_hints(kind)
    for key in values:
        if key not in types:
            raise UserError(f"unknown config key {where + key!r}; {nearest(key, types)}")
    given = {key: _convert(types[key], value, where + key) for key, value in values.items()}
    missing = [
        f.name
        for f in fields(kind)  # type: ignore[arg-type]
        if f.name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"config key {where + missing[0]!r} is missing; add it")
    return kind(**given)


def _convert(kind: Any, value: Any, where: str) -> Any:
    expected: str
    if is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, Mapping):
            return from_dict(kind, value, where + ".")
        expected = "a table"
    elif get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        expected = "one of " + ", ".join(map(repr, get_args(kind)))
    elif get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(get_args(kind)[0], item, where) for item in value)
    elif get_origin(kind) is dict and isinstance(value, Mapping):
        return {key: _convert(get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    else:
        expected = getattr(kind, "__name__", str(kind))
    raise UserError(f"config key {where!r} is {value!r}, expected {expected}")
