"""A ceremony whose root key is in an HSM: nothing of it is in any file."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.ceremony import new_room
from support.programs import need
from support.softhsm import new_token, tokens_folder


@pytest.mark.parametrize("kind", ["P-384", "RSA-4096"])
def test_the_root_key_is_in_a_token(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, kind: str) -> None:
    """The plan names the key by its PKCS#11 URI, and answers and ARL verify as with any other key."""
    need("softhsm2-util")
    token = new_token(tokens_folder(tmp_path_factory.mktemp("softhsm")), tmp_path)
    room = new_room(tmp_path, kind=kind)
    token.put("root", room.root.key)
    (tmp_path / "root.key").unlink()
    plan = room.plan()
    plan.write_text(plan.read_text().replace("file:root.key", token.uri("root").uri))
    out = room.sign(plan)
    result = room.run("verify", out, "--root", tmp_path / "root.pem")
    assert result.exit_code == 0, result.output
    assert "every signature" in result.output


def test_the_wrong_key_of_the_token(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """A key of the token that is not the root's signs nothing, and no folder is made."""
    need("softhsm2-util")
    token = new_token(tokens_folder(tmp_path_factory.mktemp("softhsm")), tmp_path)
    room = new_room(tmp_path)
    token.put("other", room.good.key)
    plan = room.plan()
    plan.write_text(plan.read_text().replace("file:root.key", token.uri("other").uri))
    result = room.run("sign", plan, "--out", tmp_path / "out", "--yes")
    assert result.exit_code == 1
    assert "does not belong to the certificate" in result.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()
