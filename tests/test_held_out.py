"""Held-out samples: none of their photographs is trained on; what is logged of them is what slow arithmetic gives."""

import itertools
import json
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import arguments, torchrun
from PIL import Image
from test_llava_train import RECORDED, TRAIN, log_of, run

from vgift_plugin.data.photos import from_folder, is_held_out
from vgift_plugin.errors import ConfigError
from vgift_plugin.methods.vgift.flags import VgiftFlags
from vgift_plugin.methods.vgift.streams import split_streams

TASKS = "rotation,color,correspondence"
METRIC = re.compile(r"'(eval_\w+|loss\w*)': ([\d.]+)")


def flags_of(photos, **changes):
    return VgiftFlags(**{"ssl_tasks": TASKS, "ssl_eval_samples": 4, "ssl_image_folder": str(photos), **changes})


def split(flags):
    return split_streams(flags, flags.tasks(), None, flags.ssl_image_folder, None)


def test_one_name_in_twenty_is_held_out_wherever_it_lies():
    names = [f"{k:012d}.jpg" for k in range(20_000)]
    share = np.mean([is_held_out(name) for name in names])
    assert 0.045 < share < 0.055
    assert all(is_held_out(name) == is_held_out(f"coco/train2017/{name}") for name in names[:200])
    assert [k for k in range(100) if is_held_out(names[k])] == [11, 16, 32, 34, 57, 98]  # now and for ever


def test_training_never_draws_what_is_held_out(tmp_path):
    for k in range(200):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{k}.png")
    for trained, held_out in split(flags_of(tmp_path)):
        drawn, kept = (
            {one.source.name(pick) for j in range(300) for pick in one.picks(0, j)} for one in (trained, held_out)
        )
        assert drawn | kept == {f"{k}.png" for k in range(200)} and not drawn & kept
        assert all(map(is_held_out, kept)) and len(kept) == len(held_out.source)
    (whole, nothing), *_ = split(flags_of(tmp_path, ssl_eval_samples=0))
    assert nothing is None and len(whole.source) == 200


def test_a_folder_of_their_own_leaves_training_all_of_its_photographs(photos, others):
    for trained, held_out in split(flags_of(photos, ssl_eval_image_folder=str(others))):
        assert len(trained.source) == 5 and trained.source.fingerprint() == from_folder(str(photos)).fingerprint()
        assert len(held_out.source) == 10


def test_rows_are_divided_with_their_photographs(tmp_path, photos):
    names = [f"{k}.jpg" for k in range(400)]
    for name in names:
        shutil.copy(photos / "coffee.jpg", tmp_path / name)
    rows = [
        {"id": str(k), "image1_name": a, "image2_name": b, "point_img1": "(40, 50)"}
        | {"points_img2": ["(20, 200)", "(80, 140)", "(140, 80)"], "correspondence_index": k % 3}
        for k, (a, b) in enumerate(itertools.pairwise(names))
    ]
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "point_correspondence_metadata.json").write_text(json.dumps(rows))
    flags = flags_of(tmp_path, ssl_tasks="correspondence", ssl_replay=str(tmp_path / "metadata"))
    ((trained, held_out),) = split(flags)
    seen = [{path for row in stream.source.rows for path in stream.source.paths(row)} for stream in (trained, held_out)]
    first = [{stream.source.paths(row)[0] for row in stream.source.rows} for stream in (trained, held_out)]
    assert not any(map(is_held_out, seen[0])) and all(map(is_held_out, first[1])) and len(first[1]) > 5
    row = held_out.source.rows[1]
    assert held_out.source.find(row["id"]) == 1 and trained.source.find(row["id"]) == -1


def test_what_cannot_be_held_out_is_refused(photos, others, tmp_path):
    with pytest.raises(ConfigError, match=r"of the 5 images of .*, 0 would be held out .* there are too few"):
        split(flags_of(photos))
    (tmp_path / "more").symlink_to(photos)
    (tmp_path / "new.jpg").symlink_to(photos / "coffee.jpg")
    with pytest.raises(ConfigError, match=r"5 of its 5 images are trained on too: .*, …\nName a folder"):
        split(flags_of(photos, ssl_eval_image_folder=str(photos)))
    with pytest.raises(ConfigError) as err:
        VgiftFlags(ssl_eval_samples=-1, ssl_eval_image_folder="/nowhere", ssl_eval_steps=0).tasks()
    for told in ("--ssl_eval_samples -1: must", "/nowhere: there is no such folder", "--ssl_eval_steps 0: must"):
        assert told in str(err.value)
    with pytest.raises(ConfigError, match=r"--ssl_eval_steps needs --ssl_eval_samples"):
        VgiftFlags(ssl_tasks="rotation", ssl_eval_steps=5).tasks()
    with pytest.raises(ConfigError, match=r"--ssl_eval_samples needs --ssl_tasks"):
        VgiftFlags(ssl_eval_samples=5).tasks()


@pytest.mark.host
def test_published_samples_need_other_photographs(release, module_of, tmp_path):
    root, metadata, records = release
    (tmp_path / "base.json").write_text(json.dumps(records))
    flags = {"data_path": str(tmp_path / "base.json"), "image_folder": str(root), "ssl_replay": str(metadata)}
    with pytest.raises(ConfigError, match="published samples are trained on, and may be of any photograph"):
        module_of(**flags, ssl_tasks="rotation", ssl_ratio=0.2, ssl_eval_samples=2)


@pytest.mark.host
def test_metrics_and_losses_are_what_one_row_at_a_time_gives(module_of, others, tiny_llava, tokenizer, tmp_path):
    """Base records and samples of three tasks, of different lengths, in one batch, against single rows unpadded."""
    import torch

    from vgift_plugin.hosts import trainer
    from vgift_plugin.hosts.model_hooks import ModelHooks
    from vgift_plugin.hosts.token_facts import KEY
    from vgift_plugin.methods.vgift.losses import TaskLosses

    made = module_of(ssl_tasks=TASKS, ssl_ratio=1.0, ssl_eval_samples=6, ssl_eval_image_folder=str(others))
    hooks, losses = (
        next(one for one in made["callbacks"] if isinstance(one, kind)) for kind in (ModelHooks, TaskLosses)
    )
    train, collate = made["train_dataset"], made["data_collator"]

    def alone(item):
        """The logits and the labels of the answer's tokens, of one row that is not padded."""
        with torch.no_grad():
            ids, labels = item["input_ids"][None], item["labels"].clone()
            logits = tiny_llava(input_ids=ids, images=item["image"][None].float()).logits[0]
        answer = torch.nonzero(labels[1:] != -100)[:, 0] + 1
        shift = logits.shape[0] - len(labels)  # the picture stands before the answer
        return logits[answer + shift - 1], labels[answer]

    hooks.attach(tiny_llava)
    try:
        tiny_llava.train()
        names = ["base", "rotation", "base", "rotation", "color", "color", "correspondence", "base"]
        items = [train[k] for k in (0, 16, 2, 17, 21, 22, 28, 1)]
        batch = collate(items)
        assert [row.max() % 2**16 // 2 for row in batch[KEY]] == [losses.names.index(name) for name in names]
        tiny_llava(**{**batch, "images": batch["images"].float()})
        tiny_llava.eval()
        sums = losses._sums.tolist()
        state, logs = SimpleNamespace(log_history=[{}], global_step=7), {"loss": 1.0}
        board = SimpleNamespace(report_to=["tensorboard"], logging_dir=str(tmp_path / "board"))
        losses.on_log(board, state, None, logs)
        metrics, expected = {}, {}
        for name, held_out in made["eval_dataset"].items():
            rows = [held_out[k] for k in range(len(held_out))]
            reduced, labels = [], []
            for start in (0, 4):
                batch = collate(rows[start : start + 4])
                with torch.no_grad():
                    logits = tiny_llava(**{**batch, "images": batch["images"].float()}).logits
                longer = torch.cat([logits, torch.full((len(logits), 3, logits.shape[2]), -100.0)], dim=1)
                reduced += [*made["preprocess_logits_for_metrics"]((longer,), batch["labels"])]
                labels += [*batch["labels"]]
            pad = {"batch_first": True, "padding_value": -100}
            predictions = torch.nn.utils.rnn.pad_sequence(reduced, **pad).numpy()
            label_ids = torch.nn.utils.rnn.pad_sequence(labels, **pad).numpy()
            assert predictions.shape == (6, label_ids.shape[1], 4)
            # the untrained model is right nowhere: make it right in the first half of the samples
            predictions[:3, :, 0] = predictions[:3, :, 1]
            metrics[name] = made["compute_metrics"](SimpleNamespace(predictions=predictions))
            for k, row in enumerate(rows):
                logits, true = alone(row)
                kept = predictions[k][predictions[k, :, 1] != -100]
                assert kept[:, 1].tolist() == true.tolist()
                assert k < 3 or kept[:, 0].tolist() == logits.argmax(-1).tolist()
        expected = {name: [] for name in losses.names}
        for item, name in zip(items, names, strict=True):
            logits, true = alone(item)
            expected[name] += torch.nn.functional.cross_entropy(logits, true, reduction="none").tolist()
    finally:
        hooks.detach()
    assert {name: m["accuracy"] for name, m in metrics.items()} == dict.fromkeys(made["eval_dataset"], 0.5)
    assert {name: set(m) for name, m in metrics.items()} == {
        "rotation": {"accuracy"},
        "color": {"accuracy", "score"},
        "correspondence": {"accuracy"},
    }
    assert 0.5 <= metrics["color"]["score"] < 1
    for name, (total, count) in zip(expected, sums, strict=True):
        assert count == len(expected[name]) and total == pytest.approx(sum(expected[name]), rel=1e-4)
    means = {f"loss_{name}": pytest.approx(np.mean(values), abs=1e-3) for name, values in expected.items()}
    assert logs == {"loss": 1.0, **means}
    assert state.log_history == [{name: value for name, value in logs.items() if name != "loss"}]
    trainer._tensorboard(board.logging_dir).close()
    assert any(b"train/loss_rotation" in path.read_bytes() for path in (tmp_path / "board").iterdir())
    for no_task in (-100, 0):  # nothing that carries loss; base records, which a host may evaluate on, too
        assert made["compute_metrics"](SimpleNamespace(predictions=np.full((2, 5, 4), no_task))) == {}


@pytest.mark.host
def test_a_score_is_earned_place_by_place(module_of, others, tokenizer):
    """A model that repeats the current token says the answer, shifted by one, and knows nothing."""
    import torch

    from vgift_plugin.hosts.token_facts import KEY, Tokens

    made = module_of(ssl_tasks="color", ssl_ratio=1.0, ssl_eval_samples=6, ssl_eval_image_folder=str(others))
    rows, accuracy = list(made["eval_dataset"]["color"]), made["compute_metrics"]
    digits = torch.tensor(tokenizer.convert_tokens_to_ids(list("12345")))

    def metrics(say, flattened=False):
        """What is logged of a model that predicts `say(ids, labels)`, tokens of the labels' shape, at each place."""
        parts = []
        for number, row in enumerate(rows):
            ids, labels = row["input_ids"].clamp(min=0)[None], row["labels"][None]
            parts.append((say(ids, labels), labels, row[KEY][None] + (number << 16)))
        batches = [[torch.cat(some, dim=1) for some in zip(*parts, strict=True)]] if flattened else parts
        reduced = []
        for said, labels, facts in batches:
            accuracy.losses.tokens = Tokens.of(labels, facts)
            logits = torch.nn.functional.one_hot(said, len(tokenizer)).float()
            reduced += [*made["preprocess_logits_for_metrics"](logits, labels)]
        padded = torch.nn.utils.rnn.pad_sequence(reduced, batch_first=True, padding_value=-100)
        return accuracy(SimpleNamespace(predictions=padded.numpy()))

    def right(ids, labels):
        return ids.roll(-1, 1)

    def right_on_two_points(ids, labels):
        said = ids.roll(-1, 1)
        numbers = (torch.isin(said, digits) & (labels.roll(-1, 1) != -100)).nonzero()[:, 1]
        assert len(numbers) == 5
        said[0, numbers[[0, 2, 3]]] = digits[(said[0, numbers[[0, 2, 3]], None] == digits).nonzero()[:, 1] - 1]
        return said

    for flattened in (False, True):  # a host may lay the rows of a batch end to end
        assert metrics(right, flattened) == {"accuracy": 1.0, "score": 1.0}
        assert metrics(right_on_two_points, flattened) == {"accuracy": 0.0, "score": pytest.approx(0.4)}
    echoed = metrics(lambda ids, labels: ids)
    assert echoed["accuracy"] == 0.0 and echoed["score"] <= 1 / 5  # the mean share of points right by a blind guess


def logged(done):
    """Returns {metric: [values in their order]} of what the trainer printed."""
    result = {}
    for name, value in METRIC.findall(done.stdout):
        result.setdefault(name, []).append(float(value))
    return result


@pytest.mark.host
def test_one_and_two_processes_log_the_same_and_training_goes_on_as_without(tmp_path, train_flags, others, tiny_llava):
    import torch

    flags = {"ssl_tasks": TASKS, "ssl_ratio": 1.0, "ssl_eval_image_folder": others}
    evaluate = {**flags, "ssl_eval_samples": 5, "ssl_eval_steps": 3}
    weights = {f"model.mm_projector.{name}": w for name, w in tiny_llava.get_model().mm_projector.state_dict().items()}
    torch.save(weights, tmp_path / "projector.bin")  # upstream's own is another one in every run
    still = {"per_device_eval_batch_size": 1, "learning_rate": 0.0, "num_train_epochs": 2}
    still["pretrain_mm_mlp_adapter"] = tmp_path / "projector.bin"
    told, fed = {}, {}
    for name, asked, launcher in (
        ("one", evaluate, [sys.executable]),
        ("two", evaluate, torchrun()),
        ("none", {k: v for k, v in flags.items() if "eval" not in k}, [sys.executable]),
    ):
        command = [*launcher, RECORDED, *arguments(train_flags, output_dir=tmp_path / name, **still)]
        done = run(asked, command, RECORD=tmp_path / f"{name}-steps")
        assert done.returncode == 0, log_of(done)
        told[name] = logged(done)
        fed[name] = (tmp_path / f"{name}-steps.0").read_text().split()
    assert fed["one"] == fed["none"] and len(fed["one"]) == 16
    for metric in [f"eval_{task}_{what}" for task in TASKS.split(",") for what in ("loss", "accuracy")]:
        assert len(told["one"][metric]) == 6 and len(told["two"][metric]) == 3  # after 3, 6, … and the last step
        assert told["two"][metric][0] == pytest.approx(told["one"][metric][0], abs=2e-4), metric
    assert len(told["one"]["eval_color_score"]) == 6
    assert {"loss_base", "loss_rotation", "loss_color", "loss_correspondence"} <= set(told["one"]) & set(told["two"])
    mix = json.loads((tmp_path / "two" / "vgift_mix.json").read_text())
    assert mix["held_out"]["color"]["samples"] == 5 and mix["held_out"]["color"]["source"]["count"] == 10
    assert "held_out" not in json.loads((tmp_path / "none" / "vgift_mix.json").read_text())


@pytest.mark.host
def test_the_scripts_own_evaluation_is_kept(tmp_path, train_flags, others):
    own = {"evaluation_strategy": "steps", "eval_steps": 4, "max_steps": 8, "report_to": "tensorboard"}
    own |= {"output_dir": tmp_path / "out", "logging_dir": tmp_path / "board"}
    command = [sys.executable, TRAIN, *arguments(train_flags, **own)]
    flags = {"ssl_tasks": "rotation", "ssl_ratio": 1.0, "ssl_eval_samples": 3, "ssl_eval_image_folder": others}
    done = run({**flags, "ssl_eval_steps": 1}, command)
    assert done.returncode == 0, log_of(done)
    assert len(logged(done)["eval_rotation_accuracy"]) == 2
    assert "--ssl_eval_steps: the training script's own --evaluation_strategy wins" in done.stderr
    written = b"".join(path.read_bytes() for path in (tmp_path / "board").iterdir())
    assert b"eval/rotation_accuracy" in written and b"train/loss_rotation" in written


@pytest.mark.host
def test_an_image_that_never_suits_stops_the_run_before_its_first_step(tmp_path, train_flags):
    for k in range(3):
        Image.new("L", (300, 300), 90).save(tmp_path / f"{k}.png")
    flags = {"ssl_tasks": "color", "ssl_ratio": 1.0, "ssl_eval_samples": 3, "ssl_eval_image_folder": tmp_path}
    done = run(flags, [sys.executable, TRAIN, *arguments(train_flags, output_dir=tmp_path / "out")])
    assert done.returncode == 1 and "'loss'" not in done.stdout
    assert "color" in done.stderr and "near-grey" in done.stderr, log_of(done)
