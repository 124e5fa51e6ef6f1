"""What this device is: which targets it can run, best first. Reads the machine at the end only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from edgekit import __version__
from edgekit.contracts.errors import UsageError
from edgekit.contracts.messages import DeviceProfile
from edgekit_runtime import engines, machine_facts

_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
_X86_V3 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2"})
_ARM64 = frozenset({"asimd"})
_ARM_DOT = frozenset({"asimd", "asimddp"})
# What the processor must have for each shipped target; a configured target not in here is the
# operator's own profile, whose needs only its bundles know.
_NEEDS: dict[str, tuple[str, tuple[frozenset[str], ...]]] = {
    "x86-64-vnni-openvino": ("x86_64", (_X86_V3 | {"avx512_vnni"}, _X86_V3 | {"avx_vnni"})),
    "x86-64-vnni": ("x86_64", (_X86_V3 | {"avx512_vnni"}, _X86_V3 | {"avx_vnni"})),
    "x86-64-v3-openvino": ("x86_64", (_X86_V3,)),
    "x86-64-v3": ("x86_64", (_X86_V3,)),
    "rpi5": ("aarch64", (_ARM_DOT,)),
    "rpi4": ("aarch64", (_ARM64,)),
    "arm64-generic": ("aarch64", (_ARM64,)),
}
# Targets whose variants may be built for an engine that not every device has installed.
_ENGINES = {"x86-64-vnni-openvino": "openvino", "x86-64-v3-openvino": "openvino"}
_BOARDS = {"rpi5": "Raspberry Pi 5", "rpi4": "Raspberry Pi 4"}


def runnable(target: str, arch: str, isa: Sequence[str]) -> bool:
    """Whether a processor can execute what is built for ``target``."""
    need = _NEEDS.get(target)
    if need is None:
        return True
    wanted_arch, alternatives = need
    return arch == wanted_arch and any(flags <= set(isa) for flags in alternatives)


def targets(
    arch: str, isa: Sequence[str], board: str = "", installed: Collection[str] = ()
) -> tuple[str, ...]:
    """Shipped targets this device runs, best first; board profiles only on their board.

    Args:
        arch: machine name.
        isa: CPU flags.
        board: board model, where there is a device tree.
        installed: engines besides ONNX Runtime.
    """
    return tuple(
        name
        for name in _NEEDS
        if runnable(name, arch, isa)
        and (name not in _BOARDS or board.startswith(_BOARDS[name]))
        and (name not in _ENGINES or _ENGINES[name] in installed)
    )


def choose(
    configured: Sequence[str] | None,
    arch: str,
    isa: Sequence[str],
    board: str,
    installed: Collection[str] = (),
) -> tuple[str, ...]:
    """The configured targets, or the detected ones.

    Raises:
        UsageError: a configured target needs an instruction set or an engine that is not here.
    """
    if configured is None:
        return targets(arch, isa, board, installed)
    for name in configured:
        if not runnable(name, arch, isa):
            raise UsageError(
                f"[device] targets: {name} needs instructions this {arch} processor lacks",
                hint="runnable here: "
                + (", ".join(targets(arch, isa, board, installed)) or "none known"),
            )
        if name in _ENGINES and _ENGINES[name] not in installed:
            raise UsageError(
                f"[device] targets: {name} needs {_ENGINES[name]}, which is not installed",
                hint=f"pip install 'edgekit-ml[{_ENGINES[name]}]'",
            )
    return tuple(configured)


def detect_targets(configured: Sequence[str] | None) -> tuple[str, ...]:
    """Targets of this machine. Raises like `choose`."""
    here = {name for name in _ENGINES.values() if engines.is_installed(name)}
    arch, isa = machine_facts.arch(), machine_facts.isa_flags()
    return choose(configured, arch, isa, machine_facts.board(), here)


def describe(targets: Sequence[str], labels: Mapping[str, str]) -> DeviceProfile:
    """Profile of this machine, which takes longer: engines tell their versions."""
    isa = machine_facts.isa_flags()
    return DeviceProfile(
        targets=tuple(targets),
        arch=machine_facts.arch(),
        isa=tuple(flag for flag in isa if flag in _REPORTED),
        engines=engines.versions(),
        agent_version=__version__,
        labels=dict(labels),
    )


# The whole list of a modern x86 core is 2 KB, retained at the broker for every device.
_REPORTED = frozenset(
    _X86_V3
    | _VNNI
    | _ARM_DOT
    | {"avx", "avx512f", "avx512bw", "amx_int8", "sse4_2", "i8mm", "bf16", "sve", "fphp", "asimdhp"}
)
