"""The loss of pairs, its gradients and its log-probabilities, against arithmetic done by hand in float64."""

import math

import pytest

torch = pytest.importorskip("torch")
from vgift_plugin.methods.stic.dpo import IGNORE_INDEX, dpo_loss, response_logps  # noqa: E402

BETA, ALPHA = 0.1, 1 / 1024


def random(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(rows=6, length=9, vocabulary=17):
    """Responses of different lengths in the middle, at the end, one with a gap, one that begins at the first place."""
    labels = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))
    for row, hidden in enumerate([(0, 4), (0, 7), (3, 9), (0, 0), (5, 6), (1, 8)]):
        labels[row, slice(*hidden)] = IGNORE_INDEX
    return labels


def logp_by_hand(logits, labels):
    """Sums log softmax token by token, with math alone."""
    result = []
    for row in range(len(labels)):
        total = 0.0
        for place in range(1, labels.shape[1]):
            token = int(labels[row, place])
            if token != IGNORE_INDEX:
                scores = logits[row, place - 1].tolist()
                top = max(scores)
                total += scores[token] - top - math.log(sum(math.exp(score - top) for score in scores))
        result.append(total)
    return result


def test_log_probabilities_are_those_of_the_response_and_no_other_token():
    logits, labels = random(6, 9, 17), labels_of()
    by_hand = logp_by_hand(logits, labels)
    assert response_logps(logits, labels).tolist() == pytest.approx(by_hand, rel=1e-12)
    assert response_logps(logits.float(), labels).tolist() == pytest.approx(by_hand, rel=1e-5)
    assert max(by_hand) < 0 and response_logps(logits.bfloat16(), labels).dtype == torch.float32
    nothing = torch.full_like(labels, IGNORE_INDEX)
    nothing[:, 0] = 3  # predicted by no place
    assert response_logps(logits, nothing).tolist() == [0.0] * 6


def test_log_probabilities_pass_gradients_to_the_places_before_the_response_alone():
    logits, labels = random(6, 9, 17).requires_grad_(), labels_of()
    response_logps(logits, labels).sum().backward()
    predicts = torch.zeros(6, 9, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    assert (logits.grad.abs().sum(-1) > 0).equal(predicts)
    expected = torch.zeros_like(logits)
    for row, place in predicts.nonzero().tolist():  # of log softmax: one hot − softmax
        expected[row, place] = -logits[row, place].detach().softmax(-1)
        expected[row, place, labels[row, place + 1]] += 1
    torch.testing.assert_close(logits.grad, expected, rtol=1e-10, atol=1e-12)


def loss_by_hand(policy, reference, beta, alpha):
    total = 0.0
    for (w, lose), (ref_w, ref_l) in zip(policy, reference, strict=True):
        margin = beta * ((w - ref_w) - (lose - ref_l))
        total += math.log(1 + math.exp(-margin)) - alpha * w
    return total / len(policy)


@pytest.mark.parametrize(("beta", "alpha"), [(0.1, 1 / 1024), (0.5, 0.0), (2.0, 0.3)])
def test_the_loss_from_logits_is_the_one_by_hand_and_trls(beta, alpha):
    labels = labels_of()
    logits, others = random(6, 9, 17), random(6, 9, 17, seed=5)
    policy, reference = logp_by_hand(logits, labels), logp_by_hand(others, labels)
    pairs = [list(zip(one[:3], one[3:], strict=True)) for one in (policy, reference)]
    found = dpo_loss(
        response_logps(logits, labels).view(2, 3), response_logps(others, labels).view(2, 3), beta=beta, alpha=alpha
    )
    assert found.loss.item() == pytest.approx(loss_by_hand(*pairs, beta, alpha), rel=1e-12)

    # TRL's documented sigmoid loss: −logsigmoid(β (π log-ratio − reference log-ratio)), whole rows of log softmax.
    def trl(logits):
        logps, true = logits.log_softmax(-1)[:, :-1], labels[:, 1:]
        kept = true != IGNORE_INDEX
        return (logps.gather(2, true.clamp(min=0)[..., None])[..., 0] * kept).sum(1)

    (w, lose), (ref_w, ref_l) = trl(logits).view(2, 3), trl(others).view(2, 3)
    published = -torch.nn.functional.logsigmoid(beta * ((w - lose) - (ref_w - ref_l)))
    assert found.loss.item() == pytest.approx((published - alpha * w).mean().item(), rel=1e-12)
    assert (found.rewards_chosen - found.rewards_rejected).tolist() == pytest.approx(
        (beta * ((w - lose) - (ref_w - ref_l))).tolist()
    )
    assert found.kl.tolist() == pytest.approx((w - ref_w).tolist())
    assert found.regulariser.tolist() == pytest.approx((-alpha * w).tolist())
    assert (found.logps_chosen.tolist(), found.logps_rejected.tolist()) == (
        pytest.approx(w.tolist()),
        pytest.approx(lose.tolist()),
    )


def test_gradients_are_the_formulas_and_finite_differences():
    policy, reference = random(2, 5).requires_grad_(), random(2, 5, seed=3).requires_grad_()
    dpo_loss(policy, reference, BETA, ALPHA).loss.backward()
    assert reference.grad is None
    moved = (policy - reference).detach()
    wrong = torch.sigmoid(-BETA * (moved[0] - moved[1]))  # how wrong the model still is about the pair
    expected = torch.stack([-BETA * wrong - ALPHA, BETA * wrong]) / 5
    torch.testing.assert_close(policy.grad, expected, rtol=1e-12, atol=0)
    for beta, alpha in ((0.1, 1 / 1024), (3.0, 0.5)):
        assert torch.autograd.gradcheck(
            lambda one, beta=beta, alpha=alpha: dpo_loss(one, reference.detach(), beta, alpha).loss, policy
        )


def test_gradients_reach_the_logits():
    labels, reference = labels_of(), random(2, 3, seed=3)
    logits = random(6, 9, 17, scale=1.0).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda one: dpo_loss(response_logps(one, labels).view(2, 3), reference, BETA, ALPHA).loss, logits
    )


def test_without_alpha_only_the_differences_count():
    policy, reference = random(2, 5), random(2, 5, seed=3)
    loss = dpo_loss(policy, reference, BETA, 0.0)
    assert loss.regulariser.abs().max() == 0
    assert dpo_loss(policy + 7, reference, BETA, 0.0).loss.item() == pytest.approx(loss.loss.item(), rel=1e-12)
    assert dpo_loss(policy + 7, reference, BETA, ALPHA).loss != dpo_loss(policy, reference, BETA, ALPHA).loss


def test_as_beta_goes_to_nothing_log_2_and_the_regulariser_are_left():
    policy, reference = random(2, 5).requires_grad_(), random(2, 5, seed=3)
    loss = dpo_loss(policy, reference, 1e-9, ALPHA).loss
    assert loss.item() == pytest.approx(math.log(2) - ALPHA * policy[0].mean().item(), abs=1e-8)
    loss.backward()
    torch.testing.assert_close(policy.grad[0], torch.full((5,), -ALPHA / 5, dtype=torch.float64), atol=1e-9, rtol=0)
    assert policy.grad[1].abs().max() < 1e-9


def test_a_sure_margin_neither_overflows_nor_teaches():
    policy = torch.tensor([[0.0, -9e4], [-9e4, 0.0]], requires_grad=True)
    terms = dpo_loss(policy, torch.zeros(2, 2), 1.0, 0.0)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(4.5e4) and policy.grad[:, 0].abs().max() == 0
    assert policy.grad[:, 1].tolist() == [-0.5, 0.5]
