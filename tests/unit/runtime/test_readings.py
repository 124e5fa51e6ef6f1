"""Readings of a device from trees of plain files: what is absent is unknown, never guessed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgekit_runtime import readings
from edgekit_runtime.readings import Readings, Throttling


def _put(root, path, text):
    found = root / path
    found.parent.mkdir(parents=True, exist_ok=True)
    found.write_text(text)


def test_a_device_that_tells_nothing_is_unknown_and_never_fails(tmp_path):
    found = Readings(tmp_path / "absent", tmp_path).read()
    assert found.throttled is None
    assert "no source" in found.throttled_why
    assert (found.cpu_busy, found.load_1m, found.disk_free_bytes) == (None, None, None)
    assert found.temperatures_c == {}


def test_load_memory_and_disk(tmp_path):
    _put(tmp_path, "proc/stat", "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3\n")
    _put(tmp_path, "proc/loadavg", "0.52 0.40 0.30 1/200 99\n")
    _put(tmp_path, "proc/meminfo", "MemTotal: 4000 kB\nMemAvailable: 1000 kB\nOdd\n")
    look = Readings(tmp_path, tmp_path)
    first = look.read({"meter": 7})
    assert (first.cpu_busy, first.load_1m) == (None, 0.52)
    assert (first.memory_total_bytes, first.memory_available_bytes) == (4096000, 1024000)
    assert first.workers_rss_bytes == {"meter": 7}
    assert first.disk_free_bytes > 0
    _put(tmp_path, "proc/stat", "cpu  150 0 125 900 125 0 0 0 0 0\n")
    assert look.read().cpu_busy == pytest.approx(75 / 300)


def test_temperatures_by_zone_leave_out_sensors_that_are_not_there(tmp_path):
    zones = {0: ("cpu-thermal", "51234"), 1: ("gpu", "48000"), 2: ("gpu", "47000")}
    zones |= {3: ("absent", "-274000"), 4: ("broken", "x"), 10: ("", "30000")}
    for number, (kind, temp) in zones.items():
        _put(tmp_path, f"sys/class/thermal/thermal_zone{number}/type", f"{kind}\n")
        _put(tmp_path, f"sys/class/thermal/thermal_zone{number}/temp", f"{temp}\n")
    assert readings.temperatures(tmp_path) == {
        "cpu-thermal": 51.234,
        "gpu": 48.0,
        "gpu-2": 47.0,
        "thermal_zone10": 30.0,
    }


@pytest.mark.parametrize(
    ("bits", "throttled", "why"),
    [
        ("0", False, ""),
        ("50005", True, "firmware: throttled"),
        ("2", True, "firmware: frequency capped"),
        ("e", True, "firmware: frequency capped, throttled, soft temperature limit"),
        ("50000", False, ""),  # it was, and is no more
        ("1", False, ""),  # under-voltage alone slows nothing down yet
    ],
)
def test_raspberry_pi_firmware(tmp_path, bits, throttled, why):
    _put(tmp_path, readings.FIRMWARE, f"{bits}\n")
    assert readings.throttling(tmp_path) == (throttled, why)


def test_cooling_devices_of_processors_count_and_fans_do_not(tmp_path):
    _put(tmp_path, "sys/class/thermal/cooling_device0/type", "pwm-fan\n")
    _put(tmp_path, "sys/class/thermal/cooling_device0/cur_state", "3\n")
    assert readings.throttling(tmp_path)[0] is None
    _put(tmp_path, "sys/class/thermal/cooling_device1/type", "cpufreq-cpu0\n")
    _put(tmp_path, "sys/class/thermal/cooling_device1/cur_state", "0\n")
    assert readings.throttling(tmp_path) == (False, "")
    _put(tmp_path, "sys/class/thermal/cooling_device1/cur_state", "2\n")
    assert readings.throttling(tmp_path) == (True, "cooling: cpufreq-cpu0 (cooling_device1)")


def test_frequencies_below_the_processors_own(tmp_path):
    for cpu in range(6):
        _put(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq", "2000000\n")
        _put(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_max_freq", "2000000\n")
    assert readings.throttling(tmp_path) == (False, "")
    for cpu in range(6):
        _put(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_max_freq", "600000\n")
    assert readings.throttling(tmp_path) == (
        True,
        "cpu0, cpu1, cpu2, cpu3, … may not run at full speed",
    )


def test_throttling_is_looked_at_once_a_second(tmp_path):
    class Clock:
        now = 5.0

        def monotonic(self):
            return self.now

    clock = Clock()
    look = Throttling(clock, tmp_path)
    assert look() is None
    _put(tmp_path, readings.FIRMWARE, "4\n")
    assert look() is None
    clock.now += 1.0
    assert look() is True


def test_the_peak_of_a_process_is_its_own():
    """What started it may have been larger: that is not what a model takes."""
    code = (
        "import subprocess, sys; held = bytearray(400 << 20)\n"
        "ask = 'from edgekit_runtime import process_facts; print(process_facts.peak_bytes())'\n"
        "print(subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < 200 << 20
