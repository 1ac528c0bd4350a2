from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from r3l.config.convert import from_dict, merge, nearest, nested, to_dict
from r3l.config.errors import UserError
from r3l.config.page import meaning, page
from r3l.config.presets import PRESETS, VARIANTS
from r3l.config.ranges import Setting, settings_of
from r3l.config.schema import Config, Randomization
from r3l.hardware.variation import REACH

RANGES = {setting.key: setting.range for setting in settings_of(Config) if setting.range}


def variant_of(preset: str, variant: str | None) -> Config:
    config = PRESETS[preset]()
    return VARIANTS[variant](config) if variant else config


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("variant", [None, *sorted(VARIANTS)])
def test_every_config_survives_the_way_to_json_and_back(preset: str, variant: str | None) -> None:
    config = variant_of(preset, variant)
    assert from_dict(Config, to_dict(config)) == config
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_read_no_truth(preset: str) -> None:
    assert not variant_of(preset, None).reads_truth


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_variants_that_read_truth_say_diagnostic_and_no_others(preset: str, variant: str) -> None:
    assert variant_of(preset, variant).reads_truth == ("diagnostic" in variant)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_variant_changes_something_and_only_once(preset: str, variant: str) -> None:
    once = variant_of(preset, variant)
    assert once != variant_of(preset, None)
    assert VARIANTS[variant](once) == once


def test_what_is_not_given_has_its_default() -> None:
    config = from_dict(Config, {"steps": 7, "phases": {"task_steps": 3}})
    assert (config.steps, config.phases.task_steps) == (7, 3)
    assert config.phases.homing_steps == Config().phases.homing_steps
    assert from_dict(Config, {}) == Config()


def test_whole_numbers_are_taken_for_floats_and_lists_for_tuples() -> None:
    config = from_dict(Config, {"update_ratio": 2, "sac": {"hidden": [8, 9]}})
    assert config.update_ratio == 2.0
    assert isinstance(config.update_ratio, float)
    assert config.sac.hidden == (8, 9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 7}, r"unknown config key 'step'; did you mean 'steps'\?"),
        ({"sac": {"discont": 0.9}}, r"unknown config key 'sac\.discont'; did you mean 'discount'\?"),
        ({"vae": {"xyzzy": 1}}, r"unknown config key 'vae\.xyzzy'; known: batch_size, beta"),
    ],
)
def test_an_unknown_key_names_the_nearest(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_dict(Config, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "many"}, "'steps' is 'many', expected int"),
        ({"steps": 1.5}, "'steps' is 1.5, expected int"),
        ({"steps": True}, "'steps' is True, expected int"),
        ({"steps": None}, "'steps' is None, expected int"),
        ({"update_ratio": True}, "'update_ratio' is True, expected float"),
        ({"update_ratio": "1"}, "'update_ratio' is '1', expected float"),
        ({"update_acting_only": 1}, "'update_acting_only' is 1, expected bool"),
        ({"task": 3}, "'task' is 3, expected str"),
        ({"state": "words"}, "'state' is 'words', expected one of 'latent', 'pixels'"),
        ({"state": ["latent"]}, "'state' is .*, expected one of"),
        ({"sac": 3}, "'sac' is 3, expected a table"),
        ({"sac": {"hidden": 8}}, r"'sac\.hidden' is 8, expected"),
        ({"sac": {"hidden": [8, "9"]}}, r"'sac\.hidden' is '9', expected int"),
        ({"phases": {"between": "sleep"}}, r"'phases\.between' is 'sleep', expected one of 'home'"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_key_and_what_is_expected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_dict(Config, values)


def test_a_missing_key_is_named() -> None:
    from r3l.robot.rig import Rig

    with pytest.raises(UserError, match=r"config key 'rig\.control_hz' is missing"):
        from_dict(Rig, {}, "rig.")


def test_the_nearest_name_is_hinted_or_all_are_listed() -> None:
    assert nearest("vavle", ["valve", "beads"]) == "did you mean 'valve'?"
    assert nearest("q", ["valve", "beads"]) == "known: beads, valve"


@pytest.mark.parametrize("key", RANGES)
def test_a_number_outside_its_range_is_named(key: str) -> None:
    values = to_dict(Config())
    *tables, name = key.split(".")
    table = values
    for part in tables:
        table = table[part]
    whole = isinstance(table[name], int)
    table[name] = RANGES[key].low - 1 if whole else math.nan
    with pytest.raises(UserError, match=f"{key}.* expected"):
        from_dict(Config, values)


def test_every_number_has_a_range() -> None:
    def numbers(values: dict[str, Any], where: str) -> set[str]:
        found: set[str] = set()
        for name, value in values.items():
            if isinstance(value, dict):
                found |= numbers(value, f"{where}{name}.")
            elif isinstance(value, int | float) and not isinstance(value, bool):
                found.add(where + name)
        return found

    assert numbers(to_dict(Config()), "") == set(RANGES) - {"sac.hidden"}


@pytest.mark.parametrize("setting", settings_of(Config), ids=lambda setting: setting.key)
def test_every_setting_has_a_meaning(setting: Setting) -> None:
    assert meaning(setting.key).endswith(".")


def test_the_settings_page_is_what_the_code_gives() -> None:
    written = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
    assert written == page(), "python -m r3l.config.page >docs/settings.md"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sac.discount": 1.5}, "config key 'sac.discount' is 1.5, expected 0 to 1"),
        ({"sac.discount": math.inf}, "config key 'sac.discount' is inf, expected 0 to 1"),
        ({"update_ratio": 10**400}, r"config key 'update_ratio' is 1000.*\.\.\..*000, expected 0 to 100"),
        ({"steps": 0}, "config key 'steps' is 0, expected 1 to 1,000,000,000"),
        ({"seed": -1}, "config key 'seed' is -1, expected 0 to"),
        ({"sac.hidden": []}, r"config key 'sac.hidden' is \(\), expected 1 to 16 numbers of 1 to 65,536"),
        ({"sac.hidden": [8, 0]}, r"config key 'sac.hidden' is \(8, 0\), expected 1 to 16 numbers"),
        ({"sac.hidden": [8] * 17}, r"config key 'sac.hidden' is \(8, .*\.\.\.\), expected 1 to 16 numbers"),
        ({"vae.image_size": 20}, "config key 'vae.image_size' is 20, expected 8 to 512, a multiple of 8"),
        ({"checks.dark.threshold": 256.0}, "config key 'checks.dark.threshold' is 256.0, expected 0 to 255"),
    ],
)
def test_a_value_outside_its_range_names_the_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_dict(Config, nested(values))


def test_a_replaced_value_is_checked_too() -> None:
    config = Config()
    with pytest.raises(UserError, match=r"'sac\.discount' is 2\.0, expected 0 to 1"):
        replace(config, sac=replace(config.sac, discount=2.0))


def test_changes_are_laid_over_values_table_by_table() -> None:
    values = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert merge(values, nested({"b.d.e": 4, "b.f": 5})) == {"a": 1, "b": {"c": 2, "d": {"e": 4}, "f": 5}}
    assert merge(values, {"a": {"x": 1}, "b": 2}) == {"a": {"x": 1}, "b": 2}
    assert values == {"a": 1, "b": {"c": 2, "d": {"e": 3}}}


def test_every_level_of_randomization_has_amounts() -> None:
    assert tuple(REACH) == get_args(Randomization)


def test_settings_need_no_other_package() -> None:
    code = (
        "import sys, types; package = types.ModuleType('r3l'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['r3l'] = package; import r3l.config, r3l.config.page; "
        "print(*sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    folder = Path(__file__).parents[1] / "r3l"
    command = [sys.executable, "-S", "-c", code, str(folder)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["__main__", "r3l"]
