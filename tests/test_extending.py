"""Adding a method is a class and a line, adding a host is one, too: toys of both take part in a run."""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vgift_plugin import attach, detach
from vgift_plugin.data.arguments import option
from vgift_plugin.errors import ConfigError
from vgift_plugin.hosts import HOSTS, host_of
from vgift_plugin.hosts.base import ChatTemplate
from vgift_plugin.hosts.llava import LLaVA
from vgift_plugin.methods import METHODS
from vgift_plugin.methods.base import MethodFlags
from vgift_plugin.methods.settings import Settings

pytestmark = pytest.mark.host
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from vgift_plugin.hosts.model_hooks import ModelHooks, Step  # noqa: E402

IGNORE = -100


def put_into(monkeypatch, name, listed):
    """Puts a longer tuple in the place of METHODS or HOSTS, wherever a module of the package has that name."""
    before = {"METHODS": METHODS, "HOSTS": HOSTS}[name]
    for module in [one for key, one in sys.modules.items() if key.split(".")[0] == "vgift_plugin"]:
        if vars(module).get(name) is before:
            monkeypatch.setattr(module, name, listed)


@dataclass(frozen=True)
class ToyFlags(MethodFlags):
    toy_scale: float = option(1.0, "what the loss is multiplied by")

    def mistakes(self):
        return [] if self.toy_scale > 0 else [f"--toy_scale {self.toy_scale:g}: must be above 0"]


class Scale(Step):
    def __init__(self, factor):
        self.factor, self.tasks = factor, []

    def forward(self, module, output, tokens):
        self.tasks.append(tokens.task.amax(1).tolist())
        output.loss = output.loss * self.factor
        return output


class ToyMethod:
    Flags = ToyFlags
    alone = ""

    def wanted(self, flags):
        return "a scaled loss" if flags.toy_scale != 1 else ""

    def check(self, flags, host, module):
        self.checked = host.name, module.__name__

    def plan(self, flags, run):
        def apply(run):
            self.step = Scale(flags.toy_scale)
            run.add_step(self.step)

        return SimpleNamespace(facts={"toy": f"scale of {len(run.base)} records"}, apply=apply)


def test_a_method_is_a_class_and_a_line(host, tokenizer, data_args, tiny_llava, monkeypatch, records):
    toy = ToyMethod()
    put_into(monkeypatch, "METHODS", (*METHODS, toy))
    attach(host)
    parser = transformers.HfArgumentParser((host.DataArguments,))
    (parsed,) = parser.parse_args_into_dataclasses(
        ["--toy_scale", "3", "--ssl_tasks", "rotation", "--ssl_ratio", "0.5"]
    )
    assert parsed.toy_scale == 3 and toy.checked == ("LLaVA", "llava.train.train")
    with pytest.raises(ConfigError, match="--toy_scale -1: must be above 0"):
        parser.parse_args_into_dataclasses(["--toy_scale", "-1"])
    assert Settings({"toy_scale": 3.0, "instruct_loss": "full"}).words() == "the loss on instructions and a scaled loss"

    compared = []
    monkeypatch.setattr("vgift_plugin.hosts.ranks.require_equal", compared.append)
    arguments = data_args(toy_scale=3.0, ssl_tasks="rotation", ssl_ratio=0.5)
    made = host.make_supervised_data_module(tokenizer=tokenizer, data_args=arguments)
    assert compared[0]["--toy_scale"] == "3.0" and compared[1]["toy"] == f"scale of {len(records)} records"
    assert compared[1].keys() >= {"toy", "records", "images of rotation"}

    (hooks,) = (one for one in made["callbacks"] if isinstance(one, ModelHooks))
    hooks.attach(tiny_llava)
    try:
        batch = made["data_collator"]([made["train_dataset"][k] for k in (0, len(records), 1)])
        scaled = tiny_llava(**batch).loss
    finally:
        hooks.detach()
    batch = made["data_collator"]([made["train_dataset"][k] for k in (0, len(records), 1)])
    assert torch.equal(scaled, 3 * tiny_llava(**batch).loss)
    assert toy.step.tasks == [[0, 1, 0]]
    detach(host)


class OtherHost(LLaVA):
    """A training code that keeps its records and its pictures elsewhere, and pads with its own collator."""

    name = "Other"
    packages = ("other",)
    modules = ("other.train",)

    def missing(self, module):
        arguments = getattr(module, "DataArguments", None)
        kept = {one.name for one in dataclasses.fields(arguments)} if dataclasses.is_dataclass(arguments) else set()
        return [] if "picture_root" in kept else ["DataArguments: expected the field picture_root"]

    def tokenizer(self, arguments):
        return arguments["processor"]

    def sees(self, data_args):
        return True

    def records(self, dataset):
        return dataset.samples

    def image_folder(self, data_args):
        return data_args.picture_root

    def source(self, data_args):
        return data_args.file

    def item(self, dataset, record):
        return dataset.encoded(record)

    def lengths(self, dataset, record):
        return {"sizes": len(dataset.encoded({**record, "image": None})["labels"])}

    def segments(self, dataset, index, item):
        return [(slice(None), dataset.samples[index])]

    def crop_canvas(self, dataset):
        return None

    def seen_px(self, data_args):
        return 0, "any size"

    def template(self, module, data_args, tokenizer):
        return ChatTemplate(("other",))


@pytest.fixture
def other_module(records):
    """The module that trains of another training code, with the same two names."""

    @dataclass
    class DataArguments:
        file: str = "mix.json"
        picture_root: str = ""

    class Dataset:
        def __init__(self, tokenizer, data_args):
            self.tokenizer, self.root = tokenizer, data_args.picture_root
            with open(data_args.file) as file:
                self.samples = json.load(file)

        def __len__(self):
            return len(self.samples)

        @property
        def sizes(self):
            return [len(self[k]["labels"]) for k in range(len(self))]

        def __getitem__(self, index):
            return self.encoded(self.samples[index])

        def encoded(self, record):
            human, answer = (turn["value"] for turn in record["conversations"])
            asked, told = (self.tokenizer(text).input_ids for text in (human.replace("<image>", ""), answer))
            item = {"input_ids": torch.tensor(asked + told[1:] + [self.tokenizer.eos_token_id])}
            item["labels"] = item["input_ids"].clone()
            item["labels"][: len(asked)] = IGNORE
            if record.get("image"):
                with Image.open(os.path.join(self.root, record["image"])) as one:
                    item["pixels"] = torch.from_numpy(np.array(one.convert("RGB")))
            return item

    def make_supervised_data_module(processor, data_args):
        def collate(items):
            return {name: [item[name] for item in items] for name in items[0]}

        return {"train_dataset": Dataset(processor, data_args), "eval_dataset": None, "data_collator": collate}

    module = ModuleType("other.train")
    vars(module).update(DataArguments=DataArguments, make_supervised_data_module=make_supervised_data_module)
    return module


def test_a_host_is_a_class_and_a_line(monkeypatch, other_module, host, tokenizer, photos, data_path, records):
    put_into(monkeypatch, "HOSTS", (OtherHost(), *HOSTS))
    assert (host_of(other_module).name, host_of(host).name) == ("Other", "LLaVA")
    upstream = other_module.make_supervised_data_module(
        processor=tokenizer, data_args=SimpleNamespace(file=data_path, picture_root=str(photos))
    )["train_dataset"]
    attach(other_module)
    parser = transformers.HfArgumentParser((other_module.DataArguments,))
    flags = ["--ssl_tasks", "rotation,color", "--ssl_ratio", "0.5", "--file", str(data_path)]
    (arguments,) = parser.parse_args_into_dataclasses([*flags, "--picture_root", str(photos)])
    made = other_module.make_supervised_data_module(processor=tokenizer, data_args=arguments)
    mixed = made["train_dataset"]
    assert len(mixed) == len(records) + 8
    for k in range(len(records)):
        assert mixed[k].keys() == upstream[k].keys()
        assert all(torch.equal(mixed[k][name], upstream[k][name]) for name in upstream[k])
    for k in range(len(records), len(mixed)):
        stream, j = mixed.plan(k)
        sample, item = stream(0, j), mixed[k]
        assert (item["pixels"].numpy() == np.asarray(sample.image)).all()
        said = tokenizer.decode(item["labels"][item["labels"] != IGNORE], skip_special_tokens=True)
        assert said == sample.response
    assert mixed.sizes[: len(records)] == upstream.sizes and len(mixed.sizes) == len(mixed)
    assert not hasattr(mixed, "modality_lengths")
    batch = made["data_collator"]([mixed[0], mixed[len(records)]])
    assert set(batch) == {"input_ids", "labels", "pixels"}
    detach(other_module)
    assert other_module.DataArguments.__mro__[1] is object
