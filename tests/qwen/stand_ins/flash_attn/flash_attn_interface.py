"""The one function of flash-attn that Qwen-VL's fine-tuning code calls, as torch's own attention per segment."""

import itertools

import torch


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=False, **rest):
    """q, k, v: (tokens, heads, size); segment i is the tokens from cu_seqlens[i] on, up to cu_seqlens[i + 1]."""
    assert not rest and torch.equal(cu_seqlens_q, cu_seqlens_k) and max_seqlen_q == max_seqlen_k
    bounds = cu_seqlens_q.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(q), f"segments end at {bounds[-1]}, the row at {len(q)}"
    assert max_seqlen_q == max(b - a for a, b in itertools.pairwise(bounds))
    group = q.shape[1] // k.shape[1]
    k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
    done = []
    for a, b in itertools.pairwise(bounds):
        one = (part[a:b].transpose(0, 1) for part in (q, k, v))
        done.append(torch.nn.functional.scaled_dot_product_attention(*one, is_causal=causal).transpose(0, 1))
    return torch.cat(done)


def __getattr__(name):
    """Other names of the package, which VILA imports."""
    if not name.startswith("flash_attn"):
        raise AttributeError(name)

    def needs_a_gpu(*_, **__):
        raise RuntimeError(f"{name} needs a GPU")

    return needs_a_gpu
