#!/bin/bash
# Installs what building and the demos need and this machine lacks. --tests: also what the tests need.
# --check: installs nothing, but fails when something that building needs is missing.
set -euo pipefail

# Swift links against the C and C++ libraries of the newest GCC that is installed.
building=(gcc g++ make libhdf5-dev libpcre2-dev libutf8proc-dev libjansson-dev)
# OpenBLAS is opened when a decomposition is first asked for; nothing is linked against it.
running=(libopenblas-dev python3 python3-venv)
testing=(pkg-config cmake valgrind)
packages=("${building[@]}" "${running[@]}")
case "${1-}" in
  --check) packages=("${building[@]}") ;;
  --tests) packages+=("${testing[@]}") ;;
esac

say() { echo "setup: $*" >&2; }

if ! command -v swift > /dev/null; then
  say "there is no Swift toolchain in PATH. libpeftswift is built with Swift 6.3 (https://www.swift.org/install/linux);"
  say "unpack it, for example to /opt/swift, and: export PATH=/opt/swift/usr/bin:\$PATH"
  exit 1
fi
version=$(swift --version 2> /dev/null | sed -nE 's/.*Swift version ([0-9]+)\.([0-9]+).*/\1 \2/p')
read -r major minor <<< "${version:-0 0}"
if [ "$((major * 100 + minor))" -lt 602 ]; then
  say "the Swift toolchain in PATH ($(command -v swift)) is ${major}.${minor}; 6.2 or newer is needed, 6.3 is what is tested"
  exit 1
fi

if ! command -v dpkg-query > /dev/null; then
  say "not a Debian system; this script installs nothing. Needed: a C compiler, pkg-config, Python 3 and the development"
  say "files of HDF5 (1.10+), PCRE2, utf8proc, jansson and OpenBLAS."
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null | grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "${1-}" = --check ]; then
  say "missing: ${missing[*]}. Install them with: make setup"
  exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo > /dev/null; then
    say "missing: ${missing[*]}. Ask somebody who may: apt-get install ${missing[*]}"
    exit 1
  fi
  as_root=(sudo)
fi
say "installing ${missing[*]}"
if ! "${as_root[@]}" apt-get update -qq || ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null; then
  say "apt-get could not install ${missing[*]}; is this machine online?"
  exit 1
fi
