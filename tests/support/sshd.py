"""A real OpenSSH server on loopback: its own port, host key, configuration and keys, gone when the test ends."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import psutil

from tests.support.cli import wait_for

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/opt/homebrew/sbin")


def missing() -> str:
    """Why there can be no server here; "" when there can."""
    if SSHD is None:
        return "needs an OpenSSH server (Debian, Ubuntu: apt install openssh-server)"
    return "" if shutil.which("ssh-keygen") and shutil.which("ssh") else "needs the OpenSSH client"


class Server:
    """One server; `far_home` is where the program keeps its files on the "other" machine."""

    def __init__(self, place: Path, **environment: str) -> None:
        self.place = place
        self.far_home = place / "far home"
        place.mkdir(parents=True)
        for name in ("host_key", "key", "wrong_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
        shutil.copy(place / "key.pub", place / "authorized_keys")
        (place / "authorized_keys").chmod(0o600)
        self.port = _free_port()
        variables = {"SCALER_WIZARD_HOME": str(self.far_home), "HF_HUB_OFFLINE": "1", **environment}
        settings = " ".join(f'"{name}={value}"' for name, value in variables.items())
        (place / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {place}/host_key\nPidFile {place}/sshd.pid\n"
            f"AuthorizedKeysFile {place}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nPrintMotd no\nMaxStartups 50\n"
            f"SetEnv {settings}\n"
        )
        public = (place / "host_key.pub").read_text().strip()
        (place / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {public}\n")
        self.write_client()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def write_client(self, *, key: str = "key", known_hosts: str = "known_hosts") -> None:
        """~/.ssh/config as it were: the host `box`."""
        (self.place / "client").write_text(
            f"Host box\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {self.place}/{key}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.place}/{known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
        )

    @property
    def program(self) -> str:
        """The value for SCALER_WIZARD_SSH."""
        return f"ssh -F {self.place}/client"

    def start(self) -> None:
        """Listen."""
        assert SSHD is not None
        if os.getuid() == 0:  # where privileges are separated; a container's /run may lack it
            Path("/run/sshd").mkdir(parents=True, exist_ok=True)
        with (self.place / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", self.place / "sshd_config"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(self._listens, f"sshd listens: {(self.place / 'sshd.log').read_text()}", seconds=20)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def drop(self) -> int:
        """Every connection breaks off, as when a cable is pulled out; the server goes on. Returns how many."""
        assert self.process is not None
        sessions = psutil.Process(self.process.pid).children(recursive=True)
        connections = [process for process in sessions if process.name().startswith("sshd")]
        for process in connections:
            process.send_signal(signal.SIGKILL)
        return len(connections)

    def stop(self) -> None:
        """Nobody listens any more; connections that are open break off too."""
        assert self.process is not None
        self.drop()
        self.process.kill()
        self.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
