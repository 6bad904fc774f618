"""The C++ kernels read and write nothing but their arrays, and do nothing undefined."""

import shutil

import pytest
from native_checks import ISAS, needs_library
from native_program import BUILDS, SOURCE, build, link_installed, run

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = [
    pytest.mark.slow,
    needs_library,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
    pytest.mark.skipif(not SOURCE.is_dir(), reason="the C++ sources are not here"),
]


def test_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path):
    program = build(tmp_path, ["-O1", *SANITIZERS], BUILDS)
    for isa in ISAS:
        run([program, str(isa)])


def test_valgrind_finds_nothing(tmp_path):
    if shutil.which("valgrind") is None:
        pytest.skip("there is no valgrind")
    program = link_installed(tmp_path)  # its baseline: valgrind knows no AVX-512
    checks = [
        "--error-exitcode=9",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite",
    ]
    run(["valgrind", *checks, program, "2"])
