"""The C++ kernels read and write nothing but their arrays, and do nothing undefined."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from native_checks import ISAS, needs_library

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "lowprec" / "kernels" / "csrc"
PROGRAM = ROOT / "tests" / "native" / "exercise.cpp"
FLAGS = ["-std=gnu++17", "-g", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]
BASELINE = ("baseline", "x86-64-v2")
X86 = platform.machine().lower() in ("x86_64", "amd64")
BUILDS = [BASELINE, ("v3", "x86-64-v3"), ("v4", "x86-64-v4")] if X86 else [BASELINE]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = [
    pytest.mark.slow,
    needs_library,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
    pytest.mark.skipif(not SOURCE.is_dir(), reason="the C++ sources are not here"),
]


def build(folder, extra, builds):
    """Compile the library's sources and the program; return the executable."""
    compiler = ["g++", *FLAGS, *extra]
    objects = []
    for name, architecture in builds:
        objects.append(folder / f"{name}.o")
        target = [f"-march={architecture}"] if X86 else []
        command = [*compiler, *target, f"-DLOWPREC_ISA={name}", "-c"]
        subprocess.run(
            [*command, SOURCE / "kernels.cpp", "-o", objects[-1]], check=True
        )
    program = folder / "exercise"
    defines = ["-DLOWPREC_X86_BUILDS"] if len(builds) > 1 else []
    sources = [PROGRAM, SOURCE / "library.cpp", *objects]
    subprocess.run([*compiler, *defines, *sources, "-o", program], check=True)
    return program


def run(command):
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.split()


def test_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path):
    program = build(tmp_path, ["-O1", *SANITIZERS], BUILDS)
    sums = run([program, *map(str, ISAS)])
    assert len(sums) == len(ISAS)
    assert len(set(sums)) == 1  # every build computes the same


def test_valgrind_finds_nothing(tmp_path):
    if shutil.which("valgrind") is None:
        pytest.skip("there is no valgrind")
    program = build(tmp_path, ["-O1"], [BASELINE])
    checks = ["--error-exitcode=9", "--leak-check=full", "--quiet"]
    assert len(run(["valgrind", *checks, program, "2"])) == 1
