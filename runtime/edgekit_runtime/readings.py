"""How the device is: processor, memory, disk, temperatures, throttling. Read from /proc and /sys.

Below one root folder, so that a tree of plain files is a device. What is absent or unreadable is
None, never a guess: "not throttled" is said only when a source says so.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from edgekit.contracts.health import Resources
from edgekit_runtime.ports import Clock

LOOK_S = 1.0  # lower: a board of many cores is read all the time
ZONES_MAX = 32  # of temperature; servers have hundreds
NAME_CHARS_MAX = 32
COOLERS = ("cpufreq", "thermal-cpufreq", "thermal-devfreq", "processor", "cpu")
# Raspberry Pi firmware; bits as `vcgencmd get_throttled` prints them.
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
_FIRMWARE_BITS = {1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_CELSIUS = (-60.0, 200.0)  # sensors that are not there say 0 kelvin or nonsense


class Readings:
    """Looks at one device; processor load is what happened between two looks."""

    def __init__(self, state: Path, root: Path = Path("/")) -> None:
        """``state``: the folder whose disk is looked at."""
        self._state, self._root = state, root
        self._ticks: tuple[int, int] | None = None

    def read(self, workers: dict[str, int] | None = None) -> Resources:
        """The readings now; ``workers``: resident bytes by model, as the caller found them."""
        sizes = meminfo(self._root / "proc/meminfo")
        throttled, why = throttling(self._root)
        return Resources(
            cpu_busy=self._busy(),
            load_1m=_load(self._root),
            memory_total_bytes=sizes.get("MemTotal"),
            memory_available_bytes=sizes.get("MemAvailable"),
            disk_free_bytes=_free(self._state),
            temperatures_c=temperatures(self._root),
            throttled=throttled,
            throttled_why=why,
            workers_rss_bytes=workers or {},
        )

    def _busy(self) -> float | None:
        """Share of all processors since the last look; None at the first."""
        before, self._ticks = self._ticks, _ticks(self._root)
        if before is None or self._ticks is None:
            return None
        busy, total = (now - then for now, then in zip(self._ticks, before, strict=True))
        return min(1.0, max(0.0, busy / total)) if total > 0 else None


class Throttling:
    """Whether the processor is throttled, looked at once a second at most."""

    def __init__(self, clock: Clock, root: Path = Path("/")) -> None:
        self._clock, self._root = clock, root
        self._looked_at = -math.inf
        self._found: bool | None = None

    def __call__(self) -> bool | None:
        """None: nobody tells."""
        now = self._clock.monotonic()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._found, _ = throttling(self._root)
        return self._found


def throttling(root: Path = Path("/")) -> tuple[bool | None, str]:
    """Whether the processor is slowed down, and who says so; None: nobody tells.

    Three sources, any of which may be absent: the Raspberry Pi's firmware, the kernel's cooling
    devices (all ARM boards with a thermal driver, Jetson's among them), and cpufreq.
    """
    found = [_firmware(root), _cooling(root), _frequencies(root)]
    said = [why for slowed, why in found if slowed]
    if said:
        return True, "; ".join(said)
    if all(slowed is None for slowed, _ in found):
        return None, "no source: neither firmware, cooling devices nor cpufreq can be read"
    return False, ""


def temperatures(root: Path = Path("/")) -> dict[str, float]:
    """Degrees Celsius by thermal zone."""
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"), key=_number_of):
        value = number(zone / "temp")
        if value is None or not _CELSIUS[0] <= value / 1000.0 <= _CELSIUS[1]:
            continue
        name = (_text(zone / "type") or zone.name)[:NAME_CHARS_MAX]
        if name in found:
            name = f"{name[: NAME_CHARS_MAX - 4]}-{_number_of(zone)}"
        found[name] = value / 1000.0
        if len(found) == ZONES_MAX:
            break
    return found


def meminfo(path: Path = Path("/proc/meminfo")) -> dict[str, int]:
    """Bytes by name; empty where the system does not tell."""
    found: dict[str, int] = {}
    for line in _text(path).splitlines():
        key, _, rest = line.partition(":")
        words = rest.split()
        if words[:1] and words[0].isdigit():
            found[key] = int(words[0]) * 1024
    return found


def number(path: Path) -> int | None:
    """The number in a file of one number."""
    try:
        return int(_text(path))
    except ValueError:
        return None


def _firmware(root: Path) -> tuple[bool | None, str]:
    try:
        bits = int(_text(root / FIRMWARE), 16)
    except ValueError:
        return None, ""
    said = [text for bit, text in _FIRMWARE_BITS.items() if bits >> bit & 1]
    return bool(said), f"firmware: {', '.join(said)}"


def _cooling(root: Path) -> tuple[bool | None, str]:
    states: dict[str, int] = {}
    for cooler in sorted((root / "sys/class/thermal").glob("cooling_device*"), key=_number_of):
        kind, state = _text(cooler / "type"), number(cooler / "cur_state")
        if state is not None and kind.lower().startswith(COOLERS):
            states[f"{kind[:NAME_CHARS_MAX]} ({cooler.name})"] = state
    if not states:
        return None, ""
    active = [name for name, state in states.items() if state > 0]
    return bool(active), f"cooling: {', '.join(active[:4])}"


def _frequencies(root: Path) -> tuple[bool | None, str]:
    slowed, known = [], False
    for cpu in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"), key=_number_of):
        now = number(cpu / "cpufreq/scaling_max_freq")
        most = number(cpu / "cpufreq/cpuinfo_max_freq")
        if now is None or most is None:
            continue
        known = True
        if now < most:
            slowed.append(cpu.name)
    more = ", …" if len(slowed) > 4 else ""
    return (bool(slowed) if known else None), (
        f"{', '.join(slowed[:4])}{more} may not run at full speed"
    )


def _ticks(root: Path) -> tuple[int, int] | None:
    """(busy, total) of all processors since the start."""
    words = _text(root / "proc/stat").split("\n", 1)[0].split()
    if words[:1] != ["cpu"] or len(words) < 6 or not all(word.isdigit() for word in words[1:]):
        return None
    values = [int(word) for word in words[1:9]]  # what guests used is in there already
    idle = values[3] + values[4]
    return sum(values) - idle, sum(values)


def _load(root: Path) -> float | None:
    try:
        return float(_text(root / "proc/loadavg").split()[0])
    except (ValueError, IndexError):
        return None


def _free(state: Path) -> int | None:
    try:
        facts = os.statvfs(state)
    except OSError:
        return None
    return facts.f_bavail * facts.f_frsize


def _number_of(path: Path) -> int:
    digits = "".join(char for char in path.name if char.isdigit())
    return int(digits) if digits else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip("\0 \n")
    except OSError:
        return ""
