"""Task messages, most of them damaged or hostile. All of them follow from one seed."""

import copy
import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

Message = dict[str, Any]

_PATHS: Final = (
    "/",
    "/etc",
    "/etc/passwd",
    "/proc/self/root/tmp",
    "..",
    "../../../../tmp/x",
    "{root}",
    "{root}/",
    "{root}/.",
    "{root}/../beside/new",
    "{root}/link/new",
    "{root}/occupied",
    "{root}/a/../../beside/new",
    "{root}//",
    "{root}/\u202eevil",
    "{root}/" + "long/" * 800,
    "{root}/" + "n" * 300,
    "{state}/journal.sqlite",
    "{state}/new",
    "{root}/nul\0",
)
_CONTAINERS: Final = (
    "{other}",
    "{other}_segments",
    "{own}_segments",
    "{own}_more_segments",
    "{own}x",
    "{own}/../{other}",
    "..",
    ".",
    "",
    "database_backups_",
    "{own}_%2e%2e",
    "{own}",
    "{own}_more",
    "{own}\r\nX-Evil: 1",
    "{own}?delimiter=/",
)
_URLS: Final = (
    "{url}/../AUTH_other",
    "{url}/%2e%2e/AUTH_other",
    "{url}x",
    "{url}@evil.example",
    "{url}?x=1",
    "{url}#x",
    "{url}\\..",
    "http://evil.example/v1/AUTH_test",
    "http://user:word@127.0.0.1/v1",
    "file:///etc",
    "https://127.0.0.1:1/v1/AUTH_test",
    "http://127.0.0.1:22/",
    "{url}//",
    "\u212ahttp://x",
)
_ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    0,
    -1,
    2**63,
    10**400,
    1.5,
    1e308,
    "",
    " ",
    "x" * 5000,
    "\u0000",
    "\ud800",
    "\u202e\x1b[2J",
    [],
    {},
    [[]],
    {"a": 1},
    "NaN",
    "2",
)


@dataclass
class Mutator:
    """A generator of messages.

    `words` replace the braces in hostile values. `ids` are the backups that must not change.
    """

    chance: random.Random
    words: dict[str, str]
    ids: list[str]
    _earlier: list[str] = field(default_factory=list)

    def message(self) -> bytes:
        """Return the next message: valid, wrong in its fields, or damaged in its bytes."""
        message = self._task()
        kind = self.chance.random()
        if kind < 0.03:
            return _encoded(self._theft(message["task_id"]))
        if kind < 0.12:
            return _encoded(message)
        if kind < 0.55:
            for _ in range(self.chance.randint(1, 2)):
                self.chance.choice(self._changes())(message)
            return self._written(message)
        return self._damaged(_encoded(message))

    # --- tasks -----------------------------------------------------------------------------

    def _id(self) -> str:
        return str(uuid.UUID(int=self.chance.getrandbits(128), version=4))

    def _task(self) -> Message:
        task_id = self._id()
        self._earlier = [*self._earlier[-50:], task_id]
        backup = {"id": self._id(), "name": "n", "description": "d", "parent_id": None}
        bodies: list[Message] = [
            {"type": "agent.ping"},
            {"type": "backup.create", "backup": backup, "limits": {"cores": 1}, "retry": True},
            {"type": "backup.restore", "backup_id": self._id(), "target": self._filled("{root}/r")},
            {"type": "backup.verify", "backup_id": self._id(), "level": "stored"},
            {"type": "backup.delete", "backup_id": self._id()},
            {"type": "task.cancel", "cancels": self._id()},
        ]
        weights = (2, 1, 4, 1, 3, 1)
        (body,) = self.chance.choices(bodies, weights)
        message = {"version": 1, "task_id": task_id, **body}
        if "backup" in body["type"] and self.chance.random() < 0.2:
            message["store"] = {"container": self._filled("{own}_more")}
        return message

    def _theft(self, task_id: str) -> Message:
        """Return a delete that would succeed if the container were not another tenant's."""
        stolen = {"type": "backup.delete", "backup_id": self.chance.choice(self.ids)}
        store = {"container": self.words["other"]}
        return {"version": 1, "task_id": task_id, **stolen, "store": store}

    def _filled(self, text: str) -> str:
        for name, value in self.words.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    # --- wrong fields ----------------------------------------------------------------------

    def _changes(self) -> list[Callable[[Message], None]]:
        return [
            self._drop,
            self._oddity,
            self._swap,
            self._extra,
            *[self._foreign, self._store] * 3,
        ]

    def _place(self, message: Message) -> tuple[Message, str]:
        """Choose a table of the message and one of its fields."""
        inner = [value for value in message.values() if isinstance(value, dict) and value]
        table = self.chance.choice([message, *inner]) if self.chance.random() < 0.4 else message
        return table, self.chance.choice(list(table))

    def _drop(self, message: Message) -> None:
        table, name = self._place(message)
        if len(table) > 1:
            del table[name]

    def _oddity(self, message: Message) -> None:
        table, name = self._place(message)
        table[name] = copy.deepcopy(self.chance.choice(_ODD))

    def _swap(self, message: Message) -> None:
        (one, a), (other, b) = self._place(message), self._place(message)
        one[a], other[b] = copy.deepcopy(other[b]), copy.deepcopy(one[a])

    def _foreign(self, message: Message) -> None:
        """Insert another backup's id, an earlier task's, a misspelt id, or a path."""
        table, name = self._place(message)
        there = self.chance.choice([*self.ids, *self._earlier])
        spelt = [there.upper(), f"{{{there}}}", f"urn:uuid:{there}", f"../{there}", f"{there}\n"]
        paths = [self._filled(path) for path in _PATHS]
        for field_name in ("backup_id", "cancels", "target", name):
            if field_name in table:
                pool = paths if field_name == "target" else [there] * 5 + spelt
                table[field_name] = self.chance.choice(pool)
                return

    def _store(self, message: Message) -> None:
        store: Message = {}
        if self.chance.random() < 0.6:
            store["container"] = self._filled(self.chance.choice(_CONTAINERS))
        tokens = ["AUTH_tk0000", "a b", "", "\r\nX-Evil: 1", 7]
        login = self.chance.random()
        if login < 0.6:
            url = self.chance.choice([*_URLS, "{url}", "{url}/sub"])
            store["storage_url"] = self._filled(url)
        if 0.1 < login < 0.7:
            store["token"] = self.chance.choice([*["AUTH_tk0000"] * 6, *tokens])
        message["store"] = store

    def _extra(self, message: Message) -> None:
        table, _ = self._place(message)
        table[self.chance.choice(["surprise", "__class__", "\u202e", "", "Task_Id"])] = 1

    def _written(self, message: Message) -> bytes:
        """Encode as JSON, sometimes with a repeated field, deep nesting or too much text."""
        text = json.dumps(message)
        way = self.chance.random()
        if way < 0.08:
            text = f'{{"task_id": "{self._id()}", {text[1:]}'
        elif way < 0.11:
            text = text[:-1] + ', "limits": ' + '{"a":' * 5000 + "1" + "}" * 5001
        elif way < 0.12:
            text = text[:-1] + ', "description": "' + "x" * 70_000 + '"}'
        elif way < 0.15:
            text = text.replace('"version": 1', '"version": 1e999')
        return text.encode("utf-8", "surrogatepass")

    # --- damaged bytes ---------------------------------------------------------------------

    def _damaged(self, body: bytes) -> bytes:
        for _ in range(self.chance.randint(1, 3)):
            at = self.chance.randrange(len(body) + 1)
            way = self.chance.randrange(6)
            if way == 0 and body:
                at %= len(body)
                flipped = body[at] ^ (1 << self.chance.randrange(8))
                body = body[:at] + bytes([flipped]) + body[at + 1 :]
            elif way == 1:
                body = body[:at]
            elif way == 2:
                body = body[:at] + self.chance.randbytes(self.chance.randint(1, 8)) + body[at:]
            elif way == 3:
                body = body[:at] + body[at + self.chance.randint(1, 8) :]
            elif way == 4:
                body = self.chance.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\x1f\x8b"]) + body
            else:
                body = body[:at] + body[self.chance.randrange(len(body) + 1) :]
        return body


def _encoded(message: Message) -> bytes:
    return json.dumps(message).encode()
