"""A Modelfile is read as Ollama reads it: old and new templates, stops, what it is made FROM."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_models import EOS, TURN_END, write_tokenizer

from whet.engine.checks.exported import ExportFacts, run_export_checks
from whet.engine.data.chat_templates import TEMPLATES, find
from whet.engine.data.chat_templates.renderer import strip_generation_tags
from whet.engine.errors import WhetError
from whet.engine.export.modelfile_check import inspect_modelfile, parse_modelfile, write_checked_modelfile
from whet.engine.export.regenerate import regenerate_modelfile
from whet.engine.export.verdict import Proof, Verdict, fingerprint, save_verdict


def test_parsing_takes_what_ollama_takes() -> None:
    text = (
        '# FROM ./not-this.gguf\nfrom ./a.gguf\nTEMPLATE """{{ .Prompt }}\nEND"""\nsystem "Be \\"kind\\"."\n'
        'PARAMETER stop "<|im_end|>"\nPARAMETER temperature 0.6\nparameter STOP <|eot_id|>\nFROM ./b.gguf\n'
        'PARAMETER stop "<|im_end|>"\n'
    )
    found = parse_modelfile(text)
    assert found.source == "./b.gguf" and found.template == "{{ .Prompt }}\nEND"
    assert found.system == 'Be \\"kind\\".', "quotes escape nothing"
    assert found.stops == ("<|im_end|>", "<|eot_id|>")
    assert parse_modelfile("FROM llama3\n").template is None
    assert (
        parse_modelfile('FROM a\nTEMPLATE """a \n\n{{ .Prompt }}\n\n"""  \nSYSTEM b\n').template
        == "a \n\n{{ .Prompt }}\n\n"
    )
    over_lines = parse_modelfile('FROM a\r\nSYSTEM "one\r\n# two\r\nthree"\r\nPARAMETER stop """a\nb"""\n')
    assert over_lines.system == "one\n# two\nthree" and over_lines.stops == ("a\nb",)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Tokenizer, an empty file in the place of a GGUF, and the Modelfile whet writes for it."""
    write_tokenizer(tmp_path)
    (tmp_path / "m.gguf").touch()
    facts = write_checked_modelfile(tmp_path, "m.gguf", tmp_path)
    assert facts.path == tmp_path / "Modelfile" and run_export_checks(ExportFacts(modelfile=facts)) == []
    assert facts.stops == facts.ends == (TURN_END, EOS)
    return facts.path


def without_template(text: str) -> str:
    return text[: text.index("TEMPLATE")] + text[text.index("PARAMETER") :]


OLD_STYLE = (
    'TEMPLATE """{{ if .System }}<|system|>\n{{ .System }}<|turn_end|>\n{{ end }}<|user|>\n{{ .Prompt }}'
    '<|turn_end|>\n<|assistant|>\n{{ .Response }}<|turn_end|>\n"""\n'
)
TRIMMED = (
    'TEMPLATE """{{- range .Messages }}<|{{ .Role }}|>\n{{ .Content }}<|turn_end|>\n{{ end -}}\n'
    '<|assistant|>\n"""\n'
)


@pytest.mark.parametrize("template", [OLD_STYLE, TRIMMED], ids=["turn by turn", "with dashes"])
def test_templates_as_people_write_them_pass(written: Path, template: str) -> None:
    written.write_text(without_template(written.read_text()).replace("PARAMETER", template + "PARAMETER", 1))
    assert run_export_checks(ExportFacts(modelfile=inspect_modelfile(written, written.parent))) == []


@pytest.mark.parametrize(
    ("change", "severity", "words"),
    [
        (lambda text: text.replace("./m.gguf", "./n.gguf"), "error", "n.gguf"),
        (without_template, "error", "another prompt"),
        (lambda text: text.replace('"""', '"""{{ "<|begin|>" }}', 1), "error", "another prompt"),
        (lambda text: text.replace(f'PARAMETER stop "{EOS}"\n', ""), "warning", EOS),
        (lambda text: text + 'PARAMETER stop "<|assistant|>"\n', "warning", "<|assistant|>"),
    ],
)
def test_what_is_wrong_is_said_with_the_way_to_write_it_anew(
    written: Path, change: Callable[[str], str], severity: str, words: str
) -> None:
    written.write_text(change(written.read_text()))
    facts = ExportFacts("mine", modelfile=inspect_modelfile(written, written.parent))
    (finding,) = run_export_checks(facts)
    assert (finding.id, finding.severity) == ("X05", severity) and words in finding.title
    assert finding.fix is not None and finding.fix.command == "whet export mine --modelfile"


def test_another_stop_that_the_template_never_writes_is_the_users_affair(written: Path) -> None:
    written.write_text(written.read_text() + 'PARAMETER stop "###"\n')
    assert run_export_checks(ExportFacts(modelfile=inspect_modelfile(written, written.parent))) == []


def test_functions_of_go_that_we_do_not_know_are_a_note(written: Path) -> None:
    text = without_template(written.read_text())
    written.write_text(text + 'TEMPLATE """{{ json .Messages }}"""\n')
    (finding,) = run_export_checks(ExportFacts(modelfile=inspect_modelfile(written, written.parent)))
    assert finding.severity == "note" and "not compared" in finding.title


def test_it_is_written_anew_for_the_smallest_file_that_did_not_fail(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    with pytest.raises(WhetError) as error:
        regenerate_modelfile(tmp_path, tmp_path)
    assert error.value.code == "export.no_gguf"
    for name, size in (("small", 10), ("middle", 20), ("large", 30)):
        (tmp_path / f"{name}.gguf").write_bytes(bytes(size))
    small = tmp_path / "small.gguf"
    proof = Proof(name="logits", status="fail", summary="Too far.")
    save_verdict(Verdict.of([proof], small, fingerprint=fingerprint(small)), small)
    facts = regenerate_modelfile(tmp_path, tmp_path)
    assert facts.path is not None and parse_modelfile(facts.path.read_text()).source == "./middle.gguf"


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_what_is_written_with_each_template_of_ours_is_found_right(tmp_path: Path, name: str) -> None:
    """Read back from the file, blank lines and all."""
    write_tokenizer(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    config = json.loads(settings.read_text(encoding="utf-8"))
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config["chat_template"] = strip_generation_tags(find(name).source)
    settings.write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "m.gguf").touch()
    facts = write_checked_modelfile(tmp_path, "m.gguf", tmp_path)
    assert facts.path is not None, facts.notes
    assert facts.difference is None and not any("not compared" in note for note in facts.notes)
