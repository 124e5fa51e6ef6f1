"""The status page in a real Chromium: what operators see and a hostile device cannot do."""

import os
import shutil
import subprocess

import pytest
from fleetkit.device import WireDevice
from fleetkit.processes import Broker, Manager, running, wait_for

pytestmark = pytest.mark.integration

# Without these Chromium asks the outside world for updates and lists as soon as it starts.
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not on PATH")
        pytest.skip("chromium is not on PATH (apt-get install chromium)")
    return found


def rendered(url, folder):
    """The document after its scripts ran for some seconds of the page's own time."""
    done = subprocess.run(
        [chromium(), *QUIET, f"--user-data-dir={folder / 'profile'}",
         "--virtual-time-budget=6000", "--dump-dom", url],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_an_operator_sees_devices_and_counts_and_hostile_labels_stay_text(tmp_path):
    attack = "<img src=x onerror=\"document.title='owned'\">"
    broker = Broker("iotcore", tmp_path)
    manager = Manager(broker.port, tmp_path)
    with running(broker, manager):
        wait_for(manager.connected, "connection to the broker")
        device = WireDevice("meter-01", broker.port, labels={"site": attack})
        try:
            device.count(0, 1, n=4321)
            device.drained()
            page = rendered(manager.url, tmp_path)
        finally:
            device.close()
    assert "meter-01" in page
    assert "4,321" in page
    assert "all parts ok" in page
    assert "owned" not in page.partition("</title>")[0]
    assert "<img" not in page.replace("&lt;img", "")
    assert "&lt;img src=x onerror=" in page
