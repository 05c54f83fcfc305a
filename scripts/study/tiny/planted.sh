#!/bin/bash
# One run of planted.yaml: `leaked` also trains on the questions that it is evaluated with, `again` is `base` with
# another seed of the run.
data="$STUDY_OUT/tiny/seed-$STUDY_SEED"
case "$STUDY_ARM" in
leaked)
    export TINY_RECORDS="$STUDY_RUN/records.json"
    python -c 'import json, sys; print(json.dumps(sum((json.load(open(path)) for path in sys.argv[1:]), [])))' \
        "$data/base.json" "$data/questions.json" >"$TINY_RECORDS"
    ;;
again) export TINY_SEED=$((STUDY_SEED + 1000)) ;;
esac
exec bash scripts/study/tiny/train.sh
