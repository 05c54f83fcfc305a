"""Which tokens are learned with --instruct_loss, against spans known from how the text was put together and against the
character offsets of fast tokenizers; and a training run that learns instructions from pictures."""

import copy
import json
import math
import pickle
import re
import sys
from argparse import Namespace

import pytest
from conftest import ROOT, VGIFT, arguments, call, demo_module, torchrun
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vgift_plugin.errors import ConfigError, HostMismatchError, SelfTestError

pytestmark = pytest.mark.host
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
TRAIN = ROOT / "scripts" / "demo" / "train_cpu.py"
IMAGE, IGNORE = "<image>", -100
TEMPLATES = frozenset({"Answer the question using a single word or phrase.", "Short answer:", "Say it in one go!"})
CHAT = ("v1", "llava_llama_2", "mpt", "v0")
TOKENIZERS = ("llama slow", "llama fast", "qwen slow", "qwen fast")


@pytest.fixture(scope="module")
def host():
    import llava.train.train as module

    template = module.conversation_lib.default_conversation
    yield module
    module.conversation_lib.default_conversation = template


@pytest.fixture(scope="module")
def tokenizers(tiny, tmp_path_factory):
    """{name: tokenizer}: sentencepiece with bytes for rare characters, and byte-level BPE, each slow and fast."""
    folders, made = {"llama": tiny[0]}, {}
    if hasattr(transformers, "Qwen2Config"):  # not in 4.36
        from checkouts import tiny_qwen2

        lines = demo_module("tiny_llava").corpus()
        folders["qwen"] = tiny_qwen2.build(tmp_path_factory.mktemp("tokenizers") / "qwen", lines)
    for name, folder in folders.items():
        for kind in ("slow", "fast"):
            options = {"model_max_length": 4096, "padding_side": "right", "use_fast": kind == "fast"}
            made[f"{name} {kind}"] = transformers.AutoTokenizer.from_pretrained(folder, **options)
    for one in made.values():
        one.pad_token = one.unk_token or one.pad_token
        one.legacy = getattr(one, "legacy", True)  # upstream's v1 asks every tokenizer for it
    assert "Fast" in type(made["llama fast"]).__name__ and "Fast" not in type(made["llama slow"]).__name__
    return made


def record_of(turns, picture=True):
    """Returns a record of (human text, answer) pairs."""
    said = [{"from": who, "value": text} for pair in turns for who, text in zip(("human", "gpt"), pair, strict=True)]
    return {"id": "r", **({"image": "x.jpg"} if picture else {}), "conversations": said}


def base_of(host, template, records):
    """Returns an upstream dataset of these records; its pictures are never opened."""
    host.conversation_lib.default_conversation = host.conversation_lib.conv_templates[template]
    base = host.LazySupervisedDataset.__new__(host.LazySupervisedDataset)
    base.data_args = Namespace(is_multimodal=True, mm_use_im_start_end=False, image_folder="")
    base.list_data_dict = list(records)
    return base


def words_of(host, tokenizer, base, record):
    """Returns what upstream's own text path makes of a record: ids and labels."""
    sources, picture = [copy.deepcopy(record["conversations"])], "image" in record
    if picture:
        sources = host.preprocess_multimodal(sources, base.data_args)
    made = host.preprocess(sources, tokenizer, has_image=picture)
    return {"input_ids": torch.as_tensor(made["input_ids"][0]), "labels": torch.as_tensor(made["labels"][0])}


def loss_of(base, tokenizer, mode, text=True):
    from vgift_plugin.methods.l2t.instruction import TextPath

    from vgift_plugin.methods.l2t.labels import InstructLoss

    return InstructLoss(mode, TEMPLATES, text, TextPath(base, tokenizer), tokenizer)


@pytest.fixture(scope="module")
def kept():
    """The losses of one template, tokenizer and mode, as a run keeps one: what it learns of a template stays."""
    return {}


def prompt_of(conversation, template, turns):
    """Returns what upstream makes of a conversation as [(text, what it is)], written down anew from its templates.

    Args:
        turns: (pieces of the human text, answer) pairs; pieces are (text, number of a supervised span or 0).
    """
    system, roles, sep, sep2 = (getattr(conversation, name) for name in ("system", "roles", "sep", "sep2"))
    parts = [("", 0)]
    for k, (pieces, answer) in enumerate(turns):
        empty = not any(text for text, _ in pieces)
        if template == "v1":
            parts += [(f"{system} " if not k else "", 0), (f"{roles[0]}:{'' if empty else ' '}", 0), *pieces]
            parts += [("" if empty else sep, 0), (f"{roles[1]}: {answer}{sep2}", 0)]
        elif template == "llava_llama_2":
            wrapped = f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n" if not k else f"{sep}[INST] "
            parts += [] if empty and k else [(wrapped, 0), *pieces, (" [/INST]", 0)]
            parts += [(f" {answer} {sep2}", 0)]
        elif template == "mpt":
            parts += [(f"{system}{sep}" if not k else "", 0), (roles[0], 0), *pieces, ("" if empty else sep, 0)]
            parts += [(f"{roles[1]}{answer}{sep}", 0)]
        else:
            parts += [(f"{system}\n\n" if not k else "", 0), (f"### {roles[0]}: ", 0), *pieces]
            parts += [(f"\n### {roles[1]}: {answer}\n", 0)]
    return [*parts, ("### " if template == "v0" else "", 0)]


def expected(parts, fast):
    """Returns (ids, supervised) by the offsets that a fast tokenizer gives, its own account of where tokens lie."""
    text = "".join(part for part, _ in parts)
    number = [span for part, span in parts for _ in part]
    solid = [k for k, character in enumerate(text) if not character.isspace()]
    ids, taught, start = [], [], 0
    for chunk in text.split(IMAGE):
        encoded = fast(chunk, return_offsets_mapping=True)
        skip = int(bool(start) and fast.bos_token_id is not None and encoded.input_ids[:1] == [fast.bos_token_id])
        if start:
            ids, taught = [*ids, -200], [*taught, False]
        for id, (a, b) in list(zip(encoded.input_ids, encoded.offset_mapping, strict=True))[skip:]:
            own = [number[start + k] for k in range(a, b) if not chunk[k].isspace()]
            before = max((k for k in solid if k < start + a), default=None)
            after = min((k for k in solid if k >= start + b), default=None)
            gap = a < b and not own and None not in (before, after) and 0 < number[before] == number[after]
            ids.append(id)
            taught.append(((bool(own) and all(own)) or gap) and id not in fast.all_special_ids)
        start += len(chunk) + len(IMAGE)
    return ids, taught


WORDS = [
    "what",
    "USER",
    "ASSISTANT",
    "###",
    "[INST]",
    "Human",
    "ünï",
    "😀",
    "日本",
    "3.5",
    "a",
    "<",
    "</s>",
    "e.g.x",
    "A-1",
]
OPEN = "a <"  # with mpt's `<|im_end|>` after it, a token is half content and half template
bodies = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
sentences = st.one_of(
    st.sampled_from([*sorted(TEMPLATES), "USER: x:y?", OPEN]), st.tuples(bodies, st.sampled_from(".?!:")).map("".join)
)
turns = st.lists(
    st.tuples(
        st.lists(st.tuples(sentences, st.sampled_from([" ", "\n", "\n\n", "  "])), max_size=4),
        st.sampled_from(["Yes.", "It is ünï 😀.", "USER"]),
    ),
    min_size=1,
    max_size=3,
)
pictures = st.sampled_from(["before", "after", "none"])


def put_together(drawn, picture, mode):
    """Returns (record, turns for `prompt_of`) of drawn sentences; spans are known, for they are put together here."""
    said, pieces = [], []
    span = 0
    for k, (parts, answer) in enumerate(drawn):
        text, own, before = "", [], False
        for position, (sentence, gap) in enumerate(parts):
            gap = "" if position + 1 == len(parts) else "\n" if sentence == OPEN else gap
            keep = mode == "no_system" or sentence not in TEMPLATES
            if keep and before:
                own[-1] = (own[-1][0], span)  # the gap before belongs to the span
            span += keep and not before
            own += [(sentence, span if keep else 0), (gap, 0)]
            text, before = text + sentence + gap, keep
        if mode == "no_system":
            own = [(text, span)] if text else []
        if not k and picture == "before":
            said.append(f"{IMAGE}\n{text}")
        elif not k and picture == "after":
            said.append(f"{text}\n{IMAGE}")
        else:
            said.append(text)
        lead = [(f"{IMAGE}\n" if text else IMAGE, 0)] if not k and picture != "none" else []
        pieces.append(([*lead, *own], answer))
    record = record_of(zip(said, (answer for _, answer in drawn), strict=True), picture != "none")
    return record, pieces


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=turns, picture=pictures, mode=st.sampled_from(["no_system", "no_template"]))
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", CHAT)
def test_supervised_are_the_human_texts_and_nothing_else(host, tokenizers, kept, template, name, drawn, picture, mode):
    """The spans that upstream does not mask by accident: labels are made up, the last token's alone, for upstream masks
    all labels of texts like these and what is looked for is where instructions lie."""
    if template == "llava_llama_2" and not (drawn[0][0] or picture != "none"):
        return  # upstream asserts that the first message is not empty
    record, pieces = put_together(drawn, picture, mode)
    if name not in tokenizers:
        pytest.skip("this transformers has no Qwen2")
    tokenizer, fast = tokenizers[name], tokenizers[f"{name.split()[0]} fast"]
    base = base_of(host, template, [record])
    item = words_of(host, tokenizer, base, record)
    ids, taught = expected(prompt_of(host.conversation_lib.default_conversation, template, pieces), fast)
    assert item["input_ids"].tolist() == ids
    labels = torch.full_like(item["input_ids"], IGNORE)
    labels[-1] = 7
    loss = kept.setdefault((template, name, mode), loss_of(base, tokenizer, mode))
    got = loss({"input_ids": item["input_ids"], "labels": labels}, record)
    assert loss.tally.counts() == {}
    assert got["input_ids"] is item["input_ids"]
    wanted = [id if one else IGNORE for id, one in zip(ids[:-1], taught, strict=False)]
    assert got["labels"].tolist() == [*wanted, 7]


TALK = [  # as upstream masks them without surprise: neither " ASSISTANT: " nor "</s>" in a text
    record_of([("<image>\nWhat is it? Short answer: say.", "A cat."), ("Is USER: here?\nSay it in one go!", "No.")]),
    record_of([("Where is the ünï 😀?\n<image>", "On the 日本 mat, as far as one can tell.")]),
    record_of([("<image>", "A picture."), ("Short answer:", "It is."), ("  Who?  ", "He.")]),
    record_of([("What is two plus three?", "Five.")], picture=False),
]


def text_of(ids, tokenizer):
    return "".join(tokenizer.decode([id for id in ids if id != IGNORE]).split())


@pytest.mark.parametrize("template", ["v1", "llava_llama_2"])
def test_modes_on_upstreams_own_labels(host, tokenizers, template):
    """In every mode the responses' labels are upstream's; what comes to them is what the mode says."""
    tokenizer = tokenizers["llama slow"]
    base = base_of(host, template, TALK)
    items = [words_of(host, tokenizer, base, record) for record in TALK]
    assert all((item["labels"] != IGNORE).any() for item in items)
    added = {}
    for mode in ("full", "no_system", "no_template"):
        loss = loss_of(base, tokenizer, mode, text=False)
        for k, (record, item) in enumerate(zip(TALK, items, strict=True)):
            before = {name: value.clone() for name, value in item.items()}
            got = loss(dict(item), record)
            assert all(torch.equal(item[name], before[name]) for name in item)  # the host's tensors are not written to
            own = item["labels"] != IGNORE
            assert torch.equal(got["labels"][own], item["labels"][own])
            taught = (got["labels"] != IGNORE) & ~own
            assert torch.equal(got["labels"][taught], item["input_ids"][taught])
            if "image" in record:
                assert torch.equal(got["vgift_instruction"], taught)
            added[mode, k] = text_of(item["input_ids"][taught].tolist(), tokenizer)
        assert loss.tally.counts() == {}
    assert [added["no_system", k] for k in range(4)] == [
        "Whatisit?Shortanswer:say.IsUSER:here?Sayitinonego!",
        "Whereistheünï😀?",
        "Shortanswer:Who?",
        "",
    ]
    assert [added["no_template", k] for k in range(4)] == ["Whatisit?say.IsUSER:here?", "Whereistheünï😀?", "Who?", ""]
    conversation = host.conversation_lib.default_conversation
    for k in range(3):
        assert "".join(conversation.system.split()) in added["full", k]
        assert {"v1": "ASSISTANT:", "llava_llama_2": "[/INST]"}[template] in added["full", k]
    assert added["full", 3] == ""


def test_full_leaves_out_bos_the_picture_and_its_newline_alone(host, tokenizers):
    tokenizer = tokenizers["llama slow"]
    base = base_of(host, "v1", TALK)
    for record in TALK[:3]:
        item = words_of(host, tokenizer, base, record)
        got = loss_of(base, tokenizer, "full")(item, record)
        ids, masked = item["input_ids"].tolist(), (got["labels"] == IGNORE).tolist()
        place = ids.index(-200)
        beside = [k for k in range(len(ids)) if masked[k] and k != 0 and k != place]
        assert masked[0] and ids[0] == tokenizer.bos_token_id and masked[place]
        pieces = tokenizer.convert_ids_to_tokens([ids[k] for k in beside])
        assert set(pieces) <= {"▁", "<0x0A>"} and ("<0x0A>" in pieces) == (record is not TALK[2])
        assert all(abs(k - place) <= 3 for k in beside)


@pytest.mark.parametrize("name", ["llama slow", "llama fast"])
def test_marks_around_the_picture_are_its_place(host, tokenizers, name):
    """--mm_use_im_start_end: fast tokenizers do not list these two among their special tokens, slow ones do."""
    tokenizer = copy.deepcopy(tokenizers[name])
    tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    record = record_of([("<image>\nIs <im_start> here?", "No.")])
    base = base_of(host, "v1", [record])
    base.data_args.mm_use_im_start_end = True
    item = words_of(host, tokenizer, base, record)
    pieces = tokenizer.convert_ids_to_tokens(item["input_ids"].clamp(0).tolist())
    place, newline = item["input_ids"].tolist().index(-200), pieces.index("<0x0A>")
    assert pieces[place - 1] == "<im_start>" and pieces[place + 1] == "<im_end>"
    learned = {
        mode: loss_of(base, tokenizer, mode)(item, record)["vgift_instruction"].tolist()
        for mode in ("full", "no_system")
    }
    assert not any(learned["full"][place - 1 : newline + 1])
    assert learned["full"][newline + 1] and learned["full"][pieces.index("<im_start>", newline)]
    told = [piece for piece, one in zip(pieces, learned["no_system"], strict=True) if one]
    assert "".join(told).replace("\u2581", "") == "Ishere?"


def test_records_without_a_picture_are_learned_where_the_flag_says_so(host, tokenizers):
    tokenizer = tokenizers["llama slow"]
    base = base_of(host, "v1", TALK)
    item = words_of(host, tokenizer, base, TALK[3])
    assert loss_of(base, tokenizer, "no_system", text=False)(item, TALK[3]) is item
    got = loss_of(base, tokenizer, "no_system", text=True)(item, TALK[3])
    assert text_of(item["input_ids"][got["vgift_instruction"]].tolist(), tokenizer) == "Whatistwoplusthree?"


@pytest.mark.parametrize("length", [*range(44, 75, 3), 1000])
def test_truncation_at_model_max_length(host, tokenizers, length):
    """Upstream cuts texts without a picture, here also through an emoji's middle; the rest is learned as before."""
    record = record_of([("What is ünï 😀😀 there?", "Yes.")] * 3, picture=False)
    tokenizer = copy.copy(tokenizers["llama slow"])
    base = base_of(host, "v1", [record])
    loss = loss_of(base, tokenizer, "no_system")
    complete = words_of(host, tokenizer, base, record)
    tokenizer.model_max_length = length
    cut = words_of(host, tokenizer, base, record)
    assert len(cut["input_ids"]) == min(length, len(complete["input_ids"]))
    labels = torch.full_like(cut["input_ids"], IGNORE)
    labels[0] = 7  # upstream masks all of a text whose every response is cut off
    got = loss({"input_ids": cut["input_ids"], "labels": labels}, record)["vgift_instruction"]
    assert loss.tally.counts() == {}
    wanted = loss(complete, record)["vgift_instruction"][: len(got)]
    differ = (got != wanted).nonzero().flatten().tolist()
    assert got.any()
    tail = tokenizer.convert_ids_to_tokens(cut["input_ids"][differ].tolist())
    assert all(k >= len(got) - 4 for k in differ)  # half a character, or the space before what is cut off
    assert all(piece.startswith("<0x") or piece == "▁" for piece in tail)


def test_the_host_words_a_form_of_record_twice_and_no_other(host, tokenizers):
    tokenizer = tokenizers["llama slow"]
    base = base_of(host, "v1", TALK)
    loss, calls = loss_of(base, tokenizer, "no_system"), []
    speak = loss.layouts.speak
    loss.layouts.speak = lambda record: calls.append(record) or speak(record)
    for k in range(8):
        record = record_of([(f"<image>\nIs number {k} here?", f"It is {k}.")])
        assert loss(words_of(host, tokenizer, base, record), record)["vgift_instruction"].any()
    assert len(calls) == 1


def test_what_cannot_be_learned_is_counted_and_stays_as_it_was(host, tokenizers):
    from vgift_plugin.methods.l2t.layout import CHANGED

    tokenizer = tokenizers["llama slow"]
    base = base_of(host, "v1", TALK)
    loss = loss_of(base, tokenizer, "no_system")
    item = words_of(host, tokenizer, base, TALK[0])
    masked = {**item, "labels": torch.full_like(item["labels"], IGNORE)}
    assert loss(masked, TALK[0]) is masked
    other = {**item, "input_ids": torch.cat([item["input_ids"][:-6], item["input_ids"][-7:]])}
    other["labels"] = other["input_ids"].clone()
    assert loss(other, TALK[0]) is other
    late = record_of([("No picture?", "None.")])
    blind = words_of(host, tokenizer, base, late)
    assert loss(blind, late) is blind
    assert loss.tally.counts() == {
        "instructions": {"all labels masked by LLaVA": 1, CHANGED: 1, "no picture before the instruction": 1}
    }


@pytest.mark.parametrize("mode", ["full", "no_system", "no_template"])
def test_an_instruction_before_its_picture_is_not_learned(host, tokenizers, mode):
    """LLaVA puts the picture first in its turn, yet not in the first turn."""
    tokenizer = tokenizers["llama slow"]
    late = record_of([("What comes now?", "A picture."), ("<image>\nWhich one?", "This.")])
    first = record_of([("What comes now?\n<image>", "A picture."), ("Which one?", "This.")])
    base = base_of(host, "v1", [late, first])
    loss = loss_of(base, tokenizer, mode)
    item = words_of(host, tokenizer, base, late)
    assert (item["labels"] != IGNORE).any() and loss(item, late) is item
    assert loss.tally.counts() == {"instructions": {"no picture before the instruction": 1}}
    assert loss(words_of(host, tokenizer, base, first), first)["vgift_instruction"].any()


def test_pieces_of_a_character_and_of_a_picture(tokenizers):
    from vgift_plugin.methods.l2t.pieces import Pieces

    for tokenizer in tokenizers.values():
        ids = tokenizer("aß 😀").input_ids
        pieces = Pieces(tokenizer)
        text, spans = pieces.read([*ids[:2], -200, *ids[2:]])
        assert text.removeprefix("<s>").strip() == "aß 😀"
        assert spans[2][0] == spans[2][1]
        assert "".join(sorted(set("".join(text[a:b] for a, b in spans)))) == "".join(sorted(set(text)))
        cut, places = pieces.read(ids[:-1])
        assert re.fullmatch(re.escape(text[:-1]) + "[\udc80-\udcff]+", cut) and len(places) == len(ids) - 1


def test_informative_fillings_alone_are_learned_of_a_self_supervised_sample(host, tokenizers, photos):
    from vgift_plugin import get_task
    from vgift_plugin.data.photos import from_folder
    from vgift_plugin.methods.vgift.stream import Stream

    tokenizer = tokenizers["llama slow"]
    base = base_of(host, "v1", [])
    for name, learned in (("color", True), ("rotation", False)):
        sample = Stream(get_task(name)(), from_folder(str(photos)), 0)(0, 0)
        record = sample.record("s", "")
        item = words_of(host, tokenizer, base, record)
        got = {
            mode: loss_of(base, tokenizer, mode).of_sample(item, sample, "s")
            for mode in ("full", "no_system", "no_template")
        }
        told = {
            mode: text_of(item["input_ids"][one["vgift_instruction"]].tolist(), tokenizer) for mode, one in got.items()
        }
        assert told["no_system"] == "".join(sample.instruction.split()) and told["no_system"] in told["full"]
        colors = "".join("".join(sample.instruction[a:b].split()) for a, b in sample.informative)
        assert told["no_template"] == colors and bool(colors) == learned
        assert not learned or colors.startswith("1.RGB(")


def test_folded_labels_come_back_from_padding_and_cutting(host, tokenizers):
    from vgift_plugin.methods.l2t.losses import InstructCollator

    tokenizer = copy.copy(tokenizers["llama slow"])
    base = base_of(host, "v1", TALK)
    loss = loss_of(base, tokenizer, "no_system", text=False)
    tokenizer.model_max_length = 80
    items = [loss(words_of(host, tokenizers["llama slow"], base, record), record) for record in TALK]
    collator = host.DataCollatorForSupervisedDataset(tokenizer=tokenizer)
    plain = collator([{name: item[name] for name in ("input_ids", "labels")} for item in items])
    batch = pickle.loads(pickle.dumps(InstructCollator(collator)))(items)
    instruction = batch.pop("vgift_instruction")
    assert batch.keys() == plain.keys() and all(torch.equal(batch[name], plain[name]) for name in plain)
    assert (
        instruction.shape == plain["labels"].shape == (4, 80)
        and instruction[:3].any(1).all()
        and not instruction[3].any()
    )
    assert torch.equal(plain["labels"][instruction], plain["input_ids"][instruction])
    assert InstructCollator(collator).tokenizer is tokenizer


def test_another_way_of_wording_records_is_told(host, tokenizers):
    from vgift_plugin.methods.l2t.instruction import TextPath

    with pytest.raises(HostMismatchError, match="expected the functions preprocess and preprocess_multimodal"):
        TextPath(object(), tokenizers["llama slow"])


@pytest.fixture
def attached(host):
    from vgift_plugin import attach, detach

    attach(host)
    yield host
    detach(host)


@pytest.fixture
def data_module(attached, tokenizers, tiny, photos, data_path):
    """Makes the data module of a run as upstream's train() does."""

    def make(version="v1", multimodal=True, **flags):
        flags = {"data_path": str(data_path), "image_folder": str(photos), "image_aspect_ratio": "pad", **flags}
        data_args = attached.DataArguments(**flags)
        data_args.image_processor = transformers.CLIPImageProcessor.from_pretrained(tiny[1])
        data_args.is_multimodal, data_args.mm_use_im_start_end = multimodal, False
        attached.conversation_lib.default_conversation = attached.conversation_lib.conv_templates[version]
        return attached.make_supervised_data_module(tokenizer=tokenizers["llama slow"], data_args=data_args)

    return make


def test_base_samples_keep_all_but_their_labels(data_module, records):
    upstream, taught = (data_module(instruct_loss=mode) for mode in ("none", "no_system"))
    assert type(upstream["train_dataset"]).__name__ == "LazySupervisedDataset" and "callbacks" not in upstream
    for k, record in enumerate(records):
        ours, theirs = taught["train_dataset"][k], upstream["train_dataset"][k]
        learned = ours.pop("vgift_instruction", None)
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
    base, speak = pickle.loads(pickle.dumps((dataset.base, dataset.speak)))
    assert len(dataset) == len(records) + 4
    assert torch.equal(dataset[0]["labels"], base[0]["labels"]) and base[0]["vgift_instruction"].any()
    for k in (len(records), len(records) + 3):
        stream, j = dataset.plan(k)
        assert torch.equal(dataset[k]["labels"], speak(stream(0, j), "twin")["labels"])
        assert dataset[k]["vgift_instruction"].any()


def test_plain_pretraining_has_no_instruction_to_learn(data_module, caplog, monkeypatch, tmp_path, records):
    import logging

    monkeypatch.setattr(logging.getLogger("vgift_plugin"), "propagate", True)
    caplog.set_level("INFO")
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
    assert dataset[12]["vgift_instruction"].any()
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    with pytest.raises(ConfigError, match=f"--instruct_loss {mode}: none of the base records .* has an instruction"):
        data_module(instruct_loss=mode, data_path=str(tmp_path / "captions.json"))


def test_what_is_done_is_said_in_the_log(data_module, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("vgift_plugin"), "propagate", True)
    caplog.set_level("INFO")
    data_module(instruct_loss="no_template", instruct_loss_weight=0.5)
    assert "of 12 of 16 base records" in caplog.text and "counts 0.5 times in the loss" in caplog.text
    assert "no sentence is a task template, so nothing of them is left out" in caplog.text
    caplog.clear()
    data_module(instruct_loss="no_template", instruct_template_count=1)
    assert "times in the loss" not in caplog.text
    assert "task templates, left out: 16, all in vgift_templates.json; the first:\n  What does" in caplog.text


def test_what_can_never_be_learned_is_told_before_the_first_step(data_module, attached, tmp_path, records, monkeypatch):
    (tmp_path / "text.json").write_text(json.dumps([record for record in records if "image" not in record]))
    with pytest.raises(ConfigError, match=r"none of the 4 base records has a picture.*--instruct_loss_text True"):
        data_module(instruct_loss="full", data_path=str(tmp_path / "text.json"))
    with pytest.raises(ConfigError, match="this run has no --vision_tower"):
        data_module(instruct_loss="full", multimodal=False)
    with pytest.raises(SelfTestError, match=r"--instruct_loss full .*all labels masked by LLaVA"):
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


def test_a_file_of_templates_and_those_of_the_corpus(data_module, tmp_path, records, tokenizers):
    from vgift_plugin.methods.l2t.templates import find

    said = "What does picture 0 show?"
    (tmp_path / "templates.json").write_text(json.dumps([said]))
    given = {"instruct_loss": "no_template", "instruct_templates": str(tmp_path / "templates.json")}
    dataset = data_module(**given)["train_dataset"]
    assert not dataset[0]["vgift_instruction"].any() and dataset[1]["vgift_instruction"].any()
    found = find(records, 0.001, 1).sentences()
    assert said in found
    corpus = data_module(instruct_loss="no_template", instruct_template_count=1)["train_dataset"]
    assert not any(corpus[k]["vgift_instruction"].any() for k in range(16) if "image" in records[k])
    (tmp_path / "templates.json").write_text('{"templates": [{"count": 1}, 7]}')
    with pytest.raises(ConfigError, match=r"2 mistakes(.|\n)*templates.json: entry 1(.|\n)*entry 2 is 7"):
        data_module(**given)


def test_published_samples_are_records_like_others(data_module, release, tmp_path):
    root, metadata, records = release
    records = records[::-1]  # the first ones, tried before the first step, have no picture on disk
    (tmp_path / "published.json").write_text(json.dumps(records))
    own = {"data_path": str(tmp_path / "published.json"), "image_folder": str(root), "ssl_replay": str(metadata)}
    dataset = data_module(instruct_loss="no_system", **own)["train_dataset"]
    assert records[0]["image"].endswith("_correspondence.jpg") and dataset[0]["vgift_instruction"].any()


def run(flags, command):
    return call([*VGIFT, "run", *arguments(flags), "--", *command])


def log_of(done):
    return f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"


def losses(out):
    """Returns the logged steps of a run."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def test_the_losses_apart_are_what_the_model_says_of_each_alone(tiny_llava, data_module):
    """With micro-batches, and beside the model's own loss, which stays the same number."""
    from vgift_plugin.hosts.model_hooks import Inside
    from vgift_plugin.methods.l2t.losses import ResponseLoss

    made = data_module(instruct_loss="full")
    batches = [made["data_collator"]([made["train_dataset"][k] for k in some]) for some in ((0, 1, 3), (4, 5))]
    apart = ResponseLoss()
    inside = Inside([apart])
    sums = {"response_loss": [0.0, 0], "instruction_loss": [0.0, 0]}
    tiny_llava.train()
    try:
        for batch in batches:
            known = {name: value for name, value in batch.items() if name != "vgift_instruction"}
            for name, other in (
                ("response_loss", batch["vgift_instruction"]),
                ("instruction_loss", ~batch["vgift_instruction"]),
            ):
                alone = torch.where(other, IGNORE, batch["labels"])
                count = int((alone != IGNORE).sum())
                sums[name][0] += float(tiny_llava(**{**known, "labels": alone}).loss.detach()) * count
                sums[name][1] += count
            plain = tiny_llava(**known)
            inside.attach(tiny_llava)
            with pytest.raises(TypeError):
                type(tiny_llava).forward(tiny_llava, **batch)
            told = tiny_llava(**batch)
            inside.detach()
            assert torch.equal(told.loss, plain.loss) and torch.equal(told.logits, plain.logits)
        assert apart.take() == pytest.approx({name: total / count for name, (total, count) in sums.items()}, abs=1e-5)
        assert apart.take() == {}
    finally:
        inside.detach()
        tiny_llava.eval()


@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
def test_weighted_tokens_are_counted_as_often(tiny_llava, data_module, weight):
    """Loss and gradients, against the sums over each kind of token by themselves; 0 is upstream's own loss."""
    from vgift_plugin.hosts.model_hooks import Inside
    from vgift_plugin.methods.l2t.losses import ResponseLoss

    made = data_module(instruct_loss="full")
    batch = made["data_collator"]([made["train_dataset"][k] for k in (0, 1, 3)])
    known = {name: value for name, value in batch.items() if name != "vgift_instruction"}
    total = count = 0
    head, inside = tiny_llava.lm_head.weight, Inside([ResponseLoss(weight)])
    tiny_llava.train()
    try:
        for others, factor in ((batch["vgift_instruction"], 1.0), (~batch["vgift_instruction"], weight)):
            alone = torch.where(others, IGNORE, batch["labels"])
            tokens = int((alone != IGNORE).sum())
            total = total + factor * tokens * tiny_llava(**{**known, "labels": alone}).loss
            count += factor * tokens
        expected = torch.autograd.grad(total / count, head)[0]
        inside.attach(tiny_llava)
        told = tiny_llava(**batch)
        assert float(told.loss) == pytest.approx(float(total / count), abs=1e-5) and told["loss"] is told.loss
        assert torch.allclose(torch.autograd.grad(told.loss, head)[0], expected, atol=1e-6)
        inside.detach()
        plain = {**known, "labels": torch.where(batch["vgift_instruction"], IGNORE, batch["labels"])}
        assert weight or float(told.loss) == pytest.approx(float(tiny_llava(**plain).loss), abs=1e-5)
    finally:
        inside.detach()
        tiny_llava.eval()


def test_instructions_alone_weigh_nothing_with_weight_zero(tiny_llava, data_module):
    """A batch whose every response was cut off."""
    from vgift_plugin.hosts.model_hooks import Inside
    from vgift_plugin.methods.l2t.losses import ResponseLoss

    made = data_module(instruct_loss="full")
    batch = made["data_collator"]([made["train_dataset"][k] for k in (0, 1)])
    batch["labels"] = torch.where(batch["vgift_instruction"], batch["labels"], IGNORE)
    inside = Inside([ResponseLoss(0.0)])
    inside.attach(tiny_llava.train())
    try:
        loss = tiny_llava(**batch).loss
        assert float(loss.detach()) == 0
        assert not torch.autograd.grad(loss, tiny_llava.lm_head.weight)[0].any()
    finally:
        inside.detach()
        tiny_llava.eval()


def test_a_loss_that_cannot_be_weighed_is_told(tiny_llava, data_module):
    from vgift_plugin.hosts.model_hooks import Inside
    from vgift_plugin.methods.l2t.losses import ResponseLoss

    class Fused:
        def forward(self, module, args, kwargs, output):
            output.logits = None
            return type(output)(loss=output.loss)

    made = data_module(instruct_loss="full")
    batch = made["data_collator"]([made["train_dataset"][k] for k in (0, 1)])
    for weight, message in ((1.0, None), (0.5, "--instruct_loss_weight 0.5: LlavaLlamaForCausalLM returns no loss")):
        apart = ResponseLoss(weight)
        inside = Inside([apart, Fused()])
        inside.attach(tiny_llava.train())
        try:
            if message is None:
                assert math.isfinite(float(tiny_llava(**batch).loss.detach())) and apart.take() == {}
            else:
                with pytest.raises(HostMismatchError, match=message):
                    tiny_llava(**batch)
        finally:
            inside.detach()
            tiny_llava.eval()


def test_two_ranks_share_the_templates_and_log_the_losses_apart(tmp_path, train_flags, records):
    for record in records:
        human, answer = record["conversations"]
        asked = {**record, "conversations": [{**human, "value": f"{human['value']}\nIn one word."}, answer]}
        records = [*records[1:], asked]
    (tmp_path / "asked.json").write_text(json.dumps(records))
    steps = {}
    for name, launcher, size in (
        ("one", [sys.executable], 16),
        ("two", torchrun(), 8),
    ):
        out = tmp_path / name
        batch = {"per_device_train_batch_size": size, "max_steps": 2, "data_path": tmp_path / "asked.json"}
        command = [*launcher, TRAIN, *arguments({**train_flags, **batch}, output_dir=out, report_to="tensorboard")]
        done = run({"instruct_loss": "no_template", "instruct_template_count": 2}, command)
        assert done.returncode == 0, log_of(done)
        assert done.stderr.count("instructions are learned of 12 of 16 base records") == 1
        assert "no instruction had to be left out" in done.stderr
        templates = json.loads((out / "vgift_templates.json").read_text())
        assert templates["about"]["human_turns"] == 16
        assert templates["templates"] == [{"count": 16, "share": 1.0, "sentence": "In one word."}]
        steps[name] = losses(out)
        for step in steps[name]:
            low, high = sorted([step["response_loss"], step["instruction_loss"]])
            assert low < step["loss"] < high
        assert "'response_loss'" in done.stdout
        assert b"train/response_loss" in b"".join(path.read_bytes() for path in out.rglob("events.out*"))
    assert len(steps["one"]) == len(steps["two"]) == 2


def test_a_run_that_was_to_learn_instructions_and_did_not_fails(tmp_path):
    done = run({"instruct_loss": "no_system"}, ["true"])
    assert done.returncode == 3 and "ended well WITHOUT the loss on instructions" in done.stderr


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
    loss, total = loss_of(base, tokenizer, "no_system"), 0.0
    processor = transformers.CLIPImageProcessor.from_pretrained(tiny[1])
    for record in held_out:
        item = loss(words_of(host, tokenizer, base, record), record)
        labels = torch.where(item["vgift_instruction"], item["labels"], IGNORE)
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
