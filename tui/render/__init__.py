"""How plans, events and verdicts look on a terminal (rich); no Textual here."""
