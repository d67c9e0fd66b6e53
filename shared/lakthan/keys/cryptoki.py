"""A PKCS#11 library, called through ctypes: the few functions that signing and making keys need, and nothing more.

Promises: the library is initialised once in a process, with `CKF_OS_LOCKING_OK`, so that several threads may call it at
once; every call lets the other threads of Python run; a return value other than `CKR_OK` is a `CryptokiError` that
names the function and the value as the standard spells it.

Refuses to know: PINs, which key is meant, and what to do when a device fails. Values and structures are those of OASIS
PKCS #11 Cryptographic Token Interface 2.40 (and 3.0 for Edwards curves), on Linux, where structures are not packed.

Trusted: the library runs inside this process and can read all of its memory. `p11-kit` can keep it in another one.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_byte, c_char, c_char_p, c_ubyte, c_ulong, c_void_p, cast, create_string_buffer
from typing import TYPE_CHECKING, Any, NamedTuple

from lakthan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CKF_RW_SESSION = 0x2
_CKF_SERIAL_SESSION = 0x4
_CKF_OS_LOCKING_OK = 0x2
_CKU_USER = 1
_UNAVAILABLE = (1 << (8 * ctypes.sizeof(c_ulong))) - 1  # CK_UNAVAILABLE_INFORMATION
_MOST_SLOTS = 256
_MOST_OBJECTS = 16

CKO_PUBLIC_KEY, CKO_PRIVATE_KEY = 2, 3
CKK_RSA, CKK_EC, CKK_EC_EDWARDS = 0x0, 0x3, 0x40

CKA_CLASS, CKA_LABEL, CKA_KEY_TYPE, CKA_ID = 0x0, 0x3, 0x100, 0x102
CKA_MODULUS, CKA_PUBLIC_EXPONENT, CKA_EC_PARAMS, CKA_EC_POINT = 0x120, 0x122, 0x180, 0x181

CKA_TOKEN, CKA_PRIVATE, CKA_SENSITIVE, CKA_SIGN, CKA_VERIFY, CKA_EXTRACTABLE = 0x1, 0x2, 0x103, 0x108, 0x10A, 0x162
CKA_MODULUS_BITS = 0x121

CKM_RSA_PKCS, CKM_RSA_PKCS_PSS, CKM_ECDSA, CKM_EDDSA = 0x1, 0xD, 0x1041, 0x1057
CKM_SHA256, CKG_MGF1_SHA256 = 0x250, 0x2
CKM_RSA_PKCS_KEY_PAIR_GEN, CKM_EC_KEY_PAIR_GEN, CKM_EC_EDWARDS_KEY_PAIR_GEN = 0x0, 0x1040, 0x1055

CKR_OK = 0x0
CKR_PIN_INCORRECT = 0xA0
CKR_USER_ALREADY_LOGGED_IN = 0x100
_CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191

# The return values that are worth a name in a log.
_NAMES = {
    0x2: "CKR_HOST_MEMORY",
    0x3: "CKR_SLOT_ID_INVALID",
    0x5: "CKR_GENERAL_ERROR",
    0x6: "CKR_FUNCTION_FAILED",
    0x7: "CKR_ARGUMENTS_BAD",
    0xA: "CKR_CANT_LOCK",
    0x12: "CKR_ATTRIBUTE_TYPE_INVALID",
    0x30: "CKR_DEVICE_ERROR",
    0x31: "CKR_DEVICE_MEMORY",
    0x32: "CKR_DEVICE_REMOVED",
    0x54: "CKR_FUNCTION_NOT_SUPPORTED",
    0x60: "CKR_KEY_HANDLE_INVALID",
    0x63: "CKR_KEY_TYPE_INCONSISTENT",
    0x68: "CKR_KEY_FUNCTION_NOT_PERMITTED",
    0x70: "CKR_MECHANISM_INVALID",
    0x71: "CKR_MECHANISM_PARAM_INVALID",
    0x82: "CKR_OBJECT_HANDLE_INVALID",
    0x90: "CKR_OPERATION_ACTIVE",
    0xA0: "CKR_PIN_INCORRECT",
    0xA1: "CKR_PIN_INVALID",
    0xA2: "CKR_PIN_LEN_RANGE",
    0xA3: "CKR_PIN_EXPIRED",
    0xA4: "CKR_PIN_LOCKED",
    0xB0: "CKR_SESSION_CLOSED",
    0xB1: "CKR_SESSION_COUNT",
    0xB3: "CKR_SESSION_HANDLE_INVALID",
    0xE0: "CKR_TOKEN_NOT_PRESENT",
    0xE1: "CKR_TOKEN_NOT_RECOGNIZED",
    0x100: "CKR_USER_ALREADY_LOGGED_IN",
    0x101: "CKR_USER_NOT_LOGGED_IN",
    0x102: "CKR_USER_PIN_NOT_INITIALIZED",
    0x190: "CKR_CRYPTOKI_NOT_INITIALIZED",
    0x191: "CKR_CRYPTOKI_ALREADY_INITIALIZED",
}


class Mechanism(NamedTuple):
    """How to sign: the number, and the parameter as it lies in memory, None where there is none."""

    number: int
    parameter: bytes | None = None


class CryptokiError(Exception):
    """A PKCS#11 function failed. `value` is its CK_RV."""

    def __init__(self, function: str, value: int) -> None:
        super().__init__(f"{function} gave {_NAMES.get(value, hex(value))}")
        self.value = value


class _Version(ctypes.Structure):
    _fields_ = (("major", c_ubyte), ("minor", c_ubyte))


class _InitializeArgs(ctypes.Structure):
    _fields_ = (
        ("create_mutex", c_void_p),
        ("destroy_mutex", c_void_p),
        ("lock_mutex", c_void_p),
        ("unlock_mutex", c_void_p),
        ("flags", c_ulong),
        ("reserved", c_void_p),
    )


class _TokenInfo(ctypes.Structure):
    _fields_ = (
        ("label", c_char * 32),
        ("manufacturer", c_char * 32),
        ("model", c_char * 16),
        ("serial", c_char * 16),
        ("flags", c_ulong),
        ("counts_and_sizes", c_ulong * 10),
        ("hardware_version", _Version),
        ("firmware_version", _Version),
        ("utc_time", c_char * 16),
    )


class _Attribute(ctypes.Structure):
    _fields_ = (("type", c_ulong), ("value", c_void_p), ("length", c_ulong))


class _Mechanism(ctypes.Structure):
    _fields_ = (("mechanism", c_ulong), ("parameter", c_void_p), ("parameter_length", c_ulong))


class _RSAPSSParams(ctypes.Structure):
    _fields_ = (("hash_mechanism", c_ulong), ("mask_generation", c_ulong), ("salt_octets", c_ulong))


# Where the functions stand in CK_FUNCTION_LIST, and their arguments.
_FUNCTIONS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "C_Initialize": (0, (c_void_p,)),
    "C_Finalize": (1, (c_void_p,)),
    "C_GetSlotList": (4, (c_byte, POINTER(c_ulong), POINTER(c_ulong))),
    "C_GetTokenInfo": (6, (c_ulong, POINTER(_TokenInfo))),
    "C_OpenSession": (12, (c_ulong, c_ulong, c_void_p, c_void_p, POINTER(c_ulong))),
    "C_CloseSession": (13, (c_ulong,)),
    "C_Login": (18, (c_ulong, c_ulong, c_char_p, c_ulong)),
    "C_GetAttributeValue": (24, (c_ulong, c_ulong, POINTER(_Attribute), c_ulong)),
    "C_FindObjectsInit": (26, (c_ulong, POINTER(_Attribute), c_ulong)),
    "C_FindObjects": (27, (c_ulong, POINTER(c_ulong), c_ulong, POINTER(c_ulong))),
    "C_FindObjectsFinal": (28, (c_ulong,)),
    "C_SignInit": (42, (c_ulong, POINTER(_Mechanism), c_ulong)),
    "C_GenerateKeyPair": (
        59,
        (
            c_ulong,
            POINTER(_Mechanism),
            POINTER(_Attribute),
            c_ulong,
            POINTER(_Attribute),
            c_ulong,
            POINTER(c_ulong),
            POINTER(c_ulong),
        ),
    ),
    "C_Sign": (43, (c_ulong, c_char_p, c_ulong, c_char_p, POINTER(c_ulong))),
}


class _FunctionList(ctypes.Structure):
    _fields_ = (("version", _Version), ("functions", c_void_p * 68))


class TokenInfo:
    """What a token says of itself; the padding is gone."""

    __slots__ = ("label", "manufacturer", "model", "serial")

    def __init__(self, info: _TokenInfo) -> None:
        self.label, self.manufacturer, self.model, self.serial = (
            # A c_char array stops at a NUL octet, with which some vendors pad instead of blanks.
            bytes(getattr(info, field)).decode("utf-8", "replace").rstrip()
            for field in ("label", "manufacturer", "model", "serial")
        )


class Cryptoki:
    """One PKCS#11 library, initialised. Handles are plain integers, as the library gives them."""

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))
            pointer = POINTER(_FunctionList)()
            value = library.C_GetFunctionList(byref(pointer))
        except (OSError, AttributeError) as error:
            raise ConfigError(f"{path} cannot be used as a PKCS#11 library: {error}") from error
        _check("C_GetFunctionList", value)
        functions = pointer.contents.functions
        self._functions = {
            name: ctypes.CFUNCTYPE(c_ulong, *arguments)(functions[at]) for name, (at, arguments) in _FUNCTIONS.items()
        }
        self.initialize()

    def initialize(self) -> None:
        """Begin, or begin again after `finalize`. Somebody else in the process may have done so already."""
        arguments = _InitializeArgs(flags=_CKF_OS_LOCKING_OK)
        value = self._functions["C_Initialize"](cast(byref(arguments), c_void_p))
        if value != _CKR_CRYPTOKI_ALREADY_INITIALIZED:
            _check("C_Initialize", value)

    def finalize(self) -> None:
        """End everything that the library has open in this process. Nobody may be calling it."""
        self._call("C_Finalize", None)

    def slots(self) -> list[int]:
        """The slots with a token in them."""
        # The question for the number alone is what makes a library look at its slots again (PKCS #11 §5.5).
        self._call("C_GetSlotList", 1, None, byref(c_ulong()))
        found, count = (c_ulong * _MOST_SLOTS)(), c_ulong(_MOST_SLOTS)
        self._call("C_GetSlotList", 1, found, byref(count))
        return list(found[: count.value])

    def token_info(self, slot: int) -> TokenInfo:
        """What the token in that slot says of itself."""
        info = _TokenInfo()
        self._call("C_GetTokenInfo", slot, byref(info))
        return TokenInfo(info)

    def open_session(self, slot: int, *, writing: bool = False) -> int:
        """A session that may read and sign; `writing`: and make objects."""
        session = c_ulong()
        flags = _CKF_SERIAL_SESSION | (_CKF_RW_SESSION if writing else 0)
        self._call("C_OpenSession", slot, flags, None, None, byref(session))
        return session.value

    def close_session(self, session: int) -> None:
        """Close it."""
        self._call("C_CloseSession", session)

    def login(self, session: int, pin: bytes) -> None:
        """Log in as the user: with one session for all of the process."""
        value = self._functions["C_Login"](session, _CKU_USER, pin, len(pin))
        if value != CKR_USER_ALREADY_LOGGED_IN:
            _check("C_Login", value)

    def find(self, session: int, wanted: Mapping[int, bytes]) -> list[int]:
        """The first objects with these attribute values, at most 16."""
        self._call("C_FindObjectsInit", session, _template(wanted), len(wanted))
        try:
            found, count = (c_ulong * _MOST_OBJECTS)(), c_ulong()
            self._call("C_FindObjects", session, found, _MOST_OBJECTS, byref(count))
        finally:
            self._call("C_FindObjectsFinal", session)
        return list(found[: count.value])

    def attribute(self, session: int, handle: int, kind: int) -> bytes:
        """The value of one attribute."""
        wanted = _Attribute(kind, None, 0)
        self._call("C_GetAttributeValue", session, handle, byref(wanted), 1)
        if wanted.length == _UNAVAILABLE:
            raise CryptokiError("C_GetAttributeValue", 0x12)
        value = create_string_buffer(wanted.length)
        wanted.value = cast(value, c_void_p)
        self._call("C_GetAttributeValue", session, handle, byref(wanted), 1)
        return value.raw[: wanted.length]

    def sign(self, session: int, mechanism: Mechanism, key: int, data: bytes, most: int) -> bytes:
        """The signature of `data`, of at most `most` octets."""
        parameter = cast(c_char_p(mechanism.parameter), c_void_p)
        used = _Mechanism(mechanism.number, parameter, len(mechanism.parameter or b""))
        self._call("C_SignInit", session, byref(used), key)
        signature, length = create_string_buffer(most), c_ulong(most)
        self._call("C_Sign", session, data, len(data), signature, byref(length))
        return signature.raw[: length.value]

    def generate_key_pair(
        self, session: int, mechanism: int, public: Mapping[int, bytes], private: Mapping[int, bytes]
    ) -> None:
        """Make a key pair with these attributes, in the token."""
        self._call(
            "C_GenerateKeyPair",
            session,
            byref(_Mechanism(mechanism, None, 0)),
            _template(public),
            len(public),
            _template(private),
            len(private),
            byref(c_ulong()),
            byref(c_ulong()),
        )

    def _call(self, name: str, *arguments: object) -> None:
        _check(name, self._functions[name](*arguments))


def _template(attributes: Mapping[int, bytes]) -> ctypes.Array[_Attribute]:
    """A CK_ATTRIBUTE array. It keeps the octets that it points to alive."""
    values = [create_string_buffer(value, len(value)) for value in attributes.values()]
    return (_Attribute * len(attributes))(
        *(_Attribute(kind, cast(value, c_void_p), len(value)) for kind, value in zip(attributes, values, strict=True))
    )


def pss_sha256() -> bytes:
    """The CK_RSA_PKCS_PSS_PARAMS of SHA-256 for everything, with salt as long as a digest."""
    return bytes(_RSAPSSParams(CKM_SHA256, CKG_MGF1_SHA256, 32))


def number(value: int) -> bytes:
    """A CK_ULONG as it stands in an attribute."""
    return bytes(c_ulong(value))


def _check(function: str, value: int) -> None:
    if value != CKR_OK:
        raise CryptokiError(function, value)
