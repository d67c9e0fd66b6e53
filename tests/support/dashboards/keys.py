"""The dashboard of keys and clocks: what must not run out, and what must not stand still."""

from __future__ import annotations

from support.dashboards.model import Bounds, Dashboard, Panel, Query, Row, rate

_DAY = 86400
_SERVICES = (("ocsp", "OCSP", "authority"), ("tsa", "TSA", "unit"), ("publisher", "publisher", "authority"))


def _each(series: str, of: str, legend: str) -> tuple[Query, ...]:
    """The same of every service that has keys. `of`: the expression around the series, `{{}}` where it goes."""
    return tuple(
        Query(
            of.replace("{}", f"lakthan_{service}_{series}").replace("LABEL", label),
            legend.replace("LABEL", f"{said} {{{{{label}}}}}").replace("WHO", said),
        )
        for service, said, label in _SERVICES
    )


_CLOCK = Row(
    "The clocks of the time-stamp authority",
    (
        Panel(
            "Processes by the state of their clock",
            "short",
            "Only in sync and soon out of sync may stamp.",
            "See TSAClockOut and TSAClockSoonOut in docs/runbooks/tsa.md.",
            (Query("sum by (state) (lakthan_tsa_clock_state{$of})", "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "How far off a clock may be at most",
            "s",
            "The bound that the guard works out; nothing is drawn when nobody can tell.",
            "Growing steadily: the sources are silent and the clock runs free. Repair NTP before it stops.",
            (Query("max by (instance) (lakthan_tsa_clock_bound_seconds{$of})", "{{instance}}"),),
        ),
        Panel(
            "How far a clock is ahead of UTC",
            "s",
            "By its best source.",
            "A saw-tooth is a clock that is set again and again: use chrony, which slews.",
            (Query("max by (instance) (lakthan_tsa_clock_offset_seconds{$of})", "{{instance}}"),),
        ),
        Panel(
            "NTP servers by standing",
            "short",
            "truechimer: agrees with the majority. falseticker: outvoted. silent: does not answer.",
            "Truechimers near the majority: add servers, or open UDP 123.",
            (Query("min by (instance, standing) (lakthan_tsa_ntp_servers{$of})", "{{instance}} {{standing}}"),),
        ),
        Panel(
            "Steps of the clock since the start",
            "short",
            "Somebody, or something, set the clock.",
            "Find out who: a virtual machine that was moved, a second time service, a person.",
            (Query("max by (instance) (lakthan_tsa_clock_jumps{$of})", "{{instance}}"),),
            bounds=Bounds(1, None),
        ),
    ),
)

_ENDS = Row(
    "What ends when?",
    (
        Panel(
            "The last OCSP key of an authority ends in",
            "s",
            "By certificate or key list; the publisher's responders as well.",
            "OCSPResponderCertificateEnds in docs/runbooks/ocsp.md.",
            (
                Query(
                    "min by (authority) (lakthan_ocsp_responder_not_after_timestamp_seconds{$of}) - time()",
                    "OCSP {{authority}}",
                ),
                Query(
                    "min by (authority) (lakthan_publisher_responder_not_after_timestamp_seconds{$of}) - time()",
                    "publisher {{authority}}",
                ),
            ),
            bounds=Bounds(30 * _DAY, 7 * _DAY, low_is_bad=True),
        ),
        Panel(
            "The last stamping key of a unit ends in",
            "s",
            "A key must stop long before its certificate (privateKeyUsagePeriod).",
            "TSAKeyEnds in docs/runbooks/tsa.md.",
            (
                Query("min by (unit) (lakthan_tsa_key_not_after_timestamp_seconds{$of}) - time()", "key {{unit}}"),
                Query(
                    "min by (unit) (lakthan_tsa_certificate_not_after_timestamp_seconds{$of}) - time()",
                    "certificate {{unit}}",
                ),
            ),
            bounds=Bounds(90 * _DAY, 30 * _DAY, low_is_bad=True),
        ),
        Panel(
            "Each key ends in",
            "s",
            "By the beginning of its certificate's SHA-256, as `lakthan keys list` shows it.",
            "Have the next key in the list before the last one ends.",
            _each(
                "signing_key_not_after_timestamp_seconds",
                "min by (LABEL, certificate) ({}{$of}) - time()",
                "LABEL {{certificate}}",
            ),
        ),
        Panel(
            "Each waiting key begins in",
            "s",
            "Keys of the list whose time has not come.",
            "It takes over by itself.",
            _each(
                "signing_key_not_before_timestamp_seconds",
                "(max by (LABEL, certificate) ({}{$of}) - time()) > 0",
                "LABEL {{certificate}}",
            ),
        ),
        Panel(
            "Responders to be renewed",
            "short",
            "1: less than a third of the certificate's life is left.",
            "OCSPResponderToBeRenewed in docs/runbooks/ocsp.md.",
            (Query("max by (authority) (lakthan_ocsp_responder_to_be_renewed{$of})", "{{authority}}"),),
            bounds=Bounds(1, None),
        ),
    ),
)

_LISTS = Row(
    "Which key does what?",
    (
        Panel(
            "Keys that sign now, by authority and unit",
            "short",
            "Processes in which a key is in this state.",
            "None signing: nothing of that authority or unit is signed.",
            _each(
                "signing_key_state",
                'count by (LABEL, certificate) ({}{$of,state="signing"} == 1)',
                "LABEL {{certificate}}",
            ),
            width=12,
        ),
        Panel(
            "Key lists with a problem",
            "short",
            "The working keys go on; the next one will not come in, or the last one not go.",
            "KeyListProblem in docs/runbooks/keys.md.",
            _each("key_list_problem", "max by (LABEL) ({}{$of})", "LABEL"),
            bounds=Bounds(1, None),
            width=6,
        ),
        Panel(
            "Units that are frozen",
            "short",
            "1: that key stamps no more.",
            "TSAUnitFrozen in docs/runbooks/tsa.md.",
            (Query("max by (unit) (lakthan_tsa_unit_frozen{$of})", "{{unit}}"),),
            bounds=Bounds(None, 1),
            width=6,
        ),
    ),
)

_DEVICES = Row(
    "Keys in HSMs and clouds",
    (
        Panel(
            "Keys that do not sign",
            "short",
            "1: left alone but for one try a second.",
            "KeyCircuitOpen in docs/runbooks/keys.md.",
            _each("key_circuit_open", "max by (key) ({}{$of})", "WHO {{key}}"),
            bounds=Bounds(None, 1),
        ),
        Panel(
            "Signatures under way",
            "short",
            "x-sessions of the key's URI at most.",
            "At the bound all the time: the device is at its end.",
            _each("key_signatures_under_way", "sum by (key, instance) ({}{$of})", "WHO {{key}} {{instance}}"),
        ),
        Panel(
            "Signatures that wait for their turn",
            "short",
            "x-waiting of the key's URI at most; beyond that, clients are told to come again.",
            "Above zero for minutes: more x-sessions if the device can do more, else another device, or pre-signed"
            " answers.",
            _each("key_signatures_waiting", "sum by (key, instance) ({}{$of})", "WHO {{key}} {{instance}}"),
            bounds=Bounds(1, None),
        ),
        *(
            Panel(
                f"Signatures of the {said} service, by what became of them"
                if service != "publisher"
                else "Signatures of the publisher, by what became of them",
                "ops",
                "signed; busy: told to come again; failed, timed out; left alone: refused at once.",
                "Anything but signed: the log has the device's words.",
                (rate(f"lakthan_{service}_key_signatures_total", "key", "outcome"),),
            )
            for service, said, _ in _SERVICES
        ),
    ),
)

KEYS = Dashboard(
    "lakthan-keys",
    "Lakthan: keys and clocks",
    "What must not run out and what must not stand still: certificates, keys, devices, and the authority's clock.",
    "lakthan_(ocsp|tsa|publisher)_signing_key_state",
    "Key.*|TSAClock.*|TSAKey.*|TSAUnit.*|OCSPResponder.*",
    (_CLOCK, _ENDS, _LISTS, _DEVICES),
)
