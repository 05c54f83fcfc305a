#!/bin/bash
# One run of the tiny study: upstream's own training code on a CPU, without any flag of the plugin.
# $TINY_DATA, $TINY_RECORDS, $TINY_MODEL, $TINY_OUTPUT, $TINY_EPOCHS and $TINY_SEED may say otherwise, and so may
# further arguments.
export OMP_NUM_THREADS=1
data="${TINY_DATA:-$STUDY_OUT/tiny}/seed-$STUDY_SEED"
[ -n "$STUDY_QUICK" ] && TINY_EPOCHS=1

python scripts/study/tiny/train.py \
    --model_name_or_path "${TINY_MODEL:-$data/llm}" \
    --version v1 \
    --data_path "${TINY_RECORDS:-$data/base.json}" \
    --image_folder "$data/images" \
    --vision_tower "$data/clip-tower" \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --bf16 False \
    --use_cpu True \
    --output_dir "${TINY_OUTPUT:-$STUDY_RUN/checkpoint}" \
    --num_train_epochs "${TINY_EPOCHS:-6}" \
    --per_device_train_batch_size 16 \
    --evaluation_strategy "no" \
    --save_strategy "no" \
    --learning_rate 2e-3 \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type "cosine" \
    --logging_steps 50 \
    --model_max_length 2048 \
    --gradient_checkpointing False \
    --lazy_preprocess True \
    --seed "${TINY_SEED:-$STUDY_SEED}" \
    --report_to none "$@"
