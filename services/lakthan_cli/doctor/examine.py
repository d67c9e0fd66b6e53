"""One look at everything: the areas in order, each with its own notes.

Promises: what goes wrong in one area keeps nobody from looking at the others.
"""

from __future__ import annotations

from lakthan_cli.doctor import clock, database, files, keys, machine, network, ports
from lakthan_cli.doctor.notes import Notes, Patient
from lakthan_cli.findings import Finding


async def examine(patient: Patient) -> list[Finding]:
    """All findings."""
    areas = {name: Notes(name) for name in ("clock", "database", "keys", "ports", "files", "network", "machine")}
    await clock.look(patient, areas["clock"])
    await database.look(patient, areas["database"])
    opened = await keys.look(patient, areas["keys"])
    await ports.look(patient, areas["ports"])
    await files.look(patient, areas["files"])
    if not patient.offline:
        await network.look(patient, opened, areas["network"])
    await machine.look(patient, areas["machine"])
    return [finding for notes in areas.values() for finding in notes.findings]
