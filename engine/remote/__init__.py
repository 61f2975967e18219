"""Runs on other machines, looked at through plain ssh and the whet that is there."""
