"""A text's language is told when it is plain, and not when it is not."""

from __future__ import annotations

import pytest

from whet.engine.data.languages import UNSURE, language_of

TEXTS = {
    "English": "The model reads what you give it, and that is all there is to it.",
    "German": "Das Modell liest, was man ihm gibt, und das ist auch nicht mehr.",
    "French": "Le modèle lit ce que vous lui donnez, et c'est tout dans cette histoire pour les autres.",
    "Spanish": "El modelo lee lo que le das, pero también los ejemplos son muy cortos.",
    "Italian": "Il modello legge quello che gli dai, ma anche questo non è più della metà.",
    "Portuguese": "O modelo lê o que você lhe dá, mas também não é muito mais do que isso para os outros.",
    "Dutch": "Het model leest wat je het geeft, maar dat is niet meer dan een begin van deze tekst.",
    "Polish": "Model czyta to, co mu dasz, ale nie jest to już tak ważne przez cały czas.",
    "Turkish": "Model verdiğiniz her şeyi okur, ama bu çok değil ve bir örnek için olarak kalır.",
    "Chinese or Japanese": "模型读取你给它的内容，仅此而已，没有别的东西。",
    "Korean": "모델은 당신이 주는 것을 읽고 그것이 전부입니다.",
    "Cyrillic script": "Модель читает то, что вы ей даёте, и это всё.",
    "Arabic script": "يقرأ النموذج ما تعطيه له وهذا كل ما في الأمر.",
    "Greek": "Το μοντέλο διαβάζει ό,τι του δίνετε και αυτό είναι όλο.",
}


@pytest.mark.parametrize("name", TEXTS)
def test_plain_texts(name: str) -> None:
    assert language_of(TEXTS[name]) == name


@pytest.mark.parametrize(
    "text",
    ["", "42", "x = [n for n in range(10)]", "Berlin", "SELECT name FROM users", "Yes.", "Δ = b² - 4ac"],
)
def test_no_guess_where_nothing_speaks_for_one(text: str) -> None:
    assert language_of(text) == UNSURE


def test_a_foreign_word_does_not_decide() -> None:
    text = "The word 你好 is what you say when you meet people, and that is all."
    assert language_of(text) == "English"
