"""Visual tokens are dropped as the paper has it: against a slow, obvious implementation of the same sentence."""

import itertools
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import build_llava

from vgift_plugin.data.seeding import generator
from vgift_plugin.errors import ConfigError

pytestmark = pytest.mark.host
torch = pytest.importorskip("torch")
from vgift_plugin.hosts.llava import LLaVA  # noqa: E402
from vgift_plugin.hosts.model_hooks import ModelHooks, Step  # noqa: E402
from vgift_plugin.hosts.token_facts import KEY  # noqa: E402
from vgift_plugin.methods.vitp.dropping import DropTokens  # noqa: E402

HOST = LLaVA()
IMAGE, IGNORE, PAD = -200, -100, 0
PATCHES = 4  # the tiny tower's: 28 pixels, 14 a patch
SEED, STEP, RANK = 42, 5, 1


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def llava(request, tiny):
    return build_llava(*tiny, attention=request.param)


def batch_of(images_of_rows, seed=0):
    """Returns a batch with so many pictures in each row, text of different lengths around them, padded on the right."""
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for row, images in enumerate(images_of_rows):
        ids = [1]
        for _ in range(images):
            ids += [IMAGE, *rng.integers(5, 200, 2 + row).tolist()]
        answer = rng.integers(5, 200, 4).tolist()
        rows.append(ids + rng.integers(5, 200, 3).tolist() + answer)
        labels.append([IGNORE] * (len(rows[-1]) - 4) + answer)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    slots = sum(max(1, images) for images in images_of_rows)  # a record of text alone brings an empty picture
    return {
        "input_ids": ids,
        "attention_mask": ids != PAD,
        "labels": torch.tensor([row + [IGNORE] * (longest - len(row)) for row in labels]),
        "images": torch.from_numpy(rng.normal(size=(slots, 3, 28, 28))).float(),
    }


def reference(model, batch, ratio, prob, micro_step, limit):
    """Returns [(embeddings, labels, positions that stay)] of each row, by lists and loops."""
    features = list(model.encode_images(batch["images"]))
    result = []
    for row in range(len(batch["input_ids"])):
        embeds, labels, places = [], [], []
        real = [column for column in range(batch["input_ids"].shape[1]) if batch["attention_mask"][row, column]]
        for column in real:
            token = int(batch["input_ids"][row, column])
            if token == IMAGE:
                for feature in features.pop(0):
                    places.append(len(embeds))
                    embeds.append(feature)
                    labels.append(IGNORE)
            else:
                embeds.append(model.get_model().embed_tokens(batch["input_ids"][row, column]))
                labels.append(int(batch["labels"][row, column]))
        if IMAGE not in batch["input_ids"][row]:
            features.pop(0)
        embeds, labels = embeds[:limit], labels[:limit]
        places = [place for place in places if place < limit]
        dropped = set()
        rng = generator(SEED, "visual_token_drop", STEP, micro_step, RANK, row)
        if places and rng.random() < prob:
            order = rng.permutation(len(places))
            dropped = {places[k] for k in order[math.ceil(round((1 - ratio) * len(places), 9)) :]}
        result.append((embeds, labels, [place for place in range(len(embeds)) if place not in dropped]))
    return result


def reference_loss(model, rows):
    """Returns the mean loss of whole sequences in which nobody looks at what was dropped, one after the other."""
    losses = []
    for embeds, labels, stay in rows:
        mask = torch.tensor([[place in stay for place in range(len(embeds))]])
        positions = torch.arange(len(embeds))[None]
        logits = model(inputs_embeds=torch.stack(embeds)[None], attention_mask=mask, position_ids=positions).logits[0]
        for here, there in itertools.pairwise(stay):
            if labels[there] != IGNORE:
                losses.append(-logits[here].log_softmax(-1)[labels[there]])
    return torch.stack(losses).mean()


class Spy(Step):
    """A step after the dropping one, which sees what the model gets."""

    def prepared(self, prepared):
        self.last = prepared
        self.seen = prepared if prepared.inputs_embeds is not None else self.seen
        return prepared


def attached(model, ratio, prob=1.0, before=()):
    spy = Spy()
    hooks = ModelHooks(HOST, [*before, DropTokens(HOST, ratio, prob), spy])
    args, state = SimpleNamespace(n_gpu=1, seed=SEED, process_index=RANK), SimpleNamespace(global_step=STEP)
    hooks.on_train_begin(args, state, None, model=model)
    hooks.on_step_begin(args, state, None)
    return hooks, spy


@pytest.fixture
def trained(llava):
    """The model in training mode and its settings, both put back afterwards."""
    before = dict(vars(llava.config))
    llava.train()
    yield llava
    llava.eval()
    vars(llava.config).update(before)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("ratio", "prob", "limit"), [(0.75, 1.0, 2048), (0.7, 0.25, 2048), (0.5, 0.0, 2048), (0.75, 1.0, 9)]
)
def test_kept_tokens_positions_labels_and_loss_are_the_references(trained, side, ratio, prob, limit):
    trained.config.tokenizer_padding_side, trained.config.tokenizer_model_max_length = side, limit
    shorter = 0
    for micro_step, images in enumerate([(2, 1, 0), (0, 0), (1,), (2, 2, 1, 1)]):
        batch = batch_of(images, seed=micro_step)
        facts = torch.where(batch["labels"] == IGNORE, 0, 2 * batch["labels"] + 1)
        rows = reference(trained, batch, ratio, prob, micro_step, limit)
        if limit > 2000:
            expected = reference_loss(trained, rows)
        hooks, spy = attached(trained, ratio, prob)
        hooks._micro_step = micro_step
        try:
            loss = trained(**batch, **{KEY: facts}).loss
        finally:
            hooks.detach()
        got, longest = spy.seen, max(len(stay) for _, _, stay in rows)
        assert got.inputs_embeds.shape[:2] == got.labels.shape == got.attention_mask.shape == (len(rows), longest)
        for row, (embeds, labels, stay) in enumerate(rows):
            own = slice(0, len(stay)) if side == "right" else slice(longest - len(stay), longest)
            assert got.attention_mask[row].sum() == got.attention_mask[row, own].sum() == len(stay)
            assert got.labels[row, own].tolist() == [labels[place] for place in stay]
            assert got.facts[row].tolist() == [0 if one == IGNORE else 2 * one + 1 for one in got.labels[row].tolist()]
            assert (got.labels[row] != IGNORE).sum() == sum(labels[place] != IGNORE for place in stay)
            for column, place in zip(range(longest)[own], stay, strict=True):
                assert (got.inputs_embeds[row, column] == embeds[place]).all()
            if got.position_ids is not None:
                assert got.position_ids[row, own].tolist() == stay
            shorter += len(embeds) - len(stay)
        if limit > 2000:
            assert abs(loss - expected) < 1e-5
    assert (shorter > 0) == (prob > 0)


def test_any_number_of_tokens_per_picture(trained):
    """Tiles of any size, cut back to the picture, with a separator after every row: upstream's anyres with unpad."""
    config = trained.config
    config.mm_patch_merge_type, config.image_aspect_ratio = "spatial_unpad", "anyres"
    config.image_grid_pinpoints = [(28, 56), (56, 28), (56, 56)]
    trained.model.image_newline = torch.nn.Parameter(torch.randn(config.hidden_size))
    batch = batch_of((1, 2, 0))
    batch["images"] = [torch.randn(tiles, 3, 28, 28) for tiles in (3, 5, 3, 1)]
    batch["image_sizes"] = [(28, 56), (50, 40), (60, 20), (28, 28)]
    try:
        outcomes = []
        for ratio in (0.75, 1e-9):  # the second one drops nothing
            hooks, spy = attached(trained, ratio)
            try:
                trained(**batch)
            finally:
                hooks.detach()
            outcomes.append(spy.seen)
        short, whole = outcomes
        for row, images in enumerate((1, 2, 0)):
            text = int(batch["attention_mask"][row].sum()) - images
            length = int(whole.attention_mask[row].sum())
            stay = short.position_ids[row][short.attention_mask[row]]
            assert len(stay) == text + math.ceil((length - text) / 4) and (length > text) == (images > 0)
            assert (short.inputs_embeds[row, : len(stay)] == whole.inputs_embeds[row, stay]).all()
            assert (short.labels[row, : len(stay)] == whole.labels[row, stay]).all()
            assert (short.labels[row] != IGNORE).sum() == 4
        assert len({int(whole.attention_mask[row].sum()) for row in range(3)}) == 3
    finally:
        del trained.model.image_newline


def test_positions_that_the_host_skips_already(trained):
    """LLaVA-NeXT's --use_pos_skipping: one row of positions, with gaps of its own, for the whole batch."""

    class Skip(Step):
        def prepared(self, prepared):
            positions = torch.arange(prepared.labels.shape[1])[None]
            return prepared._replace(position_ids=positions + 7 * (positions > 3))

    hooks, spy = attached(trained, 0.75, before=[Skip()])
    try:
        trained(**batch_of((1, 1)))
    finally:
        hooks.detach()
    for row in range(2):
        stay = spy.seen.position_ids[row][spy.seen.attention_mask[row]]
        assert (stay.diff() > 0).all() and len(stay) == stay.max() + 1 - 7 - (PATCHES - 1)


def test_evaluation_and_generation_never_drop(trained):
    batch = batch_of((1, 1))
    ask = {"inputs": batch["input_ids"][:1, :5], "images": batch["images"][:1], "max_new_tokens": 3, "do_sample": False}
    whole = trained(**batch).loss
    said = trained.generate(**ask)
    hooks, spy = attached(trained, 0.75)
    try:
        assert trained(**batch).loss != whole
        seen = spy.seen
        assert torch.equal(trained.generate(**ask), said)  # though the model is in training mode
        assert spy.seen is seen  # no step is asked about the question
        token = {name: batch[name][:, 2:3] for name in ("input_ids", "labels")}
        given = []
        watched = trained.model.register_forward_pre_hook(lambda _, args, told: given.append(told), with_kwargs=True)
        trained(**token, images=batch["images"])  # one token: the host prepares nothing
        watched.remove()
        assert spy.last.inputs_embeds is None and torch.equal(spy.last.labels, token["labels"])
        assert given[0]["attention_mask"] is None and given[0]["input_ids"] is token["input_ids"]
        trained.eval()
        assert trained(**batch).loss == whole
    finally:
        hooks.detach()


def test_the_choice_depends_on_step_micro_step_and_rank_alone(trained):
    batch = batch_of((1, 1, 2))
    torch.manual_seed(0)
    before = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    hooks, spy = attached(trained, 0.5)
    chosen = []
    try:
        for seed, step, rank, forwards in [(1, 1, 0, 2), (1, 1, 0, 1), (1, 2, 0, 1), (1, 1, 1, 1), (2, 1, 0, 1)]:
            args = SimpleNamespace(n_gpu=1, seed=seed, process_index=rank)
            hooks.on_step_begin(args, SimpleNamespace(global_step=step), None)
            for _ in range(forwards):
                trained(**batch)
                chosen.append(str(spy.seen.position_ids.tolist()))
    finally:
        hooks.detach()
    first, again = chosen[0], chosen[2]
    assert first == again and len(set(chosen)) == len(chosen) - 1
    after = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_tokens_are_chosen_uniformly_and_as_many_as_the_paper_says():
    from vgift_plugin.methods.vitp.token_drop import choose, kept_count

    assert [kept_count(576, ratio) for ratio in (0.25, 0.5, 0.75, 0.9)] == [432, 288, 144, 58]
    assert (kept_count(10, 0.7), kept_count(3, 0.99), kept_count(0, 0.5)) == (3, 1, 0)
    image = torch.zeros(2000, 10, dtype=torch.bool)
    image[:, 1:9] = True
    keep = choose(image, 0.75, 1.0, lambda row: generator(0, row))
    assert keep[:, [0, 9]].all() and (keep.sum(1) == 4).all()
    assert (keep[:, 1:9].float().mean(0) - 0.25).abs().max() < 0.05
    some = choose(image, 0.75, 0.25, lambda row: generator(0, row))
    assert abs(float((some.sum(1) == 4).float().mean()) - 0.25) < 0.05
    assert torch.equal(some[some.sum(1) == 4], keep[some.sum(1) == 4])  # the chance does not change the choice


def test_nothing_dropped_is_upstream_to_the_bit(trained):
    """Where it is no sample's turn, loss and gradients are the very same."""

    def gradients():
        trained.zero_grad()
        loss = trained(**batch_of((2, 1, 0))).loss
        loss.backward()
        return [loss, *(p.grad.clone() for p in trained.parameters() if p.grad is not None)]

    plain = gradients()
    hooks, _ = attached(trained, 0.75, 1e-9)
    try:
        same = gradients()
    finally:
        hooks.detach()
    trained.zero_grad()
    assert len(plain) == len(same) > 10 and all((a == b).all() for a, b in zip(plain, same, strict=True))


def test_hooks_and_methods_are_gone_afterwards(trained):
    hooks, _ = attached(trained, 0.75)
    assert sum(len(module._forward_pre_hooks) for module in trained.modules()) == 1  # one layer, one rotary table
    hooks.on_train_end(None, None, None)
    assert not any(module._forward_pre_hooks for module in trained.modules())


def test_a_model_without_position_ids_is_refused():
    from llava.model.language_model.llava_mpt import LlavaMptConfig, LlavaMptForCausalLM

    model = LlavaMptForCausalLM(LlavaMptConfig(d_model=32, n_heads=2, n_layers=1, vocab_size=64))
    with pytest.raises(ConfigError, match=r"--visual_token_drop 0\.5: LlavaMptForCausalLM takes no position_ids"):
        ModelHooks(HOST, [DropTokens(HOST, 0.5)]).attach(model)
    assert HOST.prepare not in vars(model)
