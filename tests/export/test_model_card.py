"""What foreign hands wrote stays text in a model card: no Markdown, no HTML, no YAML of theirs, no secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token
from support.hub_standin import StandIn, in_place_of_the_hub

from whet.engine.errors import WhetError
from whet.engine.export.model_card import CardFacts, card_text, check_card, code, text
from whet.engine.export.verdict import Proof, Verdict

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![pixel](https://evil.example/p.png)",
    "see https://evil.example and www.evil.example or me@evil.example",
    "a | b | c",
    "`code` ``more`` ```fence```",
    "```\n# heading\n```",
    "\n---\nlicense: evil\n---\n",
    "# heading\n\n## another",
    "*bold* __strong__ ~~gone~~ $x^2$",
    "&lt;script&gt; &amp;",
    "1. one\n2. two",
    "- [x] done",
    "\\` \\| \\",
    "| a |\n|---|\n| b |",
    "{{ template }} {% raw %}",
    "\x1b[31mred\x07",
    "key: [unclosed, *anchor",
    "日本語 🙂 é",
]
ALLOWED = {"heading", "paragraph", "inline", "table", "thead", "tbody", "tr", "th", "td", "bullet_list"}
ALLOWED |= {"list_item", "fence", "text", "code_inline", "strong", "softbreak", "text_special"}


def kinds(markdown: str) -> set[str]:
    """The kinds of elements that a reader of GitHub's Markdown finds."""
    body = markdown.split("\n---\n", 1)[1]

    def walk(tokens: list[Token]) -> set[str]:
        found = {token.type.removesuffix("_open").removesuffix("_close") for token in tokens}
        return found.union(*(walk(token.children) for token in tokens if token.children))

    return walk(MarkdownIt("gfm-like").parse(body))


def card(words: str) -> str:
    proof = Proof(name="template", status="fail", summary=f"It differs: {words}")
    verdict = Verdict.of([proof], Path(f"m-{words.replace('/', '')}.gguf"))
    recipe = {"data": {"train": words}, "model": {"name": words}, words: words}
    facts = CardFacts(words, words, recipe, words, 5, 1, words, {words: 1.0, "loss": 2.0}, words)
    return card_text(words, facts, [verdict], [words, f"Note of {words}"], {words: 5, "Modelfile": 9})


@pytest.mark.parametrize("words", HOSTILE, ids=range(len(HOSTILE)))
def test_foreign_words_are_text(words: str) -> None:
    written = card(words)
    assert kinds(written) <= ALLOWED
    headings = [line for line in written.split("\n---\n", 1)[1].splitlines() if line.startswith("#")]
    assert [line for line in headings if line.startswith("## ")] == [
        "## Files", "## Proof", "## Training", "## Notes", "## Recipe", "## Made with",
    ] or "heading" in words  # fmt: skip
    loaded = ModelCard(written)
    assert set(loaded.data.to_dict()) == {"tags", "pipeline_tag", "library_name"}


@pytest.mark.parametrize("words", HOSTILE, ids=range(len(HOSTILE)))
def test_a_reader_sees_the_words_themselves(words: str) -> None:
    line = " ".join(words.split())
    (shown,) = MarkdownIt("gfm-like").parse(text(words))[1].children or []
    assert shown.content == line
    cell = MarkdownIt("gfm-like").parse(f"| a |\n|---|\n| {code(words)} |\n")
    (inside,) = [token for token in cell if token.type == "inline"][1].children or []
    assert inside.type == "code_inline" and inside.content == line


def test_the_hub_validates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's own check, which asks the hub."""
    with in_place_of_the_hub(StandIn(), monkeypatch) as hub:
        for words in HOSTILE:
            ModelCard(card(words)).validate()
    assert hub.seen == ["POST /api/validate-yaml"] * len(HOSTILE)


@pytest.mark.parametrize(
    "name", ["a/b: c", "a\n/b", "../x", "owner/name/more", "owner/näme", "demo", "x y/z"]
)
def test_only_a_hubs_id_is_a_base_model(name: str) -> None:
    assert "base_model" not in ModelCard(card_text("t", CardFacts(base_model=name))).data.to_dict()


def test_a_hubs_id_is_one() -> None:
    made = ModelCard(card_text("t", CardFacts(base_model="Qwen/Qwen3-0.6B"), part="adapter"))
    front = made.data.to_dict()
    assert front["base_model"] == "Qwen/Qwen3-0.6B" and front["library_name"] == "peft"


def test_secrets_and_places_of_the_recipe_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "verysecret123")
    recipe = {
        "data": {"train": ["/home/ann/chats.jsonl", "https://ann:pass@host/x", "hf_abcdefghijkl"]},
        "note": "key verysecret123",
    }
    written = card_text("t", CardFacts(recipe=recipe))
    assert "- chats.jsonl" in written
    for secret in ("ann:pass", "/home/ann", "hf_abcdefghijkl", "verysecret123"):
        assert secret not in written


@pytest.mark.parametrize("front", ["tags: [open", "- a\n- b", "just words", "a: b: c"])
def test_metadata_that_the_hub_would_refuse_are_refused_first(front: str) -> None:
    with pytest.raises(WhetError) as error:
        check_card(f"---\n{front}\n---\n# Title\n")
    assert error.value.code == "hub.card"


def test_a_card_without_metadata_is_one() -> None:
    check_card("# Only a title\n")
    check_card("---\ntags: [a]\n---\n# Title\n")
