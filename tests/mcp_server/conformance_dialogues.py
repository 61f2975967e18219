"""Fixtures of the conformance suite that ask the client back: in a session, or by wanting input."""

from __future__ import annotations

from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolResult,
    ClientCapabilities,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequest,
    InputRequiredResult,
    ListRootsRequest,
    MissingRequiredClientCapabilityErrorData,
    SamplingCapability,
    SamplingMessage,
    TextContent,
)

FIXTURE = "A fixture of the conformance suite."
Answer = CallToolResult | InputRequiredResult
STATUSES = ["active", "inactive", "pending"]
CHOICES = [
    {"const": f"value{number}", "title": f"{name} Option"} for number, name in ((1, "First"), (2, "Second"))
]


def told(words: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=words)])


def form(message: str, **properties: dict[str, Any]) -> ElicitRequest:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def sampling(words: str, most: int = 100) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=words))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=most))


def wanted(state: str | None = None, /, **requests: InputRequest) -> InputRequiredResult:
    return InputRequiredResult(input_requests=requests, request_state=state)


def answered(context: Context[Any, Any], *keys: str) -> bool:
    given = context.input_responses or {}
    return all(key in given for key in keys)


NAME = {"type": "string"}
OK = {"type": "boolean"}


def add_dialogues(server: MCPServer[Any]) -> None:
    """All of them."""
    _add_session_dialogues(server)
    _add_single_rounds(server)
    _add_stateful_rounds(server)
    _add_capability_checks(server)


def _add_session_dialogues(server: MCPServer[Any]) -> None:
    @server.tool(description=FIXTURE)
    async def test_sampling(prompt: str, context: Context[Any, Any]) -> CallToolResult:
        message = SamplingMessage(role="user", content=TextContent(type="text", text=prompt))
        said = await context.session.create_message([message], max_tokens=100)
        return told(f"LLM response: {said.content}")

    async def elicited(
        context: Context[Any, Any], message: str, required: list[str], **properties: Any
    ) -> CallToolResult:
        schema = {"type": "object", "properties": properties, "required": required}
        result = await context.session.elicit(message, schema, context.request_context.request_id)
        return told(f"Elicitation completed: action={result.action}, content={result.content}")

    @server.tool(description=FIXTURE)
    async def test_elicitation(message: str, context: Context[Any, Any]) -> CallToolResult:
        username = {"type": "string", "description": "User's response"}
        email = {"type": "string", "description": "User's email address"}
        return await elicited(context, message, ["username", "email"], username=username, email=email)

    @server.tool(description=FIXTURE)
    async def test_elicitation_sep1034_defaults(context: Context[Any, Any]) -> CallToolResult:
        return await elicited(
            context,
            "Defaults of every kind",
            [],
            name={"type": "string", "default": "John Doe"},
            age={"type": "integer", "default": 30},
            score={"type": "number", "default": 95.5},
            status={"type": "string", "enum": STATUSES, "default": "active"},
            verified={"type": "boolean", "default": True},
        )

    @server.tool(description=FIXTURE)
    async def test_elicitation_sep1330_enums(context: Context[Any, Any]) -> CallToolResult:
        options = ["option1", "option2", "option3"]
        return await elicited(
            context,
            "Choices of every kind",
            [],
            untitledSingle={"type": "string", "enum": options},
            titledSingle={"type": "string", "oneOf": CHOICES},
            legacyEnum={
                "type": "string",
                "enum": ["opt1", "opt2", "opt3"],
                "enumNames": ["Option One", "Option Two", "Option Three"],
            },
            untitledMulti={"type": "array", "items": {"type": "string", "enum": options}},
            titledMulti={"type": "array", "items": {"anyOf": CHOICES}},
        )


def _add_single_rounds(server: MCPServer[Any]) -> None:
    @server.tool(description=FIXTURE)
    def test_input_required_result_elicitation(context: Context[Any, Any]) -> Answer:
        said = (context.input_responses or {}).get("user_name")
        if not isinstance(said, ElicitResult):
            return wanted(user_name=form("What is your name?", name=NAME))
        return told(f"Hello, {(said.content or {}).get('name')}!")

    @server.tool(description=FIXTURE)
    def test_streaming_elicitation(context: Context[Any, Any]) -> Answer:
        return wanted(user_name=form("What is your name?", name=NAME))

    @server.tool(description=FIXTURE)
    def test_input_required_result_sampling(context: Context[Any, Any]) -> Answer:
        if not answered(context, "capital_question"):
            return wanted(capital_question=sampling("What is the capital of France?"))
        return told(f"The model says: {(context.input_responses or {})['capital_question']}")

    @server.tool(description=FIXTURE)
    def test_input_required_result_list_roots(context: Context[Any, Any]) -> Answer:
        if not answered(context, "client_roots"):
            return wanted(client_roots=ListRootsRequest())
        return told(f"The roots are: {(context.input_responses or {})['client_roots']}")

    @server.prompt(description=FIXTURE)
    def test_input_required_result_prompt(context: Context[Any, Any]) -> str | InputRequiredResult:
        if not answered(context, "user_context"):
            return wanted(user_context=form("What context should the prompt use?", context=NAME))
        return f"Use this context: {(context.input_responses or {})['user_context']}"


def _add_stateful_rounds(server: MCPServer[Any]) -> None:
    """The SDK seals the state and refuses a changed one before a tool sees it."""

    def confirmed(context: Context[Any, Any]) -> Answer:
        if context.request_state is None:
            return wanted("asked", confirm=form("Please confirm", ok=OK))
        if context.request_state != "asked" or not answered(context, "confirm"):
            raise MCPError(INVALID_PARAMS, "This state was not given out by this tool.")
        return told("state-ok")

    @server.tool(description=FIXTURE)
    def test_input_required_result_request_state(context: Context[Any, Any]) -> Answer:
        return confirmed(context)

    @server.tool(description=FIXTURE)
    def test_input_required_result_tampered_state(context: Context[Any, Any]) -> Answer:
        return confirmed(context)

    @server.tool(description=FIXTURE)
    def test_input_required_result_multiple_inputs(context: Context[Any, Any]) -> Answer:
        if not answered(context, "user_name", "greeting", "client_roots"):
            return wanted(
                "asked",
                user_name=form("What is your name?", name=NAME),
                greeting=sampling("Generate a greeting", 50),
                client_roots=ListRootsRequest(),
            )
        return told("Three answers arrived.")

    @server.tool(description=FIXTURE)
    def test_input_required_result_multi_round(context: Context[Any, Any]) -> Answer:
        if context.request_state is None:
            return wanted("round 1", step1=form("Step 1: What is your name?", name=NAME))
        if context.request_state == "round 1":
            return wanted("round 2", step2=form("Step 2: What is your favorite color?", color=NAME))
        return told("Both steps are done.")


def _add_capability_checks(server: MCPServer[Any]) -> None:
    @server.tool(description=FIXTURE)
    def test_missing_capability(context: Context[Any, Any]) -> CallToolResult:
        able = context.client_capabilities
        if able is None or able.sampling is None:
            needed = ClientCapabilities(sampling=SamplingCapability())
            data = MissingRequiredClientCapabilityErrorData(required_capabilities=needed)
            raise MCPError(
                MISSING_REQUIRED_CLIENT_CAPABILITY,
                "This tool needs a client that samples.",
                data.model_dump(by_alias=True, mode="json", exclude_none=True),
            )
        return told("The client can sample.")

    @server.tool(description=FIXTURE)
    def test_input_required_result_capabilities(context: Context[Any, Any]) -> Answer:
        able = context.client_capabilities
        requests: dict[str, InputRequest] = {}
        if able is not None and able.sampling is not None:
            requests["question"] = sampling("What is the capital of France?")
        if able is not None and able.elicitation is not None:
            requests["user_name"] = form("What is your name?", name=NAME)
        return wanted(**requests) if requests else told("The client can be asked nothing.")
