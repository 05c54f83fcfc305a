"""Preference training through upstream's own code: pairs in, the reference untouched, a rule learned, mistakes told."""

import json
import sys
from types import FunctionType, SimpleNamespace

import pytest
from conftest import ROOT, arguments, build_llava, call, torchrun
from test_llava_train import log_of, run, script

from vgift_plugin.data.seeding import generator
from vgift_plugin.errors import ConfigError, HostMismatchError, SelfTestError
from vgift_plugin.hosts.llava import LLaVA

pytestmark = pytest.mark.host
HOST = LLaVA()
RECORDED = ROOT / "tests" / "recorded_weights.py"
HEADER = {"vgift": "preferences", "version": 1, "template": "v1", "model": "tiny", "settings": {}}
LORA = {"lora_enable": True, "lora_r": 8, "lora_alpha": 16}
OPENINGS = ["This is", "Here is", "The picture is", "It may be", "One sees", "There is"]
ENDINGS = ["of houses", "in red", "in blue and green", "of two things", "of a garden", "of three houses", "in grey"]
PREFERRED, OTHER = "scene", "photograph"


def rows_of(photos, count, first=0):
    """Pairs that follow one rule, a word preferred to another, in frames drawn for each."""
    names, rows = sorted(path.name for path in photos.iterdir()), []
    for k in range(first, first + count):
        rng = generator(0, "pairs", k)
        opening, ending = OPENINGS[rng.integers(len(OPENINGS))], ENDINGS[rng.integers(len(ENDINGS))]
        more = " ".join(str(digit) for digit in rng.integers(10, size=rng.integers(1, 6)))
        chosen, rejected = (f"{opening} a {word} {ending}, {more}." for word in (PREFERRED, OTHER))
        row = {"id": f"p{k}", "image": names[k % len(names)], "prompt": "<image>\nWhat does this picture show?"}
        row |= {"chosen": chosen, "rejected": rejected, "branch": "prompt", "corruption": None}
        row |= {"prompt_ids": {"neutral": 0, "preferred": 0, "misleading": 1}, "degenerate": None}
        row |= {"sampling": {"temperature": 0.2, "max_new_tokens": 64, "seed": 0}, "cut_off": [False, False]}
        rows.append(row)
    return rows


def write(path, rows, **header):
    path.write_text("".join(json.dumps(one) + "\n" for one in [HEADER | header, *rows]))
    return str(path)


@pytest.fixture
def pairs(tmp_path, photos):
    """Makes a preference file."""
    return lambda count=8, first=0, name="prefs.jsonl", **header: write(
        tmp_path / name, rows_of(photos, count, first), **header
    )


@pytest.fixture
def trainer_of(attached, tiny, tokenizer, data_args, tmp_path):
    """Makes upstream's trainer as the end of its train() does, with flags of the plugin and of the trainer."""
    import torch
    from peft import LoraConfig, get_peft_model

    def make(file, lora=True, dropout=0.0, limit=2048, data=None, seed=0, change=lambda model: None, **settings):
        model = build_llava(*tiny)
        if lora:
            names = attached.find_all_linear_names(model)
            with torch.random.fork_rng():
                torch.manual_seed(1)
                config = LoraConfig(
                    r=8, lora_alpha=16, target_modules=names, lora_dropout=dropout, task_type="CAUSAL_LM"
                )
                model = get_peft_model(model, config)
            for weight in model.get_model().mm_projector.parameters():
                weight.requires_grad = True
        if seed:  # another start of the projector, as where it is not in the checkpoint
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(seed)
                for weight in model.get_model().mm_projector.parameters():
                    weight.normal_(std=0.1)
        change(model)
        model.config.tokenizer_model_max_length = limit
        tokenizer.model_max_length = limit
        settings = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": [],
            "logging_steps": 1,
            **settings,
        }
        settings = {"per_device_train_batch_size": 4, "save_strategy": "no", "disable_tqdm": True, **settings}
        args = attached.TrainingArguments(**{"num_train_epochs": 1, "learning_rate": 1e-3, **settings})
        made = attached.make_supervised_data_module(
            tokenizer=tokenizer, data_args=data_args(preference_data=file, **(data or {}))
        )
        return attached.LLaVATrainer(model=model, tokenizer=tokenizer, args=args, **made)

    return make


def loss_of(trainer):
    from vgift_plugin.methods.stic.loss import PreferenceLoss

    return next(one for one in trainer.callback_handler.callbacks if isinstance(one, PreferenceLoss))


def projector_of(model):
    return HOST.projector(HOST.model(model))


def hooked(loss, model):
    from vgift_plugin.hosts.model_hooks import ModelHooks

    hooks = ModelHooks(HOST, [loss])
    hooks.attach(HOST.model(model))
    return hooks


def batch_of(trainer, *places):
    return trainer.data_collator([trainer.train_dataset[place] for place in places])


def logits_of(model, batch):
    import torch

    with torch.no_grad():
        return model(**batch).logits


def test_items_and_batches_are_the_hosts_own(module_of, pairs, tmp_path, photos):
    import torch

    from vgift_plugin.methods.stic.dataset import SIDES, record_of

    rows = rows_of(photos, 5)
    (tmp_path / "records.json").write_text(json.dumps([record_of(row, side) for side in SIDES for row in rows]))
    plain = module_of(data_path=str(tmp_path / "records.json"))
    expected = list(plain["train_dataset"])
    made = module_of(preference_data=pairs(5))
    dataset, batch = made["train_dataset"], made["data_collator"](list(made["train_dataset"]))
    assert len(dataset) == 5
    for k in range(5):
        for side, one in zip(SIDES, (expected[k], expected[5 + k]), strict=True):
            item = dataset[k][side]
            assert item.keys() == one.keys() and all(torch.equal(item[key], one[key]) for key in one)
    for key, value in plain["data_collator"](expected).items():
        assert torch.equal(batch[key], value), key
    longest = [max(len(expected[k]["labels"]), len(expected[5 + k]["labels"])) for k in range(5)]
    assert dataset.modality_lengths == dataset.lengths == longest and len(set(longest)) > 1


def test_the_reference_is_the_model_as_it_was_before_and_after_training(trainer_of, pairs, tiny):
    """Dropout in adapters and attention and a trained projector included; nothing of it is left on the model."""
    import torch

    original = build_llava(*tiny)

    def drop(net):
        for module in net.modules():
            if hasattr(module, "attention_dropout"):  # the language model's own
                module.attention_dropout = 0.3

    trainer = trainer_of(pairs(8), dropout=0.5, change=drop, learning_rate=1e-2, num_train_epochs=3)
    model, reference, batch = trainer.model, loss_of(trainer).reference, batch_of(trainer, 0, 5)
    before = logits_of(original, batch)
    assert torch.equal(logits_of(model.eval(), batch), before)
    trainer.train()
    projector, was = projector_of(model), original.get_model().mm_projector
    assert all(not torch.equal(a, b) for a, b in zip(projector.parameters(), was.parameters(), strict=True))
    for name, weight in was.state_dict().items():
        assert torch.equal(reference.projector.state_dict()[name], weight)
    assert not torch.allclose(logits_of(model.eval(), batch), before, atol=1e-3)
    with model.disable_adapter():  # the adapters alone are not enough
        assert not torch.allclose(logits_of(model, batch), before, atol=1e-4)
    model.train()
    flags = [(module.training, name) for name, module in model.named_modules()]
    wanted = [name for name, weight in model.named_parameters() if weight.requires_grad]
    with reference.standing(model):
        assert not torch.is_grad_enabled() and torch.equal(model(**batch).logits, before)
    assert flags == [(module.training, name) for name, module in model.named_modules()]
    assert wanted == [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert "forward" not in vars(projector) and torch.is_grad_enabled()
    assert not any(weight.requires_grad for weight in reference.projector.parameters())


def test_the_reference_is_what_training_begins_with_and_not_what_the_trainer_was_made_with(trainer_of, pairs):
    """Between the two, DDP gives all ranks the projector of the first."""
    import torch

    trainer = trainer_of(pairs(4), max_steps=1)
    with torch.no_grad():
        for weight in projector_of(trainer.model).parameters():
            weight.add_(0.5)
    began = {name: weight.clone() for name, weight in projector_of(trainer.model).state_dict().items()}
    trainer.train()
    kept = loss_of(trainer).reference.projector.state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in began.items())


def test_the_loss_is_what_single_rows_by_hand_give(trainer_of, pairs, tiny):
    """Pairs of different lengths in one padded batch, after some training, against rows alone in float64."""
    import torch

    original = build_llava(*tiny)
    trainer = trainer_of(pairs(8), learning_rate=3e-2, data={"dpo_beta": 0.5, "dpo_alpha": 0.25})
    trainer.train()
    model, loss = trainer.model.eval(), loss_of(trainer)
    batch = batch_of(trainer, 1, 2, 6)

    def by_hand(net):
        logps = []
        for side in ("chosen", "rejected"):
            for place in (1, 2, 6):
                item = trainer.train_dataset[place][side]
                row = {"input_ids": item["input_ids"][None], "images": item["image"][None]}
                row |= {"labels": item["labels"][None], "attention_mask": torch.ones_like(row["input_ids"]).bool()}
                logits = logits_of(net, row)[0].double().log_softmax(-1)
                taught = [token for token in item["labels"].tolist() if token != -100]
                ends = range(len(logits) - len(taught), len(logits))  # the response stands last, the pictures before it
                logps.append(sum(logits[end - 1, token].item() for end, token in zip(ends, taught, strict=True)))
        return logps

    policy, reference = by_hand(model), by_hand(original)
    expected = 0.0
    for k in range(3):
        margin = 0.5 * ((policy[k] - reference[k]) - (policy[3 + k] - reference[3 + k]))
        expected += (torch.log1p(torch.exp(torch.tensor(-margin, dtype=torch.float64))).item() - 0.25 * policy[k]) / 3
    hooks = hooked(loss, model)
    try:
        found, outputs = loss(model, model, batch)
        assert outputs.loss is None  # the host's own loss is not computed
        assert found.item() == pytest.approx(expected, rel=1e-5) and found.requires_grad
        assert loss.logps(model, batch)[0].tolist() == pytest.approx(policy, rel=1e-5)
        assert max(abs(a - b) for a, b in zip(policy, reference, strict=True)) > 1
    finally:
        hooks.detach()


def test_what_is_logged_is_of_all_batches_since_the_last_log(trainer_of, pairs):
    import torch

    trainer = trainer_of(pairs(16), gradient_accumulation_steps=2, logging_steps=2, learning_rate=0.0)
    loss, model = loss_of(trainer), trainer.model
    hooks = hooked(loss, model)
    with torch.no_grad():
        chosen, rejected = loss.logps(model, batch_of(trainer, *range(16)))[0].view(2, -1).mean(1).tolist()
    hooks.detach()
    trainer.train()
    (logged,) = [one for one in trainer.state.log_history if "loss" in one]  # after two steps of two batches of four
    assert (logged["logps/chosen"], logged["logps/rejected"]) == pytest.approx((chosen, rejected), rel=1e-6)


def test_a_rule_is_learned_and_holds_for_pairs_never_seen(trainer_of, pairs, photos, tmp_path):
    import torch

    trainer = trainer_of(pairs(64), learning_rate=2e-2, num_train_epochs=2, per_device_train_batch_size=8)
    held_out = trainer_of(pairs(40, first=64, name="other.jsonl"))
    batch = batch_of(held_out, *range(40))
    assert not {row["chosen"] for row in rows_of(photos, 64)} & {row["chosen"] for row in rows_of(photos, 40, 64)}
    loss, model = loss_of(trainer), trainer.model

    def of_two(net):
        hooks = hooked(loss, net)
        with torch.no_grad():
            logps = loss.logps(net.eval(), batch)[0].view(2, -1)
        hooks.detach()
        return logps

    before = of_two(model)
    assert (before[0] > before[1]).float().mean() < 0.1  # at first the other word is the likelier one
    trainer.train()
    after = of_two(model)
    moved = (after - before)[0] - (after - before)[1]
    assert (moved > 0).float().mean() > 0.9
    assert (after[0] > after[1]).float().mean() > 0.9
    history = [one for one in trainer.state.log_history if "rewards/margins" in one]
    first, last = history[0], history[-1]
    assert first["rewards/margins"] == first["rewards/accuracies"] == first["kl"] == 0
    assert last["rewards/margins"] > 0.1 and last["rewards/accuracies"] == 1
    for one in history:
        assert one["rewards/margins"] == pytest.approx(one["rewards/chosen"] - one["rewards/rejected"], abs=2e-6)
        assert one["kl"] == pytest.approx(one["rewards/chosen"] / 0.1, abs=2e-5)
        assert one["regulariser"] == pytest.approx(-one["logps/chosen"] / 1024, abs=2e-6)
    assert first["loss"] == pytest.approx(0.693147 + first["regulariser"], abs=1e-4)


def test_two_processes_and_one_through_an_unedited_script(tmp_path, photos, train_flags, tiny):
    """Both begin with the same loss, write the same receipt and end with upstream's own LoRA checkpoint."""
    import torch

    rows = rows_of(photos, 10)
    rows[3]["degenerate"] = "equal"
    rows[8]["chosen"] += " ASSISTANT: And more."  # by which LLaVA masks all labels of the row
    file, firsts, receipts = write(tmp_path / "prefs.jsonl", rows), [], []
    weights = build_llava(*tiny).get_model().mm_projector.state_dict()  # train() would draw others at every start
    torch.save({f"model.mm_projector.{name}": weight for name, weight in weights.items()}, tmp_path / "projector.bin")
    for name, launcher, batch in (("one", [sys.executable], 8), ("two", torchrun(), 4)):
        out = tmp_path / name
        flags = {**train_flags, **LORA, "per_device_train_batch_size": batch, "lora_dropout": 0}
        flags |= {"pretrain_mm_mlp_adapter": tmp_path / "projector.bin"}
        command = [*launcher, RECORDED, *arguments(flags, output_dir=out, max_steps=2, dataloader_num_workers=2)]
        flags = {"preference_data": file, "dpo_alpha": 0.01}
        done = run(flags, script(tmp_path, command), WEIGHTS=tmp_path / f"{name}-weights")
        assert done.returncode == 0, log_of(done)
        for told in (
            "training on 8 pairs",
            "1 equal",
            "1 the host masks all its labels",
            "cuts the end off 0 preferred",
        ):
            assert done.stderr.count(told) == 1, log_of(done)  # rank 0 alone speaks
        kept = torch.load(out / "vgift_reference_projector.bin")
        assert all(torch.equal(kept[name], weight) for name, weight in weights.items())
        assert (out / "adapter_config.json").exists() and (out / "non_lora_trainables.bin").exists()
        history = json.loads((out / "trainer_state.json").read_text())["log_history"]
        firsts.append(history[0])
        assert history[1]["rewards/chosen"] != 0
        receipts.append(json.loads((out / "vgift_preferences.json").read_text()))
    hashes = [path.read_text() for path in tmp_path.glob("two-weights.*")]
    assert len(hashes) == 2 and hashes[0] == hashes[1]  # gradients of both ranks reached adapters and projector
    one, two = firsts
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-4) and one["loss"] > 0.7
    for name in ("logps/chosen", "logps/rejected", "regulariser"):
        assert one[name] == pytest.approx(two[name], rel=1e-5)
    assert receipts[0] == receipts[1]
    assert (receipts[0]["pairs"], receipts[0]["flags"]["dpo_alpha"]) == (8, 0.01)
    assert receipts[0]["left_out"] == {"equal": 1, "the host masks all its labels": 1}
    assert receipts[0]["cut_by_model_max_length"] == {"chosen": 0, "rejected": 0}


def test_zero_spreads_the_model_and_leaves_the_reference(tmp_path, tiny):
    """DeepSpeed's own engine on two processes: stage 3, of upstream's script, gives what stage 2 gives."""
    found = []
    for stage in (2, 3):
        out = tmp_path / f"stage{stage}"
        command = [*torchrun(), ROOT / "tests" / "zero_preference.py", *tiny, stage, out]
        done = call(command, DS_ACCELERATOR="cpu")
        assert done.returncode == 0, log_of(done)
        found.append([json.loads((tmp_path / f"stage{stage}.{rank}").read_text()) for rank in range(2)])
    for two, three in zip(*found, strict=True):
        assert two["same"] and three["same"] and min(two["moved"], three["moved"]) > 0.1
        assert three["losses"] == pytest.approx(two["losses"], rel=1e-5) and len(set(three["losses"])) == 3


def test_a_resumed_run_has_the_reference_it_began_with(trainer_of, pairs, tmp_path, monkeypatch):
    import torch

    from vgift_plugin.methods.stic.reference import PROJECTOR_FILE

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch from 2.6 on cannot resume otherwise
    settings = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}
    first = trainer_of(pairs(8), seed=3, max_steps=1, **settings)
    began = {name: value.clone() for name, value in projector_of(first.model).state_dict().items()}
    first.train()
    again = trainer_of(pairs(8), seed=4, max_steps=2, **settings)  # as where the projector is made anew at every start
    again.train(resume_from_checkpoint=True)
    kept = loss_of(again).reference.projector.state_dict()
    assert again.state.global_step == 2 and all(torch.equal(kept[name], value) for name, value in began.items())
    (tmp_path / "out" / PROJECTOR_FILE).unlink()
    with pytest.raises(ConfigError, match=rf"{PROJECTOR_FILE}: cannot be read(.|\n)*resumed at step 1"):
        trainer_of(pairs(8), max_steps=2, **settings).train(
            resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1")
        )


def test_the_hosts_trainer_comes_back_and_evaluates_as_ever(attached, trainer_of, pairs, module_of):
    from vgift_plugin import detach

    own = attached.LLaVATrainer
    plain = module_of()
    assert attached.LLaVATrainer is own
    for _ in range(2):  # made, and no trainer after it
        module_of(preference_data=pairs())
        assert attached.LLaVATrainer is not own and own in attached.LLaVATrainer.__bases__
    module_of()
    assert attached.LLaVATrainer is own
    trainer = trainer_of(pairs(), per_device_eval_batch_size=4)
    assert attached.LLaVATrainer is own and own in type(trainer).__mro__
    settings = {"model": trainer.model, "tokenizer": trainer.tokenizer, "args": trainer.args}
    ours, theirs = (
        one.evaluate(plain["train_dataset"])["eval_loss"]
        for one in (trainer, own(**settings, data_collator=plain["data_collator"]))
    )
    assert ours == theirs
    module_of(preference_data=pairs())
    detach(attached)
    assert attached.LLaVATrainer is own


def test_a_trainer_that_cannot_be_reached_is_told_before_a_model_is_loaded(attached, pairs, monkeypatch):
    file = pairs()
    with monkeypatch.context() as patch:
        patch.setattr(attached, "train", FunctionType((lambda: None).__code__, vars(attached)))
        with pytest.raises(HostMismatchError, match=r"LLaVATrainer: expected train\(\) to look it up"):
            attached.DataArguments(preference_data=file)
        attached.DataArguments()
    with monkeypatch.context() as patch:
        patch.delattr(attached, "LLaVATrainer")
        with pytest.raises(HostMismatchError, match=r"expected a subclass of transformers\.Trainer, found None"):
            attached.DataArguments(preference_data=file)


def test_what_cannot_be_a_reference_is_refused_before_training(trainer_of, pairs):
    with pytest.raises(ConfigError, match=r"needs LoRA \(--lora_enable True.*adapters off"):
        trainer_of(pairs(), lora=False)
    with pytest.raises(ConfigError, match=r"1 weights besides adapters and projector .*embed_tokens\.weight"):
        trainer_of(pairs(), change=lambda model: model.get_input_embeddings().requires_grad_(True))
    with pytest.raises(ConfigError, match="--label_smoothing_factor is for another loss"):
        trainer_of(pairs(), label_smoothing_factor=0.1)
    trainer = trainer_of(pairs())
    with pytest.raises(ConfigError, match="under --fsdp the projector cannot be set back"):
        loss_of(trainer).reference.on_init_end(SimpleNamespace(fsdp=["full_shard"]), None, None, model=trainer.model)


def test_responses_that_are_cut_off_are_counted(trainer_of, pairs, caplog):
    trainer = trainer_of(pairs())
    lengths = [[len(one["labels"]) + 3 for one in trainer.train_dataset[k].values()] for k in range(8)]  # 4 tokens see
    chosen, rejected = zip(*lengths, strict=True)
    limit = sorted(chosen)[4]
    caplog.clear()
    trainer_of(pairs(), limit=limit).train()
    count = [sum(length > limit for length in side) for side in (chosen, rejected)]
    assert count[0] > 0 and count[0] < 8
    told = (
        f"--model_max_length {limit}, with 4 visual tokens, cuts the end off {count[0]} preferred and {count[1]} other"
    )
    assert f"{told} responses of 8 pairs; the longest needs {max(chosen + rejected)}" in caplog.text
    with pytest.raises(ConfigError, match=r"cuts the end off 8 preferred and 8 other .*, which is every one: raise it"):
        trainer_of(pairs(), limit=min(chosen + rejected) - 1)
    starts = [one["labels"].ne(-100).nonzero()[0, 0] + 3 for one in trainer.train_dataset[0].values()]
    with pytest.raises(ConfigError, match="of 16 of them nothing is left: raise it"):
        trainer_of(pairs(), limit=int(starts[0]))


def test_pairs_of_another_model_are_told(trainer_of, pairs, tiny, caplog):
    trainer_of(pairs(model=f"elsewhere/{tiny[0].name}"))
    assert "the pairs were written by" not in caplog.text
    trainer_of(pairs(model="llava-v1.5-7b"))
    assert f"the pairs were written by llava-v1.5-7b, and this run trains {tiny[0]}: unless" in caplog.text


def test_a_file_that_does_not_fit_the_run_is_refused(module_of, pairs, tmp_path, photos, attached, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"written with the chat template 'llava_v1', .* trains with 'v1' \(--version"
    ):
        module_of(preference_data=pairs(template="llava_v1"))
    module_of(preference_data=pairs(template="vicuna_v1"))  # another name of the same
    rows = rows_of(photos, 4)
    rows[2]["image"] = "lost.jpg"
    with pytest.raises(ConfigError, match=r"1 of 4 pictures are not in --image_folder .*\n  lost\.jpg of row 'p2'"):
        module_of(preference_data=write(tmp_path / "p.jsonl", rows))
    rows = [
        row | {"degenerate": reason} for row, reason in zip(rows, ["equal", "empty", "equal", "equal"], strict=True)
    ]
    with pytest.raises(ConfigError, match=r"no pair is left to train on \(3 equal, 1 empty\)\. Write more pairs"):
        module_of(preference_data=write(tmp_path / "p.jsonl", rows))
    with pytest.raises(ConfigError, match=r"left to train on \(8 the host masks .* The template does not fit"):
        module_of(preference_data=pairs(template="mpt"), version="mpt")
    original = attached.preprocess

    def teaches_prompts(*args, **kwargs):
        made = original(*args, **kwargs)
        return {**made, "labels": [ids.clamp(min=0) for ids in made["input_ids"]]}

    monkeypatch.setattr(attached, "preprocess", teaches_prompts)
    with pytest.raises(SelfTestError, match=r"row 'p0' .* the labels decode to .A chat .* instead of the chosen"):
        module_of(preference_data=pairs())
