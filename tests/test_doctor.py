"""`vgift doctor`: whether training can work here, and where it looked."""

import pytest
from conftest import VGIFT, call

from vgift_plugin import doctor


@pytest.mark.host
def test_it_finds_the_host_and_its_seams():
    done = call([*VGIFT, "doctor"])
    assert done.returncode == 0, done.stdout + done.stderr
    for part in (
        "llava-torch 1.2.2.post1",
        "llava.train.train.DataArguments",
        "make_supervised_data_module",
        "train.py",
        "patch llava is not applied",
        "ready",
    ):
        assert part in done.stdout


def test_without_the_host_it_says_what_still_works(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    report, healthy = doctor.examine()
    assert (
        not healthy
        and "not importable: pip install -e PATH_TO_LLAVA here (preview and tasks work without it)" in report
    )


def test_it_warns_of_versions_that_break_llava(monkeypatch):
    found = {"transformers": "4.45.0", "peft": "0.13.2", "numpy": "2.1.0"}
    monkeypatch.setattr(doctor, "_version", lambda name: found.get(name, "1.0"))
    report, _ = doctor.examine()
    assert report.count("warning: ") == 3 and "transformers 4.45.0: LLaVA 1.2.2 is made for 4.36.2" in report
