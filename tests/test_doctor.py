"""`whet doctor`: one screen, flags, JSON and bundle, none of which ever holds a secret."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command_line import whet
from support.fake_surroundings import environ
from support.mini_hub import MiniHub, serve
from support.tiny_runs import create_run, tiny_recipe

from whet.engine import doctor as engine_doctor
from whet.engine.checks.env_flags import seen_flags
from whet.engine.hardware import inspect_machine
from whet.engine.surroundings import inspect_surroundings, probes
from whet.engine.surroundings.facts import ImportSmoke, LlamaSmoke
from whet.engine.surroundings.hub import ask_hub, read_hub

HUB_TOKEN = "hf_thisisthetokenofthehub0000"
FILE_TOKEN = "storedloginwithoutapprefix"
SECRETS = {
    "HF_TOKEN": HUB_TOKEN,
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "OPENAI_API_KEY": "sk-proj-notarealkeyatall",
    "MY_SERVICE_PASSWORD": "hunter2hunter2",
}
HIDDEN = (*SECRETS.values(), FILE_TOKEN, "bearerofabadlog", "dXNlcjpwYXNzd29yZA")


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of a user called anna, with secrets everywhere, and probes that answer at once.

    Its path is as short as a home's usually is: the one screen is measured.
    """
    user = Path(tempfile.mkdtemp(dir="/tmp")) / "anna"
    user.mkdir()
    for name in seen_flags():  # libraries that other tests import in this process set some
        monkeypatch.delenv(name, raising=False)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "WHET_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(user))
    monkeypatch.setenv("WHET_HOME", str(user / ".whet"))
    monkeypatch.setenv("HF_HOME", str(user / "hf"))
    monkeypatch.setenv("WHET_OFFLINE", "1")
    (user / "hf").mkdir()
    (user / "hf" / "token").write_text(FILE_TOKEN)
    smoke = LlamaSmoke(status="works", version="0.3.36", step="done", features=["AVX2"])
    monkeypatch.setattr(probes, "run_llama", lambda: smoke)
    monkeypatch.setattr(probes, "try_imports", lambda: ImportSmoke(seconds=1.0))
    monkeypatch.setattr(probes, "bitsandbytes_library", lambda packages, gpu: None)
    yield user
    shutil.rmtree(user.parent)


def leaked(text: str) -> list[str]:
    return [secret for secret in HIDDEN if secret in text]


def bundle_texts(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        return {one.name: archive.extractfile(one).read().decode() for one in members}  # type: ignore[union-attr]


def talkative_run(user: Path) -> Path:
    """A run whose log, events and recipe hold secrets and paths, as libraries' errors leave them."""
    rows = user / "chats.jsonl"
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    rows.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(8)))
    with environ(WHET_OFFLINE="1"):
        from whet.engine.demo import MODEL_DIR

        run = create_run(tiny_recipe(Path(MODEL_DIR), rows))
    run.log.write_text(
        f"GET https://anna:bearerofabadlog@hub/x\nAuthorization: Basic dXNlcjpwYXNzd29yZA==\n"
        f"{HUB_TOKEN} in a traceback at {user}/project/train.py\n"
    )
    run.events.write_text(json.dumps({"type": "error", "message": f"401 for token {FILE_TOKEN}"}) + "\n")
    return run.path


def test_one_screen_names_what_matters_and_no_secret() -> None:
    answer = whet("doctor")
    assert answer.code == 0
    for row in (
        "GPU",
        "CPU",
        "memory",
        "disk",
        "versions",
        "bitsandbytes",
        "Triton",
        "llama.cpp",
        "hub",
        "login",
    ):
        assert any(line.startswith(row) for line in answer.out.splitlines()), row
    assert "0.3.36 on the CPU, ran a quantised model" in answer.out
    assert "token from HF_TOKEN" in answer.out
    assert len(answer.out.splitlines()) <= 24, answer.out
    assert not leaked(answer.out + answer.err)


def test_json_is_the_same_report_without_secrets() -> None:
    answer = whet("doctor", "--json")
    assert set(answer.json) >= {"machine", "surroundings", "findings", "tested", "llama_cpp"}
    assert answer.json["surroundings"]["hub"]["token_from"] == "HF_TOKEN"
    assert not leaked(answer.out + answer.err)


def test_env_lists_what_is_set_who_reads_it_and_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSLOTH_COMPILE_DISABLE", "1")
    monkeypatch.setenv("WHET_OFLINE", "1")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")
    words = whet("doctor", "--env")
    assert words.code == 0 and not leaked(words.out + words.err)
    flags = {flag["name"]: flag for flag in whet("doctor", "--env", "--json").json}
    assert flags["HF_TOKEN"]["value"] == "set"
    assert flags["WANDB_API_KEY"]["value"] == "set"
    assert flags["UNSLOTH_COMPILE_DISABLE"]["command"] == "export WHET_KERNELS=reference"
    assert "WHET_OFFLINE" in flags["WHET_OFLINE"]["conflict"]
    assert flags["CUDA_LAUNCH_BLOCKING"]["effect"] == "off, as without it"
    assert "OPENAI_API_KEY" not in flags  # nobody here reads it
    assert "WHET_OFLINE" in words.out and "WHET_OFFLINE was probably meant" in words.out


def test_bundle_holds_report_and_runs_and_no_secret_nor_home(secrets: Path, tmp_path: Path) -> None:
    run = talkative_run(secrets)
    target = tmp_path / "bundle.tar.gz"
    answer = whet("doctor", "--bundle", str(target))
    assert answer.code == 0 and str(target) in answer.err
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    texts = bundle_texts(target)
    names = {name.removeprefix("whet-bundle/") for name in texts}
    wanted = {"recipe.yaml", "plan.json", "state.json", "events.jsonl", "worker.log"}
    assert names == {"doctor.json", "environment.json", "versions.txt"} | {
        f"runs/{run.name}/{name}" for name in wanted
    }
    whole = "\n".join(texts.values())
    assert not leaked(whole)
    assert str(secrets) not in whole and "/anna" not in whole
    log = texts[f"whet-bundle/runs/{run.name}/worker.log"]
    assert "~/project/train.py" in log and "[redacted]" in log
    assert json.loads(texts["whet-bundle/doctor.json"])["llama_cpp"].startswith("0.3.36")
    plan = json.loads(texts[f"whet-bundle/runs/{run.name}/plan.json"])
    assert plan["total_tokens"] > 0 and plan["model"]["vocab_size"] > 0


def test_bundle_takes_the_newest_runs_and_only_the_end_of_a_long_log(secrets: Path, tmp_path: Path) -> None:
    runs = [talkative_run(secrets) for _ in range(4)]
    (runs[-1] / "worker.log").write_text("".join(f"line {number}\n" for number in range(20_000)))
    target = tmp_path / "bundle.tar.gz"
    whet("doctor", "--bundle", str(target), "--json")
    texts = bundle_texts(target)
    assert {name.split("/")[2] for name in texts if "/runs/" in name} == {run.name for run in runs[1:]}
    log = texts[f"whet-bundle/runs/{runs[-1].name}/worker.log"].splitlines()
    assert log[-1] == "line 19999" and 5_000 < len(log) < 10_000 and log[0].startswith("line ")


def test_a_bundle_overwrites_nothing(tmp_path: Path) -> None:
    target = tmp_path / "there.tar.gz"
    target.write_text("mine")
    answer = whet("doctor", "--bundle", str(target), "--json")
    assert answer.code == 1 and answer.json["error"]["code"] == "doctor.bundle_exists"
    assert target.read_text() == "mine"
    missing = whet("doctor", "--bundle", str(tmp_path / "no" / "where.tar.gz"), "--json")
    assert missing.json["error"]["code"] == "doctor.bundle_not_writable"


def test_options_that_exclude_each_other_are_refused() -> None:
    assert whet("doctor", "--env", "--kernels").code == 2
    assert whet("doctor", "--env", "--bundle", "x").code == 2
    assert whet("doctor", "--interpret").code == 2


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for words in (("doctor",), ("doctor", "--env")):
        rows = whet(*words).out.split("\n\n")[0].splitlines()  # findings below are for copying: never wrapped
        assert max(map(len, rows)) <= width


def test_a_bad_llama_is_an_error_of_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = LlamaSmoke(status="crashed", version="0.3.36", step="run", signal="SIGILL", features=["AMX_INT8"])
    monkeypatch.setattr(probes, "run_llama", lambda: bad)
    answer = whet("doctor")
    assert answer.code == 1
    assert "error E05" in answer.out and "AMX" in answer.out and "crashes on a quantised model" in answer.out


# --- probes and what is remembered of them


def test_good_answers_are_kept_bad_ones_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = inspect_machine()
    asked: list[str] = []

    def look(status: Any) -> LlamaSmoke:
        def probe() -> LlamaSmoke:
            asked.append(status)
            return LlamaSmoke(status=status)

        return probes.ask("llama_cpp", LlamaSmoke, machine, probe, lambda one: one.status == "works")

    assert look("crashed").status == "crashed"
    assert inspect_surroundings(machine).llama_cpp == LlamaSmoke(status="crashed")  # the plan knows it
    assert look("works").status == "works"
    assert look("crashed").status == "works"
    assert asked == ["crashed", "works"]
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", "/another/build")
    assert look("failed").status == "failed"  # another library: what was known does not hold


def test_a_broken_store_of_answers_is_no_obstacle(secrets: Path) -> None:
    machine = inspect_machine()
    file = secrets / ".whet" / "cache" / probes.FILE
    file.parent.mkdir(parents=True)
    file.write_text("{cut off")
    assert probes.remembered("llama_cpp", LlamaSmoke, machine) is None
    answer = LlamaSmoke(status="works")
    assert probes.ask("llama_cpp", LlamaSmoke, machine, lambda: answer, lambda one: True) == answer
    assert probes.remembered("llama_cpp", LlamaSmoke, machine) == answer


def test_a_quick_look_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a plan must not wait for this")

    monkeypatch.setattr(probes, "ask", refuse)
    monkeypatch.setattr("whet.engine.surroundings.ask_hub", refuse)
    found = inspect_surroundings(inspect_machine())
    assert found.hub is not None and found.hub.reach is None and found.llama_cpp is None


def test_the_real_llama_runs_a_quantised_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    smoke = probes.run_llama()
    assert (smoke.status, smoke.step, smoke.log) == ("works", "done", "")
    assert smoke.version and smoke.features


# --- the hub


def test_the_hub_is_asked_whose_token_it_is_and_nothing_holds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WHET_OFFLINE")
    with serve(MiniHub({}, tokens={HUB_TOKEN: "anna"})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        facts = read_hub()
        reach = ask_hub(facts)
    assert (reach.reachable, reach.user) == (True, "anna")
    assert facts.second_token is not None  # the stored login is another one
    assert not leaked(facts.model_dump_json() + reach.model_dump_json())


def test_without_a_token_a_refusal_is_an_answer(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHET_OFFLINE")
    monkeypatch.delenv("HF_TOKEN")
    (secrets / "hf" / "token").unlink()
    with serve(MiniHub({})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        reach = ask_hub(read_hub())
    assert reach.reachable and reach.user is None and not reach.token_refused


def test_nobody_there_is_a_note_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHET_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    answer = whet("doctor", "--json")
    found = [finding for finding in answer.json["findings"] if finding["id"] == "E03"]
    assert [finding["severity"] for finding in found] == ["note"]
    assert "Connection refused" in found[0]["title"]
    assert answer.code == 0


def test_offline_by_a_flag_is_said_so() -> None:
    facts = read_hub()
    assert facts.offline_by == ["WHET_OFFLINE"]
    assert "WHET_OFFLINE" in ask_hub(facts).why


def test_words_about_llama_for_every_state() -> None:
    machine = inspect_machine()
    found = inspect_surroundings(machine)
    said = set()
    for status in ("works", "missing", "unloadable", "crashed", "failed"):
        smoke = LlamaSmoke.model_validate({"status": status, "step": "run"})
        said.add(engine_doctor.report_of(machine, found.model_copy(update={"llama_cpp": smoke})).llama_cpp)
    assert len(said) == 5


def test_nothing_is_left_behind_but_the_cache(secrets: Path) -> None:
    whet("doctor")
    assert {entry.name for entry in (secrets / ".whet").iterdir()} == {"cache"}
    kept = [file for file in (secrets / ".whet" / "cache").iterdir() if file.is_file()]
    assert not leaked("".join(file.read_text() for file in kept))
    assert os.environ["HF_TOKEN"] == HUB_TOKEN
