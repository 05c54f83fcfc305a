"""Facts about tokens go where their labels go: through the host's collator and through its model's preparation."""

import pickle

import numpy as np
import pytest

pytestmark = pytest.mark.host
torch = pytest.importorskip("torch")
from vgift_plugin.hosts.token_facts import KEY, TokenFactsCollator, Tokens, with_facts  # noqa: E402

IMAGE, IGNORE, PAD = -200, -100, 0
PATCHES = 4  # the tiny tower's: 28 pixels, 14 a patch


def items_of(pictures, seed=0):
    """Items with so many pictures each, of different lengths, random labels and facts; the last has no facts."""
    rng = np.random.default_rng(seed)
    result = []
    for row, count in enumerate(pictures):
        ids = torch.from_numpy(rng.integers(5, 200, 12 + 5 * row))
        ids[rng.choice(len(ids), count, replace=False)] = IMAGE
        labels = torch.where(torch.from_numpy(rng.random(len(ids)) < 0.6) & (ids != IMAGE), ids, IGNORE)
        item = {"input_ids": ids, "labels": labels}
        if row + 1 < len(pictures):
            item = with_facts(item, task=row, instruction=torch.from_numpy(rng.random(len(ids)) < 0.5))
        result.append(item)
    return result


def facts_of(item):
    return item.get(KEY, torch.zeros_like(item["labels"]))


def batched(items):
    """The facts of each item of a batch: its number there in the bits from 16 on."""
    return [facts_of(item) + (number << 16) for number, item in enumerate(items)]


def plain(item):
    return {name: value for name, value in item.items() if name != KEY}


@pytest.fixture
def collator(host, tokenizer):
    tokenizer.model_max_length = 20  # shorter than the longest item, which the host's collator cuts
    return host.DataCollatorForSupervisedDataset(tokenizer=tokenizer)


def test_facts_are_numbers_beside_the_labels_and_all_else_is_the_same_object():
    item = {"labels": torch.tensor([IGNORE, 7, 8]), "image": object()}
    mask = torch.tensor([False, True, False])
    for made in (
        with_facts(with_facts(item, task=3), instruction=mask),
        with_facts(with_facts(item, instruction=mask), task=3),
    ):
        assert made[KEY].tolist() == [6, 7, 6]
        assert made["labels"] is item["labels"] and made["image"] is item["image"] and KEY not in item
    tokens = Tokens.of(item["labels"], made[KEY])
    assert tokens.task.tolist() == [3, 3, 3] and torch.equal(tokens.instruction, mask)
    assert tokens.sample.tolist() == [0, 0, 0] and tokens.items is None
    assert Tokens.of(item["labels"], None, 7) == (item["labels"], None, None, None, 7)


def test_a_padded_batch_is_the_hosts_own_and_facts_lie_with_their_tokens(collator):
    items = items_of([1, 0, 2, 1])
    carrying = TokenFactsCollator(collator)
    carrying.carries = True
    batch = pickle.loads(pickle.dumps(carrying))(items)
    facts, own = batch.pop(KEY), collator([plain(item) for item in items])
    assert batch.keys() == own.keys() and all(torch.equal(batch[name], own[name]) for name in own)
    assert facts.shape == own["labels"].shape == (4, 20)
    for row, known in enumerate(batched(items)):
        kept = known.tolist()[:20]
        assert facts[row].tolist() == kept + [0] * (20 - len(kept))
    assert max(len(item["labels"]) for item in items) > 20 and facts[:3].any(1).all()


def test_nothing_is_added_for_a_model_that_nobody_takes_it_out_for(collator):
    items = items_of([1, 0, 2])
    batch, own = TokenFactsCollator(collator)(items), collator([plain(item) for item in items])
    assert batch.keys() == own.keys() and all(torch.equal(batch[name], own[name]) for name in own)
    assert all(KEY in item for item in items[:2])  # the dataset's own items are not changed
    assert TokenFactsCollator(collator).tokenizer is collator.tokenizer


def test_flattened_batches_carry_facts_too():
    """Hosts that pack join the rows of a batch, whose labels have a first dimension of one, into a single one."""

    def flatten(instances):
        assert all(KEY not in one for one in instances)
        return {name: torch.cat([one[name] for one in instances], dim=1) for name in ("input_ids", "labels")}

    items = [{name: value[None] for name, value in item.items()} for item in items_of([1, 0, 2])]
    collator = TokenFactsCollator(flatten)
    collator.carries = True
    batch = collator(items)
    assert torch.equal(batch["labels"], torch.cat([item["labels"] for item in items], dim=1))
    assert torch.equal(batch[KEY], torch.cat(batched(items), dim=1))
    lengths = [item["labels"].numel() for item in items]
    sample = Tokens.of(batch["labels"], batch[KEY]).sample
    assert sample.tolist() == [[k for k, length in enumerate(lengths) for _ in range(length)]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("limit", [2048, 15])
def test_in_the_model_labels_and_facts_stand_where_pictures_padding_and_cutting_leave_them(
    tiny_llava, host, tokenizer, side, limit
):
    from vgift_plugin.hosts.llava import LLaVA
    from vgift_plugin.hosts.model_hooks import ModelHooks, Step

    class Look(Step):
        def prepared(self, prepared):
            self.after = prepared
            return prepared

        def forward(self, module, output, tokens):
            self.tokens = tokens

    pictures = [1, 0, 2, 1]
    items, look = items_of(pictures), Look()
    collator = TokenFactsCollator(host.DataCollatorForSupervisedDataset(tokenizer=tokenizer))
    hooks = ModelHooks(LLaVA(), [look], collator)
    before = dict(vars(tiny_llava.config))
    tiny_llava.config.tokenizer_padding_side, tiny_llava.config.tokenizer_model_max_length = side, limit
    hooks.attach(tiny_llava)
    assert collator.carries
    try:
        batch = collator(items)
        batch["images"] = torch.zeros(sum(max(1, count) for count in pictures), 3, 28, 28)
        told = tiny_llava(**batch)
        hooks.detach()
        assert not collator.carries
        own = tiny_llava(**{name: value for name, value in batch.items() if name != KEY})
    finally:
        hooks.detach()
        vars(tiny_llava.config).update(before)
    assert torch.equal(told.loss, own.loss) and torch.equal(told.logits, own.logits)
    expected = []
    for item, known in zip(items, batched(items), strict=True):
        row = []
        for id, label, fact in torch.stack([item["input_ids"], item["labels"], known], dim=1).tolist():
            row += [(IGNORE, 0, True)] * PATCHES if id == IMAGE else [(label, fact, False)]
        expected.append(row[:limit])
    longest = max(map(len, expected))
    for k, row in enumerate(expected):
        filled = [(IGNORE, 0, False)] * (longest - len(row))
        labels, facts, image = zip(*(row + filled if side == "right" else filled + row), strict=True)
        assert look.tokens.labels[k].tolist() == list(labels)
        assert look.tokens.task[k].tolist() == [fact % 2**16 >> 1 for fact in facts]
        assert look.tokens.sample[k].tolist() == [fact >> 16 for fact in facts]
        assert look.tokens.instruction[k].tolist() == [bool(fact & 1) for fact in facts]
        assert look.after.image[k].tolist() == list(image)
    assert longest == min(limit, max(len(one["labels"]) + 3 * n for one, n in zip(items, pictures, strict=True)))
