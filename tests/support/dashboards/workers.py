"""What every service's dashboard ends with: its processes."""

from __future__ import annotations

from support.dashboards.model import Bounds, Panel, Query, Row

PROCESSES = Row(
    "Processes",
    (
        Panel(
            "Processor time used, in cores",
            "short",
            "What each process takes of the machine. A worker is one process and can use one core.",
            "At one core for minutes: another worker or another pod. Uneven: few clients with long connections.",
            (
                Query(
                    "sum by (instance, worker) (rate(process_cpu_seconds_total{$of}[$__rate_interval]))",
                    "{{instance}} {{worker}}",
                ),
            ),
        ),
        Panel(
            "Memory in use",
            "bytes",
            "Resident memory of each process. After the first hours it should be flat.",
            "Growing for days is a defect: report it, with this picture. The response cache has a bound of its own.",
            (Query("sum by (instance, worker) (process_resident_memory_bytes{$of})", "{{instance}} {{worker}}"),),
        ),
        Panel(
            "Workers that do not answer, that ended, or that were replaced on purpose",
            "short",
            "The first two should be zero. Only services started with several workers have these.",
            "See WorkerRestarts in docs/runbooks/keys.md: the supervisor's log has each exit code.",
            (
                Query("count by (instance) (lakthan_worker_up{$of} == 0) or vector(0)", "silent now {{instance}}"),
                Query(
                    "sum by (instance, worker) (increase(lakthan_worker_restarts_total{$of}[1h]))",
                    "ended in an hour {{instance}} {{worker}}",
                ),
                Query(
                    "sum by (instance) (increase(lakthan_worker_replacements_total{$of}[1h]))",
                    "rolling restart {{instance}}",
                ),
            ),
            bounds=Bounds(1, 3),
        ),
    ),
)
