#!/bin/bash
# Fine-tunes LLaVA-1.5 with Vicuna-7B as its authors do, into $STUDY_RUN and with $STUDY_SEED. Of the variables, LLAVA is
# LLaVA's checkout, DATA the folder with llava_v1_5_mix665k.json and its images, PROJECTOR the pretrained mm_projector.bin.

: "${LLAVA:?the checkout}" "${DATA:?the folder of the data}" "${PROJECTOR:?the pretrained mm_projector.bin}"

deepspeed "$LLAVA/llava/train/train_mem.py" \
    --deepspeed "$LLAVA/scripts/zero3.json" \
    --model_name_or_path "${BASE_MODEL:-lmsys/vicuna-7b-v1.5}" \
    --version v1 \
    --data_path "$DATA/llava_v1_5_mix665k.json" \
    --image_folder "$DATA" \
    --vision_tower openai/clip-vit-large-patch14-336 \
    --pretrain_mm_mlp_adapter "$PROJECTOR" \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --bf16 True \
    --tf32 True \
    --output_dir "$STUDY_RUN/checkpoint" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 8 \
    --gradient_accumulation_steps "${ACCUMULATE:-4}" \
    --evaluation_strategy "no" \
    --save_strategy "no" \
    --learning_rate 2e-5 \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type "cosine" \
    --logging_steps 1 \
    --model_max_length 2048 \
    --gradient_checkpointing True \
    --dataloader_num_workers 4 \
    --lazy_preprocess True \
    --seed "$STUDY_SEED" \
    --report_to "${REPORT_TO:-none}"
