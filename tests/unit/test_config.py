"""The configuration file: what it gives, and how it complains."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from lakthan import config
from lakthan.errors import ConfigError

GOOD = """\
[ocsp]
port = 8080

[ocsp.database]
url = "postgresql:///lakthan"
password_file = "secrets/password"

[[ocsp.responders]]
authority = "public-ca"
certificate = "ocsp.pem"
key = "file:ocsp.key"
validity = "P7D"
"""


def load(folder: Path, text: str, **environment: str) -> config.Config:
    """Write and load."""
    path = folder / "lakthan.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path, environment)


def test_a_good_file(tmp_path: Path) -> None:
    """Values are typed, and relative paths start at the file's folder."""
    ocsp = load(tmp_path, GOOD).ocsp
    assert ocsp is not None
    (responder,) = ocsp.responders
    assert ocsp.port == 8080
    assert ocsp.database.password_file == tmp_path / "secrets/password"
    assert responder.certificate == tmp_path / "ocsp.pem"
    assert responder.key is not None
    assert (responder.key.uri, responder.key.folder) == ("file:ocsp.key", tmp_path)
    assert responder.validity == timedelta(days=7)
    assert load(tmp_path, GOOD).tsa is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("unknown = 1", r"lakthan\.toml:13: .*unknown field `unknown`"),
        ('refresh = "1 hour"', r"lakthan\.toml:13: .*duration"),
        ('authority = "twice"', "not TOML: Cannot overwrite a value"),
        ("[tsa]", r"lakthan\.toml.*missing required field `units`"),
        ("[ocps]", r"lakthan\.toml:13: .*unknown field `ocps`"),
        ("max_age = ", "not TOML"),
    ],
)
def test_mistakes_are_named_with_their_line(wrong: str, says: str, tmp_path: Path) -> None:
    """The operator is told the file, the line where there is one, and what is wrong with it."""
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, GOOD + wrong + "\n")


@pytest.mark.parametrize(("port", "says"), [("65536", "<= 65535"), ("-1", ">= 0"), ('"x"', "Expected `int`")])
def test_values_out_of_range(port: str, says: str, tmp_path: Path) -> None:
    """A number must be in its range, and the line is the setting's."""
    with pytest.raises(ConfigError, match=rf"lakthan\.toml:2: .*{says}"):
        load(tmp_path, GOOD.replace("8080", port))


def test_the_environment_overrides_scalars(tmp_path: Path) -> None:
    """LAKTHAN_OCSP__PORT sets ocsp.port; other variables are left alone."""
    loaded = load(tmp_path, GOOD, LAKTHAN_OCSP__PORT="9090", LAKTHAN_OCSP__HOST="0.0.0.0", PORT="1", LAKTHAN_X__Y="1")
    assert loaded.ocsp is not None
    assert (loaded.ocsp.port, loaded.ocsp.host) == (9090, "0.0.0.0")


def test_credentials_of_systemd(tmp_path: Path) -> None:
    """In a path and in a key URI the variable stands for the folder of the unit's secrets; where there is none, the
    operator is told what names one.
    """
    text = GOOD.replace('"secrets/password"', '"${CREDENTIALS_DIRECTORY}/password"')
    loaded = load(tmp_path, text, CREDENTIALS_DIRECTORY="/run/credentials/unit")
    assert loaded.ocsp is not None
    assert loaded.ocsp.database.password_file == Path("/run/credentials/unit/password")
    uri = "${CREDENTIALS_DIRECTORY}/ocsp.key"
    with_key = text + f'[tsa.units.main]\nkey = "file:{uri}"\n[tsa.profiles.default]\nunits = ["main"]\n'
    loaded = load(tmp_path, with_key, CREDENTIALS_DIRECTORY="/run/credentials/unit")
    assert loaded.tsa is not None
    key = loaded.tsa.units["main"].key
    assert key is not None
    assert key.uri == "file:/run/credentials/unit/ocsp.key"
    with pytest.raises(ConfigError, match=r"CREDENTIALS_DIRECTORY\}/password names a credential, and there are none"):
        load(tmp_path, text)


def test_database_url_stands_in(tmp_path: Path) -> None:
    """DATABASE_URL is used where a service names no database of its own."""
    without = GOOD.replace("[ocsp.database]", "").replace('url = "postgresql:///lakthan"', "")
    without = without.replace('password_file = "secrets/password"', "")
    for text, expected in ((GOOD, "postgresql:///lakthan"), (without, "postgresql://given/")):
        loaded = load(tmp_path, text, DATABASE_URL="postgresql://given/")
        assert loaded.ocsp is not None
        assert loaded.ocsp.database.url == expected


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and a missing password file are named."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read: No such file"):
        config.load(tmp_path / "nowhere.toml", {})
    ocsp = load(tmp_path, GOOD).ocsp
    assert ocsp is not None
    with pytest.raises(ConfigError, match=r"secrets/password cannot be read"):
        ocsp.database.password()
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/password").write_text("ລັບ\n")
    assert ocsp.database.password() == "ລັບ"
