"""The panels about connections and floods, the same for every service with a short way."""

from __future__ import annotations

from support.dashboards.model import Panel, Query, Row


def floods(service: str) -> Row:
    """`service`: `ocsp` or `tsa`."""
    wire = f"lakthan_{service}_wire_"

    def rate(name: str) -> str:
        return f"sum(rate({wire}{name}_total{{$of}}[$__rate_interval]))"

    return Row(
        "Connections and floods",
        (
            Panel(
                "Connections open now",
                "short",
                "Those that the short way has, and those that aiohttp has for requests that are not usual.",
                "Near `connections` of the configuration, the source that has most is closed to make room.",
                (
                    Query(f"sum by (instance, worker) ({wire}connections{{$of}})", "{{instance}} {{worker}}"),
                    Query(f"sum by (instance, worker) ({wire}guests{{$of}})", "{{instance}} {{worker}} aiohttp"),
                ),
            ),
            Panel(
                "Connections by the way they took",
                "ops",
                "Requests answered by the short way; connections handed over to the long one, or closed as slow.",
                "Many handed over: an unusual client or proxy header makes each request three times as dear.",
                (
                    Query(rate("answered"), "short way"),
                    Query(rate("handed_over"), "handed over"),
                    Query(rate("timed_out"), "timed out"),
                ),
            ),
            Panel(
                "Closed or refused in a flood",
                "ops",
                "Connections closed to make room, newcomers without room (503), requests beyond a source's share.",
                "See docs/floods.md. A proxy that is limited belongs into `proxies` of the configuration.",
                (
                    Query(rate("made_room"), "made room"),
                    Query(rate("turned_away"), "turned away"),
                    Query(rate("limited"), "limited"),
                ),
            ),
            Panel(
                "Sources limited now",
                "short",
                "Addresses that ask for more than their share while there is not enough for all.",
                "See docs/floods.md; more workers or pods make more for all.",
                (Query(f"sum by (instance, worker) ({wire}limited_sources{{$of}})", "{{instance}} {{worker}}"),),
            ),
            Panel(
                "Held of unfinished requests",
                "bytes",
                "What clients have sent of requests that are not whole yet.",
                "It never exceeds 32 MiB by much; those that hold most are closed.",
                (Query(f"sum by (instance, worker) ({wire}held_bytes{{$of}})", "{{instance}} {{worker}}"),),
            ),
        ),
    )
