"""What may leave the machine: no token in any form it is known to take, and facts as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from whet.engine.redaction import GONE, Redactor

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "anna"))
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "anna" / ".whet"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "hf").mkdir()
    (tmp_path / "anna").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "text, secret",
    [
        (f"cloned with {TOKEN} yesterday", TOKEN),
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("{'authorization': 'Bearer qqqqqqqqqqqq'}", "qqqqqqqqqqqq"),
        ('{"Authorization": "Basic dXNlcjpwYXNzd29yZA=="}', "dXNlcjpwYXNzd29yZA"),
        ("curl -H 'x-api-key: 1234567890abcdef'", "1234567890abcdef"),
        ("Set-Cookie: session=s3ss10nc00kie; Path=/", "s3ss10nc00kie"),
        ("https://anna:hunter2hunter2@hub.example/api", "hunter2hunter2"),
        ("https://ghp_0123456789abcdefghij@github.com/x", "ghp_0123456789abcdefghij"),
        (
            "WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567",
            "0123456789abcdef0123456789abcdef01234567",
        ),
        ('"api_key": "verysecretvalue"', "verysecretvalue"),
        ("hub_token: plainsecret1", "plainsecret1"),
        ("password = correcthorse", "correcthorse"),
        ("hf upload x --token plainsecret2 --private", "plainsecret2"),
        ("sk-proj-abcdefghijklmnop", "abcdefghijklmnop"),
        ("AKIAABCDEFGHIJKLMNOP", "ABCDEFGHIJKLMNOP"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.c2lnbmF0dXJl", "eyJzdWIiOiIxMjM0"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIBOgIBAAJB\n-----END RSA PRIVATE KEY-----", "MIIBOgIBAAJB"),
    ],
)
def test_known_forms_are_taken_out(text: str, secret: str) -> None:
    clean = Redactor({}).text(text)
    assert secret not in clean and GONE in clean


@pytest.mark.parametrize(
    "text",
    [
        "tokens=123456, supervised_tokens: 3400",
        "tokens_per_second: 12345.67",
        "eos_token: <|endoftext|>",
        "eos_token=</s> pad_token=<pad>",
        "tokenizer_config.json lists special_tokens: [<|im_end|>]",
        "the loss fell from 2.31 to 0.84 at step 100",
        "https://huggingface.co/some-org/some-model",
        "learning_rate=2e-4",
        'export HF_TOKEN="$HUGGINGFACE_TOKEN"; unset HUGGINGFACE_TOKEN',
        "curl -u me:${HUB_TOKEN} --max-new-tokens 48 --tokenizer some/where",
    ],
)
def test_facts_stay(text: str) -> None:
    assert Redactor({}).text(text) == text


def test_values_of_this_machine_are_taken_out_wherever_they_stand(home: Path) -> None:
    (home / "hf" / "token").write_text("odd-form-of-token\n")
    (home / "hf" / "stored_tokens").write_text("[work]\nhf_token = anotherstoredone\n")
    (home / "anna" / ".netrc").write_text("machine x login anna password fromthenetrc\n")
    clean = Redactor({"WANDB_API_KEY": "k3yk3yk3y", "MY_DB_PASSWORD": "p4ssp4ss", "OPENAI_API_KEY": "0penly"})
    text = "a odd-form-of-token b anotherstoredone c fromthenetrc d k3yk3yk3y e p4ssp4ss f 0penly g"
    assert clean.text(text) == f"a {GONE} b {GONE} c {GONE} d {GONE} e {GONE} f {GONE} g"


def test_a_switch_is_no_secret() -> None:
    clean = Redactor({"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "USE_TOKEN": "true"})
    assert clean.text("1 true") == "1 true"


def test_home_paths_get_names(home: Path) -> None:
    clean = Redactor({})
    text = f"{home}/anna/.whet/runs/x and {home}/anna/data.jsonl"
    assert clean.text(text) == "$WHET_HOME/runs/x and ~/data.jsonl"


def test_people_are_not_named() -> None:
    clean = Redactor({})
    value = {"user": "anna", "owner": "anna", "command": "loginctl enable-linger anna", "name": "anna's run"}
    expected = {
        "user": "USER",
        "owner": "USER",
        "command": "loginctl enable-linger USER",
        "name": "anna's run",
    }
    assert clean.value(value) == expected
    assert Redactor({}, hide_paths=False).value(value) == value  # on the user's own screen


def test_nested_values_and_keys() -> None:
    clean = Redactor({})
    value = {"a": [{"hub_token": "abcdefgh", "n": 3}], TOKEN: (TOKEN, 1.5, None), "eos_token": "<|im_end|>"}
    assert clean.value(value) == {
        "a": [{"hub_token": GONE, "n": 3}],
        GONE: [GONE, 1.5, None],
        "eos_token": "<|im_end|>",
    }
