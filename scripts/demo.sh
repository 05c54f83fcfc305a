#!/usr/bin/env bash
# Demo of the main use, from scratch: builds a tiny LLaVA, draws pictures, fine-tunes with upstream's own code and
# self-supervised samples mixed in, and measures on held-out pictures whether the model uses them.
source "$(dirname "$0")/env.sh"

SECONDS=0
out=demo_out
tasks=rotation,jigsaw:2,position:2
knobs=scripts/demo/knobs.yaml
rm -rf "$out"
mkdir "$out"
export OMP_NUM_THREADS=1 # the model is small, and the data loader has a process of its own

echo "== a tiny LLaVA: random weights, but for a vision tower that is taught to tell regions of scenes apart; and scenes"
python scripts/demo/tiny_llava.py "$out" --image_px 84 --tower_hidden 64 --tower_layers 3 --tasks rotation jigsaw position
python scripts/demo/tower.py "$out/clip-tower"
python scripts/demo/scenes.py "$out"

echo "== look before you train"
vgift preview --ssl_tasks "$tasks" --ssl_config "$knobs" --image_folder "$out/images/train" -n 12 -o "$out/gallery.html"

echo "== upstream's fine-tuning script, unedited, with self-supervised samples"
vgift run --ssl_tasks "$tasks" --ssl_ratio 1.0 --ssl_config "$knobs" --ssl_image_folder "$out/images/train" \
    --ssl_eval_samples 50 --ssl_eval_image_folder "$out/images/heldout" -- bash scripts/demo/finetune.sh

echo "== held-out pictures: sighted, blind (a grey square), and shuffled (another sample's picture)"
vgift probe --model_path "$out/checkpoint" --ssl_tasks "$tasks" --ssl_config "$knobs" --image_folder "$out/images/heldout" \
    -n 1000 --batch_size 100 -o "$out/probe.html" --json "$out/results.json"
echo
echo "gallery   $out/gallery.html"
echo "mistakes  $out/probe.html"
echo "results   $out/results.json"
echo "the mix   $out/checkpoint/vgift_mix.json"
echo "done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
