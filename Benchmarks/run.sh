#!/bin/sh
# Measures this library beside its peers (Benchmarks/run.py). --quick: this library alone, two minutes.
#
# PEERS names a virtual environment with Benchmarks/peers/requirements.txt; without it one is made in .venv-peers (torch and a build
# of llama.cpp: 3 GB, a quarter of an hour). Python 3.11 or newer. Other options go to run.py.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3
case " $* " in *" --quick "*) exec "$python" "$here/run.py" "$@" ;; esac
peers=${PEERS:-$root/.venv-peers}
if [ ! -x "$peers/bin/python" ]; then
    echo "Making $peers with the peers: torch, transformers, peft, bitsandbytes, llama.cpp"
    python3 -m venv "$peers"
    # Built with AMX, llama_cpp_python 0.3.36 ends with SIGILL in its AMX code: built without it there.
    if grep -q amx_tile /proc/cpuinfo; then
        export CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"
    fi
    "$peers/bin/pip" install --quiet -r "$here/peers/requirements.txt" || { rm -rf "$peers"; exit 1; }
fi
mkdir -p "$root/build"
exec "$python" "$here/run.py" --peers-python "$peers/bin/python" --json "$root/build/bench.json" --chart "$root/build/bench.png" "$@"
