"""The names that Qwen-VL-Series-Finetune imports. What counts for a plugin is what its fused loss leaves out: a forward
in training returns the loss and no logits."""

import functools

from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration


def _without_logits(model):
    original = model.forward

    @functools.wraps(original)
    def forward(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        if self.training and kwargs.get("labels") is not None:
            output.logits = None
        return output

    model.forward = forward


def apply_liger_kernel_to_qwen2_vl():
    _without_logits(Qwen2VLForConditionalGeneration)


def apply_liger_kernel_to_qwen2_5_vl():
    _without_logits(Qwen2_5_VLForConditionalGeneration)
