"""What a wheel holds beside the package; all else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

DATA = ("configs/**/*.yaml", "experiments/*.yaml", "experiments/*.json", "experiments/scales/*")


class BuildWithData(build_py):
    """Puts the files that commands read into the package; a checkout has them beside it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for file in (f for pattern in DATA for f in Path().glob(pattern)):
                copy = Path(self.build_lib, "smallobj_d2", file)
                self.mkpath(str(copy.parent))
                self.copy_file(str(file), str(copy))


setup(cmdclass={"build_py": BuildWithData})
