"""Puts data/ and profiles/ into the wheel, where `files.bundled` looks for them."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
BUNDLED = ("data", "profiles")


class Bundling(build_py):
    """The usual step, and a copy of the folders that the package reads."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the repository itself is read
            return
        for name in BUNDLED:
            target = Path(self.build_lib) / "surgery_lib" / "bundled" / name
            shutil.rmtree(target, ignore_errors=True)
            ignored = shutil.ignore_patterns("__pycache__", "own")
            shutil.copytree(ROOT / name, target, ignore=ignored)


setup(packages=find_packages(include=["surgery_lib*"]), cmdclass={"build_py": Bundling})
