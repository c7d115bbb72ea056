"""Puts the release library into the wheel, bringing it up to date first where that can be done."""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parents[2]
NAME = "libpeftswift.so.1"


class BuildWithLibrary(build_py):
    def run(self):
        super().run()
        library = ROOT / "build" / NAME
        # A library that is older than its sources would not fit this package.
        if shutil.which("swift") or not library.exists():
            subprocess.run(["make", "-C", str(ROOT), "library"], check=True)
        shutil.copy2(library, Path(self.build_lib) / "peftswift" / NAME)


class PlatformWheel(bdist_wheel):
    """The package is Python for any version, the library is for this platform."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    def has_ext_modules(self):
        return True


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel}, distclass=BinaryDistribution)
