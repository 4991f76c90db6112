"""Lets schemathesis ask what this server, with this model, may well answer. The document leaves out
what depends on the model, and JSON Schema has no words for what depends on another field; without
this, nearly all requests would be refused for one such reason or another."""

import schemathesis

VOCABULARY = 2048  # of tiny-vision
STREAMING = ("/chat/completions", "/completions", "/responses", "/messages")


@schemathesis.hook
def before_load_schema(context, raw_schema):
    schemas = raw_schema["components"]["schemas"]
    schemas["Token"]["maximum"] = VOCABULARY - 1
    schemas["Model"] = {"enum": ["tiny", "", None]}  # an empty name is none
    schemas["Sampling"]["allOf"][1]["properties"]["logit_bias"]["propertyNames"] = {
        "enum": [str(token) for token in range(0, VOCABULARY, 7)]
    }


@schemathesis.hook
def map_case(context, case):
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return case
    body = case.body
    if isinstance(body, dict):
        # Half of the answers as streams, which chance alone would seldom ask for.
        if case.path in STREAMING and body.get("stream") is None:
            body["stream"] = len(body) % 2 == 0
        if body.get("best_of") is not None:
            body["best_of"] = body.get("n") or 1
        if body.get("top_logprobs") and case.path == "/responses":
            body["include"] = ["message.output_text.logprobs"]
        elif body.get("top_logprobs"):
            body["logprobs"] = True
        if body.get("tool_choice") is not None and not body.get("tools"):
            del body["tool_choice"]
    return case
