"""Key lists as files: what is written is what is read, and what is wrong is said."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from lakthan.certificates import read_certificates
from lakthan.errors import ConfigError
from lakthan.keys import key_list
from lakthan.keys.key_list import ListedKey
from support.pki import new_ca, new_responder

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def entry(tmp_path: Path) -> ListedKey:
    """An entry whose certificate is there."""
    certificate, _ = new_responder(new_ca("CA")).write(tmp_path, "ສາທາລະນະ")
    return ListedKey(
        certificate=certificate.name,
        sha256=key_list.digest_of(read_certificates(certificate)[0]),
        key='pkcs11:token=a "token";object=b\\c?module-path=/x.so&pin-source=pin',
        installed=NOON,
        retired=NOON.replace(year=2027),
        approvals=("c2ln", "bmF0dXJl"),
        retirement_approvals=("MTI=",),
    )


def test_there_and_back(tmp_path: Path, entry: ListedKey) -> None:
    """Quotes, backslashes, Lao and everything that may stand in an entry come back as they were."""
    path = tmp_path / "keys.toml"
    plain = msgspec.structs.replace(entry, sha256="0" * 64, retired=None, approvals=(), retirement_approvals=())
    key_list.write(path, (entry, plain))
    assert key_list.read(path) == (entry, plain)
    found = key_list.find(entry, path)
    assert found.certificate == tmp_path / entry.certificate
    assert found.key.folder == tmp_path


def test_replaced_in_one_step(tmp_path: Path, entry: ListedKey) -> None:
    """A list keeps its mode, a link to it stays a link, and no half-written file is left beside it."""
    path, link = tmp_path / "keys.toml", tmp_path / "link.toml"
    path.write_text("")
    path.chmod(0o640)
    link.symlink_to(path)
    key_list.write(link, (entry,))
    assert link.is_symlink()
    assert key_list.read(path) == (entry,)
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(each.name for each in tmp_path.iterdir() if "keys" in each.name) == ["keys.toml"]


def test_what_cannot_be_written(tmp_path: Path, entry: ListedKey) -> None:
    """The folder is not there: said, and nothing is left."""
    with pytest.raises(ConfigError, match="cannot be replaced"):
        key_list.write(tmp_path / "no" / "keys.toml", (entry,))
    with pytest.raises(ConfigError, match="cannot be opened"), key_list.changing(tmp_path / "no" / "keys.toml"):
        raise AssertionError("it was locked all the same")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[key]\n", "not as it must be"),
        ('[[keys]]\ncertificate = "x"\n', "unknown field `keys`"),
        ('[[key]]\ncertificate = "x.pem"\nkey = "file:k"\ninstalled = 2026-01-01T00:00:00Z\n', "`sha256`"),
        (
            f'[[key]]\ncertificate = "x.pem"\nsha256 = "{"0" * 64}"\nkey = "file:k"\ninstalled = 2026-01-01T00:00:00\n',
            "timezone",
        ),
        (
            f'[[key]]\ncertificate = "x"\nsha256 = "{"0" * 64}"\nkey = "k\\nat: 2"\ninstalled = 2026-01-01T00:00:00Z\n',
            "matching regex",
        ),
        (
            f'[[key]]\ncertificate = "x"\nsha256 = "{"0" * 64}"\nkey = "k"\ninstalled = 2026-01-01T00:00:00Z\n' * 2,
            "twice",
        ),
    ],
)
def test_what_is_no_list(text: str, complaint: str, tmp_path: Path) -> None:
    """The message names the file and what is wrong with it."""
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        key_list.read(path)


def test_another_certificate_under_the_name(tmp_path: Path, entry: ListedKey) -> None:
    """A certificate file that was exchanged is not taken for the one that the list means."""
    new_responder(new_ca("CA")).write(tmp_path, "ສາທາລະນະ")
    with pytest.raises(ConfigError, match="not the certificate that the list means"):
        key_list.find(entry, tmp_path / "keys.toml")
