"""`vgift probe` on checkpoints that upstream's own training code has just saved."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import VGIFT, call, train
from PIL import Image
from test_checkouts import HOSTS
from test_checkouts import needs as needs_checkout

from vgift_plugin.data.photos import from_folder
from vgift_plugin.errors import ConfigError
from vgift_plugin.methods.vgift.flags import VgiftFlags
from vgift_plugin.methods.vgift.stream import Stream
from vgift_plugin.probe import task_accuracy as accuracy
from vgift_plugin.probe import visual_contribution as contribution
from vgift_plugin.probe.page import _histogram
from vgift_plugin.probe.probe import Probe
from vgift_plugin.report.intervals import mean_interval
from vgift_plugin.tasks.registry import get_task

host = pytest.mark.host
TASKS = "rotation,color"
CHECKOUTS = ("llava-v1", "next-v1")


@pytest.fixture(scope="module")
def adapter(train_flags, tmp_path_factory):
    return train(train_flags, tmp_path_factory.mktemp("probed") / "small", lora_enable=True, lora_r=4)


@pytest.fixture(scope="module")
def checkpoint(full):
    from vgift_plugin.hosts.checkpoint import Checkpoint

    return Checkpoint.load(str(full))


@pytest.fixture
def picture(photos):
    return Image.open(photos / "chelsea.jpg")


def probe(flags, model_path, image_folder, **options):
    folders = {"model_path": str(model_path), "image_folder": str(image_folder)}
    return Probe(**flags, **folders, **options).run()


def stream_of(name, photos):
    return Stream(VgiftFlags(ssl_tasks=name).tasks()[0].task, from_folder(str(photos)), 1)


def run(*args, **environment):
    return call([*VGIFT, "probe", *args], HF_HUB_OFFLINE=1, **environment)


def pixels_of(checkpoint, image):
    """Returns what LLaVA's evaluation code makes of a picture."""
    from llava.mm_utils import process_images

    return process_images([image], checkpoint.encoder.dataset.data_args.image_processor, checkpoint.model.config)


def prompt_of(checkpoint, question, answer=None):
    """Returns the tokens that LLaVA's evaluation code asks with; with an answer, those of the whole turn."""
    from llava.mm_utils import tokenizer_image_token

    conversation = checkpoint.conversation.copy()
    conversation.append_message(conversation.roles[0], f"<image>\n{question}")
    conversation.append_message(conversation.roles[1], answer)
    return tokenizer_image_token(conversation.get_prompt(), checkpoint.tokenizer, return_tensors="pt")[None]


@host
def test_pairs_of_photographs_are_asked(full, tmp_path):
    for name, wh in (("a.jpg", (451, 300)), ("b.jpg", (400, 300))):
        Image.new("RGB", wh, "navy").save(tmp_path / name)
    points = {"query": [60, 70], "match": [200, 150], "distractors": [[300, 30], [40, 250], [350, 260]]}
    row = {"image1": "a.jpg", "image2": "b.jpg", "wh1": [451, 300], "wh2": [400, 300], **points}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    flags = {"ssl_tasks": "correspondence", "ssl_pairs": str(tmp_path / "pairs.jsonl")}
    page = tmp_path / "probe.html"
    assert "correspondence" in probe(flags, full, tmp_path, n=4, output=str(page), device="cpu")
    assert page.stat().st_size > 1000


@host
def test_a_full_checkpoint(full, photos, tmp_path, checkpoint):
    page, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    flags = ["--ssl_tasks", TASKS, "--image_folder", photos, "-n", 6, "--batch_size", 4]
    done = run("--model_path", full, *flags, "-o", page, "--json", numbers)
    assert done.returncode == 0, done.stderr
    assert re.search(r"rotation +25\.0% +\d", done.stdout) and "template v1" in done.stdout
    assert "Loading" not in done.stdout and "rotation: 100%" in done.stderr
    result = json.loads(numbers.read_text())
    assert [result["tasks"][name]["chance"] for name in ("rotation", "color")] == [0.25, 1 / 120]
    html = page.read_text()
    assert html.count("<figure>") == html.count('src="data:image/jpeg;base64,') == 12
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    rows = [json.loads(line) for line in Path(f"{page}.jsonl").read_text().splitlines()[1:]]
    assert [(row["part"], row["number"]) for row in rows] == [(t, j) for t in ("rotation", "color") for j in range(6)]
    stream = stream_of("rotation", photos)
    for row, sample in zip(rows[:2], [stream(0, 0), stream(0, 1)], strict=True):
        assert (row["question"], row["answer"]) == (sample.instruction, sample.response)
        own = checkpoint.model.generate(
            prompt_of(checkpoint, sample.instruction),
            images=pixels_of(checkpoint, sample.image),
            do_sample=False,
            max_new_tokens=checkpoint.answer_length(checkpoint.sample(sample)) + accuracy.MARGIN,
        )
        assert row["replies"]["sighted"] == checkpoint.tokenizer.decode(own[0], skip_special_tokens=True).strip()


@host
def test_an_adapter_needs_its_base_and_is_merged_into_it(adapter, tiny, photos, tmp_path):
    import torch
    from safetensors.torch import load_file

    from vgift_plugin.hosts.checkpoint import Checkpoint

    flags = ["--ssl_tasks", "rotation", "--image_folder", photos, "-n", 2, "-o", tmp_path / "x.html"]
    done = run("--model_path", adapter, *flags)
    assert done.returncode == 2 and f"--model_base {tiny[0]}" in done.stderr and "Traceback" not in done.stderr
    done = run("--model_path", adapter, "--model_base", tiny[0], *flags)
    assert done.returncode == 0 and f"{adapter} on {tiny[0]}" in done.stdout, done.stderr
    loaded = Checkpoint.load(str(adapter), str(tiny[0])).model.state_dict()
    saved = adapter / "adapter_model.bin"  # of peft 0.4; later ones write safetensors
    delta = torch.load(saved) if saved.exists() else load_file(saved.with_suffix(".safetensors"))
    base = load_file(tiny[0] / "model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    name = "model.layers.0.self_attn.q_proj"
    a, b = (delta[f"base_model.model.{name}.lora_{one}.weight"] for one in "AB")
    merged = base[f"{name}.weight"] + b @ a * config["lora_alpha"] / config["r"]
    assert torch.allclose(loaded[f"{name}.weight"], merged, atol=1e-3)
    assert not torch.allclose(base[f"{name}.weight"], merged, atol=1e-2)
    trained_too = torch.load(adapter / "non_lora_trainables.bin")["base_model.model.model.mm_projector.0.weight"]
    assert torch.allclose(loaded["model.mm_projector.0.weight"], trained_too, atol=1e-3)


@host
@pytest.mark.parametrize(
    "checkout", [pytest.param(HOSTS[name], id=name, marks=needs_checkout(HOSTS[name].variable)) for name in CHECKOUTS]
)
def test_checkouts_answer_as_the_package_does(checkout, full, adapter, tiny, photos, tmp_path):
    for name, model in {"full": [full], "adapter": [adapter, "--model_base", tiny[0]]}.items():
        pages = [tmp_path / f"{name}-{where}.html" for where in ("package", "checkout")]
        for page, start in zip(pages, (call, checkout.call), strict=True):
            flags = ["--ssl_tasks", "rotation", "--image_folder", photos, "-n", 4, "-o", page]
            python = sys.executable if start is call else checkout.python
            done = start([python, *VGIFT[1:], "probe", "--model_path", *model, *flags])
            assert done.returncode == 0, done.stderr
        assert Path(f"{pages[0]}.jsonl").read_text() == Path(f"{pages[1]}.jsonl").read_text()


@host
def test_log_likelihood_is_that_of_a_slow_computation(checkpoint, picture):
    import torch

    question, answer = "What does it show?", "A cat, and no house."
    ids = prompt_of(checkpoint, question, answer)
    start = prompt_of(checkpoint, question).shape[1]
    with torch.no_grad():
        logits = checkpoint.model(input_ids=ids, images=pixels_of(checkpoint, picture)).logits[0].double()
    grown = logits.shape[0] - ids.shape[1]  # the picture's token became that many more
    assert grown == (28 // 14) ** 2 - 1
    by_hand = 0.0
    for place in range(start, ids.shape[1]):
        row = logits[place + grown - 1]
        by_hand += float(row[ids[0, place]] - row.exp().sum().log())
    (found,) = checkpoint.log_likelihood([checkpoint.item(picture, question, answer)])
    assert found.tokens == ids.shape[1] - start and found.total == pytest.approx(by_hand, abs=1e-4)
    assert found.mean == pytest.approx(by_hand / found.tokens, abs=1e-4)


@host
def test_a_batch_of_mixed_lengths_is_each_alone(checkpoint, picture):
    import torch

    asked = [
        ("What?", "A cat."),
        ("How many houses are there in this picture, please?", "Three hundred."),
        ("Is it?", "No"),
    ]
    items = [checkpoint.item(picture.crop((0, 0, 90 * k + 90, 200)), *one) for k, one in enumerate(asked)]
    before = torch.get_rng_state()
    together = [one.total for one in checkpoint.log_likelihood(items)]
    assert together == pytest.approx([checkpoint.log_likelihood([item])[0].total for item in items], abs=1e-4)
    limits, seeds = [3, 9, 5], [7, 8, 9]
    for temperature in (0.0, 1.0):
        alone = [
            checkpoint.generate([item], limit, temperature, [seed])[0]
            for item, limit, seed in zip(items, limits, seeds, strict=True)
        ]
        assert checkpoint.generate(items, limits, temperature, seeds) == alone
    drawn = {checkpoint.generate(items[:1], 9, 1.0, [seed])[0] for seed in range(4)}
    assert len(drawn) == 4 and checkpoint.model.config.tokenizer_padding_side == "right"
    assert torch.equal(torch.get_rng_state(), before)


@host
def test_tokens_are_drawn_from_the_softmax():
    import torch

    from vgift_plugin.hosts.checkpoint import drawing

    share = torch.tensor([0.5, 0.3, 0.2])
    for temperature, wanted in ((1.0, [0.5, 0.3, 0.2]), (0.5, [25 / 38, 9 / 38, 4 / 38])):
        drawn = drawing(temperature, range(4000))(None, share.log().expand(4000, 3)).argmax(1)
        assert (drawn.bincount() / 4000).tolist() == pytest.approx(wanted, abs=0.02)


@host
def test_blind_and_shuffled_are_other_pictures_for_the_same_questions(checkpoint, photos, records, monkeypatch):
    import torch

    fed, asked = [], []
    encode, generate = checkpoint.model.encode_images, checkpoint.model.generate
    monkeypatch.setattr(checkpoint.model, "encode_images", lambda images: fed.append(images) or encode(images))
    monkeypatch.setattr(checkpoint.model, "generate", lambda ids, **given: asked.append(ids) or generate(ids, **given))
    stream = stream_of("rotation", photos)
    accuracy.ask(checkpoint, stream, range(1, 3), 4)
    expected = {j: pixels_of(checkpoint, stream(0, j).image)[0] for j in range(4)}
    grey = pixels_of(checkpoint, accuracy.GREY)[0]
    assert len({one.sum().item() for one in expected.values()}) == 4
    for pixels, wanted in zip(fed, ([expected[1], expected[2]], [grey, grey], [expected[2], expected[3]]), strict=True):
        assert torch.equal(pixels, torch.stack(wanted))
    assert all(torch.equal(ids, asked[0]) for ids in asked) and len(asked) == 3
    assert len(accuracy.ask(checkpoint, stream, range(3, 4), 4)) == 1
    assert torch.equal(fed[-1][0], expected[0])  # the last one is shuffled with the first

    fed.clear()
    positions, _ = contribution.candidates(records)
    chosen = contribution.Measured(records, positions, str(photos), "base.json")
    (row,) = chosen.measure(checkpoint, range(1, 2))
    images = {kind: Image.open(photos / row[name]) for kind, name in (("right", "image"), ("wrong", "wrong_image"))}
    for pixels, image in zip(fed, (images["right"], accuracy.GREY, images["wrong"]), strict=True):
        assert torch.equal(pixels, pixels_of(checkpoint, image))
    assert row["image"] == records[positions[1]]["image"] != row["wrong_image"]


@host
def test_records(full, photos, records, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("coco", "vg"):
        (folder / name).symlink_to(photos)
    (folder / "broken.jpg").write_bytes(b"no picture")
    told = [
        {**r, "image": f"{'coco' if r['image'] < 'c' else 'vg'}/{r['image']}"} if "image" in r else r for r in records
    ]
    told += [{**told[0], "id": "gone", "image": "coco/gone.jpg"}, {**told[0], "id": "torn", "image": "broken.jpg"}]
    turns = [{"from": "narrator", "value": "<image>\nOnce"}, {"from": "gpt", "value": "upon"}]
    told += [{**told[0], "id": "two", "image": ["coco/coffee.jpg", "vg/coffee.jpg"]}, {**told[0], "id": "odd"}]
    told[-1]["conversations"] = turns
    data, out = tmp_path / "data.json", tmp_path / "needs.json"
    data.write_text(json.dumps(told))
    flags = ["--data_path", data, "--image_folder", folder, "-n", 99, "-o", tmp_path / "needs.html", "--json", out]
    done = run("--model_path", full, *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["of_no_use"] == {"no picture": 4, "several pictures": 1}
    reasons = {one["id"]: one["left_out"] for one in result["left_out"]}
    assert reasons == {
        "gone": "missing file",
        "torn": "unreadable",
        "odd": "LLaVA cannot read it: KeyError: 'narrator'",
    }
    assert all(f"{id}: " in done.stdout for id in reasons)
    listed = result["records"]
    assert {one["id"] for one in listed} == {r["id"] for r in records if "image" in r}
    assert [one["gains"]["blank"] for one in listed] == sorted(one["gains"]["blank"] for one in listed)
    for one in listed:
        assert one["gains"]["wrong"] == one["right"] - one["wrong"] != 0 and one["wrong_image"] != one["image"]
    assert result["pictures"].keys() == {"all", "coco", "vg"} and result["pictures"]["all"]["n"] == 12
    assert result["pictures"]["all"]["blank"]["mean"] == pytest.approx(
        np.mean([one["gains"]["blank"] for one in listed])
    )
    html = (tmp_path / "needs.html").read_text()
    assert html.count("<figure>") == 12 and not re.findall(r'(?:src|href)="(?!data:)', html)
    assert html.index(f"<td>{listed[0]['id']}</td>") < html.index(f"<td>{listed[-1]['id']}</td>")


def test_which_records_are_chosen_depends_on_the_seed_alone():
    first = contribution.choose(range(1000), 50, 1)
    assert first == contribution.choose(range(1000), 80, 1)[:50] and len(set(first)) == 50
    assert first != contribution.choose(range(1000), 50, 2) and sorted(contribution.choose(range(7), 99, 1)) == list(
        range(7)
    )


def test_numbers_are_those_of_a_hand_computation():
    color, rotation = get_task("color")(points=2), get_task("rotation")()
    answer = {"sighted": "90.", "blind": "90", "shuffled": "190"}
    params = {"angle_deg": 90, "wording": 0}
    assert accuracy.scores(rotation, answer, params) == {"sighted": 1.0, "blind": 1.0, "shuffled": 0.0}
    scored = [(1, 0, 0.5), (1, 1, 0.5), (1, 0, 1), (0.5, 0, 0)]
    rows = [
        {"photographs": [f"{'a' if k < 1 else 'b'}/{k}.jpg"], "scores": dict(zip(accuracy.WAYS, one, strict=True))}
        for k, one in enumerate(scored)
    ]
    result = accuracy.tabulate(rows, color.chance)
    assert {way: result[way]["accuracy"] for way in accuracy.WAYS} == {
        "sighted": 0.75,
        "blind": 0.25,
        "shuffled": 0.25,
    }
    assert [result[way]["mean_score"] for way in accuracy.WAYS] == [0.875, 0.25, 0.5]
    assert (result["sighted"]["low"], result["sighted"]["high"]) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert result["folders"]["a"] == {"n": 1, "sighted": 1.0, "blind": 0.0, "shuffled": 0.0}
    assert result["folders"]["b"]["sighted"] == pytest.approx(2 / 3) and result["chance"] == 0.5
    rows = [{**row, "replies": {}, "number": k} for k, row in enumerate(rows)]
    assert [row["number"] for row in accuracy.worst(rows, 9)] == [3]

    measured = [(-1.0, -3.0, -1.0), (-2.0, -2.5, -1.0), (-1.0, -1.0, -4.0)]
    named = zip(("x/1.jpg", "y/2.jpg", "x/3.jpg"), measured, strict=True)
    result = contribution.tabulate(
        [{"image": name, **dict(zip(contribution.PICTURES, one, strict=True))} for name, one in named]
    )
    assert result["all"]["blank"]["mean"] == pytest.approx(2.5 / 3) and result["all"]["wrong"]["mean"] == pytest.approx(
        2 / 3
    )
    assert result["all"]["blank"]["needless"] == pytest.approx(1 / 3) and result["all"]["wrong"][
        "needless"
    ] == pytest.approx(2 / 3)
    assert result["x"]["blank"]["quantiles"]["50"] == 1.0 and result["y"]["right"] == -2.0
    assert result["y"]["wrong"]["low"] is None and json.loads(json.dumps(result, allow_nan=False)) == result
    assert re.search(r"y +blank +1 +0\.500 +– +0\.500", contribution.table(result))


def test_intervals_of_means():
    assert mean_interval(np.arange(4.0), list("abcd")) == pytest.approx((0.2348, 2.7652), abs=1e-4)
    assert mean_interval(np.arange(4.0).repeat(5), list("aaaaabbbbbcccccddddd")) == pytest.approx(
        (0.2348, 2.7652), abs=1e-4
    )
    assert mean_interval(np.arange(4.0), list("aaaa")) == (None, None)  # one picture alone tells of no other


@host
def test_what_was_passed_over_is_told(photos, tmp_path, checkpoint):
    for k in range(4):
        shutil.copy(photos / "coffee.jpg", tmp_path / f"{k}.jpg")
        (tmp_path / f"torn-{k}.jpg").write_bytes(b"no picture")
    stream = stream_of("rotation", tmp_path)
    rows = accuracy.ask(checkpoint, stream, range(8), 8)
    passed = sum(stream(0, j).redraws for j in range(8))
    result = accuracy.tabulate(rows, 0.25)
    assert result["passed_over"] == {"unreadable": passed} and passed > 2
    assert accuracy.table({"rotation": result}).endswith(f"\nrotation: passed over: {passed} unreadable")


def bars(values):
    """Returns [(colour, count)] of a histogram, empty bars left out."""
    return [(bar["fill"], bar["count"]) for bar in _histogram(values)["bars"] if bar["count"]]


def test_a_histogram_shows_how_many_are_at_most_zero():
    assert bars([0.5] * 3 + [-0.25]) == [("bad", 1), ("good", 3)]
    assert bars([*np.linspace(0.01, 1, 999), -0.001])[0] == ("bad", 1)  # fewer than the 1 % that is cut off
    assert bars([*np.linspace(-1, -0.01, 999), 0.001])[-1] == ("good", 1)
    assert bars([0.0, 0.0]) == [("bad", 2)]


@host
@pytest.mark.parametrize(
    ("kind", "words", "name", "template"),
    [
        ("llava_llama", "vicuna-7b-v1.5", "llava-llama", "v1"),
        ("llava", "llava-v1.5-7b", "llava-llama", "v1"),
        ("llava_llama", "llama-2-13b-chat", "llava-llama", "llava_llama_2"),
        ("llava_mistral", "Mistral-7B", "llava-mistral", "mistral_instruct"),
    ],
)
def test_what_a_checkpoint_is_follows_from_its_files(tmp_path, tiny, kind, words, name, template):
    from vgift_plugin.hosts.loading import find

    config = {"model_type": kind, "_name_or_path": f"somewhere/{words}", "mm_vision_tower": str(tiny[1])}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = find(str(tmp_path))
    assert (found.name, found.template) == (name, template)
    assert find(str(tmp_path), conv_mode="v0").template == "v0"


@host
def test_mistakes_are_named(full, adapter, tiny, photos, data_path, tmp_path):
    def refused(message, model=full, folder=photos, **given):
        given = {"output": str(tmp_path / "x.html"), "n": 2, **given}
        flags = given.pop("flags", {"ssl_tasks": "rotation"})
        with pytest.raises(ConfigError, match=message):
            probe(flags, str(model), str(folder), **given)
        assert not (tmp_path / "x.html").exists()

    def changed(name, source, **config):
        shutil.copytree(source, tmp_path / name)
        whole = json.loads((source / "config.json").read_text()) | config
        (tmp_path / name / "config.json").write_text(json.dumps({k: v for k, v in whole.items() if v is not None}))
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    refused("-n 0: at least 2", n=0)
    refused("--batch_size 0", batch_size=0)
    refused("name what to probe with: --ssl_tasks", flags={})
    (tmp_path / "knobs.yaml").write_text("rotation: {square: false}")
    knobs = {"ssl_config": str(tmp_path / "knobs.yaml")}
    refused("--ssl_config needs --ssl_tasks", flags=knobs, data_path=str(data_path))
    refused("did you mean 'rotation'", flags={"ssl_tasks": "rotatoin"})
    refused("must end in .html", output=str(tmp_path / "x.pdf"))
    refused("no image in", folder=tmp_path / "empty")
    refused("there is no such folder", folder=tmp_path / "absent")
    refused(f"--model_path {tmp_path}/absent: there is no such folder", model=tmp_path / "absent")
    refused("it holds checkpoint-5", model=tmp_path / "run")
    refused("LoRA adapter.*--model_base", model=adapter)
    refused("leave --model_base out", model_base=str(tiny[0]))
    refused("names no vision tower .* language model alone", model=changed("blind", full, mm_vision_tower=None))
    refused(
        "the vision tower .* ./gone, is not there; .* relative", model=changed("gone", full, mm_vision_tower="./gone")
    )
    refused("cuts no such tiles", model=changed("tiles", full, image_aspect_ratio="anyres"))
    refused("--conv_mode v9: .* it has default, v0, v1", conv_mode="v9")
    (changed("cut", adapter) / "non_lora_trainables.bin").unlink()
    refused("non_lora_trainables.bin is missing", model=tmp_path / "cut", model_base=str(tiny[0]))
    (changed("light", full) / "model.safetensors").unlink()
    refused("load_pretrained_model cannot load it", model=tmp_path / "light")
    nothing = {"flags": {}, "data_path": str(data_path), "output": str(tmp_path / "y.html"), "n": 9}
    refused(r"none of the \d+ chosen records .* can be measured: .*missing file", folder=tmp_path / "empty", **nothing)
    (tmp_path / "other.json").write_text("[1,\n2]")
    refused("is no journal of vgift; give another --resume FILE", resume=str(tmp_path / "other.json"))
    assert (tmp_path / "other.json").read_text() == "[1,\n2]"
    refused("--device gpu: torch knows no such device", device="gpu")
    refused("--device cuda:99: torch sees", device="cuda:99")
