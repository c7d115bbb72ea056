#!/bin/bash
# Runs the programs of examples-c/ on a tiny model (the golden kit's Llama with a tokenizer of single characters): what it
# says is nonsense, that it says it is the test. Ends with "N passed, N failed".
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
bases=${BASES:-$root/Tests/Golden/data/bases}
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
passed=0 failed=0
cp -r "$bases/llama" "$work/model" && chmod -R u+w "$work/model" && cp "$root"/Tests/CInterface/Fixtures/tokenizer*.json "$work/model/" || exit 1
cd "$work" || exit 1

# check WHAT STATUS PATTERN COMMAND…: the exit status, and something the output must say.
check() {
    local what=$1 status=$2 pattern=$3 output got
    shift 3
    output=$(timeout 300 "$@" 2>&1 < "${input:-/dev/null}")
    got=$?
    if ((got == status)) && grep -qE -- "$pattern" <<< "$output"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $what: exit status $got (expected $status), expected to see: $pattern"
        tail -20 <<< "$output" | sed 's/^/    /'
    fi
}
build=$root/build

check "minimal --version" 0 '^1\.0\.0$' "$build/minimal" --version
check "minimal goes on with a text" 0 '.' "$build/minimal" model "Once upon a time"
check "minimal says what is missing" 1 "not found: .*nowhere" "$build/minimal" nowhere "Once"

for i in 1 2 3 4 5 6 7 8; do echo '{"messages": [{"role": "user", "content": "Hi '$i'"}, {"role": "assistant", "content": "Yes, what?"}]}'; done > data.jsonl
check "finetune" 0 "saved to learned" "$build/finetune" --model model --data data.jsonl --heldout data.jsonl --out learned --epochs 60 --rank 8 --lr 2e-2
check "finetune's folder" 0 '"peft_type": "LORA"' cat learned/adapter_config.json
check "finetune by steps, packed, little memory" 0 "step 3/3" "$build/finetune" --model model --data data.jsonl --out short --steps 3 --packing --length 64 --memory 100
yes "All work and no play" | head -c 20000 > long.txt
check "finetune without room says how much" 1 "finetune: memory: .*[0-9]" "$build/finetune" --model model --data long.txt --length 64 --batch 128 --out never --memory 1
(cat data.jsonl; echo '{"messages": "no list"}') > broken.jsonl
check "finetune with a bad line names it" 1 "line 9|:9" "$build/finetune" --model model --data broken.jsonl --out never
check "what failed leaves nothing" 1 "" test -e never
check "finetune explains itself" 2 "usage: finetune" "$build/finetune" --model model --out never
check "finetune names what it does not know" 2 "finetune: --rnak" "$build/finetune" --rnak 3

printf 'Hi 1\n/base\nHi 2\n/adapter short\nHi 3\n/adapter nobody\n/new\nHi 4\n/quit\n' > lines.txt
input=lines.txt check "chat switches adapters while it runs" 0 "There is no adapter \"nobody\". There are: learned short" \
    "$build/chat" --model model --adapter learned=learned --adapter short=short --tokens 12
printf 'Hi 1\n' > questions.txt
check "chat --compare" 0 "learned: Yes, what" "$build/chat" --model model --adapter learned=learned --tokens 12 --compare questions.txt
check "chat with an adapter that is not there" 1 "nowhere" "$build/chat" --model model --adapter a=nowhere

check "merge" 0 "saved to both" "$build/merge" --out both learned=0.7 short=-0.5
check "merge's folder" 0 '"r": 16' cat both/adapter_config.json
check "merge by signs" 0 "saved to elected" "$build/merge" --out elected --type ties_svd --density 0.5 --rank 4 learned short
check "merge over the model" 0 '"rank": 3' "$build/merge" --out small --model model --rank 3 learned
check "merge's adapter answers" 0 "both: ." "$build/chat" --model model --adapter both=both --tokens 12 --compare questions.txt
check "merge --compare" 0 '"cosine": [0-9.-]+' "$build/merge" --compare learned both
check "merge with a density that cannot be" 1 "density is 7" "$build/merge" --out never --type ties_svd --density 7 learned short
check "merge with an adapter that is not there" 1 "not found: .*nowhere" "$build/merge" --out never learned nowhere
check "what was not merged leaves nothing" 1 "" test -e never
check "merge explains itself" 2 "usage: merge" "$build/merge" learned

check "quantize into a folder" 0 "outputs:|saved to four" "$build/quantize" --model model --out four --type nf4 --block 32 --double --text long.txt --length 64
check "quantize's folder" 0 '"bnb_4bit_use_double_quant": true' cat four/config.json
check "quantize's folder answers" 0 "." "$build/minimal" four "Once"
check "quantize names a type that is none" 1 "nf5" "$build/quantize" --model model --out never --type nf5
check "quantize writes GGUF of tokenizers that it has a name for" 1 "unsupported: .*pre-tokenizer" "$build/quantize" --model model --out never.gguf --type Q4_K_M
check "what was not quantised leaves nothing" 1 "" test -e never
check "quantize explains itself" 2 "usage: quantize" "$build/quantize" --model model
check "control runs" 0 "" bash -c "$build/control > control.txt"
check "control's first pole stands" 0 "of 500: (4[5-9][0-9]|500)$" cat control.txt
check "control's other pole falls" 0 "same network: [0-9]{1,2}$" cat control.txt
check "control adapts" 0 "after 100 updates: (4[5-9][0-9]|500)$" cat control.txt
check "control without the adapter is as before" 0 "without the adapter: (4[5-9][0-9]|500)$" cat control.txt
check "policy explains itself" 2 "usage: policy" "$build/policy"
check "policy says what is missing" 1 "not found: .*nowhere" "$build/policy" nowhere
if [ -e "$root/.cache/reversi/config.json" ]; then
    check "policy learns the other rule" 0 "" bash -c "$build/policy $root/.cache/reversi 3 > policy.txt"
    check "policy is no better than itself at first" 0 "before learning: (2[0-9]|3[0-9]|4[0-3])\.[05] of 64 games" cat policy.txt
    check "policy wins by the other rule" 0 "best: [0-9.]+ of 64 games \((9[0-9]|100) %\) against the frozen network" cat policy.txt
else
    echo "SKIP policy: .cache/reversi is not there (scripts/fetch_inputs.py reversi)"
fi
echo "$passed passed, $failed failed"
((failed == 0))
