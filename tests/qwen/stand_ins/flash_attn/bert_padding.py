"""What VILA imports, and calls on a GPU alone."""


def _needs_a_gpu(*_, **__):
    raise RuntimeError("flash-attn needs a GPU")


index_first_axis = pad_input = unpad_input = _needs_a_gpu
