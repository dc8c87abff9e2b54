"""Adds the folder configs/ of the repository to the wheel, as ys_llm/configs/."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """The build as pyproject.toml has it, and the shipped configurations."""

    def run(self) -> None:
        """Copy them once the package is there."""
        super().run()
        if not self.editable_mode:  # an editable installation reads the repository's own
            target = Path(self.build_lib, "ys_llm", "configs")
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree("configs", target)


setup(cmdclass={"build_py": BuildWithConfigs})
