"""Every instruction set and every processor computes the same bits."""

import shutil

import pytest
from native_checks import ISAS, needs_library
from native_program import SOURCE, build, link_installed, run

CROSS = "aarch64-linux-gnu-g++"
EMULATOR = next(
    filter(None, map(shutil.which, ("qemu-aarch64", "qemu-aarch64-static"))), None
)
RELEASE = ["-O3", "-fno-trapping-math", "-fno-exceptions", "-fno-rtti"]

pytestmark = [
    pytest.mark.slow,
    needs_library,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
    pytest.mark.skipif(not SOURCE.is_dir(), reason="the C++ sources are not here"),
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The program on the installed library; its digests with the baseline build."""
    program = link_installed(tmp_path_factory.mktemp("installed"))
    return program, run([program, "2"])


@pytest.mark.skipif(len(ISAS) < 2, reason="this machine runs the baseline build only")
def test_instruction_sets_agree(installed):
    program, expected = installed
    for isa in ISAS[1:]:
        assert run([program, str(isa)]) == expected


@pytest.mark.skipif(shutil.which(CROSS) is None, reason=f"there is no {CROSS}")
@pytest.mark.skipif(EMULATOR is None, reason="there is no qemu-aarch64")
def test_aarch64_agrees(installed, tmp_path):
    program = build(tmp_path, [*RELEASE, "-static"], [("baseline", [])], CROSS)
    assert run([EMULATOR, program, "2"]) == installed[1]
