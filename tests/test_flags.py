import importlib
import json
import re

import pytest

from vgift_plugin.cli import COMMANDS, main
from vgift_plugin.data.strict import read_settings
from vgift_plugin.errors import ConfigError
from vgift_plugin.methods.settings import Settings, with_absolute_paths
from vgift_plugin.methods.vgift.flags import VgiftFlags, counts
from vgift_plugin.methods.vgift.streams import streams
from vgift_plugin.tasks.registry import presets


def tasks(**flags):
    return VgiftFlags(**flags).tasks()


def mistakes(**flags):
    """Returns the message with the mistakes of all methods' flags; empty where there are none."""
    try:
        Settings(flags).check()
    except ConfigError as err:
        return str(err)
    return ""


def test_without_tasks_nothing_is_asked():
    assert tasks() == ()


def test_weights_default_to_one_and_keep_their_order():
    asks = tasks(ssl_tasks="rotation, color:2,correspondence:0.5")
    assert [(ask.task.name, float(ask.weight)) for ask in asks] == [
        ("rotation", 1),
        ("color", 2),
        ("correspondence", 0.5),
    ]


def test_the_released_mixture_to_the_number():
    asks = tasks(ssl_tasks="rotation,color,correspondence")
    each = counts(asks, 0.1, 665_298)
    assert each == [22_176] * 3
    assert 665_298 + sum(each) == 731_826


@pytest.mark.parametrize(
    ("ratio", "base", "weights", "expected"), [(0.1, 30, "", 1), (0.3, 10, "", 1), (0.07, 300, ":7", 7)]
)
def test_counts_are_exact_where_floats_are_not(ratio, base, weights, expected):
    asks = tasks(ssl_tasks=f"rotation{weights},color{weights},correspondence{weights}")
    assert counts(asks, ratio, base) == [expected] * 3


def test_weight_zero_gives_no_sample_and_ratio_zero_none_at_all():
    assert counts(tasks(ssl_tasks="rotation:0,color"), 0.5, 100) == [0, 50]
    assert counts(tasks(ssl_tasks="rotation,color"), 0.0, 100) == [0, 0]


def test_a_task_left_without_sample_is_named():
    with pytest.raises(ConfigError, match=r"0\.01 of 150 base records leaves no sample for rotation, color"):
        counts(tasks(ssl_tasks="rotation,color"), 0.01, 150)


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (-0.1, "must be 0 to 1"),
        (float("nan"), "must be 0 to 1"),
        (float("inf"), "must be 0 to 1"),
        (50.0, "50 percent is 0.5"),
        (3.0, "3 percent is 0.03"),
    ],
)
def test_bad_ratio(ratio, message):
    with pytest.raises(ConfigError, match=message):
        tasks(ssl_tasks="rotation", ssl_ratio=ratio)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("rotatoin", "did you mean 'rotation'"),
        ("puzzle9", "known tasks: .*rotation"),
        ("rotation,rotation", "rotation stands twice"),
        ("rotation:x", "must be a number from 0 up, not 'x'"),
        ("rotation:-1", "must be a number from 0 up, not '-1'"),
        ("rotation:0", "at least one weight"),
        ("rotation,,color", "name is missing"),
        ("", "name is missing"),
    ],
)
def test_bad_tasks(written, message):
    with pytest.raises(ConfigError, match=message):
        tasks(ssl_tasks=written)


def test_all_mistakes_come_in_one_message(tmp_path):
    config = tmp_path / "knobs.yaml"
    config.write_text("color: {pionts: 3, size_px: big}\nrotation: {square: 1}\nrotaton: {}\n")
    with pytest.raises(ConfigError) as caught:
        tasks(ssl_tasks="rotation,colour", ssl_ratio=5, ssl_image_folder=str(tmp_path / "none"), ssl_config=str(config))
    text = str(caught.value)
    for part in (
        "7 mistakes",
        "5 percent is 0.05",
        "no such folder",
        "did you mean 'color'",
        "color has no knob 'pionts'; did you mean 'points'",
        "color.size_px must be like 336, not 'big'",
        "rotation.square must be like True, not 1",
        "did you mean 'rotation'",
    ):
        assert part in text


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_knobs_from_a_file(tmp_path, suffix):
    config = tmp_path / f"knobs.{suffix}"
    config.write_text(json.dumps({"color": {"points": 3, "min_distance": 50}, "rotation": {"wording": 0}}))
    rotation, color = tasks(ssl_tasks="rotation,color", ssl_config=str(config))
    assert (rotation.task.wording, color.task.points, color.task.min_distance) == (0, 3, 50)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("color: [", "cannot be read"),
        ("- color", "must map tasks to knobs"),
        ("color: 5", "must map tasks to knobs"),
        ("color: {points: 12}", r"color\.points must be 2 to 9, not 12"),
        ("correspondence: {size_px: 60}", r"size_px must be at least 2 × \(margin_px \+ min_distance_px\)"),
        ("rotation: {wording: 99}", "wording must be null or 0 to 4, not 99"),
    ],
)
def test_bad_config_file(tmp_path, text, message):
    config = tmp_path / "knobs.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=message):
        tasks(ssl_tasks="rotation,color,correspondence", ssl_config=str(config))


def test_missing_config_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--ssl_config .*absent\.yaml: cannot be read"):
        tasks(ssl_tasks="rotation", ssl_config=str(tmp_path / "absent.yaml"))


def test_replay_and_pairs_are_checked_before_anything_is_loaded(tmp_path):
    with pytest.raises(
        ConfigError, match=r"2 mistakes.*\n.*--ssl_replay .*no such folder\n.*--ssl_pairs .*`vgift pairs`"
    ):
        tasks(ssl_tasks="rotation", ssl_replay=str(tmp_path / "none"), ssl_pairs=str(tmp_path / "none.jsonl"))
    (tmp_path / "pairs.jsonl").touch()
    with pytest.raises(ConfigError, match="--ssl_pairs needs --ssl_tasks"):
        tasks(ssl_pairs=str(tmp_path / "pairs.jsonl"))
    with pytest.raises(ConfigError, match=r"none of --ssl_tasks rotation takes pairs"):
        flags = VgiftFlags(ssl_tasks="rotation", ssl_pairs=str(tmp_path / "pairs.jsonl"))
        streams(flags, flags.tasks(), [], "", None)


def test_flags_of_the_instruction_loss(tmp_path):
    path = tmp_path / "templates.json"
    path.write_text("[]")
    fine = {"instruct_loss": "no_template", "instruct_templates": str(path)}
    assert Settings(fine).words() == "the loss on instructions" and mistakes(**fine) == ""
    both = Settings({"instruct_loss": "full", "ssl_tasks": "rotation"})
    assert both.words() == "the loss on instructions and self-supervised samples"
    assert Settings({}).words() == "" and Settings({}).wanted() == [] == list(Settings({}).changed())
    told = mistakes(
        instruct_loss="no_templat",
        instruct_templates=str(tmp_path / "none"),
        instruct_loss_weight=-0.5,
        ssl_ratio=7.0,
    )
    for part in (
        "5 mistakes",
        "--ssl_ratio 7",
        "did you mean 'no_template'?",
        "there is no such file; `vgift templates` writes one",
        "--instruct_templates needs --instruct_loss no_template, not no_templat",
        "--instruct_loss_weight -0.5: must be a finite number, 0 or more",
    ):
        assert part in told
    told = mistakes(instruct_loss_weight=0.5)
    assert "--instruct_loss_weight needs an --instruct_loss other than none" in told
    assert "--instruct_loss_text True needs an --instruct_loss other than none" in mistakes(instruct_loss_text=True)


def test_flags_of_what_acts_in_the_model():
    told = mistakes(visual_token_drop=75, visual_token_drop_prob=1.5, ssl_ratio=2)
    assert "3 mistakes" in told and "75 percent is 0.75" in told and "--visual_token_drop_prob 1.5" in told
    for ratio in (1.0, -0.1):
        assert "must be 0 or more and below 1" in mistakes(visual_token_drop=ratio)
    assert "--visual_token_drop_prob needs --visual_token_drop" in mistakes(visual_token_drop_prob=0.25)
    assert Settings({"visual_token_drop": 0.5, "tune_vision_tower": True}).words() == (
        "--visual_token_drop and --tune_vision_tower"
    )


def test_flags_of_preference_training(tmp_path):
    told = mistakes(preference_data=str(tmp_path / "no.jsonl"), dpo_beta=0.0, dpo_alpha=-1.0, ssl_tasks="rotation")
    for part in (
        "4 mistakes",
        "no.jsonl: there is no such file; `vgift stic prefer`",
        "--dpo_beta 0: must be above 0",
        "--dpo_alpha -1: must be 0 or more",
        "--preference_data goes without --ssl_tasks: it trains on pairs alone",
    ):
        assert part in told
    assert "--dpo_beta needs --preference_data" in mistakes(dpo_beta=0.2)
    (tmp_path / "prefs.jsonl").write_text(json.dumps({"vgift": "preferences", "version": 1, "template": 7}) + "\n")
    told = mistakes(preference_data=str(tmp_path / "prefs.jsonl"), ssl_replay=str(tmp_path))
    assert "goes without --ssl_replay" in told
    told = mistakes(preference_data=str(tmp_path / "prefs.jsonl"), ssl_resume_anyway=True)
    assert "goes without" not in told  # a flag of the run, not of another method
    assert re.search(r"--preference_data .*is no preference file .*\n +line 1: template is 7", told)
    assert Settings({"preference_data": "x"}).words() == "--preference_data"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            {"ssl_image_folder": "", "ssl_tasks": "rotation"},
            "--ssl_image_folder '' is empty; is a shell variable unset?",
        ),
        ({"ssl_tasks": " "}, "--ssl_tasks ' ' is empty"),
        ({"ssl_tasks": "rotation", "ssl_ratio": float("nan")}, "--ssl_ratio nan is no finite number"),
        ({"ssl_tasks": "rotation", "ssl_ratio": float("inf")}, "--ssl_ratio inf is no finite number"),
        ({"ssl_tasks": "rotation", "ssl_seed": 2**64}, "must be at most 9223372036854775807"),
        ({"ssl_tasks": "rotation:1e9999999"}, "the weight of rotation must be a number from 0 up, not '1e9999999'"),
        ({"ssl_tasks": "rotation:" + "9" * 99}, "the weight of rotation must be a number"),
        ({"ssl_tasks": "rotation", "ssl_max_pixels": 0}, "--ssl_max_pixels 0: must be 1 or more"),
        ({"ssl_tasks": "rotation", "ssl_control": "repeated"}, "--ssl_control repeated: must be repeat or shuffled"),
        ({"ssl_control": "repeat"}, "--ssl_control needs --ssl_tasks"),
        ({"ssl_tasks": "rotation", "ssl_ratio": 0.0, "ssl_control": "repeat"}, "--ssl_control needs --ssl_tasks"),
    ],
)
def test_absurd_values_are_told_at_once(flags, told):
    assert told in mistakes(**flags)


@pytest.mark.parametrize("value", ["", "inf", "nan", "9" * 30])
def test_absurd_values_are_told_by_the_command_line(value, capsys):
    flag = "--ssl_ratio" if value in ("inf", "nan") else "-n" if value else "--image_folder"
    with pytest.raises(SystemExit):
        main(["export", "--ssl_tasks", "rotation", "--image_folder", "x", "-o", "y", "--format", "llava", flag, value])
    error = capsys.readouterr().err
    assert f"{flag}: '{value}' " in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("knobs.yaml", "rotation: {size_px: 200000}", "rotation.size_px must be at most 4096, not 200000"),
        ("knobs.yaml", "rotation: {size_px: 99}\nrotation: {size_px: 98}", "the key 'rotation' stands twice"),
        ("knobs.yaml", "rotation: {size_px: 99, size_px: 98}", "the key 'size_px' stands twice"),
        ("knobs.yaml", "rotation: {1: 2}", "rotation has no knob 1"),
        ("knobs.yaml", "1: {size_px: 2}", "no task is called '1'"),
        ("knobs.yaml", "[" * 5000, "cannot be read: is nested too deeply"),
        ("knobs.yaml", "rotation: [", "cannot be read"),
        ("knobs.yaml", "? [a, b]\n: {size_px: 2}", "found unhashable key"),
        ("knobs.json", '{"rotation": {"size_px": 99, "size_px": 98}}', "the key 'size_px' stands twice"),
        ("knobs.json", '{"rotation": {"size_px": 99}} {}', "more text after the JSON value"),
        ("knobs.json", "[" * 100_000, "cannot be read: is nested too deeply"),
        ("knobs.json", '{"rotation": {"size_px": 1e999}}', "rotation.size_px must be like"),
    ],
)
def test_wrong_settings_files_are_told_at_once(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    assert told in mistakes(ssl_tasks="rotation", ssl_config=str(tmp_path / name))


@pytest.mark.parametrize("name", presets())
def test_presets_are_settings_of_known_knobs_and_keep_their_name_under_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    knobs = read_settings(presets()[name])
    flags = VgiftFlags(ssl_tasks=",".join(knobs), ssl_config=name)
    for spec in flags.tasks():
        assert {key: getattr(spec.task, key) for key in knobs[spec.task.name]} == knobs[spec.task.name]
    assert with_absolute_paths({"ssl_config": name, "ssl_image_folder": "x"}) == {
        "ssl_config": name,
        "ssl_image_folder": str(tmp_path / "x"),
    }


def probed(tmp_path, change=lambda content: None, **accuracies):
    """Writes what `vgift probe --json` writes; returns the flag."""
    flags = VgiftFlags(ssl_tasks=",".join(accuracies))
    content = {"settings": {f"--ssl_tasks, {spec.task.name}": repr(spec.task) for spec in flags.tasks()}, "tasks": {}}
    for spec in flags.tasks():
        accuracy = accuracies[spec.task.name]
        sighted = {"accuracy": accuracy, "low": max(0.0, accuracy - 0.03), "high": min(1.0, accuracy + 0.03)}
        content["tasks"][spec.task.name] = {"n": 500, "chance": spec.task.chance, "sighted": sighted}
    change(content)
    (tmp_path / "probe.json").write_text(json.dumps(content))
    return str(tmp_path / "probe.json")


def test_tasks_that_are_solved_or_hopeless_get_a_quarter_of_their_weight(tmp_path):
    path = probed(tmp_path, rotation=0.95, color=0.5, jigsaw_pair=0.26, position=0.6)
    flags = VgiftFlags(ssl_tasks="rotation,color:2,jigsaw_pair,position", ssl_weights_from=path)
    assert {spec.task.name: float(spec.weight) for spec in flags.tasks()} == {
        "rotation": 0.25,
        "color": 2.0,
        "jigsaw_pair": 0.25,
        "position": 1.0,
    }
    assert [spec.reason.partition(",")[0] for spec in flags.tasks()] == [
        "solved",
        "learnable",
        "at chance",
        "learnable",
    ]


@pytest.mark.parametrize(
    ("tasks", "change", "told"),
    [
        ("rotation,color", lambda content: None, "color was not probed, only rotation"),
        ("rotation", lambda content: content["settings"].clear(), "rotation was probed with other knobs, None"),
        ("rotation", lambda content: content.pop("tasks"), "is not what `vgift probe"),
        ("rotation", lambda content: content["tasks"]["rotation"].pop("sighted"), "is damaged"),
        ("rotation", lambda content: content["tasks"]["rotation"]["sighted"].update(accuracy=7), "is damaged"),
    ],
)
def test_a_probe_that_does_not_match_is_refused(tmp_path, tasks, change, told):
    path = probed(tmp_path, change, rotation=0.5)
    assert told in mistakes(ssl_tasks=tasks, ssl_weights_from=path)


@pytest.mark.parametrize("command", ["preview", "export", "labels"])
def test_a_command_offers_only_the_flags_it_uses(command, capsys):
    module, kind, _ = COMMANDS[command]
    unused = getattr(importlib.import_module(f"vgift_plugin.{module}"), kind).UNUSED
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert "-o FILE" in shown or "-o DIR" in shown
    assert unused and not [name for name in unused if f"--{name}" in shown]
