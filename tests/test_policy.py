from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_row
from torch import Tensor

from r3l.config.models import SACConfig, VAEConfig
from r3l.config.presets import VARIANTS
from r3l.config.schema import Config
from r3l.learner.replay import Replay
from r3l.models.encoder import DiagnosticStateEncoder, NoEncoder
from r3l.models.interfaces import Encoder
from r3l.models.policy import Policies, load_policies
from r3l.models.sac import LOG_STD_MAX, LOG_STD_MIN, Actor, build_actor
from r3l.models.vae import VAE
from r3l.robot.base import CameraSpec, Joint, RobotSpec
from r3l.run.experience import Row
from r3l.run.tensors import CheckpointError, Tensors, with_prefix

CPU = torch.device("cpu")
WINDOW, ACTIONS, SIDE = 3, 3, 16
SMALL = SACConfig(hidden=(16, 16))
SPEC = RobotSpec(
    tuple(Joint(f"joint{index}", -1.0, 1.0) for index in range(ACTIONS)),
    10.0,
    CameraSpec(SIDE, SIDE),
    ("diagnostic_a", "diagnostic_b"),
)


def encoder_of(kind: str) -> tuple[Encoder, int]:
    """Return an encoder and the length of its latent."""
    if kind == "latent":
        torch.manual_seed(0)
        return VAE(VAEConfig(latent_size=4, image_size=16), ACTIONS), 4
    return (NoEncoder(), 0) if kind == "pixels" else (DiagnosticStateEncoder(), 2)


def actors_of(latents: int, *, pixels: bool = False) -> dict[str, Actor]:
    torch.manual_seed(1)
    features, image = WINDOW * (latents + 2 * ACTIONS), (3 * WINDOW, SIDE) if pixels else None
    return {name: build_actor(features, ACTIONS, SMALL, image) for name in ("task", "perturbation")}


def rows_of(*lengths: int) -> list[Row]:
    steps = [(segment, step) for segment, length in enumerate(lengths) for step in range(length)]
    return [
        make_row(n, segment=segment, step=step, actions=ACTIONS, side=SIDE, diagnostics=2)
        for n, (segment, step) in enumerate(steps)
    ]


def see(policies: Policies, row: Row) -> None:
    if row.step == 0:
        policies.begin()
    policies.see(row.image, row.proprioception, row.applied, row.diagnostic)


def replayed(rows: list[Row], encoder: Encoder, latents: int) -> tuple[Replay, dict[int, Tensor]]:
    """Return a replay of the rows, and the window that ends with each row by its number."""
    replay = Replay(
        50,
        image_shape=(SIDE, SIDE, 3),
        actions=ACTIONS,
        latents=latents,
        diagnostics=2,
        window=WINDOW,
        device=CPU,
    )
    for row in rows:
        image, truth = torch.from_numpy(row.image.transpose(2, 0, 1).copy()), torch.from_numpy(row.diagnostic.copy())
        replay.add([row], encoder.encode(image[None], truth[None]))
    sampled = replay.sample(500, np.random.default_rng(0))
    windows = torch.cat([sampled.now, sampled.next])
    return replay, {int(window[-1]): window[None] for window in windows}


@pytest.mark.parametrize("kind", ["latent", "pixels", "diagnostic-true-state"])
def test_a_policy_acts_on_what_the_replay_gives_for_the_same_rows(kind: str) -> None:
    encoder, latents = encoder_of(kind)
    actors = actors_of(latents, pixels=kind == "pixels")
    rows = rows_of(2, 5)
    replay, windows = replayed(rows, encoder, latents)
    policies = Policies(encoder, actors, WINDOW, CPU)
    for number, row in enumerate(rows):
        see(policies, row)
        observation, image = replay.observations(windows[number]), replay.pixels(windows[number])
        state = policies.state()
        torch.testing.assert_close(state["rows"].flatten()[None], observation)
        assert torch.equal(state["images"].flatten(0, 1)[None], image)
        expected = actors["task"].act(observation, image if kind == "pixels" else None)[0].numpy()
        assert policies.act("task") == pytest.approx(expected, abs=1e-6)


def test_the_two_actors_see_the_same_window_and_act_differently() -> None:
    encoder, latents = encoder_of("latent")
    policies = Policies(encoder, actors_of(latents), WINDOW, CPU)
    see(policies, rows_of(1)[0])
    action = policies.act("task")
    assert action.shape == (ACTIONS,)
    assert action.dtype == np.float32
    assert np.abs(action).max() <= 1
    assert not np.allclose(action, policies.act("perturbation"))


def test_sampled_actions_repeat_with_the_generator_and_the_mean_without() -> None:
    encoder, latents = encoder_of("latent")
    policies = Policies(encoder, actors_of(latents), WINDOW, CPU)
    see(policies, rows_of(1)[0])
    sampled = [policies.act("task", torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(sampled[0], sampled[1])
    assert not np.array_equal(sampled[0], sampled[2])
    assert np.array_equal(policies.act("task"), policies.act("task"))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_noise_is_standard_normal_and_resembles_the_last_steps_as_configured(correlation: float) -> None:
    encoder, latents = encoder_of("latent")
    actors = actors_of(latents)
    policies = Policies(encoder, actors, WINDOW, CPU, noise_correlation=correlation)
    for actor in actors.values():
        for parameter in actor.body[-1].parameters():
            torch.nn.init.zeros_(parameter)
    see(policies, rows_of(1)[0])
    draws = torch.Generator().manual_seed(0)
    deviation = math.exp(0.5 * (LOG_STD_MIN + LOG_STD_MAX))
    noise = np.arctanh([policies.act("task", draws) for _ in range(20_000)]) / deviation
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.std() == pytest.approx(1, abs=0.05)
    assert np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1] == pytest.approx(correlation, abs=0.03)


def test_a_restored_policy_goes_on_with_the_noise_and_a_new_segment_without() -> None:
    encoder, latents = encoder_of("latent")
    actors = actors_of(latents)
    saved = Policies(encoder, actors, WINDOW, CPU, noise_correlation=0.9)
    restored = Policies(encoder, actors, WINDOW, CPU, noise_correlation=0.9)
    row = rows_of(1)[0]
    see(saved, row)
    saved.act("task", torch.Generator().manual_seed(1))
    restored.restore(saved.state())
    again = [policies.act("task", torch.Generator().manual_seed(2)) for policies in (saved, restored)]
    assert np.array_equal(again[0], again[1])
    saved.begin()
    see(saved, row)
    assert not np.array_equal(saved.act("task", torch.Generator().manual_seed(2)), again[0])


@pytest.mark.parametrize("begun", [True, False])
def test_acting_before_seeing_is_an_error(begun: bool) -> None:
    encoder, latents = encoder_of("latent")
    policies = Policies(encoder, actors_of(latents), WINDOW, CPU)
    if begun:
        see(policies, rows_of(1)[0])
        policies.begin()
    with pytest.raises(ValueError, match="seen nothing"):
        policies.act("task")


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_restored_window_goes_on_as_the_saved_one(count: int) -> None:
    encoder, latents = encoder_of("pixels")
    actors, rows = actors_of(latents, pixels=True), rows_of(6)
    saved = Policies(encoder, actors, WINDOW, CPU)
    for row in rows[:count]:
        see(saved, row)
    restored = Policies(encoder, actors, WINDOW, CPU)
    restored.restore(saved.state())
    for policies in (saved, restored):
        policies.see(rows[5].image, rows[5].proprioception, rows[5].applied, rows[5].diagnostic)
    assert np.array_equal(saved.act("task"), restored.act("task"))


def config_of(kind: str) -> Config:
    base = Config(window=WINDOW, sac=SMALL, vae=VAEConfig(latent_size=4, image_size=16))
    if kind == "latent":
        return base
    return replace(VARIANTS[kind](base), window=WINDOW)


def weights_of(kind: str) -> tuple[Tensors, Policies]:
    """Return published weights and the policies that they are of."""
    encoder, latents = encoder_of(kind)
    actors = actors_of(latents, pixels=kind == "pixels")
    weights: Tensors = {}
    for name, actor in actors.items():
        weights |= with_prefix(f"{name}_actor", dict(actor.state_dict()))
    if isinstance(encoder, VAE):
        weights |= with_prefix("vae", dict(encoder.state_dict()))
    return {name: tensor.clone() for name, tensor in weights.items()}, Policies(encoder, actors, WINDOW, CPU)


@pytest.mark.parametrize("kind", ["latent", "pixels", "diagnostic-true-state"])
def test_loaded_policies_act_as_the_published_ones(kind: str) -> None:
    weights, published = weights_of(kind)
    loaded = load_policies(config_of(kind), SPEC, weights, CPU)
    for row in rows_of(3):
        see(published, row)
        see(loaded, row)
        for name in ("task", "perturbation"):
            assert loaded.act(name) == pytest.approx(published.act(name), abs=1e-6)


@pytest.mark.parametrize("part", ["vae", "task_actor", "perturbation_actor"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_published_weights_that_are_not_finite_are_refused(part: str, value: float) -> None:
    weights, _ = weights_of("latent")
    weights[next(name for name in weights if name.startswith(part + "/"))].view(-1)[0] = value
    with pytest.raises(CheckpointError, match=f"weights of {part} are not finite"):
        load_policies(config_of("latent"), SPEC, weights, CPU)


@pytest.mark.parametrize("part", ["vae", "task_actor"])
def test_published_weights_of_another_config_are_refused(part: str) -> None:
    weights, _ = weights_of("latent")
    lacking = {name: tensor for name, tensor in weights.items() if not name.startswith(part + "/")}
    with pytest.raises(CheckpointError, match=f"weights of {part} do not fit"):
        load_policies(config_of("latent"), SPEC, lacking, CPU)
    wider = replace(config_of("latent"), window=WINDOW + 1)
    with pytest.raises(CheckpointError, match="weights of task_actor do not fit"):
        load_policies(wider, SPEC, weights, CPU)
