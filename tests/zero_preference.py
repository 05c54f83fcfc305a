"""Preference training under DeepSpeed's own engine, on CPUs: three steps, then what each rank finds.

    torchrun … zero_preference.py LLM TOWER STAGE OUT

Upstream's model is made and spread over the ranks as its training does it; transformers' trainer puts no ZeRO under it
without a GPU, so the steps are taken here. Each rank writes OUT.RANK: losses, whether the reference still is the model
that training began with, how far the policy has moved.
"""

import json
import os
import sys
from types import SimpleNamespace

import deepspeed
import torch
from conftest import build_llava
from deepspeed import zero
from peft import LoraConfig, get_peft_model

from vgift_plugin.hosts.llava import LLaVA
from vgift_plugin.hosts.model_hooks import ModelHooks
from vgift_plugin.methods.stic.loss import PreferenceLoss
from vgift_plugin.methods.stic.reference import Reference


def batch_of(rank):
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(5, 200, (4, 12), generator=generator)
    ids[:, 2] = -200
    labels = ids.clone()
    labels[:, :6] = -100
    images = torch.randn(4, 3, 28, 28, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids).bool(), "labels": labels, "images": images}


def main(llm, tower, stage, out):
    deepspeed.init_distributed("gloo")
    rank, stage = torch.distributed.get_rank(), int(stage)
    settings = {"train_micro_batch_size_per_gpu": 4, "zero_allow_untested_optimizer": True}
    settings["zero_optimization"] = {"stage": stage, "stage3_param_persistence_threshold": 0}
    batch = batch_of(rank)
    with torch.no_grad():
        before = build_llava(llm, tower)(**batch).logits
    torch.manual_seed(0)
    model = build_llava(llm, tower)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    for weight in model.get_model().mm_projector.parameters():
        weight.requires_grad = True
    if stage == 3:  # spread before the trainer is made, as from_pretrained does
        zero.Init(module=model, config_dict_or_path=settings)
    host = LLaVA()
    reference = Reference(host)
    loss = PreferenceLoss(0.1, 1 / 1024, reference)
    args, state = SimpleNamespace(output_dir=os.path.dirname(out), fsdp=[]), SimpleNamespace(global_step=0)
    reference.on_init_end(args, state, None, model=model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(trained, lr=1e-2), config=settings)
    reference.on_train_begin(args, state, None, model=model)
    ModelHooks(host, [loss]).attach(host.model(model), model)
    losses = []
    for _ in range(3):
        engine.train()
        value, _ = loss(model, engine, batch)
        engine.backward(value)
        engine.step()
        losses.append(value.item())
    with reference.standing(model):
        same = torch.equal(model(**batch).logits, before)
    with torch.no_grad():
        moved = (engine(**batch).logits - before).abs().max().item()
    with open(f"{out}.{rank}", "w") as file:
        json.dump({"losses": losses, "same": same, "moved": moved}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
    torch.distributed.destroy_process_group()
