"""What the servers are made of: which Java is taken, and that a thing is made once, and anew when its pins change."""

import stat

import pytest

from deploy import install
from schemas.process import UserError


@pytest.fixture
def java_that_says(tmp_path, monkeypatch):
    """Puts a java in JAVA_HOME that prints a version as the real ones do: on stderr."""

    def put(said):
        program = tmp_path / "bin" / "java"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{said}\nEND\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
        return program

    return put


@pytest.mark.parametrize("version", ["17", "17.0.15", "21.0.1", "22-ea"])
def test_a_java_that_is_new_enough_is_taken(java_that_says, version):
    program = java_that_says(f'openjdk version "{version}" 2025-04-15')
    assert install.java() == program


@pytest.mark.parametrize("said", ['java version "1.8.0_392"', 'openjdk version "11.0.2" 2019-01-15', "no version at all", ""])
def test_another_is_refused_in_its_own_words(java_that_says, said):
    program = java_that_says(said)
    with pytest.raises(UserError, match=f"^{program} is no Java 17 or newer, but: ") as refused:
        install.java()
    assert "\n" not in str(refused.value)


def test_where_there_is_none_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"^no java in JAVA_HOME, {tmp_path}: install a Java runtime"):
        install.java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^no java on the path: install a Java runtime, version 17 or newer$"):
        install.java()
    with pytest.raises(UserError, match=r"^no mvn on the path: install Apache Maven"):
        install.maven()


def test_a_thing_is_made_once_and_anew_when_its_pins_change(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(install, "INSTALLED", tmp_path / "installed")
    pins = tmp_path / "pins"
    made = []

    def make(folder):
        made.append(pins.read_text())
        (folder / "jar").write_text(pins.read_text())
        if pins.read_text() == "broken":
            raise UserError("cannot be made")

    for version in ("1", "1", "2"):
        pins.write_text(version)
        assert (install._made("thing", pins, make) / "jar").read_text() == version
    assert made == ["1", "2"]
    assert capsys.readouterr().err == "fetching thing, once\n" * 2

    # One that fails leaves the former, and is tried again.
    pins.write_text("broken")
    for _ in range(2):
        with pytest.raises(UserError, match="cannot be made"):
            install._made("thing", pins, make)
    assert made == ["1", "2", "broken", "broken"]
    assert (tmp_path / "installed" / "thing" / "jar").read_text() == "2"
    pins.write_text("3")
    assert (install._made("thing", pins, make) / "jar").read_text() == "3"
    assert not (tmp_path / "installed" / ".thing.new").exists()


def test_a_program_that_fails_is_quoted():
    with pytest.raises(UserError, match=r"^it failed with status 3:\n  \| a reason$"):
        install._run(["sh", "-c", "echo a reason; exit 3"], "it")
