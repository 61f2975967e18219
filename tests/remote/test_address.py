"""Addresses of runs on other machines: the parts, what is refused, and what reaches ssh and its shell."""

from __future__ import annotations

import shlex

import pytest

from whet.engine.api import RemoteRun, WhetError, is_remote, parse_address


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("ssh://box", RemoteRun("box")),
        ("ssh://box/", RemoteRun("box")),
        ("ssh://box/demo-2026", RemoteRun("box", "demo-2026")),
        ("ssh://me@gpu.lab:2222/last", RemoteRun("gpu.lab", user="me", port=2222)),
        ("ssh://[fe80::1%eth0]:22/run", RemoteRun("fe80::1%eth0", "run", port=22)),
        ("ssh://box/run?home=/scratch/a%20b", RemoteRun("box", "run", home="/scratch/a b")),
        (
            "ssh://box?home=~/w&whet=~/w/bin/whet",
            RemoteRun("box", home="~/w", whet="./w/bin/whet"),
        ),
    ],
)
def test_parts(text: str, place: RemoteRun) -> None:
    assert is_remote(text) and parse_address(text) == place
    assert parse_address(place.address) == RemoteRun(place.host, place.run, place.user, place.port)


@pytest.mark.parametrize(
    "text",
    [
        "ssh://", "ssh:///run", "ssh://-oProxyCommand=id/run", "ssh://-lroot@box/run", "ssh://box;id/run",
        "ssh://box run", "ssh://box/run;id", "ssh://box/$(id)", "ssh://`id`/run", "ssh://box/../run",
        "ssh://box/-rf", "ssh://box/a/b", "ssh://box\n/run", "ssh://me:password@box/run", "ssh://box:0/run",
        "ssh://box:65536/run", "ssh://box:x/run", "ssh://[::1/run", "ssh://box/run?", "ssh://box/run?home",
        "ssh://box/run?home=relative", "ssh://box/run?whet=whet", "ssh://box/run?home=/a%0Ab",
        "ssh://box/run?home=/a\u202eb", "ssh://box/run?home=/a\ud800",
        "ssh://box/run?home=/a&home=/b", "ssh://box/run?port=22", "SSH://box/run",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(WhetError) as refused:
        parse_address(text)
    assert refused.value.code == "remote.address" and "home=" in refused.value.hint


def test_a_shell_takes_the_command_apart_into_the_same_words() -> None:
    place = RemoteRun("box", user="me", port=2222, home="/a b;touch x/$(id)'", whet="/opt/w h/whet")
    words = place.ssh(place.command("attach", "run", "--json"), batch=True)
    *options, host, command = words
    assert options[-5:] == ["-p", "2222", "-l", "me", "--"] and host == "box"
    assert "BatchMode=yes" in options
    assert "BatchMode=yes" not in place.ssh(["true"], batch=False)
    assert shlex.split(command) == [
        "env", "WHET_HOME=/a b;touch x/$(id)'", "/opt/w h/whet", "attach", "run", "--json",
    ]  # fmt: skip
    assert shlex.split(shlex.split(place.typed("stop", "run"))[-1])[-2:] == ["stop", "run"]
