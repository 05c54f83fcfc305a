"""What stands in for a GPU where Qwen-VL's fine-tuning codes run without one; nothing in their files is changed."""

import functools
import sys
from pathlib import Path

import torch
import wrapt

KEPT = []  # torch takes an operator away again when its library is collected


def stand_in():
    """To be called before transformers, torchvision and the host are imported."""
    sys.path.append(str(Path(__file__).with_name("stand_ins")))
    wrapt.register_post_import_hook(_name_operators, "torchvision.extension")
    wrapt.register_post_import_hook(_with_torchs_attention, "transformers.modeling_utils")
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda *_: None  # what the host does before it saves, with DeepSpeed


def _name_operators(extension):
    """torchvision's library may want CUDA's, and then torchvision is not imported for the lack of two names."""
    if extension._has_ops() or KEPT:
        return
    KEPT.append(torch.library.Library("torchvision", "DEF"))
    KEPT[0].define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    KEPT[0].define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _with_torchs_attention(modeling):
    """Where flash attention is asked for the model gets torch's."""
    original = modeling.PreTrainedModel.from_pretrained.__func__

    @functools.wraps(original)
    def from_pretrained(cls, *arguments, **options):
        if options.get("attn_implementation") == "flash_attention_2":
            options["attn_implementation"] = "sdpa"
        return original(cls, *arguments, **options)

    modeling.PreTrainedModel.from_pretrained = classmethod(from_pretrained)
