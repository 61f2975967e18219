"""The recipes of docs/serving*.md parse, and name options that their programs read."""

from __future__ import annotations

import ast
import json
import re
import subprocess

import click
import pytest
import yaml
from support.serving_blocks import (
    LISTS,
    PAGES,
    PLAIN,
    Block,
    blocks,
    commands,
    known,
    options,
    uses,
)

from whet.engine.export.modelfile_check import parse_modelfile
from whet.tui.cli import cli

INSTRUCTIONS = {"FROM", "COPY", "RUN", "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "WORKDIR", "USER", "ARG"}
SERVERS = (
    "Ollama", "llama.cpp", "LM Studio", "vLLM", "SGLang", "Modal", "text-embeddings-inference", "FAISS",
    "pgvector", "Weaviate", "LangChain", "LlamaIndex",
)  # fmt: skip


def test_every_server_has_its_place() -> None:
    headings = "\n".join(re.findall(r"^## .*$", "".join(page.read_text() for page in PAGES), re.MULTILINE))
    assert [name for name in SERVERS if name not in headings] == []


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_shell_blocks_parse_and_name_options_that_are_read(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for words in commands(block):
        for program, arguments in uses(words):
            if program == "whet":
                verb = cli.get_command(click.Context(cli), arguments[0])
                assert verb is not None, words
                read = {option for parameter in verb.params for option in parameter.opts}
            elif program in PLAIN:
                continue
            else:
                read = known(LISTS[program])
            assert [option for option in options(arguments) if option not in read] == [], program


def test_an_option_that_no_program_reads_is_seen() -> None:
    text = "docker run --gpus all h/text-embeddings-inference:1 \\\n --model-id /m --nope=1 # --not-this\n"
    (words,) = commands(Block("page", 1, "bash", text))
    (_, outside), (_, inside) = uses(words)
    assert options(outside) == ["--gpus"] and options(inside) == ["--model-id", "--nope"]
    assert "--nope" not in known("text-embeddings-inference")


def test_requests_hold_json() -> None:
    bodies = [
        words[words.index("-d") + 1] for block in blocks("bash") for words in commands(block) if "-d" in words
    ]
    assert len(bodies) >= 5 and all(isinstance(json.loads(body), dict) for body in bodies)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_blocks_compile(block: Block) -> None:
    tree = ast.parse(block.text)
    compile(tree, str(block), "exec")
    assert max(map(len, block.text.splitlines())) <= 110
    serving = [
        [str(word.value) for word in node.elts if isinstance(word, ast.Constant)]
        for node in ast.walk(tree)
        if isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Constant)
    ]
    for words in serving:
        if words[:2] == ["vllm", "serve"]:
            assert set(options(words)) <= known("vllm")


@pytest.mark.parametrize("block", blocks("dockerfile"), ids=str)
def test_docker_files_parse(block: Block) -> None:
    lines = [line.split(maxsplit=1) for line in block.text.splitlines()]
    assert lines[0][0] == "FROM" and {word for word, _ in lines} <= INSTRUCTIONS
    (command,) = [rest for word, rest in lines if word == "CMD"]
    assert set(options(json.loads(command))) <= known("llama.cpp")


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_compose_files_parse(block: Block) -> None:
    compose = yaml.safe_load(block.text)
    assert set(compose) == {"services", "volumes"}
    for service in compose["services"].values():
        assert set(service) <= {"image", "command", "volumes", "ports", "environment"}
        for mount in service["volumes"]:
            source = mount.partition(":")[0]
            assert source.startswith("./") or source in compose["volumes"]
    embeddings = compose["services"]["embeddings"]
    assert set(options(embeddings["command"])) <= known("text-embeddings-inference")


@pytest.mark.parametrize("block", blocks("modelfile"), ids=str)
def test_modelfiles_parse(block: Block) -> None:
    assert parse_modelfile(block.text).source.endswith(".gguf")
    assert {line.split()[0] for line in block.text.splitlines()} <= {"FROM", "ADAPTER", "PARAMETER"}


def test_no_block_is_of_a_language_that_nobody_checks() -> None:
    languages = {match for page in PAGES for match in re.findall(r"^```(\w+)$", page.read_text(), re.M)}
    assert languages == {"bash", "python", "dockerfile", "yaml", "modelfile"}
