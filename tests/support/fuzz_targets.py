"""Every parser that reads what others wrote, as a function of octets: what it may do with them, and nothing else.

A target calls a parser and lets through only what the parser is declared to raise for bad input; anything else, and a
disagreement that has no name, is a finding. Where another library reads the same format, it is asked as well. The
tables of allowed disagreements are here and in `support.differ`, each with its reason.

Nothing here knows who makes the octets: `support.fuzz_one` has libFuzzer make them, the tests replay seeds and what
once crashed.
"""

from __future__ import annotations

import re
import tempfile
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from io import BytesIO
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
from asn1crypto import parser as asn1_parser
from asn1crypto import tsp as asn1_tsp
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from lakthan import der
from lakthan.algorithms import HashAlgorithm
from lakthan.certificates import CertificateView, read_certificates
from lakthan.config import KeyURI
from lakthan.errors import ConfigError, SignerUnusable
from lakthan.identity import Identity
from lakthan.keys import key_list, pkcs11_uri
from lakthan.keys.remote_uri import RemoteURI
from lakthan.keys.software import SoftwareSigner, key_file
from lakthan_cli.ceremony import bundle
from lakthan_cli.ceremony.verification import CeremonyRefused, read_answer, read_arl
from lakthan_cli.ocsp import message as ocsp_message
from lakthan_cli.ocsp.certificate import Certificate, Unreadable
from lakthan_cli.tsa import message as tsa_message
from lakthan_ocsp import get_request, usual_request, warm_start
from lakthan_ocsp.syntax import RequestError, parse_request
from lakthan_registry import app as registry_app
from lakthan_registry import ejbca, messages
from lakthan_registry.crl_syntax import CRLSyntaxError, UnknownCriticalExtension, read_crl
from lakthan_registry.csv_list import CSVList, CSVOptions
from lakthan_registry.index_txt import IndexTxt
from lakthan_registry.problems import Problem
from lakthan_registry.reading import Issuer, read_certificate, read_changes
from lakthan_tsa import syntax as tsa_syntax
from lakthan_tsa.clock import chrony, ntp
from lakthan_tsa.reading import RequestReader
from lakthan_tsa.self_check import SelfCheck
from support.differ import UNEXPLAINED, difference
from support.fuzz_http import http
from support.pki import Issued, issue

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
FOLDER = Path(__file__).parent.parent / "fuzz"
_POLICIES = frozenset({der.object_identifier("1.2.3.4.1")})
_HASHES = tsa_syntax.by_identifier([HashAlgorithm.SHA_256, HashAlgorithm.SHA_384, HashAlgorithm.SHA_512])
_ORIGIN = bytes(range(8))


class Finding(AssertionError):
    """What a parser must not do."""


@dataclass(frozen=True)
class Target:
    """A parser: `run` reads octets with it and raises when it does what it must not. `largest`: octets that it is
    given; `modules`: where it is written, for the coverage.
    """

    run: Callable[[bytes], None]
    modules: tuple[str, ...]
    largest: int = 4096


def ocsp(octets: bytes) -> None:
    """The request reader, its short twin for the usual request, and two foreign readers."""
    try:
        request = parse_request(octets, max_cert_ids=50)
    except RequestError:
        request = None
    usual = usual_request.read(octets)
    if usual is not None:
        if request is None or len(request.cert_ids) != 1:
            raise Finding("the usual reader takes what the general one refuses")
        [named] = request.cert_ids
        if usual != (named.encoded, named.hash_algorithm, named.issuer, named.serial_number, request.nonce):
            raise Finding("the two readers read different things")
    reason = difference(octets)
    if reason is not None and reason.startswith(UNEXPLAINED):
        raise Finding(reason)


def ocsp_get(octets: bytes) -> None:
    """The target of a GET."""
    try:
        get_request.decode(octets.decode("latin-1"))
    except ValueError as error:
        if "base64" not in str(error):
            raise


# Where asn1crypto takes a TimeStampReq that is refused here.
_TSP_STRICTER = re.compile(
    "DER|minimal|version|offset|policy|algorithm|extension|hash|imprint|nonce|octets|default|critical|certReq|needless"
)


def tsp(octets: bytes) -> None:
    """The request reader, the one with a memory after a similar request, and asn1crypto."""
    reader = _tsp_reader()
    first, why = _tsp(lambda: tsa_syntax.parse_request(octets, offered_policies=_POLICIES, hashes=_HASHES))
    for _ in range(2):
        again, _ = _tsp(lambda: reader(octets))
        if again != first:
            raise Finding(f"the reader with a memory says {again}, the other {first}")
    try:
        with warnings.catch_warnings(action="ignore"):
            asn1_tsp.TimeStampReq.load(octets, strict=True).native  # noqa: B018 - reading it is the test
    except Exception as error:
        if first is not None:
            raise Finding(f"accepted, but asn1crypto says {error!r}") from error
    else:
        if first is None and not _TSP_STRICTER.search(why):
            raise Finding(f"asn1crypto accepts, but we say: {why}")


def _tsp(read: Callable[[], tsa_syntax.TimeStampReq]) -> tuple[tsa_syntax.TimeStampReq | None, str]:
    try:
        return read(), ""
    except tsa_syntax.Rejection as rejection:
        return None, str(rejection)


@cache
def _tsp_reader() -> RequestReader:
    return RequestReader(offered_policies=_POLICIES, hashes=_HASHES)


# Why pyca refuses a CRL that is read here.
_CRL_LOOSER = re.compile(
    "extension|Extension|EncodedDefault|InvalidValue|UnexpectedTag|ParseError|ShortData|ExtraData|utc|Time|InvalidTag"
    "|InvalidLength|InvalidSetOrdering|signature|algorithm|version"
)


def crl(octets: bytes) -> None:
    """The reader of a CRL and of all its entries, beside pyca."""
    why, read = "", None
    try:
        read = read_crl(octets)
        sum(1 for _ in read.entries())
    except (CRLSyntaxError, UnknownCriticalExtension) as error:
        why = str(error) or type(error).__name__
    if octets[:1] != b"\x30":
        return
    try:
        theirs = x509.load_der_x509_crl(octets)
    except Exception as error:
        if read is not None and not why and not _CRL_LOOSER.search(f"{type(error).__name__} {error}"):
            raise Finding(f"accepted, but pyca says {error!r}") from error
        return
    try:
        issuer = theirs.issuer.public_bytes()
    except (ValueError, TypeError):
        return  # pyca opens the Name; here it is octets, to be compared with those of the CA's certificate
    if not why and read is not None and issuer != read.issuer:
        raise Finding("another issuer than pyca reads")


def der_reader(octets: bytes) -> None:
    """Elements within elements, beside asn1crypto's parser: what is read here is read there, and in the same way."""
    try:
        ours = list(_walk(der.Reader(octets), 0))
    except der.DERError:
        return
    at = 0
    for start, stop, tag in ours:
        if start < at:
            continue  # inside the one before
        theirs = asn1_parser.parse(octets[start:stop], strict=True)
        class_, method, number, header, content, trailer = theirs
        if (class_ << 6 | method << 5 | number) != tag or len(header) + len(content) != stop - start or trailer:
            raise Finding(f"asn1crypto reads another element at {start}: {theirs!r}")
        at = stop


def _walk(reader: der.Reader, depth: int) -> list[tuple[int, int, int]]:
    found = []
    while reader.more():
        at = reader.at
        tag, start, stop = reader.head()
        found.append((at, stop, tag))
        content = der.Reader(reader.data, start, stop)
        if tag == der.INTEGER:
            der.Reader(reader.data, at, stop).integer()
            found[-1] = (at, stop, tag)
        elif tag == der.OBJECT_IDENTIFIER:
            der.dotted_oid(reader.data[start:stop])
        elif tag == der.BOOLEAN:
            der.Reader(reader.data, at, stop).boolean()
        elif tag & 0x20 and depth < 30:
            found += _walk(content, depth + 1)
    return found


_BODIES = (
    messages.ChangeBatch,
    messages.ChangeDetails,
    messages.NewAuthority,
    messages.NewCredential,
    messages.Policy,
    messages.EJBCAStatus,
)


def registry(octets: bytes) -> None:
    """A body of the registry as each message that there is, and what it means."""
    for kind in _BODIES:
        try:
            body = registry_app._decode(octets, kind)
        except Problem:
            continue
        try:
            if isinstance(body, messages.ChangeBatch):
                read_changes(body.changes, _issuer(), NOW)
            elif isinstance(body, messages.EJBCAStatus):
                ejbca.revocation_time(body.revocation_date, NOW)
                certificate = ejbca.Certificate(1, b"\x05", NOW, bytes(32))
                ejbca.differences(body, certificate, None, NOW)
        except Problem:
            continue


def certificate(octets: bytes) -> None:
    """A certificate from PEM or base64, from DER, and from a file of several; and all that is asked of one."""
    text = octets.decode("utf-8", "replace")
    reads: tuple[Callable[[], CertificateView], ...] = (
        lambda: read_certificate(text),
        lambda: CertificateView.from_der(octets),
    )
    for read in reads:
        try:
            view = read()
        except ValueError:
            continue
        _ask(view)
    path = _file(octets)
    try:
        for view in read_certificates(path):
            _ask(view)
    except ConfigError:
        return


def _ask(view: CertificateView) -> None:
    try:
        _ = view.subject, view.issuer, view.serial_number, view.public_key, view.name
        view.extended_key_usage()
        view.is_ca()
        view.issued_by(_issuer().certificates[0])
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        # What cryptography reads late. Every caller treats it as a certificate that cannot be used.
        return


def index_txt(octets: bytes) -> None:
    """OpenSSL's list: an entry or a complaint for every line."""
    for entry in IndexTxt(_file(octets), NOW).read(lambda _at, _why: None):
        _check_entry(entry)


def csv_list(octets: bytes) -> None:
    """A list in CSV, with serial numbers in both writings."""
    for decimal in (False, True):
        options = CSVOptions(decimal, NOW, {}, None, ZoneInfo("Asia/Vientiane"))
        try:
            rows = CSVList(_file(octets), options)
        except ConfigError:
            continue
        for entry in rows.read(lambda _at, _why: None):
            _check_entry(entry)


def _check_entry(entry: tuple[object, ...]) -> None:
    serial = entry[0]
    if not isinstance(serial, bytes) or not 1 <= len(serial) <= 128 or der.minimal_integer(serial) != serial:
        raise Finding(f"a serial number that the store refuses: {serial!r}")
    for instant in (entry[1], *entry[3:4], *entry[5:]):
        if isinstance(instant, datetime) and instant.tzinfo is None:
            raise Finding(f"an instant without a zone: {instant}")


def key_lists(octets: bytes) -> None:
    """A key list."""
    try:
        key_list.read(_file(octets))
    except ConfigError:
        return


def ceremony(octets: bytes) -> None:
    """What comes back from an offline ceremony: the manifest, an answer, an ARL."""
    issuers = [Certificate.from_der(_ca().der)]
    reads: tuple[Callable[[], object], ...] = (
        lambda: bundle._listed(octets),
        lambda: read_answer(octets, issuers),
        lambda: read_arl(octets, issuers),
    )
    for read in reads:
        try:
            read()
        except CeremonyRefused:
            continue


def key_uri(octets: bytes) -> None:
    """The URI of a key, of all three kinds."""
    text = octets.decode("utf-8", "replace")
    for read in (pkcs11_uri.parse, key_file, lambda key: RemoteURI(key, ("role", "token-source"))):
        try:
            read(KeyURI(text, Path("/nowhere")))
        except ConfigError:
            continue


def clock(octets: bytes) -> None:
    """The reply of a time server, and of chronyd."""
    try:
        ntp.parse_answer(octets, origin=octets[24:32] or _ORIGIN)
    except ntp.NoAnswer as error:
        str(error)
    chrony.parse_tracking(octets, int.from_bytes(octets[16:20], "big"))


def token(octets: bytes) -> None:
    """The self-check's reader of a finished token: never anything but a refusal of what is not one's own."""
    request = tsa_syntax.parse_request(a_request(), offered_policies=_POLICIES, hashes=_HASHES)
    check = SelfCheck(a_unit(), "full")
    try:
        check(octets, request, policy=next(iter(_POLICIES)), serial_number=b"\x05", gen_time=NOW)
    except SignerUnusable:
        return
    check(octets, request, policy=next(iter(_POLICIES)), serial_number=b"\x05", gen_time=NOW)


def messages_shown(octets: bytes) -> None:
    """What `lakthan ocsp show` and `lakthan tsa show` are given."""
    for read, unreadable in ((ocsp_message.read, Unreadable), (tsa_message.read, Unreadable)):
        try:
            with warnings.catch_warnings(action="ignore"):
                read(octets)
        except unreadable:
            continue


def warm_file(octets: bytes) -> None:
    """The file of an edge's answers, with and without right checksums."""
    for content in (octets, warm_start._MAGIC + warm_start._FRAME.pack(len(octets), zlib.crc32(octets)) + octets):
        try:
            warm_start._read(BytesIO(content))
        except warm_start.Damaged:
            continue


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def _file(octets: bytes) -> Path:
    path = Path(_scratch().name) / "input"
    path.write_bytes(octets)
    return path


@cache
def _ca() -> Issued:
    # The same key for ever, so that what was signed for a seed is right in every run.
    return issue("Fuzzed CA", ca=True, serial_number=7, key=ec.derive_private_key(20_260_303, ec.SECP256R1()))


@cache
def _issuer() -> Issuer:
    return Issuer(1, "fuzzed", (CertificateView.from_der(_ca().der),))


@cache
def a_unit() -> Identity:
    """The unit whose tokens are checked."""
    key = ec.derive_private_key(20_260_304, ec.SECP256R1())
    issued = issue("Fuzzed unit", _ca(), serial_number=9, key=key)
    return Identity(CertificateView.from_der(issued.der), SoftwareSigner(key))


def a_request() -> bytes:
    """The TimeStampReq that the tokens answer."""
    imprint = der.sequence(HashAlgorithm.SHA_256.algorithm_identifier, der.octet_string(bytes(32)))
    return der.sequence(der.integer(1), imprint, der.integer(77), der.encode(der.BOOLEAN, b"\xff"))


def ca() -> Issued:
    """The CA of the seeds."""
    return _ca()


TARGETS = {
    "der": Target(der_reader, ("lakthan.der",)),
    "ocsp": Target(ocsp, ("lakthan_ocsp.syntax", "lakthan_ocsp.usual_request", "lakthan.der")),
    "ocsp-get": Target(ocsp_get, ("lakthan_ocsp.get_request",), 1024),
    "tsp": Target(tsp, ("lakthan_tsa.syntax", "lakthan_tsa.reading", "lakthan.der")),
    "token": Target(token, ("lakthan_tsa.self_check", "lakthan.der")),
    "crl": Target(crl, ("lakthan_registry.crl_syntax", "lakthan.der")),
    "http": Target(http, ("lakthan.web.wire", "lakthan.web.wire_connection", "lakthan.web.wire_heads"), 2048),
    "registry": Target(registry, ("lakthan_registry.messages", "lakthan_registry.reading", "lakthan_registry.ejbca")),
    "certificate": Target(certificate, ("lakthan.certificates", "lakthan_registry.reading")),
    "index-txt": Target(index_txt, ("lakthan_registry.index_txt", "lakthan_registry.issued_list"), 1024),
    "csv": Target(csv_list, ("lakthan_registry.csv_list", "lakthan_registry.issued_list"), 1024),
    "key-list": Target(key_lists, ("lakthan.keys.key_list",), 2048),
    "key-uri": Target(key_uri, ("lakthan.keys.pkcs11_uri", "lakthan.keys.remote_uri"), 512),
    "ceremony": Target(ceremony, ("lakthan_cli.ceremony.bundle", "lakthan_cli.ceremony.verification")),
    "clock": Target(clock, ("lakthan_tsa.clock.ntp", "lakthan_tsa.clock.chrony"), 128),
    "shown": Target(messages_shown, ("lakthan_cli.ocsp.message", "lakthan_cli.tsa.message")),
    "warm-file": Target(warm_file, ("lakthan_ocsp.warm_start",)),
}


def in_time(run: Callable[[], None], most: timedelta) -> timedelta:
    """How long it took in CPU time. Raises `Finding` when that was too long."""
    import time  # noqa: PLC0415 - only here

    began = time.process_time()
    run()
    took = timedelta(seconds=time.process_time() - began)
    if took > most:
        raise Finding(f"it took {took}")
    return took


def encoded(value: object) -> bytes:
    """JSON, for the seeds."""
    return msgspec.json.encode(value)
