"""Serve a model with llama.cpp: `python llama_cpp.py SETTINGS`, in an environment with xllamacpp.

SETTINGS is a JSON object of attributes of its `CommonParams`, such as `{"model.path": "a.gguf"}`.
The server responds with a 503 until the model is loaded. It ends on SIGKILL, or at the end of its
standard input, that is, when its parent process ends.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys

import xllamacpp  # type: ignore[import-not-found]  # not in the environment of the tests

parameters = xllamacpp.CommonParams()
for name, value in json.loads(sys.argv[1]).items():
    *path, attribute = name.split(".")
    setattr(functools.reduce(getattr, path, parameters), attribute, value)

server = xllamacpp.Server(parameters)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
