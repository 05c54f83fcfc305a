"""The names that Qwen-VL-Series-Finetune imports; on a CPU it is run with `--use_liger False`."""


def _needs_a_gpu(*_, **__):
    raise RuntimeError("liger-kernel's kernels need a GPU: --use_liger False")


apply_liger_kernel_to_qwen2_vl = apply_liger_kernel_to_qwen2_5_vl = _needs_a_gpu
