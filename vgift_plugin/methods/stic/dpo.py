"""The loss of preference pairs on tensors: sigmoid DPO with a regulariser (STIC, arXiv 2405.19716, equation 4.1).

DPO: Rafailov et al. 2023, arXiv 2305.18290, equation 7.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from ...hosts import IGNORE_INDEX


def response_logps(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the log-probability of each row's response: the sum over its tokens, in nats, at most 0, shape (rows,).

    A token is predicted at the position before it, so the first label is ignored. Only positions with a label are
    computed, so no tensor of log-probabilities of shape (rows, length, vocabulary) is created.

    Args:
        logits: (rows, length, vocabulary), of any floating type; sums are in float32, or in float64 for float64 logits.
        labels: (rows, length), IGNORE_INDEX for tokens outside the response.
    """
    true = labels[:, 1:]
    supervised = true != IGNORE_INDEX
    chosen = logits[:, :-1][supervised]
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    logps = -cross_entropy(chosen, true[supervised], reduction="none")
    return logps.new_zeros(len(labels)).index_add(0, supervised.nonzero()[:, 0], logps)


class Terms(NamedTuple):
    """The loss of one batch of pairs and its parts, which have no gradients and one number per pair, shape (pairs,).

    Attributes:
        loss: (), the mean over pairs of −log σ(margin) + regulariser.
        rewards_chosen: β (log π − log π_ref) of the preferred responses.
        rewards_rejected: the same for the others; the margin is the difference.
        logps_chosen: log π of the preferred responses, summed over their tokens.
        logps_rejected: the same for the others.
        kl: log π − log π_ref of the preferred responses, nats per sequence. Its mean would estimate the divergence
            KL(π ‖ π_ref) if the responses were drawn from π. They come from the model before training, so this holds
            at the first step (0); later it shows how far π has moved on them, and it may be negative.
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

    Before the first step policy and reference are equal, and the loss is log 2 − α log π(y_w).

    Args:
        policy: (2, pairs), log-probabilities of the preferred responses, then of the others.
        reference: the same under the reference; it gets no gradient.
        beta: how strongly the policy is tied to the reference, above 0.
        alpha: weight of the regulariser, from 0 up.
    """
    moved = policy - reference.detach()
    rewards = beta * moved
    regulariser = -alpha * policy[0]
    loss = (regulariser - logsigmoid(rewards[0] - rewards[1])).mean()
    parts = (rewards[0], rewards[1], policy[0], policy[1], moved[0], regulariser)
    return Terms(loss, *(part.detach() for part in parts))
