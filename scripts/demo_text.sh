#!/bin/bash
# make demo-text: a writer's way with words. Fine-tunes on five novels of Jane Austen and judges by the sixth.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/demo_steps.sh
out=build/austen
begin=$SECONDS

.venv/bin/python scripts/fetch_inputs.py austen
train=.cache/austen-five.txt heldout=.cache/austen-heldout.txt
cat .cache/austen-{emma,mansfieldpark,northangerabbey,prideprejudice,sensesensibility}.txt > "$train"
# The first chapters of Persuasion: enough to judge by, quickly.
head -n 900 .cache/austen-persuasion.txt > "$heldout"

step "Fine-tuning on five novels of Jane Austen; held out: the first chapters of the sixth, Persuasion"
build/finetune --model "$model" --data "$train" --heldout "$heldout" --out "$out" --length 512 --batch 1 --steps "${STEPS:-160}" --lr 5e-4 --rank 8

step "How the model and the adapter go on"
build/chat --model "$model" --adapter austen="$out" --tokens 50 --complete <(printf '%s\n' \
  "It is a truth universally acknowledged, that a blacksmith in possession of a good forge" \
  "Sir Walter looked at the letter, and" \
  "The ball at Netherfield was not yet over when") | tidy

step "Done in $(minutes $((SECONDS - begin)))"
echo "  The adapter is in $out ($(du -sh --apparent-size "$out" | cut -f1)B)."
echo
