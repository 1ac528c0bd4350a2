"""The learner: relabelling, n-step rewards, cadences, and going on exactly in a new process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, RunMaker, make_row, stored, tiny
from torch import Tensor

from r3l.config.presets import VARIANTS
from r3l.config.schema import Config
from r3l.learner.learner import AGENTS, Learner
from r3l.models.sac import Batch
from r3l.robot.base import CameraSpec, Joint, RobotSpec
from r3l.run.checkpoint import load_checkpoint
from r3l.run.directory import Run
from r3l.run.experience import ExperienceStore
from r3l.run.tensors import CheckpointError, Tensors
from r3l.training.sync import train

ACTIONS, SIDE, DISCOUNT = 3, 32, 0.5
SPEC = RobotSpec(tuple(Joint(f"joint{n}", -1.0, 1.0) for n in range(ACTIONS)), 10.0, CameraSpec(SIDE, SIDE), ("d",))
SEGMENTS = ((12, "exploration"), (10, "task"), (6, "perturbation"), (10, "task"), (6, "perturbation"))
BASE = tiny(sac=replace(TINY.sac, discount=DISCOUNT), phases={"exploration_steps": 11})
CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> ExperienceStore:
    """Rows in segments, each of one phase; row n (from 0) has ground truth [n]."""
    store = ExperienceStore(tmp_path / "experience.sqlite", (SIDE, SIDE, 3))
    number = 0
    for segment, (length, phase) in enumerate(SEGMENTS):
        for step in range(length):
            row = make_row(number, segment=segment, step=step, phase=phase, actions=ACTIONS, side=SIDE)
            store.append(replace(row, diagnostic=np.array([number], np.float32)))
            number += 1
    return store


def learner_of(
    config: Config = BASE,
    store: ExperienceStore | None = None,
    true_reward: Callable[[Tensor], Tensor] | None = None,
    *,
    overlaps: bool = True,
) -> Learner:
    goals = torch.randint(0, 256, (8, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    learner = Learner(config, SPEC, goals, device=CPU, true_reward=true_reward, overlaps=overlaps)
    if store is not None:
        learner.follow(store)
    return learner


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def batches(learner: Learner, monkeypatch: pytest.MonkeyPatch, name: str = "task") -> list[Batch]:
    """Return a list that fills with the batches an agent learns from."""
    found: list[Batch] = []
    real = learner.agents[name].update

    def update(batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        found.append(batch)
        return real(batch, noise)

    monkeypatch.setattr(learner.agents[name], "update", update)
    return found


def test_it_follows_a_store_in_parts_and_counts_steps(store: ExperienceStore) -> None:
    learner = learner_of()
    learner.follow(store, 5)
    assert (learner.sequence, learner.steps, len(learner.replay)) == (5, 4, 5)
    learner.follow(store)
    learner.follow(store)
    rows = sum(length for length, _ in SEGMENTS)
    assert (learner.sequence, learner.steps, len(learner.replay)) == (rows, rows - len(SEGMENTS), rows)


def test_the_same_rows_give_the_same_weights(store: ExperienceStore) -> None:
    first, second = learner_of(store=store), learner_of(store=store)
    torch.manual_seed(77)
    for learner in (first, second):
        learner.pretrain()
        torch.rand(3)
        for _ in range(6):
            learner.update()
    for name, module in first.modules().items():
        assert torch.equal(weights(module), weights(second.modules()[name])), name


def test_updates_that_overlap_give_the_same_weights_as_those_in_turn(store: ExperienceStore) -> None:
    found = []
    for overlaps in (True, False):
        learner = learner_of(store=store, overlaps=overlaps)
        metrics = [learner.update() for _ in range(5)]
        found.append((metrics, torch.cat([weights(module) for module in learner.modules().values()])))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_building_a_learner_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    learner_of()
    assert torch.equal(torch.rand(1), expected)


def test_rewards_are_those_of_the_current_models(store: ExperienceStore) -> None:
    learner = learner_of(store=store)
    rows = torch.arange(10, 20)
    before = learner.rewards.task(rows), learner.rewards.novelty(rows)
    assert torch.equal(learner.rewards.task(rows), before[0])
    with torch.no_grad():
        for parameter in (*learner.classifier.parameters(), *learner.novelty["perturbation"].parameters()):
            parameter.add_(0.05)
    assert not torch.allclose(learner.rewards.task(rows), before[0])
    assert not torch.allclose(learner.rewards.novelty(rows), before[1])


@pytest.mark.parametrize("motion", [0.0, 2.0])
def test_novelty_sees_the_change_of_the_latent_within_the_segment(store: ExperienceStore, motion: float) -> None:
    learner = learner_of(replace(BASE, novelty=replace(BASE.novelty, motion=motion)), store)
    rows = torch.tensor([11, 12, 13])  # the end of one segment, and the first two rows of the next
    latents = learner.replay.latents
    seen = learner.rewards.novelty_states(rows)
    assert torch.equal(seen[:, : latents.shape[1]], latents[rows])
    if not motion:
        assert seen.shape == (3, latents.shape[1])
        return
    change = seen[:, latents.shape[1] :]
    torch.testing.assert_close(change[0], 2 * (latents[11] - latents[10]))
    assert not change[1].any()
    torch.testing.assert_close(change[2], 2 * (latents[13] - latents[12]))


def test_sampled_transitions_are_relabelled_with_each_update(
    store: ExperienceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draw after a change of the classifier earns another reward."""
    learner = learner_of(tiny(sac=replace(TINY.sac, horizon=1), phases={"exploration_steps": 11}), store)
    learner.is_pretrained = True
    found = batches(learner, monkeypatch)
    state = learner.rng.bit_generator.state
    learner.update_agents(("task",))
    with torch.no_grad():
        learner.classifier.get_buffer("goal_level").fill_(0.6)
    learner.rng.bit_generator.state = state
    learner.update_agents(("task",))
    assert torch.equal(found[0].observation, found[1].observation)
    assert torch.equal(found[0].action, found[1].action)
    assert torch.allclose(found[1].reward, (found[0].reward / 0.6).clamp(max=1.0))
    assert not torch.allclose(found[0].reward, found[1].reward)


def test_n_step_rewards_and_discounts_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two segments of 4 and 2 rows with rewards 1, 2, 4, ...: each transition's target is worked out here."""
    store = ExperienceStore(tmp_path / "few.sqlite", (SIDE, SIDE, 3))
    places = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    phases = ["task", "task", "perturbation", "perturbation", "task", "task"]
    for number, ((segment, step), phase) in enumerate(zip(places, phases, strict=True)):
        row = make_row(number, segment=segment, step=step, phase=phase, actions=ACTIONS, side=SIDE)
        store.append(replace(row, diagnostic=np.array([2.0**number], np.float32)))
    config = replace(
        BASE,
        reward="diagnostic-true-reward",
        window=1,
        sac=replace(BASE.sac, horizon=3, batch_size=64),
    )
    learner = learner_of(config, store, true_reward=lambda state: state[:, 0])
    found = batches(learner, monkeypatch)
    learner.update_agents(("task",))
    # The row that an action led to: reward, discount of what comes next, and the row whose value is bootstrapped.
    expected = {
        1: (2 + 4 * 0.5 + 8 * 0.25, 0.125, 3),  # across the switch from task to perturbation
        2: (4 + 8 * 0.5, 0.25, 3),  # the segment ends
        3: (8.0, 0.5, 3),
        5: (32.0, 0.5, 5),  # the newest row
    }
    (batch,) = found
    proprioception = slice(config.vae.latent_size, config.vae.latent_size + ACTIONS)
    now = batch.observation[:, proprioception.start]
    bootstrapped = batch.next_observation[:, proprioception.start]
    assert {int(row) + 1 for row in now} == set(expected)
    for row, reward, discount, last in zip(now, batch.reward, batch.discount, bootstrapped, strict=True):
        assert (float(reward), float(discount), int(last)) == expected[int(row) + 1]
    for row, action in zip(now, batch.action, strict=True):
        assert torch.equal(action, learner.replay.requested[int(row) + 1])
    store.close()


def test_no_transition_is_a_terminal(store: ExperienceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(store=store)
    found = batches(learner, monkeypatch)
    for _ in range(5):
        learner.update_agents(("task",))
    assert all(bool((batch.discount >= DISCOUNT**3).all()) for batch in found)


def test_updates_are_owed_after_exploration_alone(store: ExperienceStore) -> None:
    learner = learner_of(replace(BASE, update_ratio=1.5), store)
    assert learner.owed() == 0
    learner.is_pretrained = True
    assert learner.owed() == int(1.5 * (learner.steps - 11))
    learner.update()
    assert learner.owed() == int(1.5 * (learner.steps - 11)) - 1


class BrokenOffError(Exception):
    """Something came in between."""


@pytest.mark.parametrize("after", [1, 5, 7, 10])
def test_pretraining_that_was_broken_off_goes_on_from_a_checkpoint(store: ExperienceStore, after: int) -> None:
    undisturbed, broken_off, resumed = (learner_of(store=store) for _ in range(3))
    undisturbed.pretrain()

    def break_off(done: int, total: int) -> None:
        if done == after:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        broken_off.pretrain(break_off)
    resumed = learner_of()
    resumed.restore(*broken_off.state(), store)
    left: list[int] = []
    resumed.pretrain(lambda done, total: left.append(done))
    assert left == list(range(after + 1, 11))
    expected, found = undisturbed.state()[0], resumed.state()[0]
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_checkpoint_of_another_learner_is_refused_in_one_line(store: ExperienceStore) -> None:
    tensors, meta = learner_of(store=store).state()
    other = learner_of(replace(BASE, sac=replace(BASE.sac, hidden=(8,))), store)
    without = {name: tensor for name, tensor in tensors.items() if name != "generator"}
    for learner, spoilt in ((other, tensors), (learner_of(), without)):
        with pytest.raises(CheckpointError, match="not of this run") as caught:
            learner.restore(spoilt, meta, store)
        assert "\n" not in str(caught.value)


def test_re_encoding_that_was_broken_off_is_made_up_for(store: ExperienceStore) -> None:
    learner = learner_of(store=store)
    learner.pretrain()
    expected = learner.replay.latents[: len(learner.replay)].clone()

    def break_off() -> None:
        raise BrokenOffError

    learner.on_progress = break_off
    with pytest.raises(BrokenOffError):
        learner.reencode()
    tensors, meta = learner.state()
    assert len(tensors["latents"]) == 0, "old and new ones would be mixed"
    resumed = learner_of()
    resumed.restore(tensors, meta, store)
    assert torch.allclose(resumed.replay.latents[: len(resumed.replay)], expected, atol=1e-5)
    assert (resumed.sequence, resumed.steps) == (learner.sequence, learner.steps)


def test_an_encoder_with_jitter_sees_another_light_than_is_drawn(
    store: ExperienceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lit: dict[float, list[bool]] = {0.0: [], 0.5: []}
    for amount, seen_otherwise in lit.items():
        learner = learner_of(replace(BASE, vae=replace(BASE.vae, neighbours=0, jitter=amount)), store)
        assert learner.vae is not None
        real = type(learner.vae).loss

        def loss(
            vae: Any, seen: Tensor, drawn: Tensor, *given: Tensor, real: Any = real, found: list[bool] = seen_otherwise
        ) -> Any:
            assert drawn.dtype == torch.uint8
            found.append(not torch.equal(seen.float(), drawn.float()))
            return real(vae, seen, drawn, *given)

        monkeypatch.setattr(type(learner.vae), "loss", loss)
        learner.pretrain()
        monkeypatch.undo()
    assert lit[0.0]
    assert not any(lit[0.0])
    assert lit[0.5]
    assert all(lit[0.5])


def test_pretraining_fits_encoder_and_classifier_and_reports_progress(store: ExperienceStore) -> None:
    learner = learner_of(store=store)
    assert learner.vae is not None
    before = {name: weights(module) for name, module in learner.modules().items()}
    latents = learner.replay.latents.clone()
    seen: list[tuple[int, int]] = []
    metrics = learner.pretrain(lambda done, total: seen.append((done, total)))
    assert seen == [(done, 10) for done in range(1, 11)]
    changed = {name for name, module in learner.modules().items() if not torch.equal(weights(module), before[name])}
    assert changed == {"vae", "vae_next", "classifier"}
    assert not torch.equal(learner.replay.latents, latents)
    images = learner.replay.images[: len(learner.replay)]
    assert torch.allclose(learner.replay.latents[: len(learner.replay)], learner.vae.encode(images), atol=1e-5)
    assert all(np.isfinite(value) for value in metrics.values())


def test_an_update_changes_both_agents_and_the_novelty(store: ExperienceStore) -> None:
    learner = learner_of(store=store)
    before = {name: weights(module) for name, module in learner.modules().items()}
    metrics = learner.update()
    changed = {name for name, module in learner.modules().items() if not torch.equal(weights(module), before[name])}
    assert changed == {"task_agent", "perturbation_agent", "perturbation_novelty"}
    assert {"task/critic_loss", "perturbation/critic_loss", "task/reward", "perturbation/reward"} <= metrics.keys()


def test_the_classifier_is_updated_at_its_own_cadence(store: ExperienceStore) -> None:
    learner = learner_of(store=store)
    changes = []
    for _ in range(10):
        before = weights(learner.classifier)
        learner.update()
        changes.append(not torch.equal(weights(learner.classifier), before))
    assert [index for index, changed in enumerate(changes, 1) if changed] == [5, 10]


@pytest.mark.parametrize(("rows", "acting"), [(20, "task"), (26, "perturbation")])
def test_the_acting_agent_alone_is_updated_where_asked(store: ExperienceStore, rows: int, acting: str) -> None:
    learner = learner_of(replace(BASE, update_acting_only=True))
    learner.follow(store, rows)
    before = {name: weights(agent) for name, agent in learner.agents.items()}
    learner.update()
    changed = {name for name, agent in learner.agents.items() if not torch.equal(weights(agent), before[name])}
    assert changed == {acting}


def test_separate_replays_give_each_agent_its_own_phase(
    store: ExperienceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(BASE, separate_replays=True, window=1, novelty_bonus=0.5)
    learner = learner_of(config, store)
    assert set(learner.novelty) == set(AGENTS)
    found = {name: batches(learner, monkeypatch, name) for name in AGENTS}
    for _ in range(8):
        learner.update()
    phase_of = [phase for length, phase in SEGMENTS for _ in range(length)]
    for name in AGENTS:
        acted_on = torch.cat([batch.observation[:, config.vae.latent_size] for batch in found[name]])
        assert {phase_of[int(row)] for row in acted_on} == {"exploration", name}


def test_the_novelty_bonus_is_added_to_the_task_reward(store: ExperienceStore) -> None:
    plain, with_bonus = learner_of(store=store), learner_of(replace(BASE, novelty_bonus=0.5), store)
    rows = torch.arange(12, 20)
    assert torch.allclose(with_bonus.rewards.task(rows), plain.rewards.task(rows) + 0.5 * plain.rewards.novelty(rows))


def test_a_true_reward_that_the_task_does_not_offer_is_an_error(store: ExperienceStore) -> None:
    learner = learner_of(replace(BASE, reward="diagnostic-true-reward"), store)
    with pytest.raises(ValueError, match="offers none"):
        learner.rewards.task(torch.arange(3))


def test_encoding_again_refreshes_the_cached_latents(store: ExperienceStore) -> None:
    learner = learner_of(store=store)
    assert learner.vae is not None
    count = len(learner.replay)
    before = learner.replay.latents[:count].clone()
    with torch.no_grad():
        list(learner.vae.encoder.parameters())[-1].add_(1.0)
    assert torch.equal(learner.replay.latents[:count], before)
    learner.reencode()
    assert torch.allclose(learner.replay.latents[:count], before + 1.0, atol=1e-5)


def test_the_encoder_that_acts_changes_only_when_refreshed(store: ExperienceStore) -> None:
    config = replace(BASE, vae=replace(BASE.vae, update_every=2, refresh_every=6))
    learner = learner_of(config, store)
    assert learner.vae is not None
    changes = []
    for _ in range(12):
        before, latents = weights(learner.vae), learner.replay.latents.clone()
        learner.update()
        changes.append(not torch.equal(weights(learner.vae), before))
        assert changes[-1] == (not torch.equal(learner.replay.latents, latents))
    assert [index for index, changed in enumerate(changes, 1) if changed] == [6, 12]


@pytest.mark.parametrize("variant", ["pixels", "diagnostic-true-state", "diagnostic-true-reward"])
def test_updates_of_each_variant_run_and_stay_finite(store: ExperienceStore, variant: str) -> None:
    learner = learner_of(VARIANTS[variant](BASE), store, lambda state: state[:, 0] / 50)
    learner.pretrain()
    for _ in range(5):
        metrics = learner.update()
    assert all(bool(torch.isfinite(value)) for value in metrics.values())
    assert all(np.isfinite(value) for value in learner.reward_check().values())


def test_published_weights_are_the_encoder_and_both_actors(store: ExperienceStore) -> None:
    found = {name.split("/")[0] for name in learner_of(store=store).weights()}
    assert found == {"vae", "task_actor", "perturbation_actor"}


def test_a_ring_smaller_than_the_store_is_restored_in_order(store: ExperienceStore) -> None:
    config = replace(BASE, replay_capacity=20)
    learner = learner_of(config, store)
    learner.pretrain()
    for _ in range(3):
        learner.update()
    other = learner_of(config)
    tensors, meta = learner.state()
    other.restore({name: tensor.clone() for name, tensor in tensors.items()}, meta, store)
    for name in ("images", "latents", "requested", "applied", "proprioception", "_step", "_phase", "added"):
        assert np.array_equal(getattr(other.replay, name), getattr(learner.replay, name)), name
    for _ in range(4):
        learner.update()
        other.update()
    for name, module in learner.modules().items():
        assert torch.equal(weights(module), weights(other.modules()[name])), name


GO_ON = """
import sys
from pathlib import Path
import torch
from r3l.run.directory import Run
from r3l.training.sync import train
torch.set_num_threads(1)
torch.manual_seed(1234)
for folder in sys.argv[2:]:
    assert train(Run.open(Path(folder)).extended(int(sys.argv[1])))
"""
END = 110
STOPS = {
    "during exploration": 37,
    "one step before the end of exploration": 59,
    "right after pretraining": 60,
    "inside a task episode": 67,
    "at an episode border": 80,
    "inside a perturbation episode": 86,
}
EXACT: dict[str, dict[str, Any]] = {
    "default": {},
    "without homing": {"phases": {"between": "nothing"}, "update_ratio": 0.7},
    "encoder goes on": {"vae": replace(TINY.vae, update_every=3, refresh_every=12), "replay_capacity": 64},
}


def final(run: Run) -> tuple[Tensors, dict[str, Any]]:
    found = load_checkpoint(run.checkpoints, pytest.fail)
    assert found is not None
    return found


def assert_same(expected: Run, run: Run, what: str) -> None:
    for mine, theirs in zip(stored(expected), stored(run), strict=True):
        assert (mine.segment, mine.step, mine.phase, mine.time_s) == (
            theirs.segment,
            theirs.step,
            theirs.phase,
            theirs.time_s,
        ), f"{what}: row {mine.sequence}"
        for name in ("image", "proprioception", "requested", "applied"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), f"{what}: {name} of row {mine.sequence}"
    (tensors, meta), (other_tensors, other_meta) = final(expected), final(run)
    assert meta == other_meta, what
    assert tensors.keys() == other_tensors.keys()
    different = [name for name in tensors if not torch.equal(tensors[name], other_tensors[name])]
    assert not different, what


@pytest.mark.slow
def test_a_run_resumed_in_a_new_process_is_the_run_never_stopped(tmp_path: Path, make_run: RunMaker) -> None:
    wholes: dict[str, Run] = {}
    parts: dict[tuple[str, str], Run] = {}
    for kind, changes in EXACT.items():
        wholes[kind] = make_run(tmp_path / kind / "whole", tiny(steps=END, **changes))
        for name, step in STOPS.items() if kind == "default" else list(STOPS.items())[-1:]:
            parts[kind, name] = make_run(tmp_path / kind / name, tiny(steps=step, **changes))
    assert all(train(run) for run in (*wholes.values(), *parts.values()))
    folders = [str(run.folder) for run in parts.values()]
    environment = os.environ | {"TQDM_DISABLE": "1"}
    subprocess.run([sys.executable, "-c", GO_ON, str(END), *folders], check=True, env=environment)
    for (kind, name), run in parts.items():
        whole = wholes[kind]
        assert final(whole)[1]["learner"]["updates"] == int((END - 60) * whole.config.update_ratio)
        assert_same(whole, run, f"{kind}, {name}")


def test_diagnostic_resets_go_on_exactly_too(tmp_path: Path, make_run: RunMaker) -> None:
    config = VARIANTS["diagnostic-resets"](tiny(steps=110))
    whole = make_run(tmp_path / "whole", config)
    part = make_run(tmp_path / "part", replace(config, steps=85))
    assert train(whole)
    assert train(part)
    assert train(part.extended(110))
    assert_same(whole, part, "diagnostic-resets")


def test_another_seed_is_seen_as_another_run(tmp_path: Path, make_run: RunMaker) -> None:
    """The comparison above can fail: another seed ends elsewhere."""
    runs = [make_run(tmp_path / str(seed), tiny(steps=65, seed=seed)) for seed in (0, 1)]
    assert all(train(run) for run in runs)
    with pytest.raises(AssertionError):
        assert_same(runs[0], runs[1], "another seed")
