#!/usr/bin/env python3
"""Measures libpeftswift and, unless --quick, its peers beside it on the same model in the same run.

    make bench          (Benchmarks/run.sh: makes the peers' virtual environment first)      make bench-quick

Every measurement is a process of its own; ours and the peers' alternate, round after round, because the machine's speed drifts;
the best of all rounds counts, and the share of the machine that others took meanwhile is shown. Prints ratios; --json writes every figure, --chart a picture (with the peers' matplotlib).
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from jobs import JOBS, RATIOS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
#: Figures of which the smallest is the best.
SMALLER = ("others", "_ms", "_us", "_mb")


def busy_seconds():
    """Processor seconds that all processes together have used."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, open("/proc/stat").readline().split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(patience):
    """Waits until others leave the processors alone for a moment, at most `patience` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(0.5)
        if busy_seconds() - before < 0.05:
            return


def run(command):
    """The JSON lines a measurement printed, with the share of the machine that others took meanwhile; [] where it failed."""
    begin, busy, own = time.monotonic(), busy_seconds(), os.times()
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    used = os.times()
    others = busy_seconds() - busy - (used.children_user + used.children_system - own.children_user - own.children_system)
    others /= (time.monotonic() - begin) * len(os.sched_getaffinity(0))
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode != 0 or not lines:
        print(f"  failed ({result.returncode}): {' '.join(map(str, command))}\n  {result.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return []
    return [{**line, "others": round(max(0, others), 2)} for line in lines]


def keep_best(figures, key, line):
    best = figures.setdefault(key, {})
    for name, value in line.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            smaller = name.endswith(SMALLER)
            best[name] = value if name not in best else min(best[name], value) if smaller else max(best[name], value)


def start_of_program():
    """Milliseconds to start, print the version and end: examples-c/minimal.c."""
    program = ROOT / "build" / "minimal"
    if not program.exists():
        return []
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        subprocess.run([program, "--version"], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - begin)
    return [{"start_ms": round(min(times) * 1e3, 2)}]


def chosen(arguments):
    jobs = [job for job in JOBS if (job.quick or not arguments.quick) and (arguments.peers_python or job.program == "engine")]
    return [job for job in jobs if not arguments.only or any(word in job.key for word in arguments.only.split(","))]


def measure(arguments, figures):
    places = {"gguf": arguments.model, "cache": arguments.cache, "bf16": arguments.cache / "bench" / "bf16"}
    if not (places["bf16"] / "config.json").exists():
        subprocess.run([sys.executable, HERE / "engine.py", "export", places["gguf"], places["bf16"]], check=True)
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
        for job in chosen(arguments):
            words = [word.format(**places) for word in job.arguments.split()]
            program = [sys.executable, HERE / "engine.py"] if job.program == "engine" else [arguments.peers_python, HERE / "peers" / "peers.py"]
            wait_for_quiet(arguments.patience)
            lines = run([*arguments.prefix.split(), *program, *words])
            for line in lines:
                key = job.key if len(lines) == 1 else f"{job.key} {line['work']}"
                keep_best(figures, key, line)
                shown = ", ".join(f"{k} {v:g}" for k, v in line.items() if isinstance(v, (int, float)))
                print(f"  {key:32s} {shown}", flush=True)
        for line in start_of_program():
            keep_best(figures, "program", line)


def value(figures, place):
    return figures.get(place[0], {}).get(place[1])


def ratios(figures):
    for r in RATIOS:
        ours, theirs = value(figures, r.ours), value(figures, r.theirs) if r.theirs else None
        if ours is not None and (theirs or r.theirs is None):
            result = ours / theirs if r.theirs else ours
            sign, limit = r.reach.split() if r.reach else ("", "0")
            met = "" if not sign else "yes" if (result >= float(limit) if sign == "≥" else result <= float(limit)) else "no"
            yield r, ours, theirs, result, met


def table(figures):
    lines = [f"{'':58s} {'ours':>8s} {'peer':>8s} {'ratio':>7s}   reach"]
    for r, ours, theirs, result, met in ratios(figures):
        right = f"{theirs:8g} {result:6.2f}×" if theirs else f"{'':8s} {'':7s}"
        lines.append(f"{r.what:58s} {ours:8g} {right}   {r.reach + ('  ' + met if met else '')}".rstrip())
    return "\n".join(lines)


def machine():
    name = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    return {"processor": name, "processors": len(os.sched_getaffinity(0)), "system": platform.platform(), "date": time.strftime("%Y-%m-%d %H:%M")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ours only, once, two minutes")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--patience", type=float, default=20, help="seconds to wait before a measurement while others use the processors")
    parser.add_argument("--prefix", default="", help="put in front of every measurement: taskset -c 0, nice -n -5, …")
    parser.add_argument("--only", help="parts of job names, separated by commas")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--peers-python", help="interpreter with peers/requirements.txt; without it only ours is measured")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--again", type=Path, help="a JSON file of an earlier run: print its table, draw its chart")
    arguments = parser.parse_args()
    arguments.model = arguments.model or arguments.cache / "SmolLM2-135M-Instruct.Q4_1.gguf"
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    arguments.peers_python = None if arguments.quick else arguments.peers_python
    results = json.loads(arguments.again.read_text()) if arguments.again else {"machine": machine(), "rounds": arguments.rounds, "figures": {}}
    if not arguments.again:
        if arguments.peers_python:
            subprocess.run([arguments.peers_python, HERE / "peers" / "peers.py", "fetch", arguments.cache], check=True, stdout=subprocess.DEVNULL)
        try:
            measure(arguments, results["figures"])
        except KeyboardInterrupt:
            print("stopped; what was measured so far:")
    print(f"\n{results['machine']['processor']}, {results['machine']['processors']} processors; SmolLM2-135M-Instruct; best of {results['rounds']}\n")
    print(table(results["figures"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if arguments.chart:
        python = arguments.peers_python or sys.executable
        subprocess.run([python, HERE / "chart.py", arguments.json or arguments.again, arguments.chart], check=True)


if __name__ == "__main__":
    main()
