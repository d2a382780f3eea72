"""The configuration of servers that OPERATIONS.md has is one that nats-server takes."""

import subprocess
from pathlib import Path

from tests.support.documents import blocks, read, section
from tests.support.nats import server_program
from tests.support.tls import make_certificate
from tests.support.waiting import HUNG_AFTER


def test_the_documented_configuration_is_one_that_the_server_takes(tmp_path: Path) -> None:
    (config,) = blocks(
        section(read("agent/OPERATIONS.md"), "One agent per host, or a fleet").replace("\n   ", "\n"), "conf"
    )
    make_certificate(tmp_path)
    for name, own in {
        "/etc/nats/cert.pem": "certificate.pem",
        "/etc/nats/ca.pem": "certificate.pem",
        "/etc/nats/key.pem": "key.pem",
        "/var/lib/nats": "store",
    }.items():
        assert name in config
        config = config.replace(name, str(tmp_path / own))
    (tmp_path / "resolver.conf").touch()
    file = tmp_path / "nats.conf"
    file.write_text(config)
    done = subprocess.run([server_program(), "-t", "-c", file], capture_output=True, text=True, timeout=HUNG_AFTER)
    assert (done.returncode, "is valid" in done.stderr) == (0, True), done.stderr
    assert "sync_interval: always" in config
