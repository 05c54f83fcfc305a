#!/bin/bash
# A fine-tuning script like upstream's (scripts/v1_5/finetune.sh), for a tiny model on a CPU, without any flag of the
# plugin.

python scripts/demo/train_cpu.py \
    --model_name_or_path ./demo_out/llm \
    --version v1 \
    --data_path ./demo_out/base.json \
    --image_folder ./demo_out/images \
    --vision_tower ./demo_out/clip-tower \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --bf16 False \
    --use_cpu True \
    --output_dir ./demo_out/checkpoint \
    --num_train_epochs 8 \
    --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 1 \
    --evaluation_strategy "no" \
    --save_strategy "no" \
    --learning_rate 2e-3 \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type "cosine" \
    --logging_steps 50 \
    --model_max_length 2048 \
    --gradient_checkpointing False \
    --dataloader_num_workers 1 \
    --lazy_preprocess True \
    --report_to none
