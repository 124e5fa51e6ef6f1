"""The real install script, from a real manager and from a folder; below a prefix, without root."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from agentkit.ports import free_port
from fleetkit.processes import EDGEKIT, Broker, Manager, edgekit, running, wait_for

from edgekit.contracts import digest, oci

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
GLIBC = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[-1]
BASE_PYTHON = Path(sys.base_prefix) / "bin" / f"python{PYTHON}"  # has none of our packages


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory):
    """A layout with the runtime of this machine, built by the command."""
    out = tmp_path_factory.mktemp("runtimes") / "layout"
    arch = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    words = ["runtime", "build", "--arch", arch, "--python", PYTHON, "--glibc", GLIBC]
    done = subprocess.run(
        [*EDGEKIT, *words, "--out", str(out), "--json"],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["manifest"]["engines"]["onnxruntime"]
    return out, found["digest"]


@pytest.fixture(scope="module")
def site(tmp_path_factory, runtimes):
    folder = tmp_path_factory.mktemp("site")
    broker = Broker("iotcore", folder)
    manager = Manager(broker.port, folder)
    with running(broker, manager):
        command(manager, "runtime", "publish", str(runtimes[0]))
        yield manager, broker


def command(manager, *words, ok=True):
    done = edgekit(*words, env={"EDGEKIT_MANAGER": manager.url})
    assert (done.returncode == 0) is ok, done.stderr
    return done.stdout if ok else done


def token(manager, *words):
    return json.loads(command(manager, "fleet", "token", "create", *words, "--json"))


def install(script, *words, cwd=None):
    """What a user types, without root; nothing of the test's environment but a Python."""
    environment = {"PATH": os.defpath, "EDGEKIT_PYTHON": str(BASE_PYTHON)}
    return subprocess.run(
        ["sh", "-s", "--", *words], input=script, cwd=cwd, env=environment, capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip


def script_of(manager):
    return httpx.get(f"{manager.url}/install.sh").text


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_device_installs_itself_and_joins(tmp_path_factory, site, runtimes):
    tmp_path = tmp_path_factory.mktemp("d")  # short: the path of a socket has a limit
    manager, _ = site
    made = token(manager, "--device", "dev-1", "--note", "bench")
    words = ["--token", made["token"], "--device", "dev-1", "--label", "site=north"]
    root = tmp_path / "root"
    done = install(script_of(manager), *words, "--root", str(root))
    assert done.returncode == 0, done.stderr
    folder = root / "var/lib/edgekit/runtimes" / digest.hex_of(runtimes[1])
    assert (root / "var/lib/edgekit/runtimes/current").resolve() == folder
    sums = subprocess.run(
        ["sha256sum", "-c", "--quiet", "contents.sha256"], cwd=folder, check=False
    )
    assert sums.returncode == 0
    unit = (root / "etc/systemd/system/edgekit-agent.service").read_text()
    (start,) = (line for line in unit.splitlines() if line.startswith("ExecStart="))
    program = shlex.split(start.removeprefix("ExecStart="))  # what systemd would run
    assert program[0] == str(BASE_PYTHON)
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(program, env={"PATH": os.defpath}, stdout=log, stderr=log)
    try:

        def reported():  # it is known from its presence on, its labels from its first report on
            return [each for each in manager.get("/devices") if each["labels"]]

        found = wait_for(reported, "the device's report", timeout_s=60)
        assert (found[0]["device"], found[0]["labels"]) == ("dev-1", {"site": "north"})
        version = [str(root / "usr/local/bin/edgekit-agent"), "--version"]
        told = subprocess.run(version, env={"PATH": os.defpath}, capture_output=True, check=False)
        assert told.stdout.startswith(b"edgekit-agent ")
    finally:
        child.terminate()
        assert child.wait(30) == 0
    # Again, with the same token: it is this device's, and nothing has to be fetched.
    again = install(script_of(manager), *words, "--root", str(root))
    assert again.returncode == 0, again.stderr
    assert "kept " in again.stderr
    assert ".whl" not in again.stderr
    (listed,) = [t for t in manager.get("/tokens") if t["id"] == made["id"]]
    assert (listed["used_by"], listed["token"]) == ("dev-1", None)
    # A file that was altered is found, and nothing is started from it.
    victim = folder / "site" / "edgekit" / "__init__.py"
    victim.write_text(victim.read_text() + "#")
    damaged = install(script_of(manager), *words, "--root", str(root))
    assert (damaged.returncode, "altered" in damaged.stderr) == (3, True)


def test_tokens_are_for_one_device_expire_and_can_be_revoked(tmp_path, site):
    manager, _ = site
    root = tmp_path / "root"

    def refused(secret, device, status=3, text="not good for this device"):
        script = script_of(manager)
        done = install(script, "--token", secret, "--device", device, "--root", str(root))
        assert (done.returncode, text in done.stderr) == (status, True), done.stderr
        assert done.stderr.count("error: ") == done.stderr.count("hint: ") == 1
        assert not root.exists()

    bound = token(manager, "--device", "dev-2")
    refused(bound["token"], "dev-3")
    refused("ekj_wrong", "dev-2")
    command(manager, "fleet", "token", "revoke", str(bound["id"]))
    refused(bound["token"], "dev-2")
    short = token(manager, "--ttl-s", "0.001", "--url", "http://fleet.local:8470/")
    assert short["command"].startswith("curl -fsSL http://fleet.local:8470/install.sh ")
    refused(short["token"], "dev-2")
    once = token(manager)
    body = {"device": "dev-4", "arch": "amd64", "python": PYTHON, "glibc": "2.99"}
    login = {"Authorization": f"Bearer {once['token']}"}
    none = {**body, "python": "3.99"}
    url = f"{manager.url}/api/v1/join"
    answer = httpx.post(url, json=none, headers=login)  # no runtime: the token is not spent
    assert (answer.status_code, "edgekit runtime build" in answer.json()["hint"]) == (422, True)
    old = httpx.post(url, json={**body, "glibc": "2.5"}, headers=login)
    assert (old.status_code, f"needs glibc {GLIBC}" in old.json()["error"]) == (422, True)
    assert httpx.post(url, json=body, headers=login).status_code == 200
    refused(once["token"], "dev-5")
    assert httpx.post(url, json=body).status_code == 403
    refused(once["token"], "Dev 5", status=2, text="cannot be used")
    states = command(manager, "fleet", "token", "list")
    assert {"revoked", "expired", "used"} <= {line.split()[1] for line in states.splitlines()}
    database = (manager.data_dir / "manager.sqlite").read_bytes()
    assert once["token"].encode() not in database
    raw = httpx.get(f"{manager.url}/install.sh", headers={"Host": "x';reboot;'"})
    assert raw.status_code in {400, 422}


def test_an_operator_pins_what_is_installed(tmp_path, site, runtimes):
    manager, _ = site
    made = token(manager)
    line = made["command"].replace("sudo ", "").replace("/tmp/install.sh", f"{tmp_path}/install.sh")
    root = tmp_path / "root"
    environment = {"PATH": os.defpath, "EDGEKIT_PYTHON": str(BASE_PYTHON)}
    other = "sha256:" + "0" * 64
    for pin, code in ((other, 3), (runtimes[1], 0)):
        words = f"{line} --root {root} --device dev-6 --runtime {pin}"
        done = subprocess.run(
            ["sh", "-c", words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert root.exists() is (code == 0)
    tampered = script_of(manager).replace("SHA256='", "SHA256='0")
    done = install(tampered, "--token", made["token"], "--root", str(tmp_path / "other"))
    assert (done.returncode, "is not the program" in done.stderr) == (3, True)
    assert not (tmp_path / "other").exists()


@pytest.fixture
def stick(tmp_path, runtimes):
    out = tmp_path / "stick"
    words = ["runtime", "export", str(runtimes[0]), "--broker", "broker.local:1884"]
    done = edgekit(*words, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


def offline(stick, root, *words):
    environment = {"PATH": os.defpath, "EDGEKIT_PYTHON": str(BASE_PYTHON)}
    return subprocess.run(
        ["sh", str(stick / "install.sh"), "--device", "dev-7", "--root", str(root), *words],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_device_installs_itself_from_a_stick(tmp_path, stick, runtimes):
    root = tmp_path / "root"
    done = offline(stick, root)
    assert done.returncode == 0, done.stderr
    agent = root / "usr/local/bin/edgekit-agent"
    config = root / "etc/edgekit/agent.toml"
    told = subprocess.run(
        [str(agent), "status", "--config", str(config), "--json"],
        env={"PATH": os.defpath}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert 'host = "broker.local"\nport = 1884' in config.read_text()
    verified = edgekit("runtime", "verify", str(root / "var/lib/edgekit/runtimes/current"))
    assert verified.returncode == 0, verified.stderr
    assert edgekit("runtime", "export", str(runtimes[0]), "--broker", "x", "--out", str(stick)
                   ).returncode == 3  # fmt: skip


def test_a_damaged_stick_leaves_nothing(tmp_path, stick):
    root = tmp_path / "root"
    layout = oci.LayoutReader(stick / "layout")
    wheel = layout.blob_path(layout.manifest(layout.resolve()).layers[1].digest)
    whole = wheel.read_bytes()
    for damaged, text in ((whole[:-1], "cut off"), (b"?" + whole[1:], "altered")):
        wheel.write_bytes(damaged)
        done = offline(stick, root)
        assert (done.returncode, text in done.stderr) == (3, True), done.stderr
        assert files(root) == []
    wheel.unlink()
    assert (offline(stick, root).returncode, files(root)) == (3, [])
    site = json.loads((stick / "site.json").read_text())
    (stick / "site.json").write_text(json.dumps({**site, "runtimes": {}}))
    done = offline(stick, root)
    assert (done.returncode, "edgekit runtime build" in done.stderr) == (3, True)


def test_an_address_that_answers_nothing_is_said(tmp_path, site):
    script = script_of(site[0]).replace(site[0].url, f"http://127.0.0.1:{free_port()}")
    done = install(script, "--token", "x", "--root", str(tmp_path / "root"))
    assert done.returncode == 5
    assert done.stderr.count("hint: ") == 1
