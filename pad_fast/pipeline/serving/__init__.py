"""The engine that asks servers: vLLM's or SGLang's, somebody's or started by the run itself."""
