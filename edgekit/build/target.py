"""Target profiles: what a device is, as data. Unknown fields and values are refused by name."""

from __future__ import annotations

import difflib
import os
from enum import Enum
from importlib import resources
from pathlib import Path

import msgspec
import tomllib
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from edgekit.build import jetpack
from edgekit.contracts.errors import BadInputError, UsageError, translate_os_errors
from edgekit.contracts.ids import check_name

TARGETS_ENV = "EDGEKIT_TARGETS"


class Arch(str, Enum):
    """Machine architecture as the kernel calls it."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"


class Gate(str, Enum):
    """Gates a target can declare; only declared gates exist."""

    QUALITY = "quality"
    SIZE = "size"
    GOLDEN = "golden"
    LATENCY = "latency"
    EMULATED = "emulated"
    COVERAGE = "coverage"
    MEMORY = "memory"


class Validation(str, Enum):
    """Where the artifact ran: with the target's instruction set, emulating it, or nowhere."""

    NATIVE = "native"
    EMULATED = "emulated"
    NONE = "none"


class Activations(str, Enum):
    """Integer type of quantized activations that suits the target's instructions."""

    U8 = "u8"
    S8 = "s8"


class TargetProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One target. ``isa`` entries are CPU flags; ``a|b`` means either.

    ``emulator`` is the CPU model that qemu is asked for. The fields behind it are a Jetson's:
    ``jetpack`` lists releases of `edgekit.build.jetpack`, ``sm`` is the GPU's compute capability
    (87 for 8.7); without ``agent`` the target gets artifacts only. ``base`` may be a tag: an image
    build then says which digest to pin.
    """

    name: str
    description: str
    arch: Arch
    isa: tuple[str, ...]
    cores: int
    memory_mb: int
    libc: str
    engine: str
    engine_versions: str
    reduce_range: bool
    coverage_min: float = 0.75  # of the quantized layers, by integer kernels: gate "coverage"
    activations: Activations
    gates: tuple[Gate, ...]
    validation_required: Validation
    openvino_versions: str | None = None  # the device has OpenVINO too: the faster one wins
    emulator: str | None = None
    jetpack: tuple[str, ...] = ()
    sm: int | None = None
    tensorrt_int8: bool = False
    agent: bool = True
    base: str | None = None  # image that images of this target stand on, unless another is given

    def versions_of(self, engine: str) -> str:
        """Versions of ``engine`` that the device may have."""
        return self.openvino_versions or "" if engine == "openvino" else self.engine_versions


def parse(raw: bytes, what: str) -> TargetProfile:
    """Decode a profile.

    Raises:
        BadInputError: not TOML, or a field is unknown, missing or out of range; names it.
    """
    try:
        profile = msgspec.convert(tomllib.loads(raw.decode()), TargetProfile)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as exc:
        raise BadInputError(
            f"target profile {what}: {exc}", hint="compare with 'edgekit targets show rpi5'"
        ) from exc
    check_name(profile.name, "target")
    _check_versions(profile, what)
    problems = {
        "isa": not profile.isa,
        "cores": profile.cores < 1,
        "memory_mb": profile.memory_mb < 1,
        "coverage_min": not 0.0 <= profile.coverage_min <= 1.0,
        "gates": Gate.QUALITY not in profile.gates or len(set(profile.gates)) != len(profile.gates),
        "engine": profile.engine != "onnxruntime",
        # On ARM it runs quantized models in half precision, without saying so.
        "openvino_versions": profile.openvino_versions and profile.arch is not Arch.X86_64,
    }
    for field, wrong in problems.items():
        if wrong:
            value = getattr(profile, field)
            raise BadInputError(
                f"target profile {what}: {field}: {value!r} is not allowed",
                hint="gates name quality and nothing twice; the engine is onnxruntime, on x86 also "
                "openvino by its versions",
            )
    _check_jetson(profile, what)
    emulates = Gate.EMULATED in profile.gates or (
        profile.validation_required is Validation.EMULATED
    )
    if emulates and profile.emulator is None:
        raise BadInputError(
            f"target profile {what}: emulator: is needed, because emulation is asked for",
            hint="name a CPU model, as 'qemu-ARCH -cpu help' lists them: emulator = 'Haswell'",
        )
    if Gate.LATENCY in profile.gates and profile.validation_required is not Validation.NATIVE:
        raise BadInputError(
            f"target profile {what}: gates: latency needs validation_required = 'native'",
            hint="latency is only ever taken from real hardware",
        )
    return profile


def _check_versions(profile: TargetProfile, what: str) -> None:
    field = "engine_versions"
    try:
        SpecifierSet(profile.engine_versions)
        field = "openvino_versions"
        SpecifierSet(profile.openvino_versions or "")
    except InvalidSpecifier as exc:
        raise BadInputError(f"target profile {what}: {field}: {exc}") from exc


def _check_jetson(profile: TargetProfile, what: str) -> None:
    known = jetpack.releases()
    for version in profile.jetpack:
        if version not in known:
            raise BadInputError(
                f"target profile {what}: jetpack: {version!r} is not known",
                hint="known: " + ", ".join(known),
            )
        if profile.sm not in known[version].sm:
            raise BadInputError(
                f"target profile {what}: sm: JetPack {version} does not run on {profile.sm}",
                hint="it runs on: " + ", ".join(map(str, known[version].sm)),
            )
    if (profile.sm is not None or profile.tensorrt_int8) and not profile.jetpack:
        raise BadInputError(
            f"target profile {what}: jetpack: is needed where sm or tensorrt_int8 is given"
        )


def emulating(profile: TargetProfile) -> TargetProfile:
    """``profile`` with the gate that runs the artifact on its emulated CPU.

    Raises:
        UsageError: the profile names no CPU to emulate.
    """
    if profile.emulator is None:
        raise UsageError(
            f"{profile.name}: there is no CPU model to emulate",
            hint="name another target, or add emulator = 'CPU' to a profile of your own",
        )
    if Gate.EMULATED in profile.gates:
        return profile
    return msgspec.structs.replace(profile, gates=(*profile.gates, Gate.EMULATED))


def shipped() -> dict[str, TargetProfile]:
    """The profiles that come with edgekit, by name."""
    folder = resources.files("edgekit.build") / "targets"
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    found = [parse(e.read_bytes(), e.name) for e in entries if e.name.endswith(".toml")]
    return {profile.name: profile for profile in found}


def known() -> dict[str, TargetProfile]:
    """The shipped profiles, and those in the folder that ``$EDGEKIT_TARGETS`` names.

    Raises:
        BadInputError: the folder or a profile in it is wrong, or takes a name that is taken.
    """
    profiles = shipped()
    folder = os.environ.get(TARGETS_ENV)
    if not folder:
        return profiles
    with translate_os_errors("read", folder):
        entries = sorted(entry for entry in Path(folder).iterdir() if entry.suffix == ".toml")
        own = [(entry, parse(entry.read_bytes(), str(entry))) for entry in entries]
    for entry, profile in own:
        if profile.name in profiles:
            raise BadInputError(
                f"target profile {entry}: name: {profile.name!r} is taken",
                hint="give it a name of its own: records would not tell the two apart",
            )
        profiles[profile.name] = profile
    return profiles


def find(name: str) -> TargetProfile:
    """The profile called ``name``, or the one in the file ``name`` (``….toml``).

    Raises:
        UsageError: no such profile; suggests close names.
        BadInputError: the file is wrong.
    """
    if name.endswith(".toml"):
        with translate_os_errors("read", name):
            return parse(Path(name).read_bytes(), name)
    profiles = known()
    if name in profiles:
        return profiles[name]
    close = difflib.get_close_matches(name, profiles, n=3, cutoff=0.5)
    hint = "did you mean " + " or ".join(close) + "?" if close else "known: " + ", ".join(profiles)
    raise UsageError(f"unknown target {name!r}", hint=hint)
