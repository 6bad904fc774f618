"""Compiles Triton kernels without a GPU, and reads what came out.

triton's wheel holds NVIDIA's assembler and disassembler and AMD's back end.
"""

import collections
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", re.MULTILINE)
_LABEL = re.compile(r"^(\.L_x_\d+):", re.MULTILINE)
_OPCODE = re.compile(r"(?:^|\s)([A-Z][A-Z0-9_.]*)")  # a predicate may stand before


class Compiled(NamedTuple):
    """One kernel for one target."""

    target: str
    text: str  # PTX or amdgcn
    intermediate: str  # Triton's own language, before any target's
    opcodes: collections.Counter
    loop: int  # instructions of the longest loop without a loop inside
    registers: int
    stack: int  # bytes of stack and local memory of a thread, or of scratch
    spills: int


def compile_kernel(kernel, types, constants, target, warps, fusion=False):
    """Compile for ``target`` with the options of a launch, or with ``fusion``.

    Pointers are taken to be aligned to 16 bytes, as torch allocates them.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i64")
        for name in names
    }
    aligned = [["tt.divisibility", 16]]
    attributes = {
        (i,): aligned for i, name in enumerate(names) if signature[name][0] == "*"
    }
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"enable_fp_fusion": fusion, "num_warps": warps}
    result = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    read = _read_amd if target.startswith("gfx") else _read_nvidia
    return read(target, result.asm)


def _number(pattern, text):
    return int(re.search(pattern, text)[1])


def _read_amd(target, assembly):
    text = assembly["amdgcn"]
    code = text[: text.index(".section\t.AMDGPU.csdata")]
    opcodes = re.findall(r"^\t([a-z]+_\w+)", code, re.MULTILINE)
    return Compiled(
        target,
        text,
        assembly["ttir"],
        collections.Counter(opcodes),
        _longest_loop_amd(code),
        _number(r"\.vgpr_count:\s+(\d+)", text),
        _number(r"ScratchSize: (\d+)", text),
        # Scalar registers that spill do so into vector registers, not into memory.
        _number(r"\.vgpr_spill_count:\s+(\d+)", text),
    )


def _longest_loop_amd(code):
    events = re.findall(
        r"^(?:(\.LBB\d+_\d+):|\t([a-z]+_\w+)(?:[^\n]*?(\.LBB\d+_\d+))?)",
        code,
        re.MULTILINE,
    )
    return _longest_loop(
        (
            label,
            opcode and (jump if opcode.startswith("s_c") or "branch" in opcode else ""),
        )
        for label, opcode, jump in events
    )


def _longest_loop(events):
    """Length of the longest innermost loop among (label, jump target) events."""
    place, position, loops = {}, 0, []
    for label, jump in events:
        if label:
            place[label] = position
            continue
        position += 1
        if jump and jump in place:
            loops.append((place[jump], position))
    inner = [
        (first, last)
        for first, last in loops
        if not any(
            first <= f and m <= last and (f, m) != (first, last) for f, m in loops
        )
    ]
    return max((last - first for first, last in inner), default=0)


def _read_nvidia(target, assembly):
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(assembly["cubin"])
        file.flush()

        def run(tool, option):
            command = [tools / tool, option, file.name]
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout

        usage = run("cuobjdump", "-res-usage")
        listing = run("nvdisasm", "-c")
    events, opcodes = [], []
    for line in listing.splitlines():
        label, instruction = _LABEL.match(line), _INSTRUCTION.match(line)
        if label:
            events.append((label[1], ""))
        elif instruction:
            opcodes.append(_OPCODE.search(instruction[1])[1])
            jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction[1])
            events.append(("", jump[1] if jump else ""))
    counts = collections.Counter(opcodes)
    return Compiled(
        target,
        assembly["ptx"],
        assembly["ttir"],
        counts,
        _longest_loop(events),
        _number(r"REG:(\d+)", usage),
        _number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage),
        sum(n for name, n in counts.items() if name.startswith(("STL", "LDL"))),
    )
