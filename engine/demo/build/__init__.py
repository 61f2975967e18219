"""How the demo's model and data were made. Nothing here runs unless you rebuild them: see README.md."""
