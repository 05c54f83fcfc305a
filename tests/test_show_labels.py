"""`vgift labels`: what is shown is what is learned."""

import json
import re
from html import unescape

import pytest

pytestmark = pytest.mark.host
RECORDS = [
    {"id": "a", "image": "absent.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat <b> is ünï 😀?\nShort answer."},
        {"from": "gpt", "value": "A cat & dog."}]},
    {"id": "b", "conversations": [{"from": "human", "value": "Two plus three?"}, {"from": "gpt", "value": "Five."}]},
    {"id": "c", "image": "absent.jpg", "conversations": [
        {"from": "human", "value": "Is it </s> here?\n<image>"}, {"from": "gpt", "value": "No."}]},
]  # fmt: skip


@pytest.fixture
def files(tmp_path):
    (tmp_path / "mix.json").write_text(json.dumps(RECORDS))
    (tmp_path / "templates.json").write_text('["Short answer."]')
    return tmp_path


@pytest.fixture
def vgift(capsys):
    """Runs `vgift` in this process, for LLaVA takes long to import; returns (status, stdout, stderr)."""
    from vgift_plugin import cli

    def run(*args):
        status = cli.main(list(map(str, args)))
        return status, *capsys.readouterr()

    return run


def test_tokens_are_shown_as_what_they_are_learned_as(files, tiny, vgift):
    command = ["labels", "--data_path", files / "mix.json", "--model_name_or_path", tiny[0], "-n", 3]
    flags = ["--instruct_loss", "no_template", "--instruct_templates", files / "templates.json"]
    status, told, _ = vgift(*command, *flags, "-o", files / "labels.html")
    assert status == 0
    first, second, third = re.split(r"\nrecord \d", told)[1:]
    assert "USER: <image> \n⟦What <b> is ünï 😀?⟧\nShort answer. ASSISTANT:⟪ A cat & dog.</s>⟫" in first
    assert "⟦" not in second and "⟪ Five.</s>⟫" in second and "no picture" in second
    assert "⟦" not in third and "instruction left out: all labels masked by the host" in third
    assert "\033" not in told
    counts = [int(number) for number in re.findall(r"(\d+) instruction", told)]
    page = (files / "labels.html").read_text()
    boxes = re.findall(r'<i class="(\w+)" title="(-?\d+)">(.*?)</i>', page, re.DOTALL)
    told = {
        kind: unescape("".join(text for one, _, text in boxes if one == kind)) for kind in ("instruction", "response")
    }
    assert told == {"instruction": "What <b> is ünï 😀?", "response": " A cat & dog.</s> Five.</s>"}
    assert sum(one == "instruction" for one, *_ in boxes) == sum(counts) and counts[0] > 5
    assert "<b>" not in page and "-200" in page
    status, told, _ = vgift(*command, "--instruct_loss", "none")
    assert status == 0 and told.count("⟦") == 1 and "⟪ A cat" in told  # the legend's


def test_colours_on_a_terminal_alone(files, tiny, monkeypatch, capsys):
    from vgift_plugin import cli

    command = ["labels", "--data_path", str(files / "mix.json"), "--model_name_or_path", str(tiny[0]), "-n", "1"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert cli.main(command) == 0
    assert "\033[1;34m A cat & dog.</s>\033[0m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main(command) == 0
    assert "\033" not in capsys.readouterr().out


def test_mistakes_are_told(files, tiny, vgift):
    command = ["labels", "--data_path", files / "mix.json", "--model_name_or_path", tiny[0]]
    for args, message in (
        (["-n", "0"], "at least one record"),
        (["-o", files / "labels.txt"], "must end in .html"),
        (["-o", files / "no" / "labels.html"], "there is no folder"),
        (["--version", "v7"], "LLaVA has no such chat template, but "),
        (["--instruct_loss", "ful"], "did you mean 'full'?"),
        (["--model_name_or_path", files / "absent"], "--model_name_or_path"),
    ):
        status, _, told = vgift(*command, *args)
        assert status == 2 and message in told
