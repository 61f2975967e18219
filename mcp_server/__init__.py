"""The MCP server, on the engine's façade."""
