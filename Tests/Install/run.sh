#!/bin/bash
# Installs into an empty prefix and uses the library from there as a stranger would; looks at what the release library is.
# Ends with "N passed, N failed".
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
library=$root/build/libpeftswift.so.1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

# check WHAT COMMAND…: the command's output is shown when it fails.
check() {
    local what=$1 output
    shift
    if output=$("$@" 2>&1); then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $what"
        sed 's/^/    /' <<< "$output"
    fi
}

installed_files() { (cd "$1" && find . ! -type d | sort); }
is_installed() {
    diff - <(installed_files "$work/usr") <<'FILES'
./include/peftswift.h
./lib/cmake/peftswift/peftswift-config-version.cmake
./lib/cmake/peftswift/peftswift-config.cmake
./lib/libpeftswift.so
./lib/libpeftswift.so.1
./lib/libpeftswift.so.1.0.0
./lib/pkgconfig/peftswift.pc
FILES
}
with_pkg_config() {
    export PKG_CONFIG_PATH=$work/usr/lib/pkgconfig
    # shellcheck disable=SC2046 # the flags are words
    cc "$here/outside/app.c" $(pkg-config --cflags --libs "peftswift >= 1.0") -o "$work/app" && LD_LIBRARY_PATH=$work/usr/lib "$work/app"
}
with_cmake() {
    cmake -S "$here/outside" -B "$work/$1" -DCMAKE_PREFIX_PATH="$2" && cmake --build "$work/$1" && "$work/$1/app"
}
moved_with_cmake() { mv "$work/usr" "$work/moved" && with_cmake cmake-moved "$work/moved" && mv "$work/moved" "$work/usr"; }
staged() { # DESTDIR: files below it, texts without it.
    make -s -C "$root" install PREFIX=/opt/peft LIBDIR=/opt/peft/lib/x86_64-linux-gnu DESTDIR="$work/stage" &&
        test -e "$work/stage/opt/peft/lib/x86_64-linux-gnu/libpeftswift.so.1" && ! grep -r "$work" "$work/stage" --include='*.pc' --include='*.cmake' &&
        with_cmake cmake-staged "$work/stage/opt/peft"
}
is_uninstalled() { make -s -C "$root" uninstall PREFIX="$work/usr" && test -z "$(installed_files "$work/usr")"; }

exports_only_the_header() {
    diff <(grep -oE '\bpeft_[a-z_]+\(' "$root/include/peftswift.h" | tr -d '(' | grep -vE '^peft_[a-z_]*_fn$' | sort -u) \
        <(nm -D --defined-only "$library" | awk '$2 == "T" { sub(/@.*/, "", $3); print $3 }' | sort) &&
        ! nm -D --defined-only "$library" | awk '$2 != "T" && $3 !~ /^PEFTSWIFT_1/' | grep .
}
needs_no_swift() { ! ldd "$library" | grep -iE 'swift|dispatch|foundation|not found|openblas|hdf5'; }
has_soname() { readelf -d "$library" | grep -q 'SONAME.*\[libpeftswift.so.1\]' && readelf -d "$library" | grep -q 'FLAGS_1.*NODELETE'; }
is_small() { local size; size=$(stat -Lc %s "$library"); echo "$size bytes"; ((size <= 8000000)); }
starts_quickly() { # The best of ten: what it costs, not what else the machine does.
    cc "$here/outside/app.c" -I"$root/include" -L"$root/build" -lpeftswift -Wl,-rpath,"$root/build" -o "$work/start" || return
    python3 - "$work/start" <<'PYTHON'
import subprocess, sys, time
def once():
    begin = time.perf_counter()
    subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin
best = min(once() for _ in range(10))
print(f"{best * 1e3:.1f} ms")
sys.exit(best > 0.020)
PYTHON
}

check "make install" make -s -C "$root" install PREFIX="$work/usr"
check "what is installed" is_installed
check "a program with pkg-config" with_pkg_config
if command -v cmake > /dev/null; then
    check "a program with CMake" with_cmake cmake "$work/usr"
    check "a program with CMake after the tree was moved" moved_with_cmake
    check "LIBDIR and DESTDIR" staged
else
    echo "CMake is not installed; its part is left out (make setup)"
fi
check "make uninstall" is_uninstalled
check "exports are the header's functions, no more and no less" exports_only_the_header
check "no Swift library, no BLAS, no HDF5 is linked" needs_no_swift
check "soname and nodelete" has_soname
check "at most 8 MB" is_small
check "a program starts within 20 ms" starts_quickly
echo "$passed passed, $failed failed"
((failed == 0))
