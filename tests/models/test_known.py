"""The table of known models, the list of what is here and what can come, and the report on one model."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cached_models import cache_models
from support.plan_inputs import gpu, machine
from support.tiny_models import build_tiny_model

from whet.engine import api
from whet.engine.errors import WhetError
from whet.engine.models import needs
from whet.engine.models.families import FAMILIES
from whet.engine.models.known import KNOWN, KnownModel, known_facts, known_model
from whet.engine.models.listing import list_models
from whet.engine.models.locate import HUB_ID
from whet.engine.models.needs import USUAL_LENGTH, least_memory, longest_row
from whet.engine.models.report import LENGTHS, inspect_model


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An offline machine with an empty hub cache; returns the cache."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("WHET_OFFLINE", "1")
    return tmp_path / "hub"


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_the_table_agrees_with_what_a_descriptor_counts(known: KnownModel, tmp_path: Path) -> None:
    assert known.family in FAMILIES and HUB_ID.match(known.name)
    facts = known_facts(known, tmp_path)
    assert facts.family == known.family.name and facts.has_chat_template == known.chat
    if facts.parameters.exact:
        assert facts.parameters.total == known.parameters
    else:  # a vision tower, which the descriptor leaves out
        assert facts.parameters.total < known.parameters


def test_names_are_there_once_and_found_in_any_case() -> None:
    names = [known.name.lower() for known in KNOWN]
    assert len(set(names)) == len(names)
    assert known_model("qwen/QWEN3-0.6b") is known_model("Qwen/Qwen3-0.6B") is not None
    assert known_model("nobody/nothing") is None


def test_a_bare_offline_machine_has_the_demo_and_names_the_rest() -> None:
    demo, *rest = list_models(machine=machine())
    assert demo.name == "demo" and demo.here and demo.reachable and demo.gguf is None
    assert {entry.name for entry in rest} == {known.name for known in KNOWN}
    assert not any(entry.here or entry.reachable for entry in rest)
    assert all("offline" in entry.note for entry in rest)


def test_what_is_not_here_can_come_where_whet_is_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_OFFLINE", "0")
    by_name = {entry.name: entry for entry in list_models(machine=machine())}
    assert by_name["Qwen/Qwen3-0.6B"].reachable and "1.2 GB" in by_name["Qwen/Qwen3-0.6B"].note
    assert "gated" in by_name["meta-llama/Llama-3.2-1B"].note


def test_cache_folders_and_runs_stand_first(bare: Path, tmp_path: Path) -> None:
    cache_models(bare, ["Qwen/Qwen3-4B"])
    folder = build_tiny_model(tmp_path / "models" / "mine", "llama")
    tuned = build_tiny_model(tmp_path / "home" / "runs" / "a-run" / "export" / "model", "qwen2", chat=False)
    entries = list_models(machine=machine(), folders=[tmp_path / "models"])
    here = {entry.name: entry.source for entry in entries if entry.here}
    assert here == {"demo": "demo", "Qwen/Qwen3-4B": "cache", str(folder): "folder", str(tuned): "run"}
    assert [entry.here for entry in entries] == [True] * 4 + [False] * (len(KNOWN) - 1)
    by_name = {entry.name: entry for entry in entries}
    assert by_name["Qwen/Qwen3-4B"].licence == "apache-2.0" and by_name["Qwen/Qwen3-4B"].chat
    assert not by_name[str(tuned)].chat


def test_a_download_without_weights_is_not_here(bare: Path) -> None:
    cache_models(bare, ["Qwen/Qwen3-0.6B"])
    next(bare.rglob("model.safetensors")).unlink()
    found = [entry for entry in list_models(machine=machine()) if entry.name == "Qwen/Qwen3-0.6B"]
    assert len(found) == 1 and not found[0].here and not found[0].reachable


def test_no_decoder_is_not_listed(tmp_path: Path) -> None:
    for name, config in (
        ("encoder", '{"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, '
         '"num_attention_heads": 1, "vocab_size": 9}'),
        ("broken", "{"),
    ):  # fmt: skip
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text(config)
    entries = list_models(machine=machine(), folders=[tmp_path / "models"])
    assert [entry.source for entry in entries if entry.here] == ["demo"]


def test_what_fits_follows_the_machine() -> None:
    """8B in 16 bits needs more than 16 GiB; in 4 bits it fits 12."""
    fits = {
        gib: next(one for one in list_models(machine=machine(gpu(gib))) if one.name == "Qwen/Qwen3-8B").fits
        for gib in (4, 12, 24)
    }
    assert fits[4] == {"bf16": False, "nf4": False}
    assert fits[12] == {"bf16": False, "nf4": True}
    assert fits[24] == {"bf16": True, "nf4": True}
    small = list_models(fits_gib=4, machine=machine(gpu(80)))
    assert small and all(min(entry.needs_gib.values()) <= 4 for entry in small)
    assert "Qwen/Qwen3-8B" not in {entry.name for entry in small}


def test_a_list_that_is_asked_for_again_is_not_worked_out_again(tmp_path: Path) -> None:
    """Free disk and a few bytes of memory change nothing; another model of the same name does."""
    small = build_tiny_model(tmp_path / "folders" / "small")
    on = machine(gpu(24))
    first = list_models(folders=[small.parent], machine=on)
    planned = needs._least.cache_info().misses
    later = on.model_copy(update={"disk_free": on.disk_free - 5, "ram_available": on.ram_available + 5})
    assert list_models(folders=[small.parent], machine=later) == first
    assert needs._least.cache_info().misses == planned
    for file in build_tiny_model(tmp_path / "larger", vocab=500).iterdir():
        file.replace(small / file.name)
    again = {entry.name: entry for entry in list_models(folders=[small.parent], machine=on)}
    before = {entry.name: entry for entry in first}
    assert again[str(small)].parameters > before[str(small)].parameters
    assert needs._least.cache_info().misses > planned


def test_the_list_is_searched_by_name_family_and_licence() -> None:
    assert {entry.family for entry in list_models("qwen3", machine=machine())} == {"qwen3"}
    found = list_models("apache 0.6b base", machine=machine())
    assert [entry.name for entry in found] == ["Qwen/Qwen3-0.6B-Base"]
    assert list_models("no such model", machine=machine()) == []


def test_gguf_and_families_say_why_not() -> None:
    by_name = {entry.name: entry for entry in list_models(machine=machine())}
    assert {name: entry.gguf for name, entry in by_name.items() if entry.gguf is not None} == {}
    assert "vision" in by_name["google/gemma-3-4b-it"].experimental["sft"]


def test_the_least_memory_grows_with_rows_and_bits(tmp_path: Path) -> None:
    known = known_model("Qwen/Qwen3-8B")
    assert known is not None
    facts, on = known_facts(known, tmp_path), machine(gpu(24))
    short, long = (least_memory(facts, on, "auto", tokens) for tokens in (512, USUAL_LENGTH))
    assert 2 * known.parameters < short.peak < long.peak
    assert least_memory(facts, on, "nf4").peak < long.peak / 2
    assert long.capacity == on.gpus[0].memory_total
    longest = longest_row(facts, on, "auto")
    assert longest is not None and longest > USUAL_LENGTH
    assert least_memory(facts, on, "auto", longest).fits
    assert not least_memory(facts, on, "auto", longest + 1024).fits


def test_a_report_says_what_a_model_can_do_here(bare: Path) -> None:
    cache_models(bare, ["Qwen/Qwen3-0.6B"])
    report = inspect_model("Qwen/Qwen3-0.6B", machine=machine(gpu(8)))
    assert report.family == "qwen3" and report.known_family and report.here and report.chat
    assert report.licence == "apache-2.0" and report.gguf is None and report.fast_path is None
    assert report.capabilities["sft"].status == "supported"
    assert set(report.memory_gib) == {"bf16", "nf4"} == set(report.longest)
    needed = report.memory_gib["bf16"]
    assert list(needed) == [length for length in LENGTHS if length <= 40960]
    assert sorted(needed.values()) == list(needed.values()) and report.capacity_gib == 8
    assert report.longest["bf16"] and needed[2048] < 8
    assert report.template is not None and report.fitting_template is None


def test_a_report_on_a_base_model_names_a_template(bare: Path) -> None:
    cache_models(bare, ["Qwen/Qwen3-0.6B-Base"])
    report = inspect_model("Qwen/Qwen3-0.6B-Base", machine=machine())
    assert not report.chat and report.template is None and report.fitting_template
    assert set(report.memory_gib) == {"fp32", "nf4"}


def test_the_facade_lists_and_inspects() -> None:
    assert api.models("demo")[0].name == "demo"
    assert api.inspect_model("demo").here
    with pytest.raises(WhetError) as raised:
        api.inspect_model("nobody/nothing")
    assert raised.value.code == "model.not_found"
