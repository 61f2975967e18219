"""From a source's rows to token ids and labels: sources -> formats -> template -> tokens -> Arrow. Light."""
