"""SFTP to servers whose keys this machine knows, over connections that notice when they are cut."""

from __future__ import annotations

import paramiko
from fsspec.implementations.sftp import SFTPFileSystem

SECONDS_BETWEEN_SIGNS_OF_LIFE = 30
# What a server needs for an answer, at most; without it a dead link would be waited for without end.
SECONDS_TO_ANSWER = 120.0


class KnownHosts(SFTPFileSystem):  # type: ignore[misc]
    """The file system of fsspec, which by itself trusts any key that a server shows.

    paramiko.SSHException where the server is not in ~/.ssh/known_hosts.
    """

    def _connect(self) -> None:
        self.client = paramiko.SSHClient()  # refuses what is not known
        self.client.load_system_host_keys()
        limits = dict.fromkeys(("timeout", "banner_timeout", "auth_timeout"), SECONDS_TO_ANSWER)
        self.client.connect(self.host, **(limits | self.ssh_kwargs))
        transport = self.client.get_transport()
        assert transport is not None
        transport.set_keepalive(SECONDS_BETWEEN_SIGNS_OF_LIFE)
        # by hand: `open_sftp` waits for a first word without a limit
        channel = transport.open_session(timeout=SECONDS_TO_ANSWER)
        channel.settimeout(SECONDS_TO_ANSWER)
        channel.invoke_subsystem("sftp")
        self.ftp = paramiko.SFTPClient(channel)
