"""The key of a preference store's page: the tokens of its links, and the signatures of sessions."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from rlhf_env.errors import DataError


@dataclass(frozen=True)
class Keys:
    """What is derived from a store's secret: the tokens of the links, and the signatures of sessions."""

    secret: bytes

    @classmethod
    def of(cls, store: Path) -> Keys:
        """Read `<store>.key`, or make it: 32 random bytes that only their owner can read."""
        file = Path(f"{store}.key")
        try:
            with contextlib.suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                with os.fdopen(os.open(file, flags, 0o600), "wb") as made:
                    made.write(secrets.token_bytes(32))
            secret, mode = file.read_bytes(), file.stat().st_mode
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}") from error
        if len(secret) != 32 or mode & 0o077:
            raise DataError(f"{file}: not 32 bytes that only you can read: delete it, and a new one is made")
        return cls(secret)

    def sign(self, purpose: str, content: str = "") -> str:
        signature = hmac.digest(self.secret, json.dumps([purpose, content]).encode("ascii"), "sha256")
        return base64.urlsafe_b64encode(signature).decode("ascii").rstrip("=")

    @property
    def token(self) -> str:
        return self.sign("token")

    @property
    def owner(self) -> str:
        """Opens the results, and nothing else."""
        return self.sign("owner")

    @property
    def cookie(self) -> str:
        """Its name. Cookies know no ports: two stores' pages on one machine must not overwrite each other's."""
        return "annotate_" + self.sign("cookie")[:12]

    def session(self, annotator: str) -> str:
        """A cookie's value: who is judging, with something that nobody can guess, signed."""
        content = json.dumps([annotator, secrets.token_urlsafe(16)]).encode("ascii")
        value = base64.urlsafe_b64encode(content).decode("ascii").rstrip("=")
        return f"{value}.{self.sign('session', value)}"

    def annotator(self, session: str) -> str | None:
        """Who is judging; None unless the session was signed here."""
        value, _, signature = session.partition(".")
        if not is_same(signature, self.sign("session", value)):
            return None
        name = json.loads(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)))[0]
        assert isinstance(name, str)
        return name

    def csrf(self, session: str) -> str:
        return self.sign("csrf", session)


def is_same(given: str, expected: str) -> bool:
    """In a time that does not tell how much of it was right."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode("ascii"))
