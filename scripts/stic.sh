#!/usr/bin/env bash
# Demo of STIC, from scratch: a tiny LLaVA learns to describe drawn pictures, writes pairs of descriptions, learns to
# prefer the better ones (stage 1), trains on its own descriptions (stage 2), and is compared with the base model.
source "$(dirname "$0")/env.sh"

SECONDS=0
out=stic_out
rm -rf "$out"
mkdir "$out"
export OMP_NUM_THREADS=1 # more threads would wait for each other on a busy machine

echo "== a tiny LLaVA with random weights, pictures, and records that tell what they show"
python scripts/demo/tiny_llava.py "$out"
python scripts/demo/tellings.py "$out"

echo "== the base model: upstream's fine-tuning script"
MODEL="./$out/llm" DATA="./$out/base.json" OUTPUT="./$out/base" EPOCHS=4 LEARNING_RATE=3e-3 \
    bash scripts/demo/finetune_stic.sh

echo "== a better and a worse description of pictures without labels"
vgift stic prefer --model_path "$out/base" --image_folder "$out/images/unlabelled" -n 48 --max_new_tokens 48 \
    --batch_size 16 -o "$out/prefs.jsonl"
vgift stic preview "$out/prefs.jsonl" --image_folder "$out/images/unlabelled" -n 4 -o "$out/pairs.html"

echo "== stage 1: upstream's LoRA script, unedited, on the preferences"
vgift run --preference_data "$out/prefs.jsonl" -- bash scripts/demo/finetune_lora.sh
python - "$out/llava-lora/trainer_state.json" <<'END'
import json
import sys

log = [row for row in json.load(open(sys.argv[1]))["log_history"] if "rewards/margins" in row]
for row in (log[0], log[-1]):
    print(f"step {row['step']}: margin {row['rewards/margins']:.3f}, preferred {row['rewards/accuracies']:.1%}")
END
python scripts/demo/merge_lora.py "$out/llava-lora" "$out/base" "$out/stage1"

echo "== stage 2: its own descriptions before questions that the base was trained on, upstream's script once more"
vgift stic describe --model_path "$out/stage1" --data_path "$out/questions.json" --image_folder "$out/images" -n 400 \
    --max_new_tokens 48 --batch_size 16 -o "$out/described.json"
MODEL="./$out/stage1" DATA="./$out/described.json" OUTPUT="./$out/stage2" EPOCHS=2 LEARNING_RATE=1e-3 \
    bash scripts/demo/finetune_stic.sh

for model in base stage2; do
    echo "== held-out questions, plain and with its own description first: $model"
    vgift probe --model_path "$out/$model" --data_path "$out/heldout.json" --image_folder "$out/images" -n 200 \
        --batch_size 50 --describe_first -o "$out/$model.html" --json "$out/$model.json"
done
echo "== side by side (stage 2 has also trained longer than the base: not the preferences alone)"
python - "$out" base stage2 <<'END'
import json
import sys

out, *models = sys.argv[1:]
print("right replies: plain             description first         log p per token: plain, description first")
for model in models:
    first = json.load(open(f"{out}/{model}.json"))["describe_first"]
    ways = [first["short"][way] for way in ("plain", "described")]
    shares = "".join("{accuracy:7.1%}  {low:5.1%} to {high:5.1%}  ".format(**way) for way in ways)
    print(f"{model:9}{shares} {first['plain']:7.3f}  {first['described']:7.3f}")
END
echo
echo "pairs      $out/prefs.jsonl, to be looked at in $out/pairs.html"
echo "described  $out/described.json"
for model in base stage2; do
    printf '%-9s  %s\n' "$model" "$out/$model, measured in $out/$model.html and $out/$model.json"
done
echo "done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
