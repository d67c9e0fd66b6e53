"""What was true when: the history of every certificate as those who changed it know it.

A change is not an instant for whoever watches from outside. It may be in force from the moment it was asked for, and
must be from its acknowledgement on; one that was never acknowledged may be in force or not, for ever. A responder may
be behind by its declared bound. So of an answer it is asked: could this have been true at some moment between the bound
before its question was sent and its arrival? Everything is in seconds of the monotonic clock.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["good", "revoked"]


@dataclass(eq=False)
class Turn:
    """A change of one certificate's status. `acknowledged`: when whoever asked for it was told that it is done."""

    status: Status
    asked: float
    acknowledged: float = math.inf


@dataclass
class History:
    """All changes. Every certificate has been good from the beginning."""

    bound_seconds: float
    turns: dict[bytes, list[Turn]] = field(default_factory=lambda: defaultdict(list))

    def ask(self, serial_number: bytes, status: Status, now: float) -> Turn:
        """Somebody asks for a change."""
        turn = Turn(status, now)
        self.turns[serial_number].append(turn)
        return turn

    def could_be(self, serial_number: bytes, status: Status, sent: float, heard: float) -> bool:
        """Whether this answer to a question of these two instants can be right."""
        turns = self.turns.get(serial_number, [])
        began = -math.inf
        said: Status = "good"
        for number in range(len(turns) + 1):
            # A status ends with the acknowledgement of the next one that is acknowledged.
            ended = min((turn.acknowledged for turn in turns[number:]), default=math.inf)
            if said == status and began <= heard and sent - self.bound_seconds <= ended:
                return True
            if number < len(turns):
                began, said = turns[number].asked, turns[number].status
        return False

    def must_be(self, serial_number: bytes) -> Status | None:
        """The status now; None where a change after the last acknowledged one may be in force or not."""
        turns = self.turns.get(serial_number, [])
        last: Status = "good"
        for turn in turns:
            if turn.acknowledged < math.inf:
                last = turn.status
            elif turn.status != last:
                return None
        return last

    @property
    def acknowledged(self) -> int:
        """How many changes were."""
        return sum(turn.acknowledged < math.inf for turns in self.turns.values() for turn in turns)
