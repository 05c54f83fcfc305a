"""What the hook does for all methods alike: flags in the host's parser, its own objects back where nothing is asked."""

import pickle
from dataclasses import make_dataclass
from types import ModuleType

import pytest
from conftest import changed
from test_preference import rows_of, write

from vgift_plugin import attach, detach
from vgift_plugin.errors import ConfigError, HostMismatchError
from vgift_plugin.methods.vgift.flags import VgiftFlags

pytestmark = pytest.mark.host
transformers = pytest.importorskip("transformers")


def test_attach_replaces_two_names_and_detach_restores_them(host):
    import llava.model
    from llava.train import llava_trainer
    from transformers.models.llama import modeling_llama

    watched = [host, llava_trainer, llava.model, modeling_llama]
    before = [dict(vars(module)) for module in watched]
    attach()
    attach()
    replaced = {"DataArguments", "make_supervised_data_module"}
    assert [changed(*pair) for pair in zip(watched, before, strict=True)] == [replaced, set(), set(), set()]
    detach()
    detach()
    assert [changed(*pair) for pair in zip(watched, before, strict=True)] == [set()] * 4


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({}, []),
        ({"ssl_tasks": "rotation", "ssl_ratio": 0.0}, ["--ssl_ratio 0: no self-supervised sample is mixed in"]),
        (
            {"visual_token_drop": 0.75, "visual_token_drop_prob": 0.0},
            ["--visual_token_drop_prob 0: no visual token is dropped"],
        ),
    ],
)
def test_where_nothing_is_to_be_done_the_very_same_module_is_returned(
    host, tokenizer, data_args, monkeypatch, caplog, flags, told
):
    caplog.set_level("INFO", "vgift_plugin")
    made = host.make_supervised_data_module(tokenizer=tokenizer, data_args=data_args())
    with monkeypatch.context() as patch:
        patch.setattr(host, "make_supervised_data_module", lambda tokenizer, data_args: made)
        attach(host)
        assert host.make_supervised_data_module(tokenizer=tokenizer, data_args=data_args(**flags)) is made
        detach(host)
    found = [record.getMessage() for record in caplog.records if record.name.startswith("vgift_plugin")]
    assert [message[: len(start)] for message, start in zip(found, told, strict=True)] == told


@pytest.mark.parametrize("method", ["V-GIFT", "L2T", "ViTP", "STIC"])
def test_a_model_that_does_not_see_is_refused(attached, tokenizer, data_args, photos, tmp_path, method):
    flags, words = {
        "V-GIFT": ({"ssl_tasks": "rotation", "ssl_ratio": 1.0}, "self-supervised samples"),
        "L2T": ({"instruct_loss": "full"}, "the loss on instructions"),
        "ViTP": ({"visual_token_drop": 0.5}, "--visual_token_drop"),
        "STIC": ({"preference_data": write(tmp_path / "prefs.jsonl", rows_of(photos, 2))}, "--preference_data"),
    }[method]
    arguments = data_args(**flags)
    arguments.is_multimodal = False
    with pytest.raises(ConfigError, match=f"{words}: needs a model that sees; this run has no --vision_tower"):
        attached.make_supervised_data_module(tokenizer=tokenizer, data_args=arguments)


def test_flags_are_checked_when_they_are_parsed(attached):
    parser = transformers.HfArgumentParser((attached.DataArguments,))
    (parsed,) = parser.parse_args_into_dataclasses(["--ssl_tasks", "rotation,color", "--ssl_ratio", "0.05"])
    assert (parsed.ssl_tasks, parsed.ssl_ratio, parsed.ssl_seed) == ("rotation,color", 0.05, 0)
    with pytest.raises(ConfigError, match="2 mistakes"):
        parser.parse_args_into_dataclasses(["--ssl_tasks", "rotatoin", "--ssl_ratio", "50"])


def test_defaults_from_outside_yield_to_the_command_line(host):
    attach(host, {"ssl_tasks": "rotation", "ssl_ratio": 0.2})
    parser = transformers.HfArgumentParser((host.DataArguments,))
    (parsed,) = parser.parse_args_into_dataclasses(["--ssl_ratio", "0.3"])
    assert VgiftFlags.of(parsed) == VgiftFlags(ssl_tasks="rotation", ssl_ratio=0.3)


def test_a_flag_that_the_training_code_has_itself_is_left_to_it(host):
    """argparse takes no flag twice: the code must start as it does without the plugin."""
    fork = ModuleType("fork")
    vars(fork).update({name: vars(host)[name] for name in ("DataArguments", "make_supervised_data_module", "train")})
    fork.TrainingArguments = make_dataclass("TrainingArguments", [("dpo_beta", float, 7.0), ("ssl_seed", str, "x")])
    attach(fork, {"ssl_seed": 5})
    parser = transformers.HfArgumentParser((fork.DataArguments, fork.TrainingArguments))
    data, training = parser.parse_args_into_dataclasses(["--ssl_seed", "y", "--vgift_dpo_beta", "0.1"])
    assert (training.dpo_beta, training.ssl_seed) == (7.0, "y")
    assert (data.vgift_dpo_beta, data.vgift_ssl_seed, data.ssl_ratio) == (0.1, 5, 0.1)
    assert VgiftFlags.of(data.vgift_flags).ssl_seed == 5
    detach(fork)


def test_argument_objects_can_be_pickled(attached, data_args):
    arguments = data_args(ssl_tasks="rotation")
    assert pickle.loads(pickle.dumps(arguments)).ssl_tasks == "rotation"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"DataArguments": None}, "DataArguments: expected a dataclass, found None"),
        ({"make_supervised_data_module": None}, "make_supervised_data_module: expected a function"),
        (
            {"make_supervised_data_module": lambda tok, args: {}},
            r"expected the parameters \(data_args, tokenizer\), found \(tok, args\)",
        ),
        ({"train": lambda: None}, r"DataArguments: expected train\(\) to look it up"),
    ],
)
def test_a_host_without_the_seams_is_refused_untouched(host, change, message):
    fork = ModuleType("fork")
    vars(fork).update(
        {**{name: vars(host)[name] for name in ("DataArguments", "make_supervised_data_module", "train")}, **change}
    )
    before = dict(vars(fork))
    with pytest.raises(HostMismatchError, match=message):
        attach(fork)
    assert vars(fork) == before
