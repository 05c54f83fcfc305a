"""The mixture on upstream's own dataset, collator, templates and tokenizer."""

import copy
import hashlib
import json
import random

import numpy as np
import pytest
from PIL import Image

from vgift_plugin.errors import ConfigError, NoSuitableImageError, SelfTestError
from vgift_plugin.hosts import encoder
from vgift_plugin.hosts.llava import LLaVA

pytestmark = pytest.mark.host
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
TASKS = "rotation,color:2,correspondence"


@pytest.fixture
def mixed(module_of):
    return module_of(ssl_tasks=TASKS, ssl_ratio=1.0)["train_dataset"]


def digest(item):
    """One hash of all tensors of a sample."""
    parts = [item[key].numpy().tobytes() for key in ("input_ids", "labels", "image")]
    return hashlib.sha256(b"|".join(parts)).hexdigest()


def assert_same(ours, theirs, task=None):
    """Two items of a dataset, the same tensors; of a task's sample all tokens are noted as that task's beside them."""
    from vgift_plugin.hosts.token_facts import KEY

    facts = {} if task is None else {KEY: torch.full_like(theirs["labels"], 2 * task)}
    theirs = {**theirs, **facts}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_base_samples_are_bit_identical(mixed, host, tokenizer, data_args, records):
    upstream = host.LazySupervisedDataset(mixed.data_args.data_path, tokenizer, mixed.data_args)
    assert len(upstream) == len(records) == mixed.plan(len(records) - 1) + 1
    for k in range(len(records)):
        assert_same(mixed[k], upstream[k])


@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_a_sample_in_memory_equals_the_same_sample_on_disk(mixed, host, tokenizer, tmp_path, records, aspect):
    mixed.data_args.image_aspect_ratio = aspect
    for k in range(len(records), len(mixed)):
        stream, j = mixed.plan(k)
        sample = stream(0, j)
        picture = sample.image
        if aspect == "square" and sample.task != "rotation":  # the host would crop marked points away
            side = max(picture.size)
            picture = Image.new(
                "RGB", (side, side), tuple(int(255 * c) for c in mixed.data_args.image_processor.image_mean)
            )
            picture.paste(sample.image, ((side - sample.image.width) // 2, (side - sample.image.height) // 2))
        picture.save(tmp_path / "sample.png")
        conversation = [
            {"from": "human", "value": f"<image>\n{sample.instruction}"},
            {"from": "gpt", "value": sample.response},
        ]
        (tmp_path / "one.json").write_text(
            json.dumps([{"id": "1", "image": "sample.png", "conversations": conversation}])
        )
        arguments = copy.copy(mixed.data_args)
        arguments.image_folder = str(tmp_path)
        theirs, ours = host.LazySupervisedDataset(str(tmp_path / "one.json"), tokenizer, arguments)[0], mixed[k]
        assert_same(ours, theirs, task=1 + ["rotation", "color", "correspondence"].index(sample.task))
        assert (ours["input_ids"] == host.IMAGE_TOKEN_INDEX).sum() == 1


@pytest.fixture
def published(release, module_of, tmp_path):
    """Makes the data module of a run on a published mixture."""
    root, metadata, records = release
    (tmp_path / "mix.json").write_text(json.dumps(records))

    def make(**flags):
        flags = {"data_path": str(tmp_path / "mix.json"), "image_folder": str(root), **flags}
        return module_of(ssl_replay=str(metadata), **flags)

    return make


@pytest.mark.parametrize("tasks", [None, "rotation,color"])
def test_a_painted_record_equals_its_picture_on_disk(published, host, tokenizer, release, tmp_path, tasks):
    root, _, records = release
    mixed = published(ssl_tasks=tasks, ssl_ratio=0.5)["train_dataset"]
    assert len(mixed) == (46 if tasks is None else 46 + 22)
    arguments = copy.copy(mixed.data_args)
    arguments.image_folder = str(tmp_path / "disk")
    for path in root.glob("*.jpg"):
        (tmp_path / "disk").mkdir(exist_ok=True)
        (tmp_path / "disk" / path.name).write_bytes(path.read_bytes())
    on_disk = []
    for k, record in enumerate(records):
        if k in mixed.replay:
            (picture,) = mixed.replay.pictures(k, record)
            picture.save(tmp_path / "disk" / f"{k}.png")
            record = {**record, "image": f"{k}.png"}
        on_disk.append(record)
    (tmp_path / "disk.json").write_text(json.dumps(on_disk))
    upstream = host.LazySupervisedDataset(str(tmp_path / "disk.json"), tokenizer, arguments)
    asked = tasks.split(",") if tasks else []
    numbers = list(dict.fromkeys(["base", *asked, "color", "correspondence", "rotation"]))  # in the order they came
    for k in range(len(records)):
        task = numbers.index(mixed.replay.task(k).name) if k in mixed.replay else None
        assert_same(mixed[k], upstream[k], task)
    assert mixed.modality_lengths[: len(records)] == upstream.modality_lengths
    if tasks is not None:  # no published picture is taken for a photograph
        assert {stream.source.where for stream, _ in mixed.parts} == {
            "images of the base records (30 published samples among them left out)"
        }


def test_tasks_draw_from_the_metadata_where_no_record_is_published(module_of, release, photos):
    root, metadata, _ = release
    mixed = module_of(image_folder=str(root), ssl_tasks=TASKS, ssl_ratio=1.0, ssl_replay=str(metadata))["train_dataset"]
    assert [len(stream.source) for stream, _ in mixed.parts] == [10, 10, 10]
    assert all("_metadata.json" in stream.source.where for stream, _ in mixed.parts)
    assert {key: item.shape for key, item in mixed[20].items()}["image"] == mixed[1]["image"].shape


def test_no_file_is_left_in_memory_or_on_disk(mixed, records, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "MEMORY", str(tmp_path))
    for k in range(len(records), len(mixed)):
        mixed[k]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [None, "/nowhere"])
def test_no_memory_folder_is_needed(mixed, records, monkeypatch, folder):
    expected = mixed[len(records)]
    monkeypatch.setattr(encoder, "MEMORY", folder)
    assert (mixed[len(records)]["image"] == expected["image"]).all()


def test_lengths_suit_the_hosts_sampler(mixed, records):
    from llava.train.llava_trainer import get_modality_length_grouped_indices

    lengths = mixed.modality_lengths
    assert len(lengths) == len(mixed) == len(mixed.lengths)
    assert lengths[: len(records)] == mixed.base.modality_lengths
    assert mixed.lengths[: len(records)] == mixed.base.lengths
    assert all(type(n) is int and n > 5 for n in lengths[len(records) :])
    assert all(
        long == short + 128 for long, short in zip(mixed.lengths[len(records) :], lengths[len(records) :], strict=True)
    )
    assert sorted(get_modality_length_grouped_indices(lengths, 2, 2)) == list(range(len(mixed)))


def test_sample_i_has_one_hash_for_any_workers_and_any_order(mixed, records):
    chosen = list(range(len(records) - 2, len(mixed)))
    expected = {k: digest(mixed[k]) for k in chosen}
    shuffled = chosen[:]
    random.Random(0).shuffle(shuffled)
    assert {k: digest(mixed[k]) for k in shuffled} == expected
    for context, workers in (("fork", 2), ("fork", 4), ("spawn", 2)):
        loader = torch.utils.data.DataLoader(
            torch.utils.data.Subset(mixed, shuffled),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context=context,
        )
        assert dict(zip(shuffled, map(digest, loader), strict=True)) == expected, (context, workers)


def test_the_epoch_reaches_persistent_workers(mixed, records):
    first = len(records)
    for context in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(
            torch.utils.data.Subset(mixed, range(first, len(mixed))),
            batch_size=None,
            num_workers=2,
            persistent_workers=True,
            multiprocessing_context=context,
        )
        seen = []
        for epoch in (0, 1, 0):
            mixed.epoch = epoch
            seen.append([digest(item) for item in loader])
        assert seen[0] == seen[2]
        assert not set(seen[0]) & set(seen[1])
        mixed.epoch = 0


def test_redraws_in_forked_and_spawned_workers_are_counted(module_of, photos, tmp_path):
    for path in photos.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "bad.jpg").write_text("x")
    data = module_of(ssl_tasks="rotation", ssl_ratio=1.0, ssl_image_folder=str(tmp_path))["train_dataset"]
    part = torch.utils.data.Subset(data, range(len(data.base), len(data)))
    counted = []
    for context in ("fork", "spawn"):
        before = data.tally.counts().get("rotation", {}).get("unreadable", 0)
        list(torch.utils.data.DataLoader(part, batch_size=None, num_workers=2, multiprocessing_context=context))
        counted.append(data.tally.counts()["rotation"]["unreadable"] - before)
    assert counted[0] == counted[1] > 0


def test_no_global_generator_is_touched(mixed, records):
    def states():
        return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002

    before = states()
    for k in range(len(mixed)):
        mixed[k]
    mixed.modality_lengths  # noqa: B018
    assert states() == before


def test_it_collates_with_the_hosts_samples(mixed, host, tokenizer):
    collator = host.DataCollatorForSupervisedDataset(tokenizer)
    batch = collator([mixed[k] for k in (0, 3, len(mixed) - 1, len(mixed) - 8)])
    assert batch["images"].shape == (4, 3, 28, 28)


@pytest.mark.parametrize("version", ["v1", "vicuna_v1", "v0", "llava_llama_2", "llama_2"])
def test_the_labels_decode_to_the_answer(module_of, host, tokenizer, version):
    data = module_of(ssl_tasks=TASKS, ssl_ratio=1.0, version=version)["train_dataset"]
    template = LLaVA().template(host, data.data_args, tokenizer)
    assert version in template.names
    for k in range(len(data.base), len(data)):
        stream, j = data.plan(k)
        labels = data[k]["labels"]
        text = tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
        assert template.without_markers(text) == stream(0, j).response


@pytest.fixture(scope="session")
def mpt_tokenizer():
    """A byte-level BPE tokenizer as MPT has: no BOS, the template's marks are tokens."""
    from conftest import demo_module
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<|endoftext|>", "<|padding|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(demo_module("tiny_llava").corpus(), trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<|endoftext|>",
        pad_token="<|padding|>",
        additional_special_tokens=special[2:],
        model_max_length=2048,
    )


def test_mpt_is_refused_because_upstream_masks_all_its_single_turns(host, module_of, mpt_tokenizer, data_args):
    """LLaVA 1.2.2 forgets the last separator when it counts MPT's tokens, so it masks its own records too."""
    arguments = data_args(version="mpt")
    upstream = host.LazySupervisedDataset(arguments.data_path, mpt_tokenizer, arguments)
    assert (upstream[0]["labels"] == -100).all()
    with pytest.raises(SelfTestError, match=r"template 'mpt' .* masked every label"):
        module_of(mpt_tokenizer, ssl_tasks=TASKS, ssl_ratio=1.0, version="mpt")


def test_a_template_that_masks_everything_stops_the_run(module_of, mpt_tokenizer):
    """The classic mistake: a checkpoint of another family with --version v1."""
    with pytest.raises(SelfTestError) as caught:
        module_of(mpt_tokenizer, ssl_tasks="rotation", ssl_ratio=1.0)
    for part in ("task rotation", "template 'v1'", "PreTrainedTokenizerFast", "masked every label", "--version"):
        assert part in str(caught.value)


def test_projector_pretraining_is_refused_because_it_drops_the_question(module_of):
    with pytest.raises(SelfTestError, match=r"template 'plain' .* leaves the instruction out"):
        module_of(ssl_tasks="rotation", ssl_ratio=1.0, version="plain")


def test_labels_off_by_a_token_stop_the_run(module_of, host, monkeypatch):
    item = host.LazySupervisedDataset.__getitem__

    def shifted(self, i):
        result = item(self, i)
        first = int((result["labels"] != -100).nonzero()[0])
        result["labels"][first - 1] = result["input_ids"][first - 1]
        return result

    monkeypatch.setattr(host.LazySupervisedDataset, "__getitem__", shifted)
    with pytest.raises(SelfTestError, match=r"the labels decode to .* instead of the answer"):
        module_of(ssl_tasks="rotation", ssl_ratio=1.0)


def test_a_context_too_short_for_the_answer_stops_the_run(module_of, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 20
    with pytest.raises(SelfTestError, match=r"--model_max_length 20 would cut its answer off"):
        module_of(tokenizer, ssl_tasks="rotation", ssl_ratio=1.0)


def test_a_text_only_base_set_is_an_error_with_its_cure(module_of, tmp_path, photos):
    path = tmp_path / "text.json"
    turns = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]
    path.write_text(json.dumps([{"id": str(k), "conversations": turns} for k in range(8)]))

    with pytest.raises(ConfigError, match="name a folder: --ssl_image_folder"):
        module_of(data_path=str(path), ssl_tasks="rotation", ssl_ratio=1.0)
    flags = {"ssl_tasks": "rotation", "ssl_ratio": 1.0, "ssl_image_folder": str(photos)}
    assert len(module_of(data_path=str(path), **flags)["train_dataset"]) == 16


def test_images_that_are_all_missing_stop_the_run_before_it_starts(attached, tokenizer, data_args, tmp_path):
    arguments = data_args(ssl_tasks="rotation", ssl_ratio=1.0)
    arguments.image_folder = str(tmp_path)
    with pytest.raises(NoSuitableImageError, match="missing file"):
        attached.make_supervised_data_module(tokenizer=tokenizer, data_args=arguments)


def test_a_tower_that_sees_more_than_is_painted_is_told(module_of, attached, data_args, tokenizer, caplog):
    module_of(ssl_tasks=TASKS, ssl_ratio=1.0)
    assert "px long at most" not in caplog.text
    arguments = data_args(ssl_tasks=TASKS, ssl_ratio=1.0)
    arguments.image_processor.crop_size = {"height": 384, "width": 384}
    attached.make_supervised_data_module(tokenizer=tokenizer, data_args=arguments)
    assert caplog.text.count("336 px long at most, and this run looks at pictures with 384 px: set its size_px") == 3


@pytest.mark.parametrize("control", ["repeat", "shuffled"])
def test_a_control_has_the_size_and_the_lengths_of_the_mixture(module_of, records, control):
    flags = {"ssl_tasks": TASKS, "ssl_ratio": 1.0}
    mixed, other = (module_of(**flags, **more)["train_dataset"] for more in ({}, {"ssl_control": control}))
    assert len(other) == len(mixed) and other.lengths == mixed.lengths
    assert other.modality_lengths == mixed.modality_lengths
    for k in range(len(records)):
        assert digest_of(other[k]) == digest_of(mixed[k])
    added = range(len(records), len(mixed))
    if control == "repeat":
        shown = [k for k, record in enumerate(records) if "image" in record]
        picked = [other.plan(k) for k in added]
        assert picked[: len(shown)] != shown and sorted(picked[: len(shown)]) == shown  # each once, then again
        assert digest_of(other[added[0]]) == digest_of(mixed[picked[0]])
        assert other.plan(-1) == picked[-1]
        other.epoch = 3
        assert [other.plan(k) for k in added] == picked
    else:
        for k in added:
            assert (other[k]["input_ids"] == mixed[k]["input_ids"]).all()
            assert (other[k]["labels"] == mixed[k]["labels"]).all()
        first, counts = len(records), [count for _, count in mixed.parts]
        for count in counts:  # a cycle within each task
            for j in range(count):
                assert (other[first + j]["image"] == mixed[first + (j + 1) % count]["image"]).all()
            first += count


def digest_of(item):
    return [tensor.numpy().tobytes() for tensor in item.values() if hasattr(tensor, "numpy")]


def test_a_start_after_instruction_tuning_is_warned_of_once(module_of, tokenizer, tmp_path, monkeypatch, caplog):
    from pathlib import Path

    config = json.loads(Path(tokenizer.name_or_path, "config.json").read_text())
    module_of(ssl_tasks="rotation", ssl_ratio=1.0)
    assert "begins from a multimodal checkpoint" not in caplog.text
    (tmp_path / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "clip"}))
    monkeypatch.setattr(tokenizer, "name_or_path", str(tmp_path))
    module_of(ssl_tasks="rotation", ssl_ratio=1.0)
    assert caplog.text.count("begins from a multimodal checkpoint") == 1 and "39.9" in caplog.text


def test_two_images_a_record_are_refused(module_of, tmp_path):
    (tmp_path / "knobs.json").write_text('{"correspondence": {"two_images": true}}')
    with pytest.raises(ConfigError, match=r"correspondence\.two_images: LLaVA takes one image a record"):
        module_of(ssl_tasks="correspondence", ssl_ratio=0.5, ssl_config=str(tmp_path / "knobs.json"))
