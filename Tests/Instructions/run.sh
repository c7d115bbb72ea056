#!/bin/bash
# Counts the instructions of fixed jobs (jobs.c) with valgrind and compares them with counts.txt: what times cannot show on a
# busy machine, counts do. More than 5 % above what is recorded fails.
#
#   Tests/Instructions/run.sh build/libpeftswift.so.1 [--record]
#
# Counts belong to the compiler and the C library they were recorded with; another toolchain may want --record.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
library=$(realpath "${1:?usage: $0 library [--record]}")
record=${2-}
command -v valgrind > /dev/null || { echo "valgrind is not installed (scripts/setup.sh --tests)"; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$library" "$work/libpeftswift.so.1"
${CC:-cc} -std=c99 -Wall -Wextra -Werror -O1 -I"$root/include" "$here/jobs.c" -o "$work/jobs" "$work/libpeftswift.so.1" -Wl,-rpath,"$work" || exit 1

passed=0 failed=0
[ -n "$record" ] && : > "$here/counts.txt"
for job in open train train_dora generate files merge; do
    mkdir "$work/$job"
    output=$(valgrind --tool=cachegrind --cache-sim=no --cachegrind-out-file=/dev/null "$work/jobs" $job "$root/Tests/Golden/data/bases/llama" "$work/$job" 2>&1)
    status=$?
    count=$(sed -nE 's/.*I +refs: +([0-9,]+)$/\1/p' <<< "$output" | tr -d ,)
    if ((status != 0)) || [ -z "$count" ]; then
        echo "FAIL $job ended with status $status"
        tail -5 <<< "$output"
        failed=$((failed + 1))
        continue
    fi
    [ -n "$record" ] && echo "$job $count" >> "$here/counts.txt"
    before=$(awk -v job=$job '$1 == job { print $2 }' "$here/counts.txt")
    if [ -n "$before" ] && ((count <= before * 105 / 100)); then
        passed=$((passed + 1))
        echo "PASS $job: $count instructions, $(awk "BEGIN { printf \"%.3f\", $count / $before }") of what is recorded"
    else
        failed=$((failed + 1))
        echo "FAIL $job: $count instructions, recorded are ${before:-none}; if that is meant: $0 $1 --record"
    fi
done
echo "$passed passed, $failed failed"
((failed == 0))
