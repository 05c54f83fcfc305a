"""The loss of preference pairs: sigmoid DPO with a regulariser (STIC, arXiv 2405.19716, equation 4.1), on tensors.

DPO: Rafailov et al. 2023, arXiv 2305.18290, equation 7.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from ...hosts import IGNORE_INDEX


def response_logps(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the log-probability of each row's response: the sum over its tokens, in nats, at most 0, shape (rows,).

    A token is predicted by the position before it, so the first label counts nowhere. Only places that carry a label
    are looked at: no (rows, length, vocabulary) of log-probabilities is ever made.

    Args:
        logits: (rows, length, vocabulary), of any floating type; sums are in float32, or float64 where these are.
        labels: (rows, length), IGNORE_INDEX where a token is not of the response.
    """
    true = labels[:, 1:]
    taught = true != IGNORE_INDEX
    chosen = logits[:, :-1][taught]
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    logps = -cross_entropy(chosen, true[taught], reduction="none")
    return logps.new_zeros(len(labels)).index_add(0, taught.nonzero()[:, 0], logps)


class Terms(NamedTuple):
    """What one batch of pairs comes to; all but `loss` without gradients, one number a pair, shape (pairs,).

    Attributes:
        loss: (), the mean over pairs of −log σ(margin) + regulariser.
        rewards_chosen: β (log π − log π_ref) of the preferred responses.
        rewards_rejected: the same of the others; the margin is the difference.
        logps_chosen: log π of the preferred responses, summed over their tokens.
        logps_rejected: the same of the others.
        kl: log π − log π_ref of the preferred responses, nats a sequence. Its mean would estimate the divergence
            KL(π ‖ π_ref) if the responses were drawn from π; they come from the model before training, so that it is an
            estimate at the first step (0) and later tells how far π has moved on them; it may be negative.
        regulariser: −α log π of the preferred responses.
    """

    loss: torch.Tensor
    rewards_chosen: torch.Tensor
    rewards_rejected: torch.Tensor
    logps_chosen: torch.Tensor
    logps_rejected: torch.Tensor
    kl: torch.Tensor
    regulariser: torch.Tensor


def dpo_loss(policy: torch.Tensor, reference: torch.Tensor, beta: float, alpha: float) -> Terms:
    """Returns −log σ(β [(log π(y_w) − log π_ref(y_w)) − (log π(y_l) − log π_ref(y_l))]) − α log π(y_w) and its parts.

    Before the first step policy and reference are equal: the loss is log 2 − α log π(y_w).

    Args:
        policy: (2, pairs), log-probabilities of the preferred responses, then of the others.
        reference: the same under the reference; no gradient flows into it.
        beta: how firmly the policy is tied to the reference, above 0.
        alpha: weight of the regulariser, from 0 up.
    """
    moved = policy - reference.detach()
    rewards = beta * moved
    regulariser = -alpha * policy[0]
    loss = (regulariser - logsigmoid(rewards[0] - rewards[1])).mean()
    parts = (rewards[0], rewards[1], policy[0], policy[1], moved[0], regulariser)
    return Terms(loss, *(part.detach() for part in parts))
