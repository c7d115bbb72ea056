#!/bin/sh
# Runs the promised conformance cases (promised.txt) through the Python binding and the library in build/.
#
#   Tests/Golden/run.sh                  all that this version promises
#   Tests/Golden/run.sh 'dora_*' …       these instead (globs), promised or not
#
# PYTHON names an interpreter with numpy (default python3). The closing line is the runner's: N passed, N failed, N skipped.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../../bindings/python${PYTHONPATH:+:$PYTHONPATH}"
if [ $# -gt 0 ]; then
    only=$(IFS=,; echo "$*")
else
    only=$(sed 's/#.*//' "$here/promised.txt" | grep . | tr -d ' ' | paste -sd, -)
    echo "$(echo "$only" | tr , '\n' | wc -l) of $(ls "$here/data/cases" | wc -l) cases are promised by this version"
fi
exec "${PYTHON:-python3}" "$here/run.py" "$here/data" --only "$only"
