"""Settings of the learned models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from r3l.config.ranges import Count, Positive, Range, Size, Weight, ZeroToOne

Sees = Literal["latent", "pixels"]


@dataclass(frozen=True)
class VAEConfig:
    """The encoder: a variational autoencoder that turns an image into the latent state z."""

    latent_size: Annotated[int, Range(1, 1024)] = 16
    """Length of z."""
    image_size: Annotated[int, Range(8, 512, multiple_of=8)] = 32
    """Side in pixels to which images are averaged down before encoding."""
    beta: Weight = 2.0
    """Weight of the KL term in the loss."""
    reconstruction_weight: Weight = 10.0
    """Weight of the squared error, summed over pixels and channels, in the loss."""
    learning_rate: ZeroToOne = 1e-3
    """Step size of Adam."""
    batch_size: Size = 64
    """Images per update."""
    pretrain_updates: Count = 1500
    """Updates on exploration images before the agents start to learn."""
    update_every: Count = 0
    """Learner updates per encoder update after pretraining; 0 freezes the encoder."""
    refresh_every: Positive = 5000
    """Learner updates after which the updated encoder replaces the acting one and the replay is re-encoded."""
    tether: Weight = 1.0
    """Weight of the squared distance to the acting encoder's latents in updates after pretraining."""
    keypoints: Annotated[int, Range(0, 1024)] = 16
    """Feature maps whose mean positions are added to the encoder's features; 0 adds none."""
    neighbours: Annotated[int, Range(0, 1000)] = 2
    """Max env steps between the encoded frame and the decoded one, so that z keeps what both share."""
    jitter: Annotated[float, Range(0, 2)] = 0.0
    """Scale the encoder's input, not the decoder's target, by a random light of exp(±jitter); 0 scales nothing."""
    conditional: bool = True
    """Give the decoder the proprioception, so that z need not hold the pose of the fingers."""


@dataclass(frozen=True)
class SACConfig:
    """An agent: soft actor-critic (SAC)."""

    hidden: Annotated[tuple[int, ...], Range(1, 65536, max_items=16)] = (256, 256)
    """Widths of the hidden layers of actor and critics."""
    critics: Annotated[int, Range(1, 64)] = 2
    """Critics in the ensemble; the target is their minimum."""
    layer_norm: bool = True
    """Use LayerNorm in the critics."""
    learning_rate: ZeroToOne = 1e-3
    """Step size of Adam for actor, critics and temperature."""
    batch_size: Size = 128
    """Transitions per update."""
    discount: ZeroToOne = 0.97
    """Factor per env step by which later rewards count less."""
    horizon: Annotated[int, Range(1, 100)] = 1
    """Rewards in a target (n-step returns); fewer where a segment ends."""
    tau: ZeroToOne = 1e-2
    """Share of the critic that enters the target critic per update."""
    averaging: ZeroToOne = 2e-3
    """Share of the actor that enters the averaged actor per update; evaluation, play and export use the average."""
    initial_temperature: Annotated[float, Range(1e-6, 100)] = 0.1
    """Weight of the entropy at the first update."""
    target_entropy_per_action: Annotated[float, Range(-100, 100)] = -0.5
    """Target entropy divided by the number of actions."""
    noise_correlation: Annotated[float, Range(0, 0.999)] = 0.7
    """Correlation of the action noise with that of the previous env step; 0 is white noise."""


@dataclass(frozen=True)
class NoveltyConfig:
    """The novelty reward: random network distillation."""

    sees: Sees = "latent"
    """Input: the encoder's latent, or pixels with convolutions of its own."""
    motion: Weight = 2.0
    """Weight of the latent's change since the previous step, a second input; 0, and pixels, leave it out."""
    hidden: Size = 256
    """Width of the hidden layers."""
    embedding: Size = 64
    """Outputs of both networks."""
    learning_rate: ZeroToOne = 1e-4
    """Step size of Adam."""
    batch_size: Size = 128
    """States per update."""
    update_every: Positive = 2
    """Learner updates per update of the predictor."""
    max_reward: Annotated[float, Range(0, 10**6)] = 5.0
    """Max reward, after division by the running standard deviation."""
    decay: Annotated[float, Range(0, 0.999999)] = 0.99
    """Decay per update of the running mean and variance that scale inputs and rewards."""


@dataclass(frozen=True)
class ClassifierConfig:
    """The success classifier: the task policy's reward."""

    sees: Sees = "latent"
    """Input: the encoder's latent, or pixels with convolutions of its own."""
    hidden: Size = 256
    """Width of the hidden layers."""
    learning_rate: ZeroToOne = 3e-4
    """Step size of AdamW."""
    weight_decay: ZeroToOne = 1e-4
    """Weight decay of AdamW."""
    batch_size: Annotated[int, Range(2, 65536)] = 64
    """Goal images per update, and as many visited states."""
    update_every: Positive = 5
    """Learner updates per update of the classifier."""
    pretrain_updates: Count = 500
    """Updates on exploration states before the agents start to learn."""
    mixup_alpha: Annotated[float, Range(0, 100)] = 1.0
    """Parameter of the Beta distribution that mixes inputs and labels; 0 switches mixup off."""
    noise: Weight = 0.2
    """Standard deviation of the noise on latents in updates; without noise a near miss earns almost no reward."""
    exploration_share: ZeroToOne = 0.5
    """Share of the negatives from exploration and perturbation phases; the others come from all visited states."""
    reward: Literal["probability", "logit"] = "probability"
    """probability: p / mean p of the training goals, at most 1. logit: the logit / logit_scale."""
    logit_scale: Annotated[float, Range(1e-6, 10**6)] = 10.0
    """Divisor of the logit reward."""


@dataclass(frozen=True)
class JudgeConfig:
    """The judge of success, fitted once per run; a run's config does not hold these settings."""

    image_size: int = 32
    """Side in pixels to which images are averaged down."""
    updates: int = 600
    batch_size: int = 32
    """Goal images per update, and as many exploration frames."""
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule."""
    weight_decay: float = 1e-2
    shift_px: int = 2
    """Max random shift of the training images, after averaging down."""
    brightness: float = 0.1
    """Max relative change of brightness of the training images."""
    goals_accepted: float = 0.9
    """Min share of the held-out goal images that the verdict accepts."""
    frames: int = 3
    """Last frames of an episode that decide together; more frames blur an object that moves."""
