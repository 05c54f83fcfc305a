"""`vgift run` with commands that need no LLaVA: what it hands on, what it hides and chains, what it refuses."""

import json
import os
import signal
import subprocess
import sys
from urllib.parse import unquote

import pytest
from conftest import ROOT, VGIFT, call
from test_preferences import HEADER, ROW

from vgift_plugin.errors import ConfigError, HookError
from vgift_plugin.launch import run

RUN = [*VGIFT, "run"]
ROTATION = ["--ssl_tasks", "rotation"]


def test_the_flags_travel_as_quoted_json_below_a_python_name():
    code = "import os, sys; print(os.environ['PYTHON_VGIFT'], os.environ['PYTHON_VGIFT_MODULES'], sys.argv[1:])"
    done = call([*RUN, "--ssl_ratio", "0.05", "--", "bash", "-c", f'{sys.executable} -c "{code}" "a b" --ssl_ratio 1'])
    assert done.returncode == 0, done.stderr
    quoted, modules, rest = done.stdout.split(" ", 2)
    assert "llava.train.train" in modules.split(",")
    assert json.loads(unquote(quoted))["flags"] == {"ssl_ratio": 0.05}
    assert set(quoted + modules) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%._-~,"
    )  # bare in any shell
    assert rest.strip() == "['a b', '--ssl_ratio', '1']"


def test_relative_paths_survive_a_script_that_changes_its_folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    code = "import os; print(os.environ['PYTHON_VGIFT'])"
    command = [*RUN, "--ssl_image_folder", "pictures", "--ssl_replay", "pictures", "--", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3  # a replay was asked for, and nothing trained
    flags = json.loads(unquote(done.stdout.strip()))["flags"]
    assert flags["ssl_image_folder"] == flags["ssl_replay"] == str(tmp_path / "pictures")


@pytest.mark.parametrize("status", [0, 7])
def test_without_tasks_the_commands_status_is_handed_on(status):
    assert call([*RUN, "--", "bash", "-c", f"exit {status}"]).returncode == status


def test_a_failing_command_keeps_its_status_with_tasks():
    assert call([*RUN, *ROTATION, "--", "bash", "-c", "exit 7"]).returncode == 7


def test_a_signal_is_reported_as_shells_do():
    assert call([*RUN, "--", "bash", "-c", "kill -9 $$"]).returncode == 128 + 9


def test_success_without_the_hook_is_a_failure():
    done = call([*RUN, *ROTATION, "--", "true"])
    assert done.returncode == 3
    assert "WITHOUT self-supervised samples" in done.stderr and "PYTHONPATH" in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"ssl_replay": "."}, "self-supervised samples"),
        ({"instruct_loss": "no_system"}, "the loss on instructions"),
        ({"visual_token_drop": 0.5, "tune_vision_tower": True}, "--visual_token_drop and --tune_vision_tower"),
        ({"preference_data": "prefs.jsonl"}, "--preference_data"),
        ({"instruct_loss": "full", "ssl_tasks": "color"}, "the loss on instructions and self-supervised samples"),
    ],
)
def test_what_a_run_went_without_is_said_in_words(tmp_path, monkeypatch, flags, words):
    (tmp_path / "prefs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (HEADER, ROW)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HookError, match=f"ended well WITHOUT {words}: no Python below it") as caught:
        run(["true"], flags)
    assert caught.value.exit_status == 3
    with pytest.raises(ConfigError, match="cannot start"):
        run(["no-such-program"], flags)


def test_switches_are_read_as_transformers_parser_reads_them():
    assert call([*RUN, "--tune_vision_tower", "no", "--", "true"]).returncode == 0
    assert call([*RUN, "--tune_vision_tower", "--", "true"]).returncode == 3
    done = call([*RUN, "--tune_vision_tower", "perhaps", "--", "true"])
    assert done.returncode == 2 and "'perhaps' is neither True nor False" in done.stderr


def test_signals_to_the_launcher_reach_the_command():
    script = "trap 'echo got it; exit 5' TERM; echo ready; for i in {1..100}; do sleep 0.1; done"
    with subprocess.Popen([*RUN, "--", "bash", "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "got it\n"
        assert process.wait() == 5


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        ([], 2, "no command to run; write it after `--`"),
        (["--ssl_tasks", "rotation"], 2, "no command to run"),
        (["--ssl_tasks", "rotatoin", "--", "true"], 2, "did you mean 'rotation'?"),
        (["--ssl_tasks", "rotation", "--ssl_ratio", "10", "--", "true"], 2, "10 percent is 0.1"),
        (["--ssl_tasks", "rotation", "--ssl_ratio", "nan", "--", "true"], 2, "is no finite number"),
        (["--ssl_taks", "rotation", "--", "true"], 2, "unrecognized arguments"),
        (["--", "no-such-program"], 2, "cannot start 'no-such-program'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(args, status, message):
    done = call([*RUN, *args])
    assert done.returncode == status
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_shadowed_sitecustomize_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os\nos.environ['SEEN'] = __name__ + ' ' + __file__\n")
    code = "import os, sitecustomize; print(os.environ['SEEN']); print(sitecustomize.__file__)"
    done = call([*RUN, "--", sys.executable, "-c", code], PYTHONPATH=tmp_path)
    mine = tmp_path / "sitecustomize.py"
    assert done.stdout.split("\n")[:2] == [f"sitecustomize {mine}", str(mine)]


def test_nothing_is_attached_without_vgift_run():
    done = call([sys.executable, "-c", "import sys; print({'vgift_plugin', 'wrapt'} & set(sys.modules))"])
    assert done.stdout.strip() == "set()"


def test_a_python_without_the_plugin_refuses_to_train_and_does_the_rest(tmp_path):
    """Another environment's Python, below this one's vgift run: -S hides the site-packages."""
    train = tmp_path / "llava" / "train"
    train.mkdir(parents=True)
    for path in (tmp_path / "llava" / "__init__.py", train / "__init__.py", train / "train.py"):
        path.touch()
    folders = [str(ROOT / "vgift_plugin" / "_bootstrap"), str(tmp_path)]
    start = f"import sys; sys.path[:0] = {folders!r}; import sitecustomize; "
    other, below = [sys.executable, "-I", "-S", "-c"], {"PYTHON_VGIFT_MODULES": "x.y,llava.train.train"}
    assert call([*other, start + "import json, llava; print('fine')"], **below).stdout == "fine\n"
    done = call([*other, start + "import llava.train.train"], **below)
    assert done.returncode == 1 and "lacks vgift-plugin" in done.stderr


def test_flags_lost_on_the_way_are_told(monkeypatch):
    from vgift_plugin import launch

    monkeypatch.delenv(launch.VARIABLE, raising=False)
    with pytest.raises(launch.HookError, match="forward the variable PYTHON_VGIFT as well"):
        launch.attach_here(sys)


def test_the_launcher_warns_when_no_hook_fires_for_long(monkeypatch, caplog):
    from vgift_plugin import launch

    monkeypatch.setattr(launch, "PATIENCE_S", 0.2)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(launch.HookError):
        launch.run(["sleep", "1"], {"ssl_tasks": "rotation"})
    assert signal.getsignal(signal.SIGTERM) is before
    assert "WITHOUT self-supervised samples" in caplog.text


def test_the_bootstrap_folder_holds_nothing_else():
    assert [name for name in os.listdir(ROOT / "vgift_plugin" / "_bootstrap") if name.endswith(".py")] == [
        "sitecustomize.py"
    ]


def test_a_reader_that_closes_the_pipe_gets_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*VGIFT, "tasks"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 128 + 13 and not done.stderr
