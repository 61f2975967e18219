"""Complete, runnable example recipes: `whet recipes` lists and copies them."""
