"""`vgift stic` on a checkpoint that upstream's own training code has just saved."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import VGIFT, arguments, call, train
from PIL import Image

from vgift_plugin.errors import ConfigError
from vgift_plugin.methods.stic import corruption, preferences, prompts
from vgift_plugin.methods.stic.describe import Describe, candidates, with_description
from vgift_plugin.methods.stic.page import marked, preview_preferences
from vgift_plugin.methods.stic.prefer import SHARES, Plan, Prefer, cut_off_hint
from vgift_plugin.probe.probe import Probe

host = pytest.mark.host
TOKENS = 24  # more than any reply has


@pytest.fixture(scope="session")
def teller(train_flags, photos, tmp_path_factory):
    """A checkpoint that describes pictures in a few words, otherwise when it is led astray."""
    folder = tmp_path_factory.mktemp("teller")
    asked = [(one, "here") for one in prompts.NEUTRAL] + [(prompts.PREFERRED[0], "clearly")] * 4
    asked += [(one, "ghosts") for one in prompts.MISLEADING]
    turns = [
        [{"from": "human", "value": f"<image>\n{ask}"}, {"from": "gpt", "value": f"{path.stem[:3]} {said}."}]
        for ask, said in asked
        for path in sorted(photos.iterdir())
    ]
    names = [path.name for _ in asked for path in sorted(photos.iterdir())]
    told = [
        {"id": str(k), "image": name, "conversations": one}
        for k, (name, one) in enumerate(zip(names, turns, strict=True))
    ]
    (folder / "told.json").write_text(json.dumps(told))
    flags = {**train_flags, "data_path": folder / "told.json", "per_device_train_batch_size": 8}
    return train(flags, folder / "checkpoint", max_steps=60)


@pytest.fixture(scope="session")
def many(photos, tmp_path_factory):
    """A folder of forty pictures, one of which is no picture, one too small, and one stored on its side."""
    folder = tmp_path_factory.mktemp("many")
    paths, rng = sorted(photos.iterdir()), np.random.default_rng(0)
    for k in range(40):
        image = Image.open(paths[k % len(paths)])
        x, y = int(rng.integers(40)), int(rng.integers(40))
        exif = Image.Exif()
        exif[0x0112] = 6 if k == 3 else 1
        image.crop((x, y, image.width, image.height)).save(folder / f"{k:02d}.jpg", exif=exif)
    (folder / "07.jpg").write_bytes(b"no picture")
    Image.new("RGB", (20, 90)).save(folder / "08.jpg")
    return folder


def probe(model_path, image_folder, **options):
    return Probe(model_path=str(model_path), image_folder=str(image_folder), **options).run()


def prefer(model_path, image_folder, output, **options):
    return Prefer(model_path=str(model_path), image_folder=str(image_folder), output=str(output), **options).run()


def run(*args, **environment):
    return call([*VGIFT, "stic", *args], HF_HUB_OFFLINE=1, **environment)


def asking(model, folder, output, **changes):
    flags = {"model_path": model, "image_folder": folder, "max_new_tokens": TOKENS, "batch_size": 6, **changes}
    return [*arguments(flags), "-n", "50", "-o", str(output)]


@pytest.fixture(scope="session")
def whole(teller, many, tmp_path_factory):
    """(path of a preference file, what was said)."""
    path = tmp_path_factory.mktemp("whole") / "prefs.jsonl"
    done = run("prefer", *asking(teller, many, path))
    assert done.returncode == 0, done.stderr
    return path, done.stdout


def rows_of(path):
    return preferences.read(path).rows


@pytest.fixture(scope="session")
def checkpoint(teller):
    from vgift_plugin.hosts.checkpoint import Checkpoint

    return Checkpoint.load(str(teller))


@host
def test_a_preference_file(whole, teller):
    path, told = whole
    found = preferences.read(path)
    assert found.template == "v1" and found.header["model"] == str(teller) and len(found.rows) == 38
    assert "38 pairs (of 50 asked for: there are no more photographs)" in told and "template v1" in told
    assert "07.jpg: unreadable" in told and "08.jpg: too small" in told
    report = json.loads(Path(f"{path}.report.json").read_text())
    assert report["passed_over"] == {"07.jpg": "unreadable", "08.jpg": "too small"}
    assert {row["image"] for row in found.rows} == {f"{k:02d}.jpg" for k in range(40)} - {"07.jpg", "08.jpg"}
    counts = Counter(row["branch"] for row in found.rows)
    assert {name: one["rows"] for name, one in report["branches"].items()} == counts and len(counts) == 3
    assert report["usable"] == len(preferences.usable(found.rows)) == 38 - len(report["degenerate"]) > 30
    for row in found.rows:
        plan = Plan.of(row["image"], 0)
        assert row["prompt"] == f"<image>\n{prompts.NEUTRAL[plan.neutral]}"
        assert (row["branch"], row["corruption"]) == (plan.branch, plan.corruption)
        assert row["prompt_ids"] == {"neutral": plan.neutral, "preferred": 0, "misleading": plan.misleading}
        assert (plan.misleading is None) == (plan.branch != "prompt") == (plan.corruption is not None)
        assert (row["degenerate"] is None) == (row["chosen"] != row["rejected"] and not any(row["cut_off"]))


@host
def test_what_is_cut_off_is_marked_and_kept_out(whole, teller, many, tmp_path):
    path = tmp_path / "cut.jsonl"
    told = prefer(teller, many, path, n=6, max_new_tokens=3)
    assert "6 pairs, 0 of them" in told and "kept out of training: cut off 6\n" in told and "raise --max_new" in told
    for row, full in zip(rows_of(path), rows_of(whole[0]), strict=False):
        assert (row["cut_off"], row["degenerate"]) == ([True, True], "cut off") and f"{row['id']}: cut off" in told
        assert full["chosen"].startswith(row["chosen"]) and full["rejected"].startswith(row["rejected"])
    assert json.loads(Path(f"{path}.report.json").read_text())["degenerate"].keys() == {r["id"] for r in rows_of(path)}
    preview_preferences(str(path), str(many), 2, str(tmp_path / "p.html"))
    assert (tmp_path / "p.html").read_text().count("kept out of training: cut off") > 2


@host
def test_what_the_model_is_asked_with(whole, many, checkpoint, monkeypatch):
    """The pictures fed and the words asked, by LLaVA's evaluation code; the replies, each asked alone."""
    import torch
    from llava.mm_utils import process_images
    from test_probe import prompt_of

    from vgift_plugin.methods.stic.prefer import ask

    fed, asked = [], []
    encode, replies = checkpoint.model.encode_images, checkpoint._batch
    monkeypatch.setattr(checkpoint.model, "encode_images", lambda images: fed.append(images) or encode(images))
    monkeypatch.setattr(checkpoint, "_batch", lambda items: asked.append(items) or replies(items))
    rows = rows_of(whole[0])
    chosen = [next(row for row in rows if row["branch"] == branch) for branch in preferences.BRANCHES]
    chosen.append(next(row for row in rows if row["image"] == "03.jpg"))
    names = [row["image"] for row in chosen]
    assert ask(checkpoint, str(many), names, chosen[0]["sampling"]) == [
        {name: value for name, value in row.items() if name != "number"} for row in chosen
    ]
    clean = [Image.open(many / name).convert("RGB") for name in names]
    worse = [
        one if row["corruption"] is None else corruption.corrupt(one, row["corruption"])
        for one, row in zip(clean, chosen, strict=True)
    ]
    processor = checkpoint.encoder.dataset.data_args.image_processor
    for pixels, pictures in zip(fed, (clean, worse), strict=True):
        assert torch.equal(pixels, process_images(pictures, processor, checkpoint.model.config))
    assert not torch.equal(fed[0][1], fed[1][1]) and not torch.equal(fed[0][2], fed[1][2])
    for k, row in enumerate(chosen):
        bad = row["prompt_ids"]["misleading"]
        words = prompts.NEUTRAL[row["prompt_ids"]["neutral"]] if bad is None else prompts.MISLEADING[bad]
        for items, question in zip(asked, (prompts.PREFERRED[0], words), strict=True):
            assert items[k]["input_ids"].tolist() == prompt_of(checkpoint, question)[0].tolist()


@host
def test_another_batch_size_and_fewer_pictures_give_the_same_rows(whole, teller, many, tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    told = prefer(teller, many, "few.jsonl", n=9, max_new_tokens=TOKENS, batch_size=4)
    assert torch.equal(state, torch.get_rng_state()) and "asked for" not in told
    assert rows_of("few.jsonl") == rows_of(whole[0])[:9]
    with pytest.raises(ConfigError, match="n: begun with 9, now 8"):
        prefer(teller, many, "few.jsonl", n=8, max_new_tokens=TOKENS, batch_size=4)
    shutil.rmtree("few.jsonl.parts")
    with pytest.raises(ConfigError, match=r"few\.jsonl exists"):
        prefer(teller, many, "few.jsonl", n=9)
    assert len(rows_of("few.jsonl")) == 9


def test_branches_come_in_their_shares_whatever_their_order():
    plans = [Plan.of(f"{k}.jpg", 0) for k in range(4000)]
    counts = Counter(plan.branch for plan in plans)
    for branch, share in SHARES.items():
        assert counts[branch] / 4000 == pytest.approx(share, abs=0.025)
    for name, size in (("neutral", 8), ("misleading", 8)):
        drawn = Counter(getattr(plan, name) for plan in plans)
        drawn.pop(None, None)
        assert sorted(drawn) == list(range(size)) and min(drawn.values()) > 0.75 * sum(drawn.values()) / size
    assert len({seed for plan in plans for seed in plan.seeds}) == 8000
    assert Plan.of("5.jpg", 0) == plans[5] != Plan.of("5.jpg", 1)


def test_prompts_are_no_markup_and_all_different():
    everything = [*prompts.PREFERRED, *prompts.MISLEADING, *prompts.NEUTRAL, prompts.LEAD]
    assert len(prompts.PREFERRED) == 1 and len(prompts.MISLEADING) == len(prompts.NEUTRAL) == 8
    assert len(set(everything)) == len(everything)
    assert not re.search(r"<|>|USER|ASSISTANT|###|\[INST", "".join(everything))


@host
def test_degenerate_pairs(checkpoint):
    from vgift_plugin.hosts.checkpoint import Reply
    from vgift_plugin.methods.stic.prefer import degenerate

    def verdict(*texts, ended=(True, True)):
        return degenerate(checkpoint, *map(Reply, texts, ended))

    assert verdict("A cat.", "A dog.") is None
    assert verdict("A cat.", " A  cat.") == "equal" and verdict("A cat.", "") == "empty"
    assert verdict("A cat", "A dog.", ended=(False, True)) == verdict("A cat", "A", ended=(True, False)) == "cut off"
    for marker in ("<image>", "USER:", "ASSISTANT: yes", "</s>", "<s>"):
        assert verdict("A cat.", f"A dog {marker}.") == "markup"
    assert verdict("The user: a dog.", "An ASSISTANT at work.") is None


@host
def test_descriptions_before_the_questions(teller, many, train_flags, tmp_path):
    names = sorted(path.name for path in many.iterdir())
    turn = {"from": "gpt", "value": "It is."}
    told = [
        {"id": f"r{k}", "image": name, "extra": k, "conversations": [{"from": "human", "value": ask}, turn]}
        for k, name in enumerate(names)
        for ask in (("<image>\nIs it so?", "Is it so?\n<image>")[k % 2],)
    ]
    two = [*told[1]["conversations"], {"from": "human", "value": "Really?"}, {"from": "gpt", "value": "Yes."}]
    told[1] = {**told[1], "conversations": two}
    text = [{"from": "human", "value": "One plus one?"}, {"from": "gpt", "value": "2"}]
    told += [{"id": "text", "conversations": text}, {**told[0], "image": ["00.jpg", "01.jpg"]}]
    told += [{**told[0], "conversations": [*text, *told[0]["conversations"]]}, {**told[0], "conversations": text[:1]}]
    told += [{**told[0], "conversations": [turn, *told[0]["conversations"]]}]
    long = [{"from": "human", "value": "<image>\n" + "Is it so? " * 900}, turn]
    told += [{"id": "long", "image": name, "conversations": long} for name in ("00.jpg", "01.jpg")]
    data, out = tmp_path / "mix.json", tmp_path / "described.json"
    data.write_text(json.dumps(told))
    done = run("describe", *asking(teller, many, out, data_path=data))
    assert done.returncode == 0, done.stderr
    made, report = json.loads(out.read_text()), json.loads(Path(f"{out}.report.json").read_text())
    assert report["of_no_use"] == {
        "no picture": 1,
        "several pictures": 1,
        "<image> is not in the first question": 1,
        "<image> stands 0 times": 1,
        "turns are not human and gpt in alternation": 1,
    }
    assert report["passed_over"] == {"record 7 (id r7): 07.jpg": "unreadable"}
    assert "  record 7 (id r7): 07.jpg: unreadable" in done.stdout
    before = {(one["id"], one["image"]): one for one in told[:40] + told[-2:]}
    both = [f"record {len(told) - 2 + k} (id long): 0{k}.jpg" for k in range(2)]  # mixtures have ids twice
    assert report["as_they_were"] == dict.fromkeys(both, "too long") and f"  {both[1]}: too long" in done.stdout
    assert len(made) == 41 == report["records"] and report["described"] == 39
    for one in made:
        old, first = before[one["id"], one["image"]], one["conversations"][0]["value"]
        assert {**one, "conversations": one["conversations"][1:]} == {**old, "conversations": old["conversations"][1:]}
        if one["id"] == "long":
            assert one == old
        else:
            assert re.fullmatch(rf"<image>\n{prompts.LEAD}\n\w+ here\.\n\nIs it so\?", first)
    asked = {"model_path": str(teller), "data_path": str(data), "image_folder": str(many), "n": 5, "batch_size": 2}
    again = Describe(**asked, output=str(tmp_path / "b.json"), max_new_tokens=TOKENS).run()
    assert json.loads((tmp_path / "b.json").read_text()) == made[:5] and "5 records, " in again
    trained = train({**train_flags, "data_path": out, "image_folder": many}, tmp_path / "trained", max_steps=1)
    assert (trained / "config.json").exists()


def test_a_record_keeps_everything_but_its_first_question(records):
    record = {**records[0], "conversations": [*records[0]["conversations"], {"from": "human", "value": "And?"}]}
    before = json.dumps(record)
    made = with_description(record, "A cat.")
    assert json.dumps(record) == before and made["conversations"][1:] == record["conversations"][1:]
    question = record["conversations"][0]["value"].removeprefix("<image>\n")
    assert made["conversations"][0]["value"] == f"<image>\n{prompts.LEAD}\nA cat.\n\n{question}"
    assert candidates([records[0], records[3]]) == ([0], {"no picture": 1})


def test_many_that_were_cut_off_have_a_cure():
    assert cut_off_hint(["cut off"] * 2 + ["equal"], 19) == "\n2 were cut off; raise --max_new_tokens"
    assert cut_off_hint(["cut off"] * 2, 20) == ""


@host
def test_the_pairs_as_a_page(whole, many, tmp_path):
    page = tmp_path / "page.html"
    flags = ["--image_folder", many, "-n", 3, "-o", page]
    done = call([*VGIFT, "stic", "preview", whole[0], *flags])
    assert done.returncode == 0 and "3 prompt, 3 lowres, 3 jitter, of 38 pairs" in done.stdout, done.stderr
    html = page.read_text()
    assert html.count("<article>") == 9 and html.count('src="data:image/jpeg;base64,') == 15
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    rows = rows_of(whole[0])
    low = next(row for row in rows if row["branch"] == "lowres")
    size = corruption.corrupt(Image.open(many / low["image"]), low["corruption"]).size
    assert f'width="{size[0]}" height="{size[1]}" alt="{low["image"]}, made worse"' in html
    assert html.count("<mark>") >= 9
    done = call([*VGIFT, "stic", "preview", many / "07.jpg", *flags])
    assert done.returncode == 2 and "07.jpg is no preference file" in done.stderr


def test_what_differs_is_marked():
    start, end = ("equal", "a"), ("equal", "sat")
    assert marked("a <b> cat sat", "a dog sat") == (
        [start, ("different", "<b> cat"), end],
        [start, ("different", "dog"), end],
    )
    assert marked("a b", "b") == ([("different", "a"), ("equal", "b")], [("equal", "b")])


@host
def test_describe_first_then_answer(teller, many, checkpoint, tmp_path):
    names = [path.name for path in sorted(many.iterdir()) if path.name not in ("07.jpg", "08.jpg")]
    asks = [*prompts.NEUTRAL[:4], "Is it so?", prompts.PREFERRED[0]]
    told = []
    for k, name in enumerate(names[:12]):
        replies = checkpoint.generate([checkpoint.item(Image.open(many / name).convert("RGB"), asks[k % 6])], TOKENS)
        answer = replies[0].upper() if k % 2 else "It is a rather long answer."
        turns = [{"from": "human", "value": f"{asks[k % 6]}\n<image>"}, {"from": "gpt", "value": answer}]
        told.append({"id": k, "image": name, "conversations": turns})
    text = [{"from": "human", "value": "One plus one?"}, {"from": "gpt", "value": "2"}]
    late = {"id": "late", "image": names[0], "conversations": [*text, *told[0]["conversations"]]}
    data, out = tmp_path / "data.json", tmp_path / "probe.json"
    data.write_text(json.dumps([*told, late]))
    given = {"data_path": str(data), "n": 99, "output": str(tmp_path / "p.html"), "json": str(out)}
    table = probe(teller, many, describe_first=True, batch_size=5, **given)
    whole = json.loads(out.read_text())
    result, rows = whole["describe_first"], {row["id"]: row for row in whole["records"]}
    assert result["n"] == 12 and result["not_described"] == {"the picture is not in the first question": 1}
    assert "not described: the picture is not in the first question 1" in table and "described" in table
    for record in told:
        picture, row = Image.open(many / record["image"]).convert("RGB"), rows[record["id"]]
        (said,) = checkpoint.generate([checkpoint.item(picture, prompts.NEUTRAL[0])], 256)
        assert row["description"] == said and row["right"] != row["described"]
        question, answer = asks[record["id"] % 6], record["conversations"][1]["value"]
        item = checkpoint.item(picture, prompts.described(said, question), answer)
        assert row["described"] == pytest.approx(checkpoint.log_likelihood([item])[0].mean, abs=1e-4)
        if record["id"] % 2:
            reply = checkpoint.generate([item], TOKENS)[0]
            assert row["equals_answer"] == {"plain": True, "described": reply.casefold() == answer.casefold()}
        else:
            assert "equals_answer" not in row
    gains = [rows[k]["described"] - rows[k]["right"] for k in range(12)]
    assert result["gain"] == pytest.approx(np.mean(gains)) and result["low"] < result["gain"] < result["high"]
    right = np.mean([rows[k]["equals_answer"]["described"] for k in range(1, 12, 2)])
    assert result["short"]["n"] == 6 and result["short"]["plain"]["accuracy"] == 1.0
    assert result["short"]["described"]["accuracy"] == pytest.approx(right)
    with pytest.raises(ConfigError, match="--describe_first is about the records"):
        probe(teller, many, ssl_tasks="rotation", describe_first=True)
    with pytest.raises(ConfigError, match="--describe_first: begun with True, now None"):
        probe(teller, many, batch_size=5, **given)


@host
def test_mistakes_are_named(teller, many, data_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_bytes(b"no picture")
    shutil.copytree(teller, tmp_path / "blind")
    config = json.loads((teller / "config.json").read_text())
    (tmp_path / "blind" / "config.json").write_text(json.dumps({**config, "mm_vision_tower": None}))

    def refused(message, **given):
        given = {"model_path": str(teller), "image_folder": str(many), "output": "x.jsonl", **given}
        with pytest.raises(ConfigError, match=message):
            (Describe if "data_path" in given else Prefer)(**given).run()
        assert not Path("x.jsonl").exists()

    numbers = {"n": 0, "temperature": -1, "max_new_tokens": 0, "batch_size": 0}
    refused("-n 0: at least 1\n.*temperature -1: at least 0\n.*--max_new_tokens 0.*\n.*--batch_size 0", **numbers)
    refused("--image_folder gone: there is no such folder", image_folder="gone")
    refused("no image in empty", image_folder="empty")
    refused("no picture can be used\nfound: unreadable 1\n  x.jpg: unreadable", image_folder="bad")
    refused("names no vision tower", model_path="blind")
    refused("--model_path gone: there is no such folder", model_path="gone")
    refused("--conv_mode v9", conv_mode="v9")
    refused("-o bad/x.jpg exists", output="bad/x.jpg")
    refused("-o: .*Not a directory", output="bad/x.jpg/y.jsonl")
    refused("no picture can be used", data_path=str(data_path), image_folder="empty")
    Path("text.json").write_text(json.dumps([{"id": 1, "conversations": []}]))
    refused("none of its 1 records can be described .no picture: 1", data_path="text.json")
    monkeypatch.setenv("RANK", "2")
    refused("RANK 2 is not below WORLD_SIZE 1")
