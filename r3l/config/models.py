"""TODO r3l/config/models.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ClassifierConfig:
    """Settings of the success classifier."""

    sees: Sees = "latent"
    """What is classified: the encoder's latent, or pixels with convolutions of its own."""
    hidden: int = 256
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    batch_size: int = 64
    """Goals per update, and as many visited states."""
    update_every: int = 5
    """Env steps between two updates."""
    pretrain_updates: int = 500
    """Updates on exploration states before the agents start to learn."""
    mixup_alpha: float = 1.0
    """Parameter of the Beta distribution that mixes inputs and labels; 0 switches mixup off."""
    noise: float = 0.2
    """Deviation of the Gaussian noise added to latents while learning: without it near misses earn next to nothing,
    with twice as much nearly what success does."""
    exploration_share: float = 0.5
    """Share of the negatives drawn from exploration and perturbation phases; the rest from all visited states."""
    reward: Literal["probability", "logit"] = "probability"
    """probability: p / mean p of the training goals, at most 1. logit: the logit / logit_scale."""
    logit_scale: float = 10.0


@dataclass(frozen=True)
class JudgeConfig:
    """Settings of the judge."""

    image_size: int = 32
    """Side in pixels that images are averaged down to."""
    updates: int = 600
    batch_size: int = 32
    """Goals per update, and as many exploration frames."""
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule."""
    weight_decay: float = 1e-2
    shift_px: int = 2
    """Largest random shift of the training images, after averaging down."""
    brightness: float = 0.1
    """Largest relative change of brightness of the training images."""
    goals_accepted: float = 0.9
    """Share of the held-out goal images that the verdict accepts at least."""
    frames: int = 3
    """Last frames of an episode that decide together; more of them blur what happened to a moving object."""


Sees = Literal["latent", "pixels"]


@dataclass(frozen=True)
class NoveltyConfig:
    """Settings of random network distillation."""

    sees: Sees = "latent"
    """What novelty is measured on: the encoder's latent, or pixels with convolutions of its own."""
    motion: float = 2.0
    """Weight of the latent's change since the step before, which is seen beside it: one frame shows no motion, and an
    object that moves is the more novel. 0 leaves it out; pixels are seen without."""
    hidden: int = 256
    embedding: int = 64
    learning_rate: float = 1e-4
    batch_size: int = 128
    update_every: int = 2
    """Env steps between two updates of the predictor."""
    max_reward: float = 5.0
    """Rewards are clipped to [0, max_reward] after division by the running deviation."""
    decay: float = 0.99
    """Of the running moments that scale inputs and rewards."""


@dataclass(frozen=True)
class SACConfig:
    """Settings of an agent."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of actor and critics."""
    critics: int = 2
    """Critics in the ensemble; the target takes their minimum."""
    layer_norm: bool = True
    """LayerNorm in the critics."""
    learning_rate: float = 1e-3
    batch_size: int = 128
    discount: float = 0.97
    horizon: int = 1
    """Steps of reward in a target (n-step returns), fewer where a segment ends."""
    tau: float = 1e-2
    """Share of the critic that enters the target critic with each update."""
    averaging: float = 2e-3
    """Share of the actor that enters the averaged actor with each update; the average is published and evaluated."""
    initial_temperature: float = 0.1
    target_entropy_per_action: float = -0.5
    """Target entropy divided by the number of actions."""
    noise_correlation: float = 0.7
    """How far the noise of an action while acting resembles the last step's, 0 (white) to just under 1."""


@dataclass(frozen=True)
class VAEConfig:
    """Settings of the encoder."""

    latent_size: int = 16
    """Length of the latent state z."""
    image_size: int = 32
    """Side in pixels that images are averaged down to before encoding."""
    beta: float = 2.0
    """Weight of the KL term against the squared error."""
    reconstruction_weight: float = 10.0
    """Weight of the squared error summed over pixels and channels."""
    learning_rate: float = 1e-3
    batch_size: int = 64
    pretrain_updates: int = 1500
    """Updates on exploration images before the agents start to learn."""
    update_every: int = 0
    """Env steps between two later encoder updates; 0 freezes it after pretraining."""
    refresh_every: int = 5000
    """Env steps after which the updated encoder replaces the acting one and the replay is re-encoded."""
    tether: float = 1.0
    """Weight of the squared distance to the acting encoder's latents in later updates."""
    keypoints: int = 16
    """Feature maps whose mean places the encoder sees beside what its plain convolutions see; 0 for none."""
    neighbours: int = 2
    """Draw a frame up to so many steps away from the one encoded, so that z keeps what both share; 0 draws the same."""
    jitter: float = 0.0
    """Encode images in a random light, up to exp(jitter) brighter or darker, and draw them in their own: so z does not
    keep the light. 0 encodes them as they are."""
    conditional: bool = True
    """Give the decoder the proprioception, so that the latent need not carry the pose of the fingers."""
