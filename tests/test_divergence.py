"""The numerical watch: every way that learning breaks is named, healthy learning never is, and the way back works."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RunMaker, make_row, tiny
from test_sync import shrunk, variant
from torch import Tensor, nn

from r3l.config.presets import PRESETS, VARIANTS
from r3l.config.schema import Config, NumericsConfig
from r3l.learner.divergence import PATIENCE, THOROUGH_EVERY, Divergence, DivergenceMonitor, largest_return
from r3l.learner.learner import Learner
from r3l.learner.rollback import Recovery, Rollbacks, roll_back
from r3l.models.novelty import RND
from r3l.robot.base import CameraSpec, Joint, RobotSpec
from r3l.run.checkpoint import load_checkpoint, save_checkpoint
from r3l.run.experience import ExperienceStore
from r3l.run.tensors import CheckpointError
from r3l.training.sync import train

ACTIONS, SIDE = 3, 32
SPEC = RobotSpec(tuple(Joint(f"joint{n}", -1.0, 1.0) for n in range(ACTIONS)), 10.0, CameraSpec(SIDE, SIDE), ())
CPU = torch.device("cpu")
BASE = tiny(replay_capacity=100, classifier=replace(tiny().classifier, sees="pixels", pretrain_updates=10))


@pytest.fixture
def store(tmp_path: Path) -> ExperienceStore:
    """Seven segments of twenty rows: more than the replay of BASE holds."""
    store = ExperienceStore(tmp_path / "experience.sqlite", (SIDE, SIDE, 3))
    for segment, phase in enumerate(("exploration", "task", "perturbation", "task", "perturbation", "task", "task")):
        for step in range(20):
            row = make_row(20 * segment + step, segment=segment, step=step, phase=phase, actions=ACTIONS, side=SIDE)
            store.append(replace(row, proprioception=np.tanh(row.proprioception / 100)))
    return store


def learner_of(store: ExperienceStore, config: Config = BASE, *, rows: int = -1, updates: int = 5) -> Learner:
    """Return a learner of random images that already told goals, black squares in them, from the rest."""
    goals = torch.randint(0, 256, (8, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    goals[:, :, 8:24, 8:24] = 0
    learner = Learner(config, SPEC, goals, device=CPU)
    learner.follow(store, rows)
    learner.pretrain()
    for _ in range(updates):
        learner.update()
    return learner


def first_parameter(module: nn.Module) -> nn.Parameter:
    return next(each for each in module.parameters() if each.requires_grad)


def thorough(watch: DivergenceMonitor) -> Divergence | None:
    """Look until the next thorough look is done; return the first trouble."""
    for _ in range(THOROUGH_EVERY):
        found = watch.check()
        if found is not None:
            return found
    return None


def patient(watch: DivergenceMonitor) -> list[Divergence | None]:
    return [thorough(watch) for _ in range(PATIENCE)]


def poison_weight(learner: Learner) -> None:
    first_parameter(learner.agents["perturbation"].critic).data[0, 0, 0] = torch.nan


def poison_encoder(learner: Learner) -> None:
    assert learner.vae is not None
    first_parameter(learner.vae).data[0] = -torch.inf


def rnd_of(learner: Learner) -> RND:
    novelty = learner.novelty["perturbation"]
    assert isinstance(novelty, RND)
    return novelty


def poison_buffer(learner: Learner) -> None:
    rnd_of(learner).errors.square.fill_(torch.nan)


def poison_gradient(learner: Learner) -> None:
    found = first_parameter(learner.agents["task"].actor.body).grad
    assert found is not None
    found[0, 0] = torch.inf


def poison_moment(learner: Learner) -> None:
    next(iter(learner.agents["task"].critic_optimiser.state.values()))["exp_avg_sq"][0, 0, 0] = torch.inf


def scale_critics(learner: Learner) -> None:
    for parameter in learner.agents["perturbation"].critic.weights:
        parameter.data.mul_(1e6)


@pytest.mark.parametrize(
    ("poison", "name", "where"),
    [
        (poison_weight, "weight", "perturbation_agent.critic.weights.0"),
        (poison_encoder, "weight", "vae.encoder.0.weight"),
        (poison_buffer, "weight", "perturbation_novelty.errors.square"),
        (poison_gradient, "gradient", "task_agent.actor.body.0.weight"),
        (poison_moment, "weight", "task_agent.critic.0.exp_avg_sq"),
        (scale_critics, "critics", "the perturbation critics' mean value"),
    ],
)
def test_what_is_not_finite_or_explodes_is_named(
    store: ExperienceStore, poison: Callable[[Learner], None], name: str, where: str
) -> None:
    learner = learner_of(store)
    watch = DivergenceMonitor(learner, NumericsConfig())
    assert patient(watch) == [None] * PATIENCE
    poison(learner)
    found = thorough(watch)
    assert found is not None
    assert found.name == name
    assert where in found.message


@pytest.mark.parametrize("value", [torch.tensor(torch.nan), float("inf")])
def test_a_loss_that_is_not_finite_is_named(store: ExperienceStore, value: Tensor | float) -> None:
    watch = DivergenceMonitor(learner_of(store), NumericsConfig())
    assert watch.check({"task/critic_loss": 1.0, "vae/kl": torch.tensor(3.0)}) is None
    assert watch.check({"task/critic_loss": 1.0, "vae/kl": value}) == Divergence(
        "loss", "the loss vae/kl is not finite"
    )


def test_a_critic_whose_loss_no_return_explains_is_exploding(store: ExperienceStore) -> None:
    watch = DivergenceMonitor(learner_of(store), NumericsConfig())
    limit = 10 * largest_return(BASE, "task")
    assert watch.check({"task/critic_loss": 0.9 * limit**2}) is None
    found = watch.check({"task/critic_loss": 1.1 * limit**2})
    assert found is not None
    assert found.name == "critics"


def test_the_largest_return_follows_from_rewards_and_discount() -> None:
    default, paper = PRESETS["default"](), PRESETS["paper"]()
    assert largest_return(default, "task") == pytest.approx(1 / 0.03)
    assert largest_return(default, "perturbation") == pytest.approx(5 / 0.03)
    assert largest_return(paper, "task") == pytest.approx((10 + 1000) / 0.01)
    undiscounted = replace(default, sac=replace(default.sac, discount=1.0))
    assert np.isfinite(largest_return(undiscounted, "task"))


def test_a_dead_novelty_is_named_when_it_stays_dead(store: ExperienceStore) -> None:
    learner = learner_of(store)
    watch = DivergenceMonitor(learner, NumericsConfig())
    assert patient(watch) == [None] * PATIENCE
    novelty = rnd_of(learner)
    novelty.predictor.load_state_dict(novelty.target.state_dict())
    *first, last = patient(watch)
    assert first == [None] * (PATIENCE - 1)
    assert last is not None
    assert last.name == "novelty"
    assert "numerics.min_novelty" in last.message


def test_a_novelty_without_spread_is_dead_too_but_not_for_a_moment(store: ExperienceStore) -> None:
    learner = learner_of(store)
    watch = DivergenceMonitor(learner, NumericsConfig())
    assert patient(watch) == [None] * PATIENCE
    novelty = rnd_of(learner)
    alive = copy.deepcopy(novelty.state_dict())
    make_constant(novelty.predictor)
    make_constant(novelty.target)
    list(novelty.predictor.parameters())[-1].data.add_(1e-2)
    dead = copy.deepcopy(novelty.state_dict())
    for state in (alive, dead) * PATIENCE:
        novelty.load_state_dict(state)
        assert thorough(watch) is None
    found = thorough(watch)
    assert found is not None
    assert found.name == "novelty"
    assert float(learner.rewards.novelty(torch.arange(5)).mean()) > 100 * NumericsConfig().min_novelty


def test_a_novelty_to_which_all_is_as_new_as_can_be_is_not_dead(store: ExperienceStore) -> None:
    learner = learner_of(store)
    watch = DivergenceMonitor(learner, NumericsConfig())
    patient(watch)
    errors = rnd_of(learner).errors
    errors.square.copy_(errors.mean.square())
    reward = learner.rewards.novelty(torch.arange(len(learner.replay)))
    assert reward.min() == reward.max() == BASE.novelty.max_reward
    assert patient(watch) == [None] * PATIENCE


def make_constant(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data.zero_()


def test_a_classifier_that_tells_nothing_apart_any_more_has_collapsed(store: ExperienceStore) -> None:
    learner = learner_of(store)
    watch = DivergenceMonitor(learner, NumericsConfig())
    assert patient(watch) == [None] * PATIENCE
    make_constant(learner.classifier)
    *first, last = patient(watch)
    assert first == [None] * (PATIENCE - 1)
    assert last is not None
    assert last.name == "classifier"
    assert "0.5 with a deviation of 0," in last.message


def test_a_classifier_that_never_told_anything_apart_is_left_to_the_reward_health(store: ExperienceStore) -> None:
    learner = learner_of(store)
    make_constant(learner.classifier)
    watch = DivergenceMonitor(learner, NumericsConfig())
    assert patient(watch) + patient(watch) == [None] * (2 * PATIENCE)


def test_where_no_classifier_rewards_none_is_looked_at(store: ExperienceStore) -> None:
    learner = learner_of(store)
    watch = DivergenceMonitor(learner, NumericsConfig())
    patient(watch)
    make_constant(learner.classifier)
    learner.config = replace(learner.config, reward="diagnostic-true-reward")
    assert patient(watch) == [None] * PATIENCE


def test_looking_changes_nothing_that_is_learned(store: ExperienceStore) -> None:
    alone, watched = learner_of(store), learner_of(store)
    watch = DivergenceMonitor(watched, NumericsConfig())
    torch.manual_seed(3)
    for _ in range(2 * THOROUGH_EVERY):
        alone.update()
        assert watch.check(watched.update()) is None
    expected, found = alone.state(), watched.state()
    assert found[1] == expected[1]
    assert all(torch.equal(tensor, found[0][name]) for name, tensor in expected[0].items())
    again = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(again, torch.rand(1)), "nor from the generator that all share"


@pytest.mark.parametrize(
    "config",
    [*(shrunk(make()) for make in PRESETS.values()), *(variant(name) for name in VARIANTS)],
    ids=[*PRESETS, *VARIANTS],
)
def test_no_preset_and_no_variant_is_ever_in_trouble(
    tmp_path: Path, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch, config: Config
) -> None:
    """Every update of a run from its first on is looked at thoroughly."""
    real, looks = Learner.update, []

    def update(self: Learner) -> dict[str, Tensor]:
        metrics = real(self)
        watch = watches.setdefault(id(self), DivergenceMonitor(self, self.config.numerics))
        looks.append(thorough(watch) or watch.check(metrics))
        return metrics

    watches: dict[int, DivergenceMonitor] = {}
    monkeypatch.setattr(Learner, "update", update)
    run = make_run(tmp_path / "run", replace(config, steps=80))
    assert train(run)
    assert looks == [None] * 20


def test_rollbacks_are_admitted_so_often_an_hour() -> None:
    rollbacks = Rollbacks(NumericsConfig(max_rollbacks_per_hour=3))
    assert [rollbacks.admit(1000.0 * n) for n in range(4)] == [True, True, True, False]
    assert rollbacks.admit(3600.0), "the first was an hour ago"
    assert not rollbacks.admit(4599.0)
    assert rollbacks.admit(4600.0)
    assert not Rollbacks(NumericsConfig(max_rollbacks_per_hour=0)).admit(0.0)


def test_rollbacks_and_what_was_well_are_known_to_a_new_process(tmp_path: Path, store: ExperienceStore) -> None:
    first, second = (Recovery(learner_of(store), tmp_path, lambda kind, message: None) for _ in range(2))
    thorough(first.monitor)
    for _ in range(3):
        assert first.rollbacks.admit(time.monotonic())
    saved = json.loads(json.dumps(first.state()))
    second.restore(saved)
    assert second.state()["well"] == saved["well"] == first.monitor.well() != []
    assert not second.rollbacks.admit(time.monotonic())
    numbers = {"well": [1], "rollback_ages_s": [None, -1, 1e9]}
    some: tuple[object, ...] = (None, [], {"well": 3, "rollback_ages_s": "x"}, numbers)
    for nonsense in some:
        third = Recovery(learner_of(store), tmp_path, lambda kind, message: None)
        third.restore(nonsense)
        assert third.state() == {"well": [], "rollback_ages_s": []}


def test_trouble_that_comes_again_before_a_new_checkpoint_goes_back_further() -> None:
    rollbacks = Rollbacks(NumericsConfig(max_rollbacks_per_hour=9))
    skips = []
    for saves in (False, False, True, False):
        assert rollbacks.admit(0.0)
        skips.append(rollbacks.skip)
        if saves:
            rollbacks.saved()
    assert skips == [0, 1, 1, 0]


def save(learner: Learner, folder: Path) -> Path:
    tensors, meta = learner.state()
    return save_checkpoint(folder, learner.steps, tensors, {"learner": meta}, keep=5)


def run_on(learner: Learner, store: ExperienceStore, folder: Path, *ends: int) -> list[Path]:
    """Learn on up to so many rows and save a checkpoint at each."""
    paths = []
    for end in ends:
        learner.follow(store, end - learner.sequence)
        for _ in range(3):
            learner.update()
        paths.append(save(learner, folder))
    return paths


def all_finite(learner: Learner) -> bool:
    return all(bool(torch.isfinite(each).all()) for each in learner.state()[0].values() if each.is_floating_point())


def test_going_back_gives_finite_weights_and_learning_goes_on(tmp_path: Path, store: ExperienceStore) -> None:
    folder = tmp_path / "checkpoints"
    learner = learner_of(store, rows=80)
    _, newest = run_on(learner, store, folder, 90, 105)
    updates, kept = learner.updates, {name: each.clone() for name, each in learner.state()[0].items()}
    watch = DivergenceMonitor(learner, NumericsConfig())
    learner.follow(store)
    learner.update()
    poison_weight(learner)
    poison_gradient(learner)
    assert watch.check() is not None
    assert roll_back(learner, store, folder, pytest.fail, skip=0) == updates
    assert watch.check() is None, "gradients are forgotten too"
    for name, tensor in learner.state()[0].items():
        assert torch.equal(tensor, kept[name]) or name == "generator", name
    assert (learner.sequence, learner.replay.added) == (105, 105)
    assert (folder / "latest").read_text() == newest.name
    learner.follow(store)
    assert (learner.sequence, learner.replay.added, len(learner.replay)) == (140, 140, 100)
    fresh = Learner(BASE, SPEC, learner.goals, device=CPU)
    found = load_checkpoint(folder, pytest.fail)
    assert found is not None
    fresh.restore(found[0], found[1]["learner"], store)
    fresh.follow(store)
    for table in ("images", "proprioception", "requested", "applied", "latents", "_step", "_phase"):
        assert (getattr(fresh.replay, table) == getattr(learner.replay, table)).all(), table
    for _ in range(5):
        assert watch.check(learner.update()) is None
    assert all_finite(learner)


def test_after_going_back_other_numbers_are_drawn_and_the_same_ones_each_time(
    tmp_path: Path, store: ExperienceStore
) -> None:
    def draws(folder: Path, more: int) -> tuple[Tensor, ...]:
        learner = learner_of(store)
        save(learner, folder)
        drawn: list[Tensor] = []
        for _ in range(2):
            for _ in range(more):
                learner.update()
            roll_back(learner, store, folder, pytest.fail, skip=0)
            drawn += [torch.from_numpy(learner.rng.random(4)), torch.rand(4, generator=learner.generator)]
        return tuple(drawn)

    untroubled = learner_of(store)
    expected = (untroubled.rng.random(4), torch.rand(4, generator=untroubled.generator))
    first, again = draws(tmp_path / "first", 2), draws(tmp_path / "again", 2)
    assert all(map(torch.equal, first, again)), "by seed"
    assert not np.array_equal(first[0], expected[0])
    assert not torch.equal(first[1], expected[1])
    assert not torch.equal(first[0], first[2]), "the second way back is not the first one"
    assert not torch.equal(first[1], first[3])


def test_going_back_further_takes_what_was_passed_over_out_of_the_way(tmp_path: Path, store: ExperienceStore) -> None:
    folder = tmp_path / "checkpoints"
    learner = learner_of(store, rows=80)
    first, second, third = run_on(learner, store, folder, 90, 105, 120)
    roll_back(learner, store, folder, pytest.fail, skip=1)
    assert learner.sequence == 105
    assert [path.exists() for path in (first, second, third)] == [True, True, False]
    assert (folder / "latest").read_text() == second.name
    roll_back(learner, store, folder, pytest.fail, skip=1)
    assert learner.sequence == 90
    roll_back(learner, store, folder, pytest.fail, skip=1)
    assert learner.sequence == 90, "the last one is not passed over"
    assert first.exists()


def test_a_corrupt_newest_checkpoint_is_passed_over_and_stays(tmp_path: Path, store: ExperienceStore) -> None:
    folder = tmp_path / "checkpoints"
    learner = learner_of(store, rows=80)
    good, newest = run_on(learner, store, folder, 90, 105)
    damaged = bytearray((newest / "tensors.safetensors").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (newest / "tensors.safetensors").write_bytes(damaged)
    poison_weight(learner)
    warnings: list[str] = []
    roll_back(learner, store, folder, warnings.append, skip=0)
    assert learner.sequence == 90
    assert all_finite(learner)
    assert len(warnings) == 1
    assert newest.name in warnings[0]
    assert newest.exists(), "a disk that cannot be read for a moment costs nothing"
    assert (folder / "latest").read_text() == good.name


@pytest.mark.parametrize("poison", [poison_weight, scale_critics, lambda learner: make_constant(learner.classifier)])
def test_checkpoints_that_hold_the_trouble_already_are_passed_over(
    tmp_path: Path, store: ExperienceStore, poison: Callable[[Learner], None]
) -> None:
    folder = tmp_path / "checkpoints"
    learner = learner_of(store, rows=80)
    run_on(learner, store, folder, 90)
    poison(learner)
    learner.follow(store)
    save(learner, folder)
    roll_back(learner, store, folder, lambda message: None, skip=0)
    assert learner.sequence == 90
    assert DivergenceMonitor(learner, NumericsConfig()).is_well()


def test_where_no_checkpoint_is_well_the_newest_is_better_than_none(tmp_path: Path, store: ExperienceStore) -> None:
    folder = tmp_path / "checkpoints"
    learner = learner_of(store, rows=80)
    make_constant(learner.classifier)
    run_on(learner, store, folder, 90, 105)
    make_constant(learner.classifier)
    save(learner, folder)
    learner.follow(store)
    roll_back(learner, store, folder, pytest.fail, skip=0)
    assert learner.sequence == 105


def test_without_any_checkpoint_it_says_so(tmp_path: Path, store: ExperienceStore) -> None:
    learner = learner_of(store)
    folder = tmp_path / "checkpoints"
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        roll_back(learner, store, folder, pytest.fail, skip=0)
    path = save(learner, folder)
    shutil.copy(path / "manifest.json", path / "meta.json")
    warnings: list[str] = []
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        roll_back(learner, store, folder, warnings.append, skip=0)
    assert len(warnings) == 1
