"""Hostile OCSP requests out of honest ones: a fast, seeded mutator and the honest requests it begins with.

Two kinds of damage. Raw damage (bits, cuts, lengths, splices) breaks the encoding; it meets the DER reader. Structural
damage works on the tree of elements and repairs all lengths, so that the result is DER with another meaning; it meets
the schema, the extensions and everything behind. One seed gives one sequence of requests, on every machine.

It knows nothing about what is allowed: what to expect of a reply is the business of whoever sends these.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lakthan import der
from lakthan.algorithms import NULL, HashAlgorithm

LARGEST_REQUEST = 4096
_MD5 = der.sequence(der.object_identifier("1.2.840.113549.2.5"), NULL)
_NONCE = der.object_identifier("1.3.6.1.5.5.7.48.1.2")
_OID_PREFIX = "1.3.6.1.5.5.7.48.1."
_SHA256_WITH_RSA = der.sequence(der.object_identifier("1.2.840.113549.1.1.11"), NULL)
_ECDSA_WITH_SHA256 = der.sequence(der.object_identifier("1.2.840.10045.4.3.2"))
# Tags worth trying where another one is: universal ones, context ones, a multi-octet one, and end-of-contents.
_TAGS = (
    0x00,
    0x01,
    0x02,
    0x03,
    0x04,
    0x05,
    0x06,
    0x0A,
    0x0C,
    0x18,
    0x24,
    0x30,
    0x31,
    0x80,
    0x81,
    0xA0,
    0xA1,
    0xA2,
    0x1F,
)


@dataclass(frozen=True)
class Named:
    """An issuer as CertIDs name it: the DER of its subject, and the content of its public key's BIT STRING."""

    subject: bytes
    public_key: bytes

    def cert_id(
        self, serial_number: bytes, algorithm: HashAlgorithm = HashAlgorithm.SHA_256, *, null: bool = False
    ) -> bytes:
        """A CertID (RFC 6960 §4.1.1); `serial_number` is the content of the INTEGER, minimal or not."""
        return der.sequence(
            algorithm.algorithm_identifier_with_null if null else algorithm.algorithm_identifier,
            der.octet_string(algorithm.digest(self.subject)),
            der.octet_string(algorithm.digest(self.public_key)),
            der.encode(der.INTEGER, serial_number),
        )


def extension(oid: str, value: bytes, *, critical: bytes = b"") -> bytes:
    """An Extension; `critical` is the finished BOOLEAN, if any."""
    return der.sequence(der.object_identifier(oid), critical, der.octet_string(value))


def nonce(value: bytes) -> bytes:
    """The nonce extension as RFC 9654 §2.1 writes it."""
    return der.sequence(_NONCE, der.octet_string(der.octet_string(value)))


def request(
    *cert_ids: bytes,
    before: bytes = b"",
    extensions: Sequence[bytes] = (),
    single: Sequence[bytes] = (),
    after: bytes = b"",
) -> bytes:
    """An OCSPRequest. `before`: version and requestorName; `single`: extensions of each Request; `after`: signature."""
    each = der.encode(0xA0, der.sequence(*single)) if single else b""
    request_list = der.sequence(*(der.sequence(cert_id, each) for cert_id in cert_ids))
    all_extensions = der.encode(0xA2, der.sequence(*extensions)) if extensions else b""
    return der.sequence(der.sequence(before, request_list, all_extensions), after)


def honest_requests(issuers: Sequence[Named], serial_numbers: Sequence[bytes]) -> list[bytes]:
    """Every shape that a client may send: each element of the syntax is present in one of them, and most twice."""
    first, ours = issuers[0], serial_numbers[0]
    plain = first.cert_id(ours)
    preferred = der.sequence(der.sequence(_SHA256_WITH_RSA), der.sequence(_ECDSA_WITH_SHA256))
    basic = der.sequence(der.object_identifier(_OID_PREFIX + "1"))
    locator = der.sequence(first.subject, der.sequence())
    name = der.encode(0xA1, der.encode(0xA4, first.subject))
    mail = der.encode(0xA1, der.encode(0x81, b"somebody@example.la"))
    signature = der.sequence(_ECDSA_WITH_SHA256, der.bit_string(bytes(range(71))))
    with_certs = der.sequence(
        _SHA256_WITH_RSA, der.bit_string(bytes(256)), der.encode(0xA0, der.sequence(der.sequence(der.integer(1))))
    )
    found = [
        first.cert_id(ours, algorithm, null=null)
        for null in (False, True)
        for algorithm in HashAlgorithm
        if not algorithm.name.startswith("SHA3")
    ]
    requests = [request(cert_id) for cert_id in found]
    requests += [request(first.cert_id(serial_number)) for serial_number in serial_numbers]
    requests += [
        request(first.cert_id(octets)) for octets in (b"\x00", b"\xff", b"\x80", bytes(3) + ours, bytes(range(1, 40)))
    ]
    requests += [request(plain, extensions=[nonce(bytes(range(length)))]) for length in (1, 16, 32, 128)]
    requests += [request(plain, extensions=[nonce(bytes(length))]) for length in (0, 129)]
    requests += [
        request(plain, extensions=[extension(_OID_PREFIX + "2", b"a bare nonce")]),
        request(plain, single=[nonce(bytes(32))]),
        request(plain, single=[nonce(bytes(16))], extensions=[nonce(bytes(range(32)))]),
        request(plain, extensions=[extension(_OID_PREFIX + "4", basic)]),
        request(plain, extensions=[extension(_OID_PREFIX + "8", preferred), nonce(bytes(32))]),
        request(plain, extensions=[extension(_OID_PREFIX + "7", locator)]),
        request(plain, extensions=[extension("1.3.6.1.4.1.55555.1", b"\x05\x00")]),
        request(plain, extensions=[extension("1.3.6.1.4.1.55555.1", b"\x05\x00", critical=b"\x01\x01\xff")]),
        request(plain, extensions=[extension("1.3.6.1.4.1.55555.1", b"\x05\x00", critical=b"\x01\x01\x00")]),
        request(plain, before=der.encode(0xA0, der.integer(0))),
        request(plain, before=der.encode(0xA0, der.integer(1))),
        request(plain, before=name),
        request(plain, before=der.encode(0xA0, der.integer(0)) + mail),
        request(plain, before=name, after=der.encode(0xA0, signature)),
        request(plain, before=mail, after=der.encode(0xA0, with_certs), extensions=[nonce(bytes(32))]),
        request(*(first.cert_id(serial_number) for serial_number in serial_numbers)),
        request(plain, plain),
        request(*[first.cert_id(ours, HashAlgorithm.SHA_1), plain], extensions=[nonce(bytes(24))]),
        request(*[plain] * 20),
        request(*(issuer.cert_id(ours) for issuer in issuers)),
        request(*(issuer.cert_id(ours) for issuer in issuers[1:])),
        request(der.sequence(_MD5, der.octet_string(bytes(16)), der.octet_string(bytes(16)), der.integer(1))),
        request(),
        request(plain, extensions=[nonce(bytes(32)), nonce(bytes(32))]),
    ]
    return requests


@dataclass
class Node:
    """An element: its tag, and its content as octets or as elements."""

    tag: int
    content: bytes | list[Node]

    def encode(self) -> bytes:
        """The DER of it, with right lengths whatever was done to what is inside."""
        content = self.content
        if not isinstance(content, bytes):
            content = b"".join([node.encode() for node in content])
        return der.head(self.tag, len(content)) + content

    def copy(self) -> Node:
        """Deep."""
        content = self.content
        return Node(self.tag, content if isinstance(content, bytes) else [node.copy() for node in content])

    def parents(self) -> Iterator[Node]:
        """Of the node and all below it those that have elements inside."""
        if not isinstance(self.content, bytes):
            yield self
            for node in self.content:
                yield from node.parents()


def tree(octets: bytes) -> Node:
    """The tree of one element; OCTET STRINGs with elements inside are opened too."""
    reader = der.Reader(octets)
    node = _node(reader)
    reader.finish()
    return node


def _node(reader: der.Reader) -> Node:
    tag, start, stop = reader.head()
    if tag & 0x20 or tag == der.OCTET_STRING:
        inside = der.Reader(reader.data, start, stop)
        children = []
        try:
            while inside.more():
                children.append(_node(inside))
        except der.DERError:
            return Node(tag, reader.data[start:stop])
        return Node(tag, children)
    return Node(tag, reader.data[start:stop])


class Mutator:
    """An endless, repeatable sequence of damaged requests."""

    def __init__(self, honest: Sequence[bytes], seed: int) -> None:
        self.honest = list(honest)
        self._trees = [tree(octets) for octets in self.honest]
        self._random = random.Random(seed)
        self._singles: list[bytes] = []
        self._parts: list[bytes] = []
        self._signatures: list[bytes] = []
        for root in self._trees:
            self._take_apart(root)
        self._raw: list[Callable[[bytes], bytes]] = [
            self._flip_bits,
            self._set_octets,
            self._cut,
            self._append,
            self._change_length,
            self._remove_octets,
            self._insert_octets,
            self._join_halves,
            self._long_form,
        ]
        self._structural: list[Callable[[list[Node]], None]] = [
            self._duplicate,
            self._delete,
            self._swap,
            self._transplant,
            self._retag,
            self._edit_content,
            self._wrap,
            self._unwrap,
            self._soup,
        ]

    def next(self) -> bytes:
        """The next request: honest, composed anew of honest parts, structurally damaged, damaged raw, or both."""
        choose = self._random.random()
        if choose < 0.02:
            return self._random.choice(self.honest)
        if choose < 0.2:
            return self._compose()[:LARGEST_REQUEST]
        octets = self._structure() if choose < 0.55 else self._random.choice(self.honest)
        if choose > 0.45:
            for _ in range(self._random.choice((1, 1, 1, 2, 4))):
                octets = self._random.choice(self._raw)(octets)
        return octets[:LARGEST_REQUEST]

    def _structure(self) -> bytes:
        root = self._random.choice(self._trees).copy()
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            parents = [node for node in root.parents() if node.content]
            if not parents:
                break
            content = self._random.choice(parents).content
            assert not isinstance(content, bytes)
            self._random.choice(self._structural)(content)
        return root.encode()

    def _take_apart(self, root: Node) -> None:
        assert not isinstance(root.content, bytes)
        tbs_request, *signature = root.content
        self._signatures += [node.encode() for node in signature]
        assert not isinstance(tbs_request.content, bytes)
        for node in tbs_request.content:
            if node.tag == der.SEQUENCE and not isinstance(node.content, bytes):
                self._singles += [single.encode() for single in node.content[:3]]
            else:
                self._parts.append(node.encode())

    def _compose(self) -> bytes:
        """Parts of the honest requests put together in new ways, each in its place: most of these are well-formed."""
        pick = self._random
        parts = {tag: [part for part in self._parts if part[0] == tag] for tag in (0xA0, 0xA1, 0xA2)}
        singles = pick.choices(self._singles, k=pick.choice((1, 1, 1, 1, 2, 3, 8)))
        before = b"".join(pick.choice(parts[tag]) for tag in (0xA0, 0xA1) if pick.random() < 0.3)
        extensions = pick.choice(parts[0xA2]) if pick.random() < 0.7 else b""
        signature = pick.choice(self._signatures) if pick.random() < 0.2 else b""
        return der.sequence(der.sequence(before, der.sequence(*singles), extensions), signature)

    # ---- damage to the tree: lengths stay right ----

    def _duplicate(self, content: list[Node]) -> None:
        at = self._random.randrange(len(content))
        times = self._random.choice((1, 1, 1, 2, 60))
        content[at:at] = [content[at].copy() for _ in range(times)]

    def _delete(self, content: list[Node]) -> None:
        del content[self._random.randrange(len(content))]

    def _swap(self, content: list[Node]) -> None:
        one, two = self._random.randrange(len(content)), self._random.randrange(len(content))
        content[one], content[two] = content[two], content[one]

    def _transplant(self, content: list[Node]) -> None:
        donors = [node for node in self._random.choice(self._trees).parents() if node.content]
        donor = self._random.choice(donors)
        assert not isinstance(donor.content, bytes)
        piece = self._random.choice(donor.content).copy()
        at = self._random.randrange(len(content) + 1)
        content[at : at + self._random.randrange(2)] = [piece]

    def _retag(self, content: list[Node]) -> None:
        self._random.choice(content).tag = self._random.choice(_TAGS)

    def _edit_content(self, content: list[Node]) -> None:
        node = self._random.choice(content)
        octets = node.content if isinstance(node.content, bytes) else node.encode()
        edit = self._random.choice((self._flip_bits, self._cut, self._append, self._insert_octets, self._remove_octets))
        node.content = edit(octets) if octets else b"\x00"

    def _wrap(self, content: list[Node]) -> None:
        at = self._random.randrange(len(content))
        octets = content[at].encode()
        for _ in range(self._random.choice((1, 1, 2, 300))):
            octets = der.encode(self._random.choice((0x30, 0x31, 0xA0, 0xA2, 0x04)), octets)
        content[at] = Node(octets[0], octets[der.Reader(octets).head()[1] :])

    def _unwrap(self, content: list[Node]) -> None:
        at = self._random.randrange(len(content))
        inside = content[at].content
        if not isinstance(inside, bytes):
            content[at : at + 1] = inside

    def _soup(self, content: list[Node]) -> None:
        """A random handful of known and unknown extensions, critical or not, with any content, somewhere."""
        pick = self._random
        extensions = []
        for _ in range(pick.choice((1, 2, 3, 12))):
            oid = pick.choice((_OID_PREFIX + str(pick.randrange(1, 11)), "2.5.29.15", "1.3.6.1.4.1.55555.9", "2.999.1"))
            value = pick.choice(
                (b"", NULL, pick.randbytes(pick.randrange(40)), der.octet_string(pick.randbytes(32)), der.sequence())
            )
            extensions.append(
                extension(
                    oid, value, critical=pick.choice((b"", b"", b"\x01\x01\xff", b"\x01\x01\x00", b"\x01\x01\x01"))
                )
            )
        content.insert(
            pick.randrange(len(content) + 1),
            tree(der.encode(pick.choice((0xA0, 0xA2, 0xA1)), der.sequence(*extensions))),
        )

    # ---- raw damage ----

    def _flip_bits(self, octets: bytes) -> bytes:
        damaged = bytearray(octets or b"\x00")
        for _ in range(self._random.choice((1, 1, 1, 2, 3, 8))):
            damaged[self._random.randrange(len(damaged))] ^= 1 << self._random.randrange(8)
        return bytes(damaged)

    def _set_octets(self, octets: bytes) -> bytes:
        damaged = bytearray(octets or b"\x00")
        for _ in range(self._random.choice((1, 1, 2, 5))):
            damaged[self._random.randrange(len(damaged))] = self._random.choice(
                (0x00, 0x01, 0x7F, 0x80, 0x81, 0x82, 0xFF, 0x30)
            )
        return bytes(damaged)

    def _cut(self, octets: bytes) -> bytes:
        return octets[: self._random.randrange(len(octets) + 1)]

    def _append(self, octets: bytes) -> bytes:
        return octets + self._random.choice((b"\x00", b"\x00\x00", NULL, self._random.randbytes(8), octets))

    def _change_length(self, octets: bytes) -> bytes:
        """Another value at one of the first dozen places that look like a length octet, or anywhere."""
        if len(octets) < 2:
            return octets
        damaged = bytearray(octets)
        at = self._random.choice((1, 3, 5, 7, 9, self._random.randrange(len(octets)))) % len(octets)
        damaged[at] = self._random.choice(
            (0, damaged[at] + 1 & 0xFF, damaged[at] - 1 & 0xFF, 0x7F, 0x80, 0x81, 0x84, 0x85, 0xFF)
        )
        return bytes(damaged)

    def _remove_octets(self, octets: bytes) -> bytes:
        at = self._random.randrange(len(octets) + 1)
        return octets[:at] + octets[at + self._random.choice((1, 1, 2, 16)) :]

    def _insert_octets(self, octets: bytes) -> bytes:
        at = self._random.randrange(len(octets) + 1)
        return octets[:at] + self._random.randbytes(self._random.choice((1, 1, 2, 40))) + octets[at:]

    def _join_halves(self, octets: bytes) -> bytes:
        other = self._random.choice(self.honest)
        return octets[: self._random.randrange(len(octets) + 1)] + other[self._random.randrange(len(other) + 1) :]

    def _long_form(self, octets: bytes) -> bytes:
        """The outermost length in a form that is longer than it has to be, or indefinite."""
        try:
            _, start, stop = der.Reader(octets).head()
        except der.DERError:
            return octets
        length = stop - start
        form = self._random.choice(
            (
                b"\x81%c" % (length & 0xFF),
                b"\x83" + length.to_bytes(3, "big"),
                b"\x84" + length.to_bytes(4, "big"),
                b"\x80",
            )
        )
        return octets[:1] + form + octets[start:] + (b"\x00\x00" if form == b"\x80" else b"")
