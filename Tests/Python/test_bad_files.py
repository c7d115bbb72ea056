"""Damaged files and hostile surroundings, a process for each family (bad_files.py): words instead of crashes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FAMILIES = ["gguf", "safetensors", "config", "index", "adapter", "hdf5", "tokenizer", "data", "host"]


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, tmp_path):
    mount = None
    if family == "host" and os.geteuid() == 0:
        mount = tmp_path / "full"
        mount.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount], capture_output=True).returncode != 0:
            mount = None
    try:
        result = subprocess.run([sys.executable, Path(__file__).with_name("bad_files.py"), family, tmp_path], capture_output=True, text=True, timeout=600)
    finally:
        if mount:
            subprocess.run(["umount", mount], capture_output=True)
    assert result.returncode == 0, f"status {result.returncode}\n{result.stdout}\n{result.stderr[-3000:]}"
    print(result.stdout)
