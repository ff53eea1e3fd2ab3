"""Mutation testing: `python tests/mutation.py [MODULE...]`.

Each mutant of a module (`mutants.py`) runs the tests that execute the changed line. It is killed if
a test fails or takes much longer than without the change, or if mypy rejects the change. The
command fails if less than 90 % of the mutants are killed, or if a mutant survives that
`mutants_accepted.toml` does not list.

Mutants are not written to files. The tests are collected once, and each mutant runs in a fork in
which the function has the changed code. A mutant costs little more than its tests.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType
from typing import NoReturn

import coverage
import hypothesis
import pytest
from mutants import Mutant, find_mutants

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "cromicle_sdk"
ACCEPTED = TESTS / "mutants_accepted.toml"
LOWEST_RATE = 0.9

# The async side is the source of the blocking one, where the calls for cancellation are empty, so
# that their mutants cannot be killed. The tests run on one event loop.
NOT_RUN = "not slow"
NOT_SELECTED = "not blocking and not uvloop and not trio"

_NETWORK = ("_async", "_http")

# The tests that may kill the mutants of a module.
MODULES = {
    "_core/compat.py": ("_core/test_messages.py",),
    "_core/deadline.py": ("_core/test_deadline.py",),
    "_core/endpoint.py": ("_core/test_endpoint.py",),
    "_core/errors.py": ("_core/test_errors.py", "_core/test_response.py"),
    "_core/fields.py": ("_core/test_fields.py",),
    "_core/messages.py": ("_core/test_messages.py",),
    "_core/observers.py": ("_async/test_extensions.py",),
    "_core/options.py": ("_core/test_options.py",),
    "_core/redaction.py": ("_core/test_redaction.py",),
    "_core/request.py": ("_core/test_request.py",),
    "_core/response.py": ("_core/test_response.py",),
    "_core/retry.py": ("_core/test_retry.py",),
    "_core/secrets.py": ("_core/test_secrets.py",),
    "_http/callers.py": ("_http/test_callers.py",),
    "_http/framing.py": ("_http/test_framing.py",),
    "_http/no_proxy.py": ("_http/test_no_proxy.py",),
    "_http/slots.py": ("_http/test_slots.py",),
    "_http/translate.py": ("_http/test_translate.py",),
    "_async/concurrency.py": _NETWORK,
    "_async/connection.py": _NETWORK,
    "_async/iterators.py": _NETWORK,
    "_async/network.py": _NETWORK,
    "_async/pool.py": _NETWORK,
    "_async/session.py": _NETWORK,
    "_async/socket_reader.py": _NETWORK,
    "_async/stream.py": _NETWORK,
    "_async/transport.py": _NETWORK,
}

SURVIVED, KILLED, NOT_MADE = range(3)


@dataclass
class Result:
    mutants: list[Mutant]
    accepted: set[str]
    killed: int = 0
    not_made: int = 0
    survivors: list[Mutant] = field(default_factory=list)

    @property
    def tested(self) -> int:
        return self.killed + len(self.survivors)

    @property
    def unexplained(self) -> list[Mutant]:
        """The survivors that are not accepted, in the order of their lines."""
        survivors = sorted(self.survivors, key=lambda mutant: mutant.lines.start)
        return [mutant for mutant in survivors if mutant.diff not in self.accepted]

    @property
    def outdated(self) -> set[str]:
        """The accepted mutants that are not mutants, since the code has changed."""
        return self.accepted - {mutant.diff for mutant in self.mutants}


@dataclass(frozen=True)
class Baseline:
    """The results of the tests without a mutant."""

    durations: dict[str, float]
    failed: list[str]
    lines: dict[str, dict[int, list[str]]]
    """For each line of each file, the tests that execute it."""


class Mutation:
    """A plugin that tests mutants instead of the modules themselves."""

    def __init__(
        self, modules: Sequence[str], sample: float | None, seed: int, folder: Path
    ) -> None:
        self._modules = modules
        self._sample = sample
        self._random = random.Random(seed)
        self._folder = folder
        self._checks = 0
        self._failed: list[str] = []
        self._functions: dict[tuple[str, str, int], list[FunctionType]] = {}
        self._caches: list[Callable[[], None]] = []
        self.results: list[Result] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.append(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("the tests cannot be collected")
        imported = Path(str(sys.modules["cromicle_sdk"].__file__)).parent
        if imported != PACKAGE:
            raise session.Interrupted(f"the tests import {imported}")
        until = time.monotonic() + (math.inf if self._sample is None else self._sample)
        self._find_functions()
        baseline = self._measure(session.items)
        for name in baseline.failed:
            print(f"{name} fails without a mutant, and is left out")
        # Frozen objects are shared with the forks, because the garbage collector does not touch
        # them.
        gc.collect()
        gc.freeze()
        for module in self._modules:
            result = self._test_module(module, session.items, baseline, until)
            self.results.append(result)
            report(module, result)
        return True

    def _test_module(
        self, module: str, items: list[pytest.Item], baseline: Baseline, until: float
    ) -> Result:
        path = PACKAGE / module
        result = Result(find_mutants(path), read_accepted().get(module, set()))
        assert self._passes_mypy(path, path.read_text("utf-8"))
        folders = [TESTS / name for name in MODULES[module]]
        items = [
            item
            for item in items
            if any(item.path.is_relative_to(at) for at in folders)
            and item.nodeid not in baseline.failed
        ]
        own = f"test_{path.name}"
        items.sort(key=lambda item: (item.path.name != own, baseline.durations[item.nodeid]))
        lines = baseline.lines[str(path)]
        self._random.shuffle(result.mutants)
        for mutant in result.mutants:
            if time.monotonic() > until:
                break
            names = {name for line in mutant.lines for name in lines.get(line, ())}
            tests = [item for item in items if item.nodeid in names]
            limits = [math.ceil(5 + 10 * baseline.durations[test.nodeid]) for test in tests]
            status = _fork(functools.partial(self._test_mutant, mutant, tests, limits))
            if status == NOT_MADE:
                result.not_made += 1
                mark = "-"
            elif status == SURVIVED and self._passes_mypy(path, mutant.source):
                result.survivors.append(mutant)
                mark = "?"
            else:
                result.killed += 1
                mark = "."
            print(mark, end="", flush=True)
        print()
        return result

    def _test_mutant(
        self,
        mutant: Mutant,
        tests: Sequence[pytest.Item],
        limits: Sequence[int],
    ) -> int:
        """In a process of its own."""
        code = _find_code(mutant)
        try:
            for function in self._functions[
                str(mutant.path), mutant.function, mutant.function_line
            ]:
                function.__code__ = code
        except (KeyError, ValueError):
            # The function does not exist any more, or has other free variables.
            return NOT_MADE
        self._clear_caches()
        for test, following, limit in zip(tests, [*tests[1:], None], limits, strict=True):
            signal.alarm(limit)
            test.ihook.pytest_runtest_protocol(item=test, nextitem=following)
            if self._failed:
                return KILLED
        return SURVIVED

    def _passes_mypy(self, path: Path, source: str) -> bool:
        # mypy treats a file of the same size as unchanged.
        self._checks += 1
        changed = self._folder / path.name
        changed.write_text(source + f"#{'.' * 1000 * self._checks}\n", "utf-8")
        mypy = [sys.executable, "-m", "mypy", "--cache-dir", ".mypy_cache/mutants"]
        command = [*mypy, "--shadow-file", str(path), str(changed), str(path)]
        done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
        if done.returncode not in (0, 1):
            raise RuntimeError(done.stdout + done.stderr)
        return done.returncode == 0

    def _find_functions(self) -> None:
        """Find all functions of the package, even decorated ones, and the `lru_cache` caches."""
        for found in gc.get_objects():
            if isinstance(found, FunctionType):
                code = found.__code__
                key = code.co_filename, code.co_name, code.co_firstlineno
                self._functions.setdefault(key, []).append(found)
            elif isinstance(found, functools._lru_cache_wrapper):
                self._caches.append(found.cache_clear)

    def _clear_caches(self) -> None:
        for clear in self._caches:
            clear()

    def _measure(self, items: Sequence[pytest.Item]) -> Baseline:
        report = self._folder / "baseline.json"
        data = self._folder / "coverage"

        def measure() -> int:
            measured = coverage.Coverage(
                data_file=str(data), config_file=False, include=[f"{PACKAGE}/*"]
            )
            measured.start()
            durations: dict[str, float] = {}
            for test, following in zip(items, [*items[1:], None], strict=True):
                self._clear_caches()
                measured.switch_context(test.nodeid)
                start = time.monotonic()
                test.ihook.pytest_runtest_protocol(item=test, nextitem=following)
                durations[test.nodeid] = time.monotonic() - start
            measured.stop()
            measured.save()
            report.write_text(json.dumps({"durations": durations, "failed": self._failed}))
            return 0

        _fork(measure)
        found = coverage.CoverageData(str(data))
        found.read()
        lines = {
            str(path): found.contexts_by_lineno(str(path))
            for path in (PACKAGE / module for module in self._modules)
        }
        return Baseline(**json.loads(report.read_text()), lines=lines)


def _fork(run: Callable[[], int]) -> int:
    """Return the result of a function that runs in a fork; KILLED if a signal ended the fork."""
    child = os.fork()
    if child == 0:
        _run_child(run)
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else KILLED


def _run_child(run: Callable[[], int]) -> NoReturn:
    status = KILLED
    try:
        os.setsid()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        status = run()
    finally:
        os._exit(status)


def _find_code(mutant: Mutant) -> CodeType:
    module = compile(mutant.source, str(mutant.path), "exec", dont_inherit=True)
    return next(
        code
        for code in _walk(module)
        if (code.co_name, code.co_firstlineno) == (mutant.function, mutant.function_line)
    )


def _walk(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _walk(constant)


def read_accepted() -> dict[str, set[str]]:
    """Return the accepted survivors of each module, as diffs."""
    accepted: dict[str, set[str]] = {}
    for module, groups in tomllib.loads(ACCEPTED.read_text("utf-8")).items():
        for group in groups:
            assert group["reason"]
            accepted.setdefault(module, set()).update(map(str.strip, group["diffs"]))
    return accepted


def report(module: str, result: Result) -> None:
    """Print the unexpected survivors of a module, and the outdated accepted mutants."""
    for mutant in result.unexplained:
        print(f"\n# Survived in {module}, line {mutant.lines.start}:")
        print(f"'''\n{mutant.diff}\n''',")
    for diff in result.outdated:
        print(f"\n# In {ACCEPTED.name}, but not a mutant of {module}:\n{diff}")
    killed, tested, not_made = result.killed, result.tested, result.not_made
    print(f"\n{module}: {killed} of {tested} mutants killed, {not_made} not made", flush=True)


def is_fine(results: Sequence[Result], is_sample: bool) -> bool:
    tested = sum(result.tested for result in results)
    killed = sum(result.killed for result in results)
    unexplained = sum(len(result.unexplained) for result in results)
    print(f"{killed} of {tested} mutants killed, {killed / max(tested, 1):.1%}")
    if is_sample:
        # A line of an accepted mutant may have changed, and a changed time is not always noticed
        # over sockets. In a small sample, that is chance.
        return unexplained <= max(2, (1 - LOWEST_RATE) * tested)
    is_explained = not unexplained and not any(result.outdated for result in results)
    return is_explained and killed >= LOWEST_RATE * tested


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"as {next(iter(MODULES))}")
    parser.add_argument(
        "--sample",
        type=float,
        metavar="SECONDS",
        help="test random mutants of one module for so long, of another one after each commit",
    )
    arguments = parser.parse_args()
    for module in arguments.modules:
        if module not in MODULES:
            parser.error(f"{module} is none of {', '.join(MODULES)}")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    modules = arguments.modules or list(MODULES)
    seed = 0
    if arguments.sample is not None:
        count = ["git", "-C", str(TESTS), "rev-list", "--count", "HEAD"]
        seed = int(subprocess.check_output(count))
        modules = [modules[seed % len(modules)]]
    # Use the same examples for each mutant, and do not shrink those that fail.
    hypothesis.settings.register_profile(
        "mutation",
        database=None,
        deadline=None,
        derandomize=True,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("mutation")
    with tempfile.TemporaryDirectory() as folder:
        plugin = Mutation(modules, arguments.sample, seed, Path(folder))
        tests = sorted({str(TESTS / name) for module in modules for name in MODULES[module]})
        options = ["-qq", "--capture=no", f"--basetemp={folder}/tmp", f"--rootdir={TESTS.parent}"]
        # hypothesis is imported above, before its pytest plugin.
        options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
        selection = ["-m", NOT_RUN, "-k", NOT_SELECTED]
        code = pytest.main([*options, *selection, *tests], plugins=[plugin])
    if code != pytest.ExitCode.OK and code != pytest.ExitCode.NO_TESTS_COLLECTED:
        return 2
    return 0 if is_fine(plugin.results, arguments.sample is not None) else 1


if __name__ == "__main__":
    sys.exit(main())
