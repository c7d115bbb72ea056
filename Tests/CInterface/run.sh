#!/bin/bash
# Builds and runs the C tests against a library.
#
#   Tests/CInterface/run.sh build/libpeftswift.so.1 [program …]      all programs: *.c, *.cpp, the generated ones, the ABI
#
# BASES: folder with the tiny models (default Tests/Golden/data/bases); CC, CXX: compilers.
# Ends with "N passed, N failed, N skipped" over everything; the status is 0 when nothing failed.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
library=$(realpath "${1:?usage: $0 library [program …]}")
shift
bases=${BASES:-$root/Tests/Golden/data/bases}
cc=${CC:-cc} cxx=${CXX:-c++}
warnings="-Wall -Wextra -Werror -pedantic"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin" "$work/lib" "$work/model"
ln -s "$library" "$work/lib/libpeftswift.so.1"
ln -s libpeftswift.so.1 "$work/lib/libpeftswift.so"
cp "$bases"/llama/{config.json,model.safetensors} "$here"/Fixtures/* "$work/model/" || exit 2
ln -s "$root/Tests/Fixtures/Models" "$work/models"
chmod -R u+w "$work/model"

passed=0 failed=0 skipped=0
fail() { echo "FAIL $*"; failed=$((failed + 1)); }

# program NAME SOURCE COMPILER…: builds it, runs it with a time limit, adds up its last line.
program() {
    local name=$1 source=$2
    shift 2
    # As needed: test_host loads the library itself.
    if ! "$@" $warnings -I"$root/include" -I"$here" "$source" -o "$work/bin/$name" -L"$work/lib" -Wl,--as-needed -lpeftswift -lm -ldl -lpthread -Wl,-rpath,"$work/lib"; then
        fail "$name does not compile"
        return
    fi
    mkdir "$work/$name.scratch"
    local output status
    # In its own folder: paths that are garbage are paths below it.
    output=$(cd "$work/$name.scratch" && LD_LIBRARY_PATH=$work/lib timeout 300 "$work/bin/$name" "$work/model" "$work/$name.scratch" 2>&1)
    status=$?
    local last=${output##*$'\n'}
    echo "$name: $last"
    if [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] && ((status <= 1)); then
        passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2])) skipped=$((skipped + $(grep -c '^SKIP ' <<<"$output")))
        [[ $output == *$'\n'* ]] && sed '$d; s/^/    /' <<<"$output" | head -40
    else
        sed 's/^/    /' <<<"$output" | tail -40
        fail "$name ended with status $status (124: it hung, above 128: signal $((status - 128)))"
    fi
}

wanted() { ((${#only[@]} == 0)) || [[ " ${only[*]} " == *" $1 "* ]]; }
only=("$@")

for source in "$here"/test_*.c; do
    name=$(basename "$source" .c)
    wanted "$name" && program "$name" "$source" $cc -std=c99 -D_GNU_SOURCE -O1 -g
done
for source in "$here"/test_*.cpp; do
    name=$(basename "$source" .cpp)
    wanted "$name" && program "$name" "$source" $cxx -std=c++11 -O1 -g
done
if wanted test_handles; then
    if python3 "$here/generate_handles.py" "$root/include/peftswift.h" >"$work/test_handles.c"; then
        program test_handles "$work/test_handles.c" $cc -std=c99 -D_GNU_SOURCE -O0 -g
    else
        fail "test_handles cannot be made"
    fi
fi
if wanted abi; then
    if python3 "$here/abi.py" "$library"; then passed=$((passed + 1)); else fail abi; fi
fi

echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0))
