#!/bin/bash
# A LoRA script like upstream's (scripts/v1_5/finetune_lora.sh), for a tiny model on a CPU, without any flag of the
# plugin: run by itself, it would train on --data_path.

python scripts/demo/train_cpu.py \
    --lora_enable True --lora_r 8 --lora_alpha 16 --mm_projector_lr 2e-5 \
    --model_name_or_path ./stic_out/base \
    --version v1 \
    --data_path ./stic_out/base.json \
    --image_folder ./stic_out/images/unlabelled \
    --vision_tower ./stic_out/clip-tower \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --bf16 False \
    --use_cpu True \
    --output_dir ./stic_out/llava-lora \
    --num_train_epochs 6 \
    --per_device_train_batch_size 8 \
    --gradient_accumulation_steps 1 \
    --evaluation_strategy "no" \
    --save_strategy "no" \
    --learning_rate 1e-3 \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type "cosine" \
    --logging_steps 5 \
    --model_max_length 2048 \
    --gradient_checkpointing False \
    --dataloader_num_workers 1 \
    --lazy_preprocess True \
    --report_to none
