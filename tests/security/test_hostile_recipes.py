"""What a recipe that was sent may not do. Functions in `method.rewards` are code; nothing else in it is."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.fake_runs import SOURCE
from support.tool_calls import Caller

from whet.engine import api
from whet.engine.processes import environment
from whet.engine.redaction import Redactor
from whet.engine.rewards.guard import clean
from whet.mcp_server.options import TOOLSETS
from whet.tui.assistant import writer

EVIL = "evil_module.py"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module that leaves a mark when it is imported; whet is started in it."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "code-was-run"
    (tmp_path / EVIL).write_text(f"open({str(mark)!r}, 'w')\ndef score(completions, **_): return [0.0]\n")
    yield tmp_path
    assert not mark.exists()


def texts(value: Any, path: str = "") -> Iterator[str]:
    """Dotted names of the settings of a recipe that hold a text, or might."""
    for name, inside in value.items():
        key = f"{path}{name}"
        if isinstance(inside, dict):
            yield from texts(inside, f"{key}.")
        elif inside is None or isinstance(inside, str):
            yield key


def hostile(here: Path) -> list[str]:
    return [
        "evil_module",
        "evil_module.score",
        f"{EVIL}:score",
        f"{here / EVIL}:score",
        "$(touch code-was-run)",
        "`touch code-was-run`",
        "{{ cycler.__init__.__globals__.os.system('touch code-was-run') }}",
        "__import__('evil_module')",
    ]


def test_no_setting_runs_code(here: Path) -> None:
    recipe = api.recipe("lora-chat", ["model.name=demo", "data.train=demo", "export.gguf=[]"])
    keys = [key for key in texts(recipe.model_dump(mode="json")) if key != "method.rewards"]
    assert len(keys) > 15 and {"data.template", "model.name", "training.optimizer", "name"} <= set(keys)
    values, planned = hostile(here), 0
    for number, key in enumerate(keys):
        for value in values if key == "data.template" else {values[0], values[number % len(values)]}:
            try:
                changed = api.patched(recipe, {key: value})
            except api.WhetError as error:
                assert error.code.startswith("recipe."), (key, value, error.code)
                continue
            planned += 1
            with suppress(api.WhetError):
                api.plan(changed)
    assert planned > 10


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.system ['touch code-was-run']",
        "model: !!python/name:evil_module.score",
        "model: !!python/module:evil_module",
        "!!python/object/new:evil_module.X {}",
        "model: {name: demo, trust_remote_code: true}\ndata: {train: demo}",
        "model: {name: demo, remote_code: true}\ndata: {train: demo}",
        "model: {name: demo}\ndata: {train: demo}\nenvironment: {LD_PRELOAD: x.so}",
        "include: /etc/passwd",
    ],
)
def test_a_file_makes_no_object_and_has_no_key_for_trust(here: Path, text: str) -> None:
    (here / "sent.yaml").write_text(text)
    with pytest.raises(api.WhetError) as caught:
        api.recipe(here / "sent.yaml")
    assert caught.value.code.startswith("recipe.") and "root:" not in str(caught.value)


@pytest.mark.parametrize("change", ["function", "sandbox"])
def test_an_agent_names_built_in_rewards_alone(here: Path, change: str) -> None:
    """A person who plans a recipe with functions runs them; a tool call cannot ask for any."""
    reward: dict[str, Any] = (
        {"function": f"{EVIL}:score"} if change == "function" else {"name": "code_tests", "sandbox": "limits"}
    )
    changes = {"method": {"kind": "grpo", "rewards": [reward]}}
    call = Caller(here, "auto", toolsets=frozenset(TOOLSETS))
    said = call.refused("plan_create", data="demo", model="demo", changes=changes)
    assert said.startswith("[changes.code]"), said


SECRETS = {
    "HF_TOKEN": "hf_plantedtokenofthehub0123",
    "SOME_API_KEY": "planted-key-of-the-environment",
    "DB_PASSWORD": "planted-password-of-the-base",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+of/the/cloud",
    "WHET_ASSISTANT_KEY": "planted-key-of-the-assistant",
    "GITHUB_TOKEN": "ghp_plantedtokenofgithub0123",
}


@pytest.mark.parametrize(
    "token",
    [
        "hf_oauth_eyJhbGciOi.part_two",
        "hf_jwt_abcdefgh12345678",
        "ASIAABCDEFGHIJKLMNOP",
        f"AIza{'x' * 35}",
        "https://storage.example/a?Signature=0123456789abcdef~",
        "https://storage.example/a?sv=1&sig=0123456789abcdef%3D",
    ],
)
def test_a_token_is_known_by_its_form(token: str) -> None:
    said = Redactor({}).text(f"403 for {token} at line 7")
    assert token[-8:] not in said and said.endswith(" at line 7"), said
    assert Redactor({}).text("hf_hub_download(signature: see)") == "hf_hub_download(signature: see)"


def test_the_assistants_key_goes_to_the_server_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, str | None]] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append((self.path, self.headers.get("Authorization")))
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{server.server_address[1]}/elsewhere")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("WHET_ASSISTANT", f"http://127.0.0.1:{server.server_address[1]}/v1")
    monkeypatch.setenv("WHET_ASSISTANT_KEY", SECRETS["WHET_ASSISTANT_KEY"])
    try:
        with pytest.raises(api.WhetError) as caught:
            writer.write("Why?", [])
    finally:
        server.shutdown()
        server.server_close()
    assert [path for path, _ in sent] == ["/v1/chat/completions"]
    assert caught.value.code == "assistant.failed" and SECRETS["WHET_ASSISTANT_KEY"] not in str(caught.value)


def test_functions_see_no_secret_unless_it_is_named() -> None:
    assert not set(SECRETS) & set(clean(SECRETS | {"PATH": "/bin"}, []))
    assert clean(SECRETS, ["SOME_API_KEY"])["SOME_API_KEY"] == SECRETS["SOME_API_KEY"]
    assert clean(SECRETS, [])["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"


def test_what_computes_gets_no_more_than_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own processes inherit the environment; added are settings of speed, and a folder for what torch
    compiles and runs, since the one it takes in /tmp has a name that another user knows."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("SOME_API_KEY", SECRETS["SOME_API_KEY"])
    added = set(environment()) - set(os.environ)
    assert added <= {"GOMP_SPINCOUNT", "PYTORCH_ALLOC_CONF", "TORCHINDUCTOR_CACHE_DIR"}
    assert Path(environment()["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(api.settings().home)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer {secret}",
        "https://user:{secret}@host/x?token={secret}",
        "{{'api_key': '{secret}'}}",
        "curl -H 'X-Api-Key: {secret}'",
        "HF_TOKEN={secret} whet push",
        "https://storage.example/file?X-Amz-Expires=3600&X-Amz-Signature={secret}&x-id=GetObject",
        "--token {secret} --other",
        "Traceback: KeyError: '{secret}'",
        '{{"SOME_API_KEY": "{secret}", "password": "{secret}"}}',
    ],
)
def test_no_text_that_leaves_holds_a_secret(text: str) -> None:
    redactor = Redactor(SECRETS)
    for secret in SECRETS.values():
        said = redactor.text(text.format(secret=secret))
        assert secret not in said and secret[8:] not in said, said
        assert secret not in str(redactor.value({"a": [text.format(secret=secret)], secret: 1}))
