"""What is read of a forward's output, and the loss of experts' routers, which no weight of tokens may scale."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from torch.nn.functional import cross_entropy  # noqa: E402
from transformers.utils import ModelOutput  # noqa: E402

from vgift_plugin.hosts import IGNORE_INDEX, outputs  # noqa: E402
from vgift_plugin.hosts.token_facts import Tokens  # noqa: E402
from vgift_plugin.methods.l2t.losses import InstructionLosses  # noqa: E402
from vgift_plugin.methods.vgift.losses import TaskLosses  # noqa: E402

LABELS = torch.tensor([[IGNORE_INDEX, 1, 2, 3, 0], [IGNORE_INDEX, 2, 2, IGNORE_INDEX, 1]])
INSTRUCTION = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 0, 0, 0]]).bool()
ROUTER = torch.tensor(0.25)


def tokens():
    return Tokens(LABELS, torch.ones_like(LABELS), INSTRUCTION, torch.zeros_like(LABELS))


def forward(form, router):
    """Returns a model's output for LABELS, and its logits."""
    logits = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten())
    loss = loss if router is None else loss + router
    if form == "tuple":
        return tuple(one for one in (loss, router, logits, [ROUTER]) if one is not None), logits
    named = {"loss": loss, "moe_loss": router, "logits": logits}
    return (ModelOutput if form == "mapping" else dict)(**named), logits


@pytest.mark.parametrize("form", ["mapping", "dict", "tuple"])
@pytest.mark.parametrize("router", [None, ROUTER])
def test_read(form, router):
    output, logits = forward(form, router)
    found = outputs.read(output)
    assert found.logits is logits and found.router is router and found.loss.ndim == 0


def test_a_tuple_without_scores():
    assert outputs.read((torch.tensor(1.0), [ROUTER])) == (torch.tensor(1.0), None, None)


@pytest.mark.parametrize("form", ["mapping", "tuple"])
@pytest.mark.parametrize("router", [None, ROUTER])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_routers_loss_is_not_weighed(form, router, weight):
    output, logits = forward(form, router)
    step = InstructionLosses(weight)
    changed = step.forward(torch.nn.Linear(1, 1).train(), output, tokens())
    each = cross_entropy(logits[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten(), reduction="none").view(2, 4)
    told, asked = (LABELS[:, 1:] != IGNORE_INDEX) & ~INSTRUCTION[:, 1:], INSTRUCTION[:, 1:]
    expected = (each[told].sum() + weight * each[asked].sum()) / (told.sum() + weight * asked.sum())
    expected = expected if router is None else expected + router
    assert torch.allclose(outputs.read(changed).loss, expected)
    assert step.take()["instruction_loss"] == pytest.approx(each[asked].mean().item(), rel=1e-5)


@pytest.mark.parametrize("form", ["mapping", "tuple"])
def test_losses_of_tasks_are_found_in_a_tuple(form):
    step = TaskLosses(["rotation"])
    step.forward(torch.nn.Linear(1, 1).train(), forward(form, ROUTER)[0], tokens())
    assert step._sums[1, 1] == (LABELS[:, 1:] != IGNORE_INDEX).sum()
