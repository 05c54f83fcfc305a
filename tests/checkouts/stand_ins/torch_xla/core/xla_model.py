"""What Cambrian's trainer imports, and calls on a TPU alone."""


def _needs_a_tpu(*_, **__):
    raise RuntimeError("torch_xla needs a TPU")


xla_device = xrt_world_size = all_reduce = _needs_a_tpu
