"""Build rustbpe, if cargo is there, into the elchat_bpe package; all else is in pyproject.toml."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

CRATE = Path(__file__).parent.resolve() / "rustbpe"
NAMES = {"darwin": "libelchat_bpe.dylib", "win32": "elchat_bpe.dll"}
NAME = NAMES.get(sys.platform, "libelchat_bpe.so")


class BuildRust(Command):
    """Compile the crate and put its library in the package; never fail the installation."""

    editable_mode = False
    build_lib: str | None

    def initialize_options(self) -> None:
        """Part of the protocol of setuptools."""
        self.build_lib = None

    def finalize_options(self) -> None:
        """Part of the protocol of setuptools."""
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        """Compile, unless cargo is missing."""
        cargo = shutil.which("cargo")
        if cargo is None:
            self.warn("rustbpe no se compila: no hay cargo; elchat usará tokenizers")
            return
        result = subprocess.run([cargo, "build", "--release", "--offline"], cwd=CRATE, check=False)
        if result.returncode != 0:
            self.warn("rustbpe no se pudo compilar; elchat usará tokenizers")
            return
        folder = self._package_folder()
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / (NAME + ".new")
        shutil.copyfile(CRATE / "target" / "release" / NAME, new)
        new.replace(folder / NAME)  # a process that has the old one open keeps it

    def get_source_files(self) -> list[str]:
        """What an sdist needs to compile."""
        patterns = ("Cargo.toml", "Cargo.lock", "src/*.rs")
        found = [path for pattern in patterns for path in CRATE.glob(pattern)]
        return [str(path.relative_to(CRATE.parent)) for path in found]

    def get_outputs(self) -> list[str]:
        """The library, if it was built."""
        path = self._package_folder() / NAME
        return [str(path)] if path.is_file() else []

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing is copied from the source tree."""
        return {}

    def _package_folder(self) -> Path:
        if self.editable_mode or self.build_lib is None:
            return CRATE / "python" / "elchat_bpe"
        return Path(self.build_lib) / "elchat_bpe"


class PlatformDistribution(Distribution):
    """A wheel with a compiled library belongs to one platform."""

    def has_ext_modules(self) -> bool:
        """Whether there is something compiled in it."""
        return shutil.which("cargo") is not None


build.sub_commands.append(("build_rust", None))
setup(cmdclass={"build_rust": BuildRust}, distclass=PlatformDistribution)
