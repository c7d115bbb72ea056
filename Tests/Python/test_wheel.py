"""`pip install ./bindings/python`: a wheel with the library inside, usable from anywhere."""

import subprocess
import sys
import venv
import zipfile

import pytest

from conftest import GOLDEN, ROOT

LIBRARY = ROOT / "build" / "libpeftswift.so.1"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if not LIBRARY.exists():
        pytest.skip(f"{LIBRARY} is not there (make library)")
    folder = tmp_path_factory.mktemp("wheel")
    result = subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, ROOT / "bindings" / "python"],
                            capture_output=True, text=True)
    if "setuptools" in result.stderr or "BackendUnavailable" in result.stderr:
        pytest.skip("building a wheel needs setuptools and wheel in this environment")
    assert result.returncode == 0, result.stderr
    return next(folder.glob("*.whl"))


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "peftswift/libpeftswift.so.1" in names and "peftswift/__init__.py" in names
    assert wheel.name.startswith("peftswift-1.0.0-py3-none-linux"), "any Python, this platform"


def test_installed_away_from_the_tree(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True, system_site_packages=True)
    python = tmp_path / "env" / "bin" / "python"
    result = subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--force-reinstall", wheel], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    program = ("import peftswift, numpy as np, sys; print(peftswift.__file__); m = peftswift.Model.from_pretrained(sys.argv[1], dtype='float32'); "
               "print(m(input_ids=np.array([[1, 2, 3]])).logits.shape, peftswift.__version__)")
    result = subprocess.run([python, "-c", program, GOLDEN / "bases" / "llama"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    where, shape = result.stdout.splitlines()
    assert where.startswith(str(tmp_path)) and shape == "(1, 3, 96) 1.0.0"
