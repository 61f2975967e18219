"""Hold docs/serving*.md against the programs and packages they are about. `make serving-docs`.

`flags FOLDER` writes tests/docs/flags/ from llama.cpp's sources in FOLDER/llama and from the wheels of vllm
and sglang in FOLDER. `names` imports what the Python blocks import, holds calls against signatures, and runs
the blocks that need no server; their packages must be installed.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import typing
import zipfile
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "src"), str(ROOT / "tests")]

from support.serving_blocks import FLAGS, Block, blocks  # noqa: E402

OPTION = re.compile(r'"(--?[A-Za-z][A-Za-z0-9-]*)"')
RUN = ("faiss", "langchain_core", "llama_index.core", "sentence_transformers")
"""A block all of whose packages are among these runs here, on a real MiniLM."""


def write_flags(folder: Path) -> None:
    """Write the lists that can be read from packages."""
    llama = folder / "llama" / "vendor" / "llama.cpp"
    of_llama = f"llama.cpp of llama-cpp-python {_version_of(folder / 'llama' / 'PKG-INFO')}"
    sources = {
        "llama.cpp": llama / "common" / "arg.cpp",
        "llama-quantize": llama / "tools" / "quantize" / "quantize.cpp",
        "convert_hf_to_gguf": llama / "convert_hf_to_gguf.py",
        "convert_lora_to_gguf": llama / "convert_lora_to_gguf.py",
    }
    for name, path in sources.items():
        _write(
            name, f"{path.relative_to(llama)}, {of_llama}", OPTION.findall(path.read_text(encoding="utf-8"))
        )
    for name, read in {"vllm": _vllm, "sglang": _sglang}.items():
        (wheel,) = folder.glob(f"{name}-*.whl")
        with zipfile.ZipFile(wheel) as package:
            _write(name, f"{name} {wheel.name.split('-')[1]}", read(package))


def _version_of(metadata: Path) -> str:
    found = re.search(r"^Version: (.+)$", metadata.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def _write(name: str, source: str, flags: list[str]) -> None:
    lines = [f"# {source}", *sorted(set(flags))]
    (FLAGS / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {len(lines) - 1} options of {source}")


def _vllm(package: zipfile.ZipFile) -> list[str]:
    """Options added by name, and the fields of the front end's arguments, each of which is one."""
    engine = package.read("vllm/engine/arg_utils.py").decode()
    front = ast.parse(package.read("vllm/entrypoints/common/cli_args.py").decode())
    fields = [
        statement.target.id
        for node in ast.walk(front)
        if isinstance(node, ast.ClassDef) and node.name in ("BaseFrontendArgs", "FrontendArgs")
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    ]
    return [*OPTION.findall(engine), *map(_as_option, fields)]


def _sglang(package: zipfile.ZipFile) -> list[str]:
    """The fields of ServerArgs, in the order they are kept in; each is an option."""
    tree = ast.parse(package.read("sglang/srt/arg_groups/field_order.py").decode())
    words = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [_as_option(word) for word in words if isinstance(word, str) and word.isidentifier()]


def _as_option(field: str) -> str:
    return "--" + field.replace("_", "-")


def check_names() -> None:
    """Raises for the first name or argument that a package does not have."""
    calls = 0
    packages: set[str] = set()
    for block in blocks("python"):
        checker = _Names(block)
        checker.visit(ast.parse(block.text))
        calls += checker.checked
        packages |= checker.packages
    ran = [_run(block) for block in blocks("python")]
    print(f"{calls} calls held against signatures; {sum(ran)} blocks run")
    print(", ".join(sorted(_with_version(package) for package in packages)))


def _with_version(package: str) -> str:
    names = {"faiss": "faiss-cpu", "llama_cpp": "llama-cpp-python", "weaviate": "weaviate-client"}
    name = names.get(package, package.replace("_", "-"))
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


class _Names(ast.NodeVisitor):
    """Follows what names stand for: imported things, and instances of the classes that were called."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.things: dict[str, Any] = {}
        self.checked = 0
        self.packages: set[str] = set()

    def visit_Import(self, node: ast.Import) -> None:
        for one in node.names:
            self.things[one.asname or one.name.partition(".")[0]] = importlib.import_module(one.name)
            self.packages.add(one.name.partition(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.module is not None
        module = importlib.import_module(node.module)
        self.packages.add(node.module.partition(".")[0])
        for one in node.names:
            self.things[one.asname or one.name] = getattr(module, one.name)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        if isinstance(node.targets[0], ast.Name):
            self.things[node.targets[0].id] = self._result(node.value)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            if isinstance(item.optional_vars, ast.Name):
                self.things[item.optional_vars.id] = self._result(item.context_expr)
        for statement in node.body:
            self.visit(statement)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function = self._thing(node.func)
        if function is None:
            return
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # written in C, without one
            return
        parameters = signature.parameters
        open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values()) or _takes_more(function)
        named = [word.arg for word in node.keywords if word.arg is not None]
        wrong = [name for name in named if name not in parameters and not open_ended]
        if wrong:
            place = f"{self.block}: {ast.unparse(node.func)}"
            raise SystemExit(f"{place} has no {', '.join(wrong)}; it has {', '.join(parameters)}")
        self.checked += 1

    def _thing(self, node: ast.expr) -> Any:
        """What an expression stands for, as far as that is known."""
        if isinstance(node, ast.Name):
            return self.things.get(node.id)
        if isinstance(node, ast.Call):
            return self._result(node)
        if not isinstance(node, ast.Attribute):
            return None
        holder = self._thing(node.value)
        if holder is None:
            return None
        try:
            found = getattr(holder, node.attr)
            if isinstance(found, property):
                return _returned(found.fget)
            return _returned(found.func) if isinstance(found, cached_property) else found
        except AttributeError:
            if inspect.isclass(holder):  # set on instances, perhaps
                return None
            raise SystemExit(f"{self.block}: there is no {ast.unparse(node)}") from None

    def _result(self, node: ast.expr) -> Any:
        """The class of what a call gives."""
        if not isinstance(node, ast.Call):
            return None
        called = self._thing(node.func)
        if called is None or inspect.isclass(called):
            return called
        return _returned(called)


def _takes_more(function: Any) -> bool:
    """A class whose own __init__ takes more names than its fields, such as LlamaIndex's Document."""
    if not inspect.isclass(function) or "__init__" not in vars(function):
        return False
    parameters = inspect.signature(function.__init__).parameters.values()
    return any(one.kind is one.VAR_KEYWORD for one in parameters)


def _returned(function: Any) -> Any:
    """The class that a function says it returns; None where it says none."""
    try:
        given = typing.get_type_hints(function).get("return")
    except (NameError, TypeError):
        return None
    return given if inspect.isclass(given) else None


def _run(block: Block) -> bool:
    """Run it on the real MiniLM where it needs nothing but packages; whether it ran."""
    imported = re.findall(r"^(?:import|from) (\S+)", block.text, re.MULTILINE)
    ours = ("langchain_huggingface", "llama_index.embeddings.huggingface", "langchain_core.vectorstores")
    if not all(name in (*RUN, *ours) for name in imported):
        return False
    from support.tiny_embedders import real_minilm

    print(f"-- {block}")
    exec(compile(block.text.replace("export/merged", str(real_minilm())), str(block), "exec"), {})
    return True


COMMANDS: Mapping[str, Callable[..., None]] = {
    "flags": lambda folder: write_flags(Path(folder)),
    "names": check_names,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
