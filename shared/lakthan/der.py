"""A small, strict DER reader and the few encoders that the answers are built from (X.690 §8 and §10).

The reader takes untrusted bytes. It gives offsets into one `bytes` object, copies nothing until it is asked to, and
accepts only the distinguished encoding: definite lengths in their shortest form, one-octet tags, no octet left over.
Every deviation is a `DERError`. The encoders give finished octets and take finished octets, so that whatever is
constant can be encoded once.

It knows no schema: which fields a message has is the business of each service's `syntax` module.
"""

from __future__ import annotations

from datetime import UTC, datetime

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
NULL = 0x05
OBJECT_IDENTIFIER = 0x06
ENUMERATED = 0x0A
UTF8_STRING = 0x0C
GENERALIZED_TIME = 0x18
SEQUENCE = 0x30
SET = 0x31

# Identifier and length octets are looked up, not computed: answers and tokens are made of a dozen of them each.
_TAGS = tuple(bytes((tag,)) for tag in range(256))


class DERError(ValueError):
    """These octets are not the DER encoding of what was expected. Says what was found and at which offset."""


class Reader:
    """A cursor over `data[at:end]` that reads one tag-length-value after another.

    Every method either moves past exactly one element or raises `DERError`; nothing is skipped silently.
    """

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = at
        self.end = len(data) if end is None else end

    def more(self) -> bool:
        """True while octets are left."""
        return self.at < self.end

    def peek(self) -> int:
        """The tag octet of the next element, or -1 at the end."""
        return self.data[self.at] if self.at < self.end else -1

    def head(self) -> tuple[int, int, int]:
        """Move past one element; give its tag, and where its content starts and ends."""
        data, at, end = self.data, self.at, self.end
        if at + 2 > end:
            raise DERError(f"an element is cut off at offset {at}")
        tag = data[at]
        if tag & 0x1F == 0x1F:
            raise DERError(f"a tag of more than one octet at offset {at}")
        length = data[at + 1]
        start = at + 2
        if length >= 0x80:
            start, length = self._long_length(start, length & 0x7F)
        stop = start + length
        if stop > end:
            raise DERError(f"the element at offset {at} is longer than what holds it")
        self.at = stop
        return tag, start, stop

    def _long_length(self, start: int, octets: int) -> tuple[int, int]:
        if not 1 <= octets <= 4:  # 0 is the indefinite form, which DER forbids (X.690 §10.1)
            raise DERError(f"a length of {octets} octets at offset {start}")
        stop = start + octets
        if stop > self.end:
            raise DERError(f"a length is cut off at offset {start}")
        length = int.from_bytes(self.data[start:stop], "big")
        if length < 0x80 or length >> (8 * (octets - 1)) == 0:
            raise DERError(f"a length that is not in its shortest form at offset {start}")
        return stop, length

    def enter(self, tag: int) -> Reader:
        """A reader of the content of the next element, which must have this tag."""
        start, stop = self._expect(tag)
        return Reader(self.data, start, stop)

    def content(self, tag: int) -> bytes:
        """The content octets of the next element, which must have this tag."""
        start, stop = self._expect(tag)
        return self.data[start:stop]

    def element(self, tag: int) -> bytes:
        """The next element whole, with its tag and length, which must have this tag."""
        at = self.at
        _, stop = self._expect(tag)
        return self.data[at:stop]

    def _expect(self, tag: int) -> tuple[int, int]:
        at = self.at
        data = self.data
        if at + 2 <= self.end and data[at] == tag and data[at + 1] < 0x80:  # nearly every element there is
            start = at + 2
            stop = start + data[at + 1]
            if stop <= self.end:
                self.at = stop
                return start, stop
        found, start, stop = self.head()
        if found != tag:
            raise DERError(f"tag {found:#04x} where {tag:#04x} is due, at offset {at}")
        return start, stop

    def integer(self) -> int:
        """The next element, a minimally encoded INTEGER of any size and sign (X.690 §8.3)."""
        content = self.content(INTEGER)
        if not content or content != minimal_integer(content):
            raise DERError(f"an INTEGER that is not minimal, before offset {self.at}")
        return int.from_bytes(content, "big", signed=True)

    def boolean(self) -> bool:
        """The next element, a BOOLEAN, whose TRUE has all bits set (X.690 §11.1)."""
        content = self.content(BOOLEAN)
        if content == b"\xff":
            return True
        if content == b"\x00":
            return False
        raise DERError(f"a BOOLEAN that is neither TRUE nor FALSE, before offset {self.at}")

    def finish(self) -> None:
        """Require that nothing is left."""
        if self.at != self.end:
            raise DERError(f"{self.end - self.at} octets too many at offset {self.at}")


def minimal_integer(content: bytes) -> bytes:
    """The shortest content octets with the same two's complement value (X.690 §8.3.2).

    Certificates and requests in the field carry serial numbers with needless leading octets; their value is what
    identifies a certificate.
    """
    at, last = 0, len(content) - 1
    while at < last and (
        (content[at] == 0x00 and content[at + 1] < 0x80) or (content[at] == 0xFF and content[at + 1] >= 0x80)
    ):
        at += 1
    return content[at:]


def integer_content(value: int) -> bytes:
    """The content octets of an INTEGER: two's complement, big endian, as short as possible."""
    magnitude = value if value >= 0 else ~value
    return value.to_bytes(magnitude.bit_length() // 8 + 1, "big", signed=True)


def _length_octets(length: int) -> bytes:
    if length < 0x80:
        return bytes((length,))
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((0x80 | len(octets),)) + octets


_LENGTHS = tuple(_length_octets(length) for length in range(4096))


def head(tag: int, length: int) -> bytes:
    """The tag and the length octets, in definite form, the shortest (X.690 §10.1)."""
    return _TAGS[tag] + (_LENGTHS[length] if length < 4096 else _length_octets(length))


def encode(tag: int, *contents: bytes) -> bytes:
    """One element: the tag, the length, and the contents one after another."""
    content = b"".join(contents)
    return head(tag, len(content)) + content


def sequence(*elements: bytes) -> bytes:
    """SEQUENCE of finished elements."""
    return encode(SEQUENCE, *elements)


def set_of(*elements: bytes) -> bytes:
    """SET OF finished elements, in the order that DER demands (X.690 §11.6)."""
    return encode(SET, *sorted(elements))


def integer(value: int) -> bytes:
    """INTEGER."""
    return encode(INTEGER, integer_content(value))


def octet_string(content: bytes) -> bytes:
    """OCTET STRING."""
    return encode(OCTET_STRING, content)


def bit_string(content: bytes) -> bytes:
    """BIT STRING of whole octets."""
    return encode(BIT_STRING, b"\x00", content)


def named_bit(number: int) -> bytes:
    """BIT STRING with a single named bit set and no trailing zero bits (X.690 §11.2.2)."""
    octets, bit = divmod(number, 8)
    return encode(BIT_STRING, bytes((7 - bit,)), bytes(octets), bytes((0x80 >> bit,)))


def object_identifier(dotted: str) -> bytes:
    """OBJECT IDENTIFIER from its dotted form. Raises `ValueError` on anything else (X.690 §8.19)."""
    arcs = [int(arc) for arc in dotted.split(".")]
    if len(arcs) < 2 or min(arcs) < 0 or arcs[0] > 2 or (arcs[0] < 2 and arcs[1] > 39):
        raise ValueError(f"{dotted} is not an object identifier")
    content = bytearray()
    for arc in (arcs[0] * 40 + arcs[1], *arcs[2:]):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | (arc & 0x7F))
        content += bytes(reversed(groups))
    return encode(OBJECT_IDENTIFIER, bytes(content))


def dotted_oid(content: bytes) -> str:
    """The dotted form of an OBJECT IDENTIFIER's content octets. Raises `DERError` when they are not one."""
    if not content or content[-1] & 0x80:
        raise DERError("an OBJECT IDENTIFIER that is cut off")
    arcs: list[int] = []
    arc = 0
    start = True
    for octet in content:
        if start and octet == 0x80:
            raise DERError("an OBJECT IDENTIFIER with a needless octet")
        arc = arc << 7 | octet & 0x7F
        start = not octet & 0x80
        if start:
            arcs.append(arc)
            arc = 0
    root = min(arcs[0] // 40, 2)
    return ".".join(map(str, (root, arcs[0] - 40 * root, *arcs[1:])))


def generalized_time(instant: datetime) -> bytes:
    """GeneralizedTime of whole seconds, Zulu (RFC 5280 §4.1.2.5.2). Fractions of a second are dropped."""
    if instant.tzinfo is not UTC:
        instant = instant.astimezone(UTC)
    return b"\x18\x0f%04d%02d%02d%02d%02d%02dZ" % instant.timetuple()[:6]
