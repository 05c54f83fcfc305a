#!/usr/bin/env bash
# Demo of a task's score as a verifiable reward, from scratch: TRL's GRPOTrainer teaches a tiny Qwen2.5-VL rotation, of
# which it first knows only what an answer looks like; three seeds, measured on scenes that no training sample shows.
export VGIFT_PINS=qwen
source "$(dirname "$0")/env.sh"

SECONDS=0
out=rl_out
rm -rf "$out"
mkdir "$out"
export OMP_NUM_THREADS=1 # the seeds run side by side

echo "== scenes to train on, and others to measure on"
python scripts/rl/scenes.py "$out/scenes"

echo "== three seeds: the form from random answers, then GRPO with the task's score as the reward"
pids=()
for seed in 0 1 2; do
    python scripts/rl/learn.py "$out/scenes" "$out" --seed "$seed" >"$out/seed-$seed.log" 2>&1 &
    pids+=($!)
done
failed=0
for seed in 0 1 2; do
    wait "${pids[$seed]}" || { echo "seed $seed failed: $out/seed-$seed.log" >&2 && failed=1; }
done

echo "== held-out scenes: mean reward with a 95 % interval over items; blind: the picture is replaced by a grey one"
python scripts/rl/table.py "$out"
echo
echo "results   $out/seed-*.json, with every score"
echo "done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
exit "$failed"
