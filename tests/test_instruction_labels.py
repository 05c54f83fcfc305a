"""Which tokens are learned with --instruct_loss, against spans known from how the text was put together and against the
character offsets of fast tokenizers."""

import copy
from argparse import Namespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vgift_plugin.errors import HostMismatchError

pytestmark = pytest.mark.host
torch = pytest.importorskip("torch")
from vgift_plugin.hosts.llava import LLaVA  # noqa: E402
from vgift_plugin.hosts.token_facts import KEY  # noqa: E402
from vgift_plugin.methods.l2t.labels import InstructedDataset, InstructionLabels  # noqa: E402
from vgift_plugin.methods.l2t.layout import CHANGED  # noqa: E402
from vgift_plugin.methods.l2t.training import UNLIMITED  # noqa: E402

HOST = LLaVA()
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


def labels_of(base, tokenizer, mode, text=True):
    """Returns what gives labels to instructions."""
    path = HOST.text_path(base, tokenizer, UNLIMITED)
    return InstructionLabels(mode, TEMPLATES, text, path.ids, tokenizer, HOST.visible_ids)


def instruction_of(item):
    """Returns which tokens are an instruction's, as the item's facts have it."""
    return (item[KEY] & 1).bool()


@pytest.fixture(scope="module")
def kept():
    """What gives labels, of one template, tokenizer and mode, as a run keeps it: what it learns stays."""
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
    make = kept.setdefault((template, name, mode), labels_of(base, tokenizer, mode))
    got = make({"input_ids": item["input_ids"], "labels": labels}, record)
    assert make.tally.counts() == {}
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
        make = labels_of(base, tokenizer, mode, text=False)
        for k, (record, item) in enumerate(zip(TALK, items, strict=True)):
            before = {name: value.clone() for name, value in item.items()}
            got = make(dict(item), record)
            assert all(torch.equal(item[name], before[name]) for name in item)  # the host's tensors are not written to
            own = item["labels"] != IGNORE
            assert torch.equal(got["labels"][own], item["labels"][own])
            taught = (got["labels"] != IGNORE) & ~own
            assert torch.equal(got["labels"][taught], item["input_ids"][taught])
            if "image" in record:
                assert torch.equal(instruction_of(got), taught)
            added[mode, k] = text_of(item["input_ids"][taught].tolist(), tokenizer)
        assert make.tally.counts() == {}
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
        got = labels_of(base, tokenizer, "full")(item, record)
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
        mode: instruction_of(labels_of(base, tokenizer, mode)(item, record)).tolist() for mode in ("full", "no_system")
    }
    assert not any(learned["full"][place - 1 : newline + 1])
    assert learned["full"][newline + 1] and learned["full"][pieces.index("<im_start>", newline)]
    told = [piece for piece, one in zip(pieces, learned["no_system"], strict=True) if one]
    assert "".join(told).replace("\u2581", "") == "Ishere?"


def test_records_without_a_picture_are_learned_where_the_flag_says_so(host, tokenizers):
    tokenizer = tokenizers["llama slow"]
    base = base_of(host, "v1", TALK)
    item = words_of(host, tokenizer, base, TALK[3])
    assert labels_of(base, tokenizer, "no_system", text=False)(item, TALK[3]) is item
    got = labels_of(base, tokenizer, "no_system", text=True)(item, TALK[3])
    assert text_of(item["input_ids"][instruction_of(got)].tolist(), tokenizer) == "Whatistwoplusthree?"


@pytest.mark.parametrize("length", [*range(44, 75, 3), 1000])
def test_truncation_at_model_max_length(host, tokenizers, length):
    """Upstream cuts texts without a picture, here also through an emoji's middle; the rest is learned as before."""
    record = record_of([("What is ünï 😀😀 there?", "Yes.")] * 3, picture=False)
    tokenizer = copy.copy(tokenizers["llama slow"])
    base = base_of(host, "v1", [record])
    make = labels_of(base, tokenizer, "no_system")
    complete = words_of(host, tokenizer, base, record)
    tokenizer.model_max_length = length
    cut = words_of(host, tokenizer, base, record)
    assert len(cut["input_ids"]) == min(length, len(complete["input_ids"]))
    labels = torch.full_like(cut["input_ids"], IGNORE)
    labels[0] = 7  # upstream masks all of a text whose every response is cut off
    got = instruction_of(make({"input_ids": cut["input_ids"], "labels": labels}, record))
    assert make.tally.counts() == {}
    wanted = instruction_of(make(complete, record))[: len(got)]
    differ = (got != wanted).nonzero().flatten().tolist()
    assert got.any()
    tail = tokenizer.convert_ids_to_tokens(cut["input_ids"][differ].tolist())
    assert all(k >= len(got) - 4 for k in differ)  # half a character, or the space before what is cut off
    assert all(piece.startswith("<0x") or piece == "▁" for piece in tail)


def test_the_host_words_a_form_of_record_twice_and_no_other(host, tokenizers):
    tokenizer = tokenizers["llama slow"]
    base = base_of(host, "v1", TALK)
    make, calls = labels_of(base, tokenizer, "no_system"), []
    encode = make.layouts.encode
    make.layouts.encode = lambda record: calls.append(record) or encode(record)
    for k in range(8):
        record = record_of([(f"<image>\nIs number {k} here?", f"It is {k}.")])
        assert instruction_of(make(words_of(host, tokenizer, base, record), record)).any()
    assert len(calls) == 1


def test_what_cannot_be_learned_is_counted_and_stays_as_it_was(host, tokenizers):
    tokenizer = tokenizers["llama slow"]
    base = base_of(host, "v1", TALK)
    make = labels_of(base, tokenizer, "no_system")
    item = words_of(host, tokenizer, base, TALK[0])
    masked = {**item, "labels": torch.full_like(item["labels"], IGNORE)}
    assert make(masked, TALK[0]) is masked
    other = {**item, "input_ids": torch.cat([item["input_ids"][:-6], item["input_ids"][-7:]])}
    other["labels"] = other["input_ids"].clone()
    assert make(other, TALK[0]) is other
    late = record_of([("No picture?", "None.")])
    blind = words_of(host, tokenizer, base, late)
    assert make(blind, late) is blind
    assert make.tally.counts() == {
        "instructions": {"all labels masked by the host": 1, CHANGED: 1, "no picture before the instruction": 1}
    }


@pytest.mark.parametrize("mode", ["full", "no_system", "no_template"])
def test_an_instruction_before_its_picture_is_not_learned(host, tokenizers, mode):
    """LLaVA puts the picture first in its turn, yet not in the first turn."""
    tokenizer = tokenizers["llama slow"]
    late = record_of([("What comes now?", "A picture."), ("<image>\nWhich one?", "This.")])
    first = record_of([("What comes now?\n<image>", "A picture."), ("Which one?", "This.")])
    base = base_of(host, "v1", [late, first])
    make = labels_of(base, tokenizer, mode)
    item = words_of(host, tokenizer, base, late)
    assert (item["labels"] != IGNORE).any() and make(item, late) is item
    assert make.tally.counts() == {"instructions": {"no picture before the instruction": 1}}
    assert instruction_of(make(words_of(host, tokenizer, base, first), first)).any()


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
            mode: labels_of(base, tokenizer, mode).of_sample(item, sample, "s")
            for mode in ("full", "no_system", "no_template")
        }
        told = {mode: text_of(item["input_ids"][instruction_of(one)].tolist(), tokenizer) for mode, one in got.items()}
        assert told["no_system"] == "".join(sample.instruction.split()) and told["no_system"] in told["full"]
        colors = "".join("".join(sample.instruction[a:b].split()) for a, b in sample.informative)
        assert told["no_template"] == colors and bool(colors) == learned
        assert not learned or colors.startswith("1.RGB(")


def test_another_way_of_wording_records_is_told(tokenizers):
    with pytest.raises(HostMismatchError, match="expected the functions preprocess and preprocess_multimodal"):
        HOST.text_path(object(), tokenizers["llama slow"], UNLIMITED)


def test_a_packed_item_is_labelled_conversation_by_conversation(host, tokenizers):
    """As hosts make it that lay several conversations into one row, whose labels have a first dimension of one."""
    tokenizer = tokenizers["llama slow"]
    base = base_of(host, "v1", TALK)
    alone = [words_of(host, tokenizer, base, record) for record in TALK]
    ends = [sum(len(item["labels"]) for item in alone[:k]) for k in range(5)]

    class Packing(LLaVA):
        def segments(self, dataset, index, item):
            return [(slice(*ends[k : k + 2]), record) for k, record in enumerate(TALK)]

    packed = [{name: torch.cat([item[name] for item in alone])[None] for name in alone[0]}]
    got = InstructedDataset(Packing(), packed, labels_of(base, tokenizer, "no_template", text=False))[0]
    single = labels_of(base, tokenizer, "no_template", text=False)
    expected = [single(item, record) for item, record in zip(alone, TALK, strict=True)]
    masks = [instruction_of(item) if KEY in item else torch.zeros(len(item["labels"])).bool() for item in expected]
    assert torch.equal(got["labels"], torch.cat([item["labels"] for item in expected])[None])
    assert torch.equal(instruction_of(got), torch.cat(masks)[None]) and sum(map(torch.any, masks)) == 3
    assert got["input_ids"] is packed[0]["input_ids"]
