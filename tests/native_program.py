"""Builds of tests/native/exercise.cpp with the sources of the library; their runs."""

import os
import platform
import subprocess
from pathlib import Path

from lowprec.kernels import native

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "lowprec" / "kernels" / "csrc"
PROGRAM = ROOT / "tests" / "native" / "exercise.cpp"
FLAGS = ["-std=gnu++17", "-g1", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]
X86 = platform.machine().lower() in ("x86_64", "amd64")
# Name and options of the library's builds for this machine's kind of processor.
BUILDS = (
    [
        ("baseline", ["-march=x86-64-v2"]),
        ("v3", ["-march=x86-64-v3"]),
        ("v4", ["-march=x86-64-v4", "-mprefer-vector-width=512"]),
    ]
    if X86
    else [("baseline", [])]
)


def build(folder, extra, builds, compiler="g++"):
    """Compile the library's sources and the program; return the executable."""
    command = [compiler, *FLAGS, *extra]
    kernels = [
        (folder / f"{name}.o", [*target, f"-DLOWPREC_ISA={name}"])
        for name, target in builds
    ]
    unit = [*command, "-c", SOURCE / "kernels.cpp", "-o"]
    compilations = [
        subprocess.Popen([*unit, path, *options]) for path, options in kernels
    ]
    assert not any([compilation.wait() for compilation in compilations])
    program = folder / "exercise"
    defines = ["-DLOWPREC_X86_BUILDS"] if len(builds) > 1 else []
    sources = [PROGRAM, SOURCE / "library.cpp", *(path for path, _ in kernels)]
    subprocess.run([*command, *defines, *sources, "-o", program], check=True)
    return program


def link_installed(folder):
    """Compile the program on the installed library; return the executable."""
    program = folder / "exercise"
    library = Path(native.loaded()._name)
    linked = [PROGRAM, library, f"-Wl,-rpath,{library.parent}"]
    subprocess.run(["g++", *FLAGS, "-O1", *linked, "-o", program], check=True)
    return program


def run(command):
    """Run the program, which must succeed; return its lines: one digest per class."""
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 34  # of as many classes
    return lines
