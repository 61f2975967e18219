"""Rerankers: a query and a document, read together, become one score."""
