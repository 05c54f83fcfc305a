"""--instruct_loss in a run: what upstream's own data module becomes, the losses apart and weighed, and instructions
learned from pictures."""

import json
import math
import pickle
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, arguments, torchrun
from PIL import Image
from test_instruction_labels import HOST, IGNORE, IMAGE, base_of, instruction_of, labels_of, record_of, words_of
from test_llava_train import log_of, run

from vgift_plugin.errors import ConfigError, HostMismatchError, SelfTestError

pytestmark = pytest.mark.host
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from vgift_plugin.hosts.model_hooks import ModelHooks, Step  # noqa: E402
from vgift_plugin.hosts.token_facts import KEY, Tokens  # noqa: E402
from vgift_plugin.methods.l2t.losses import InstructionLosses  # noqa: E402

TRAIN = ROOT / "scripts" / "demo" / "train_cpu.py"
MIN_COUNT = "vgift_plugin.methods.l2t.training.MIN_COUNT"


@pytest.fixture
def data_module(module_of, tokenizers):
    """Makes the data module of a run with the given flags, as upstream's train() does."""
    return lambda version="v1", **flags: module_of(tokenizers["llama slow"], version=version, **flags)


@pytest.fixture
def batch_of(data_module):
    """Makes a batch of base records with their facts, as it is while the model's hooks are attached."""

    def make(*places):
        made = data_module(instruct_loss="full")
        made["data_collator"].carries = True
        batch = made["data_collator"]([made["train_dataset"][k] for k in places])
        return batch, {name: value for name, value in batch.items() if name != KEY}, instruction_of(batch)

    return make


def test_base_samples_keep_all_but_their_labels(data_module, records):
    upstream, taught = (data_module(instruct_loss=mode) for mode in ("none", "no_system"))
    assert type(upstream["train_dataset"]).__name__ == "LazySupervisedDataset" and "callbacks" not in upstream
    for k, record in enumerate(records):
        ours, theirs = taught["train_dataset"][k], upstream["train_dataset"][k]
        learned = instruction_of(ours) if KEY in ours else None
        ours.pop(KEY, None)
        assert (learned is not None) == ("image" in record)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            same = torch.equal(ours[name], theirs[name])
            assert same or (name == "labels" and learned is not None)
        if learned is not None:
            assert torch.equal(torch.where(learned, IGNORE, ours["labels"]), theirs["labels"]) and learned.any()
    dataset = taught["train_dataset"]
    assert dataset.modality_lengths == upstream["train_dataset"].modality_lengths and len(dataset) == len(records)


def test_samples_of_tasks_and_base_records_in_one_spawned_mixture(data_module, records):
    """What gives labels crosses to a worker; the labels do not depend on where they are made."""
    dataset = data_module(instruct_loss="no_system", ssl_tasks="color,rotation", ssl_ratio=0.25)["train_dataset"]
    base, encode = pickle.loads(pickle.dumps((dataset.base, dataset.encode)))
    assert len(dataset) == len(records) + 4
    assert torch.equal(dataset[0]["labels"], base[0]["labels"]) and instruction_of(base[0]).any()
    for k in (len(records), len(records) + 3):
        stream, j = dataset.plan(k)
        assert torch.equal(dataset[k]["labels"], encode(stream(0, j), "twin")["labels"])
        assert instruction_of(dataset[k]).any()


def test_plain_pretraining_has_no_instruction_to_learn(data_module, caplog, tmp_path, records):
    caplog.set_level("INFO", "vgift_plugin")
    (tmp_path / "pretrain.json").write_text(json.dumps([record for record in records if "image" in record]))
    made = data_module("plain", instruct_loss="full", data_path=str(tmp_path / "pretrain.json"))
    assert type(made["train_dataset"]).__name__ == "LazySupervisedDataset" and "callbacks" not in made
    assert "--instruct_loss full is off: the template leaves the instruction out" in caplog.text


@pytest.mark.parametrize("mode", ["full", "no_system"])
def test_captions_before_the_first_instruction_are_no_misfit(data_module, tmp_path, records, mode):
    """A corpus put together of captions, which ask nothing, and conversations."""
    captions = [{**records[0], "id": f"c{k}"} for k in range(12)]
    for caption in captions:
        human, answer = records[0]["conversations"]
        caption["conversations"] = [{**human, "value": IMAGE}, answer]
    (tmp_path / "captions.json").write_text(json.dumps([*captions, records[1]]))
    dataset = data_module(instruct_loss=mode, data_path=str(tmp_path / "captions.json"))["train_dataset"]
    assert instruction_of(dataset[12]).any()
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    with pytest.raises(ConfigError, match=f"--instruct_loss {mode}: none of the base records .* has an instruction"):
        data_module(instruct_loss=mode, data_path=str(tmp_path / "captions.json"))


def test_what_is_done_is_said_in_the_log(data_module, caplog, monkeypatch):
    caplog.set_level("INFO", "vgift_plugin")
    data_module(instruct_loss="no_template", instruct_loss_weight=0.5)
    assert "of 12 of 16 base records" in caplog.text and "counts 0.5 times in the loss" in caplog.text
    assert "no sentence is a task template, so nothing of them is left out" in caplog.text
    caplog.clear()
    monkeypatch.setattr(MIN_COUNT, 1)
    data_module(instruct_loss="no_template")
    assert "times in the loss" not in caplog.text
    assert "task templates, left out: 16, all in vgift_templates.json; the first:\n  What does" in caplog.text


def test_what_can_never_be_learned_is_told_before_the_first_step(data_module, attached, tmp_path, records, monkeypatch):
    (tmp_path / "text.json").write_text(json.dumps([record for record in records if "image" not in record]))
    with pytest.raises(ConfigError, match=r"none of the 4 base records has a picture.*--instruct_loss_text True"):
        data_module(instruct_loss="full", data_path=str(tmp_path / "text.json"))
    with pytest.raises(SelfTestError, match=r"--instruct_loss full .*all labels masked by the host"):
        data_module("mpt", instruct_loss="full")
    preprocess = attached.preprocess

    def shouting(sources, tokenizer, has_image=False):
        for source in sources:
            for turn in source:
                turn["value"] = turn["value"].replace("\ue000", "").upper().replace("<IMAGE>", IMAGE)
        return preprocess(sources, tokenizer, has_image=has_image)

    monkeypatch.setattr(attached, "preprocess", shouting)
    with pytest.raises(SelfTestError, match="tokenised otherwise with marks around it"):
        data_module(instruct_loss="no_system")


def test_a_file_of_templates_and_those_of_the_corpus(data_module, tmp_path, records, monkeypatch):
    from vgift_plugin.methods.l2t.templates import find

    said = "What does picture 0 show?"
    (tmp_path / "templates.json").write_text(json.dumps([said]))
    given = {"instruct_loss": "no_template", "instruct_templates": str(tmp_path / "templates.json")}
    dataset = data_module(**given)["train_dataset"]
    assert not instruction_of(dataset[0]).any() and instruction_of(dataset[1]).any()
    found = find(records, 0.001, 1).sentences()
    assert said in found
    monkeypatch.setattr(MIN_COUNT, 1)
    corpus = data_module(instruct_loss="no_template")["train_dataset"]
    assert not any(instruction_of(corpus[k]).any() for k in range(16) if "image" in records[k])
    (tmp_path / "templates.json").write_text('{"templates": [{"count": 1}, 7]}')
    with pytest.raises(ConfigError, match=r"2 mistakes(.|\n)*templates.json: entry 1(.|\n)*entry 2 is 7"):
        data_module(**given)


def test_published_samples_are_records_like_others(data_module, release, tmp_path):
    root, metadata, records = release
    records = records[::-1]  # the first ones, tried before the first step, have no picture on disk
    (tmp_path / "published.json").write_text(json.dumps(records))
    own = {"data_path": str(tmp_path / "published.json"), "image_folder": str(root), "ssl_replay": str(metadata)}
    dataset = data_module(instruct_loss="no_system", **own)["train_dataset"]
    assert records[0]["image"].endswith("_correspondence.jpg") and instruction_of(dataset[0]).any()


def losses(out):
    """Returns the logged steps of a run."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def test_the_losses_apart_are_what_the_model_says_of_each_alone(tiny_llava, batch_of):
    """With micro-batches, and beside the model's own loss, which stays the same number."""
    apart = InstructionLosses()
    hooks = ModelHooks(HOST, [apart])
    sums = {"response_loss": [0.0, 0], "instruction_loss": [0.0, 0]}
    tiny_llava.train()
    try:
        for batch, known, instruction in (batch_of(0, 1, 3), batch_of(4, 5)):
            for name, other in (("response_loss", instruction), ("instruction_loss", ~instruction)):
                alone = torch.where(other, IGNORE, batch["labels"])
                count = int((alone != IGNORE).sum())
                sums[name][0] += float(tiny_llava(**{**known, "labels": alone}).loss.detach()) * count
                sums[name][1] += count
            plain = tiny_llava(**known)
            hooks.attach(tiny_llava)
            with pytest.raises(TypeError):
                type(tiny_llava).forward(tiny_llava, **batch)
            told = tiny_llava(**batch)
            hooks.detach()
            assert torch.equal(told.loss, plain.loss) and torch.equal(told.logits, plain.logits)
        assert apart.take() == pytest.approx({name: total / count for name, (total, count) in sums.items()}, abs=1e-5)
        assert apart.take() == {}
    finally:
        hooks.detach()
        tiny_llava.eval()


@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
def test_weighted_tokens_are_counted_as_often(tiny_llava, batch_of, weight):
    """Loss and gradients, against the sums over each kind of token by themselves; 0 is upstream's own loss."""
    batch, known, instruction = batch_of(0, 1, 3)
    total = count = 0
    head, hooks = tiny_llava.lm_head.weight, ModelHooks(HOST, [InstructionLosses(weight)])
    tiny_llava.train()
    try:
        for others, factor in ((instruction, 1.0), (~instruction, weight)):
            alone = torch.where(others, IGNORE, batch["labels"])
            tokens = int((alone != IGNORE).sum())
            total = total + factor * tokens * tiny_llava(**{**known, "labels": alone}).loss
            count += factor * tokens
        expected = torch.autograd.grad(total / count, head)[0]
        hooks.attach(tiny_llava)
        told = tiny_llava(**batch)
        assert float(told.loss) == pytest.approx(float(total / count), abs=1e-5) and told["loss"] is told.loss
        assert torch.allclose(torch.autograd.grad(told.loss, head)[0], expected, atol=1e-6)
        hooks.detach()
        plain = {**known, "labels": torch.where(instruction, IGNORE, batch["labels"])}
        assert weight or float(told.loss) == pytest.approx(float(tiny_llava(**plain).loss), abs=1e-5)
    finally:
        hooks.detach()
        tiny_llava.eval()


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_where_the_trainer_says_by_how_many_tokens_it_divides_they_are_divided_by(weight):
    """transformers from 4.46 on counts the tokens of a whole optimizer step."""
    generator, items = torch.Generator().manual_seed(0), 50
    logits, labels = torch.randn(2, 6, 9, generator=generator), torch.randint(9, (2, 6), generator=generator)
    instruction = torch.zeros(2, 6, dtype=torch.bool)
    labels[:, :2], instruction[:, 2:4] = IGNORE, True
    each = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    kinds = [float(each[:, 3:].sum()), float(each[:, 1:3].sum())]  # of the responses, of the instructions
    output, apart = SimpleNamespace(logits=logits, loss=torch.tensor(sum(kinds) / items)), InstructionLosses(weight)
    tokens = Tokens(labels, torch.zeros_like(labels), instruction, torch.zeros_like(labels), items)
    apart.forward(torch.nn.Module().train(), output, tokens)
    assert float(output.loss) == pytest.approx((kinds[0] + weight * kinds[1]) / items)
    assert apart.take() == pytest.approx({"response_loss": kinds[0] / 4, "instruction_loss": kinds[1] / 4})


def test_instructions_alone_weigh_nothing_with_weight_zero(tiny_llava, batch_of):
    """A batch whose every response was cut off."""
    batch, _, instruction = batch_of(0, 1)
    batch["labels"] = torch.where(instruction, batch["labels"], IGNORE)
    hooks = ModelHooks(HOST, [InstructionLosses(0.0)])
    hooks.attach(tiny_llava.train())
    try:
        loss = tiny_llava(**batch).loss
        assert float(loss.detach()) == 0
        assert not torch.autograd.grad(loss, tiny_llava.lm_head.weight)[0].any()
    finally:
        hooks.detach()
        tiny_llava.eval()


def test_a_loss_that_cannot_be_weighed_is_told(tiny_llava, batch_of):
    class Fused(Step):
        def forward(self, module, output, tokens):
            output.logits = None
            return type(output)(loss=output.loss)

    batch, _, _ = batch_of(0, 1)
    for weight, message in ((1.0, None), (0.5, "--instruct_loss_weight 0.5: LlavaLlamaForCausalLM returns no loss")):
        apart = InstructionLosses(weight)
        hooks = ModelHooks(HOST, [Fused(), apart])
        hooks.attach(tiny_llava.train())
        try:
            if message is None:
                assert math.isfinite(float(tiny_llava(**batch).loss.detach())) and apart.take() == {}
            else:
                with pytest.raises(HostMismatchError, match=message):
                    tiny_llava(**batch)
        finally:
            hooks.detach()
            tiny_llava.eval()


def test_two_ranks_share_the_templates_and_log_the_losses_apart(tmp_path, train_flags, records):
    asked = []
    for record in records * 2:
        human, answer = record["conversations"]
        asked.append({**record, "conversations": [{**human, "value": f"{human['value']}\nIn one word."}, answer]})
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    steps = {}
    for name, launcher, size in (
        ("one", [sys.executable], 16),
        ("two", torchrun(), 8),
    ):
        out = tmp_path / name
        batch = {"per_device_train_batch_size": size, "max_steps": 2, "data_path": tmp_path / "asked.json"}
        command = [*launcher, TRAIN, *arguments({**train_flags, **batch}, output_dir=out, report_to="tensorboard")]
        done = run({"instruct_loss": "no_template"}, command)
        assert done.returncode == 0, log_of(done)
        assert done.stderr.count("instructions are learned of 24 of 32 base records") == 1
        assert "no instruction had to be left out" in done.stderr
        templates = json.loads((out / "vgift_templates.json").read_text())
        assert templates["about"]["human_turns"] == 32
        assert templates["templates"] == [{"count": 32, "share": 1.0, "sentence": "In one word."}]
        steps[name] = losses(out)
        for step in steps[name]:
            low, high = sorted([step["response_loss"], step["instruction_loss"]])
            assert low < step["loss"] < high
        assert "'response_loss'" in done.stdout
        assert b"train/response_loss" in b"".join(path.read_bytes() for path in out.rglob("events.out*"))
    assert len(steps["one"]) == len(steps["two"]) == 2


COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 210), "white": (240, 240, 240)}


@pytest.fixture(scope="module")
def colored(tmp_path_factory):
    """Flat pictures whose colour the instruction names, so that it can be told by looking alone: (folder, train, held
    out)."""
    folder = tmp_path_factory.mktemp("colored")
    made = []
    for k in range(400):
        name, rgb = list(COLORS.items())[k * 7 % 4]
        shade = tuple(min(255, value + k * 37 % 23) for value in rgb)
        Image.new("RGB", (28, 28), shade).save(folder / f"{k}.png")
        record = record_of([(f"<image>\nIt is {name}.", "Yes.")])
        made.append({**record, "id": str(k), "image": f"{k}.png"})
    (folder / "train.json").write_text(json.dumps(made[:360]))
    return folder, made[360:]


def instruction_entropy(out, tiny, host, tokenizer, folder, held_out):
    """Returns the cross-entropy of held-out instructions, in nats an instruction."""
    from llava.model import LlavaLlamaForCausalLM

    model = LlavaLlamaForCausalLM.from_pretrained(out, low_cpu_mem_usage=False)
    tower = model.get_vision_tower()
    tower.load_model()
    model.eval()
    base = base_of(host, "v1", held_out)
    make, total = labels_of(base, tokenizer, "no_system"), 0.0
    processor = transformers.CLIPImageProcessor.from_pretrained(tiny[1])
    for record in held_out:
        item = make(words_of(host, tokenizer, base, record), record)
        labels = torch.where(instruction_of(item), item["labels"], IGNORE)
        pixels = processor.preprocess(Image.open(folder / record["image"]), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            told = model(input_ids=item["input_ids"][None], labels=labels[None], images=pixels)
        total += float(told.loss) * int((labels != IGNORE).sum())
    return total / len(held_out)


def test_instructions_are_learned_from_pictures_with_the_flag_alone(
    colored, tiny, host, tokenizers, train_flags, tmp_path
):
    """Blind, no model can tell four equally frequent colours better than by ln 4 nats an instruction."""
    folder, held_out = colored
    blind = math.log(len(COLORS))
    own = {"data_path": folder / "train.json", "image_folder": folder, "learning_rate": 0.01, "num_train_epochs": 4}
    own |= {"per_device_train_batch_size": 12, "logging_steps": 20, "lr_scheduler_type": "cosine"}
    entropy = {}
    for mode in ("no_system", "none"):
        command = [sys.executable, TRAIN, *arguments({**train_flags, **own}, output_dir=tmp_path / mode)]
        done = run({"instruct_loss": mode}, command)
        assert done.returncode == 0, log_of(done)
        entropy[mode] = instruction_entropy(tmp_path / mode, tiny, host, tokenizers["llama slow"], folder, held_out)
    assert entropy["no_system"] < blind / 2 and entropy["none"] > 2 * blind, entropy
