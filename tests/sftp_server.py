"""A real SFTP server, in a thread of the process of the tests."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import asyncssh

USER, PASSWORD = "coterie", "secret"


class SftpServer:
    """Serves the file system of this machine to one user, on 127.0.0.1."""

    def __init__(self) -> None:
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        self._connections: list[Any] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port: int = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def url(self, folder: Path) -> str:
        return f"sftp://{USER}@127.0.0.1:{self.port}{folder}"

    @property
    def known_host(self) -> str:
        """The line about this server in a file of known hosts."""
        return f"[127.0.0.1]:{self.port} {self._key.export_public_key().decode()}"

    def cut_connections(self) -> None:
        """Cut those that are open, as a router does that has forgotten them."""

        async def cut() -> int:
            cut = 0
            while self._connections:
                self._connections.pop().abort()
                cut += 1
            return cut

        assert asyncio.run_coroutine_threadsafe(cut(), self._loop).result() > 0

    def silence_connections(self) -> None:
        """Answer nothing more on those that are open, as where a cable is pulled out."""

        async def silence() -> int:
            for connection in self._connections:
                connection._transport.pause_reading()
            return len(self._connections)

        assert asyncio.run_coroutine_threadsafe(silence(), self._loop).result() > 0

    def stop(self) -> None:
        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _listen(self) -> int:
        connections = self._connections

        class Server(asyncssh.SSHServer):  # type: ignore[misc]
            def connection_made(self, connection: Any) -> None:
                connections.append(connection)

            def password_auth_supported(self) -> bool:
                return True

            def validate_password(self, username: str, password: str) -> bool:
                return (username, password) == (USER, PASSWORD)

        acceptor = await asyncssh.listen(
            "127.0.0.1", 0, server_factory=Server, server_host_keys=[self._key], sftp_factory=True
        )
        port: int = acceptor.get_port()
        return port
