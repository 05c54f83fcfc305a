#!/bin/bash
# Prepares, trains or probes the runs of needs.yaml.
#   longer   four times as many epochs          marks   a tower that was also taught to read marks
#   after    a run on rotation first            112px   scenes, tower and samples of 112 px instead of 84
export OMP_NUM_THREADS=1
task="${STUDY_ARM%%-*}" config=scripts/study/tiny/knobs.yaml
export TINY_DATA="$STUDY_OUT/tiny"
case "$STUDY_ARM" in
*-112px) TINY_DATA="$STUDY_OUT/112px" config=scripts/study/tiny/knobs-112px.yaml ;;
*-marks*) TINY_DATA="$STUDY_OUT/marks" ;;
esac
case "$STUDY_ARM" in
*-longer) export TINY_EPOCHS=24 ;;
esac

case "$1" in
prepare)
    python scripts/study/tiny/prepare.py "$STUDY_OUT/marks" --marks &
    python scripts/study/tiny/prepare.py "$STUDY_OUT/tiny" &&
        python scripts/study/tiny/prepare.py "$STUDY_OUT/112px" --side_px 112 &&
        wait $!
    ;;
train)
    if [ "$STUDY_ARM" = "$task-after" ]; then
        TINY_OUTPUT="$STUDY_RUN/rotation" bash scripts/study/tiny/train.sh --ssl_tasks rotation || exit
        export TINY_MODEL="$STUDY_RUN/rotation"
    fi
    exec bash scripts/study/tiny/train.sh
    ;;
probe)
    exec python scripts/study/probe.py --ssl_tasks "$task" --ssl_config "$config" \
        --image_folder "$TINY_DATA/seed-$STUDY_SEED/images/heldout" -n "$([ -n "$STUDY_QUICK" ] && echo 20 || echo 400)" \
        --batch_size 50
    ;;
esac
