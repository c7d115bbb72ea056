#!/bin/bash
# Runs the test layers named, or all of them, cheapest first; ends with the sum: "N passed, N failed, N skipped".
# A layer is a function below; it prints what it likes, and its closing line counts. What is missing on this machine (the model
# when offline, …) is skipped and said.
set -uo pipefail
cd "$(dirname "$0")/.."
all=(unit c instructions examples install golden python)
layers=("${@:-${all[@]}}")
log=build/test-logs
mkdir -p "$log"

unit() {
    swift build -c release -Xswiftc -enable-testing --build-tests --quiet &&
        swift test -c release -Xswiftc -enable-testing --skip-build --disable-xctest
}
c() { Tests/CInterface/run.sh build/libpeftswift.so.1; }
instructions() { Tests/Instructions/run.sh build/libpeftswift.so.1; }
examples() { Tests/Examples/run.sh; }
install() { Tests/Install/run.sh; }
golden() { PYTHON=$PWD/.venv/bin/python Tests/Golden/run.sh; }
python() { .venv/bin/python -m pytest -q -p no:cacheprovider Tests/Python; }

# The count of a layer from its output: the last of swift test's, pytest's or the plain closing lines.
count() { # FILE WORD
    sed -E 's/\x1b\[[0-9;]*m//g' "$1" | awk -v word="$2" '
        /Test run with [0-9]+ tests? / { match($0, /with [0-9]+/); n = (word == "passed") ? substr($0, RSTART + 5, RLENGTH - 5) : 0
          if (/ failed after/ || / with [0-9]+ issues?/) n = (word == "failed") ? 1 : 0 }
        /[0-9]+ (passed|failed|skipped|error)/ && !/^FAIL|^PASS/ { line = 0
          m = split($0, part, ","); for (i = 1; i <= m; i++) if (match(part[i], "[0-9]+ " word)) line = part[i] + 0 == 0 ? substr(part[i], RSTART) + 0 : part[i] + 0
          if (/(passed|failed).*[0-9]s|^[0-9]+ passed, [0-9]+ failed/) n = line }
        END { print n + 0 }'
}

scripts/setup.sh --tests || exit 1
case " ${layers[*]} " in *" c "* | *" instructions "* | *" examples "* | *" install "* | *" golden "* | *" python "*) make --no-print-directory library examples .venv/bin/python || exit 1 ;; esac
# The real model, for the tests that want it.
make -s model || echo "test: the model could not be fetched; what needs it is skipped"
make -s inputs || echo "test: not all real weights and data could be fetched; what needs them is skipped"

passed=0 failed=0 skipped=0 summary=()
for layer in "${layers[@]}"; do
    [ "$(type -t "$layer")" = function ] || { echo "test: there is no layer \"$layer\"; there are ${all[*]}" >&2; exit 2; }
    echo
    echo "=== $layer"
    begin=$SECONDS
    "$layer" 2>&1 | tee "$log/$layer.txt"
    status=$?
    p=$(count "$log/$layer.txt" passed) f=$(count "$log/$layer.txt" failed) s=$(count "$log/$layer.txt" skipped)
    # A layer that failed without saying so (a crash, a build error), or that ran nothing, counts as one failure.
    if ((f == 0 && (status != 0 || p == 0))); then f=1; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    summary+=("$(printf '%-10s %5d passed %5d failed %5d skipped %6d s' "$layer" "$p" "$f" "$s" $((SECONDS - begin)))")
done

echo
printf '%s\n' "${summary[@]}"
echo
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0))
