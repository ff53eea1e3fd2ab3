"""Running llama.cpp as a process, with a model of `tiny_model`."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import packaging.tags
import pytest
from environments import install
from model_servers import run, wait_for_status

__all__ = ["CONTEXT", "MODEL", "NEEDS_WHEEL", "SLOTS", "Engine", "run_engine"]

XLLAMACPP = "xllamacpp==2026.10.11549"
# The platforms of its wheels, which use the stable ABI of CPython 3.10.
WHEELS = {
    "macosx_13_0_arm64",
    "macosx_13_0_x86_64",
    "manylinux2014_aarch64",
    "manylinux2014_x86_64",
}

NEEDS_WHEEL = pytest.mark.skipif(
    WHEELS.isdisjoint(packaging.tags.platform_tags()),
    reason=f"{XLLAMACPP} has no wheel for {next(packaging.tags.platform_tags())}",
)

# llama.cpp accepts any name for its only model.
MODEL = ("--model", "tiny")

SERVER = Path(__file__).with_name("llama_cpp.py")
SLOTS = 8
# The number of tokens of a slot. Each byte of a prompt is a token.
CONTEXT = 2048


@dataclass(frozen=True)
class Engine:
    """A llama.cpp server."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def get_slots(self) -> list[dict[str, Any]]:
        slots: list[dict[str, Any]] = httpx.get(f"{self.url}/slots").json()
        return slots

    def get_last_slot(self) -> dict[str, Any]:
        """Return the slot of the last started call, with its prompt and its options (`params`)."""
        return max(self.get_slots(), key=lambda slot: slot.get("id_task", -1))

    def count_busy_slots(self) -> int:
        return sum(slot["is_processing"] for slot in self.get_slots())

    def wait_until_idle(self) -> None:
        deadline = time.monotonic() + 20
        while self.count_busy_slots():
            assert time.monotonic() < deadline, "the engine is still busy"
            time.sleep(0.01)


@contextlib.contextmanager
def run_engine(model: Path, folder: Path, *, port: int, status: int = 200) -> Generator[Engine]:
    """Serve a model, and wait until its health has this status (503 while it is loading)."""
    python = install("llama-cpp", "--only-binary", ":all:", XLLAMACPP) / "python"
    settings = {
        "model.path": str(model),
        "port": port,
        "n_parallel": SLOTS,
        "n_ctx": SLOTS * CONTEXT,
        # Allows replies longer than the context, including endless ones.
        "ctx_shift": True,
        "cpuparams.n_threads": 1,
        "endpoint_metrics": True,
        "fit_params": False,
        "ui": False,
    }
    log = folder / "log"
    command = [str(python), str(SERVER), json.dumps(settings)]
    # In debug mode, a slot includes its prompt.
    with run(command, log, stop=signal.SIGKILL, LLAMA_SERVER_SLOTS_DEBUG="1") as process:
        url = f"http://127.0.0.1:{port}"
        wait_for_status(f"{url}/health", process, log, status=status)
        yield Engine(url, process)
