"""Classes of texts: sequence classification."""
