#!/bin/bash
# make demo: a character for a game. Fine-tunes an adapter on the quantised model with examples-c/finetune.c and lets
# examples-c/chat.c ask the model and the adapter the same questions.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/demo_steps.sh
out=build/blacksmith
begin=$SECONDS

step "The model"
echo "  SmolLM2-135M-Instruct: $(du -h --apparent-size "$model" | cut -f1)B, weights of 4 bits and a scale a block. They stay as they are."

step "Fine-tuning on $(wc -l < examples-data/blacksmith.jsonl) dialogues with a blacksmith (examples-data/blacksmith.jsonl)"
build/finetune --model "$model" --data examples-data/blacksmith.jsonl --heldout examples-data/blacksmith-heldout.jsonl --out "$out" \
  --batch 8 --epochs "${EPOCHS:-4}" --lr 2e-3 --rank 8

step "The same questions, before and after"
build/chat --model "$model" --adapter brenna="$out" --tokens 60 --compare examples-data/blacksmith-questions.txt | tidy

step "Done in $(minutes $((SECONDS - begin)))"
echo "  The adapter is in $out ($(du -sh --apparent-size "$out" | cut -f1)B): it loads here and in Hugging Face PEFT."
echo "  Talk to her:"
echo
echo "    build/chat --model $model --adapter brenna=$out"
echo
