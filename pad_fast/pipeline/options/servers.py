"""Servers that run the student or the teacher."""

from __future__ import annotations

from dataclasses import dataclass

from pad_fast.pipeline.option import option


@dataclass
class ServerOptions:
    """Servers that run the student or the teacher."""

    student_server: list[str] | None = option(
        None,
        "URLs of vLLM or SGLang servers that sample from the student. The run waits where a new "
        "round's student has to be loaded into them.",
    )
    teacher_server: list[str] | None = option(
        None, "URLs of vLLM or SGLang servers that score and answer in the teacher's place."
    )
    student_serve: str | None = option(
        None,
        "Command that serves the student, with {model} and {port}, such as 'vllm serve {model} "
        "--port {port} --data-parallel-size 8'. The run starts it where it samples, and ends it "
        "before it trains.",
    )
    teacher_serve: str | None = option(
        None, "Command that serves the teacher, given like student_serve."
    )
    server_concurrency: int = option(
        64, "Requests to each server at a time; fewer wait less, see server_timeout."
    )
    server_timeout: float = option(
        600.0, "Seconds that one request to a server may take, after which it is sent again."
    )
    server_patience: float = option(
        900.0, "Seconds for which no server may answer before the run stops."
    )
    serve_timeout: float = option(
        1800.0, "Seconds until a server that the run starts has to answer."
    )
