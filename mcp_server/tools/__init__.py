"""The tools, one class a tool set; a method is a tool, its docstring what an agent reads."""
