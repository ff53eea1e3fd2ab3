"""Mutation testing: `python tests/mutation.py [MODULE...]`.

Each mutant of a module (`mutants.py`) runs the tests that execute the changed line. It is killed if
a test fails or takes much longer than without the change, or if mypy rejects the change. The
command fails if less than 90 % of the mutants are killed, or if a mutant survives that
`mutants_accepted.toml` does not list.

Tests over sockets may fail on a busy machine, and some mutants are killed only by chance. Therefore
a test that fails runs again, and a survivor is tested again. The listed mutants count as survivors:
since each takes the time of many others, they are only tested with `--listed`.

Mutants are not written to files. The tests are collected once, and each mutant runs in a fork in
which the function has the changed code. A mutant costs little more than its tests.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import gc
import mmap
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

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
    "_core/compat.py": ("_core/test_compat.py",),
    "_core/deadline.py": ("_core/test_deadline.py",),
    "_core/endpoint.py": ("_core/test_endpoint.py",),
    "_core/errors.py": ("_core/test_errors.py", "_core/test_response.py"),
    "_core/fields.py": ("_core/test_fields.py",),
    "_core/messages.py": ("_core/test_messages.py",),
    "_core/observers.py": ("_core/test_observers.py",),
    "_core/options.py": ("_core/test_options.py",),
    "_core/redaction.py": ("_core/test_redaction.py",),
    "_core/request.py": ("_core/test_request.py",),
    "_core/response.py": ("_core/test_response.py",),
    "_core/retry.py": ("_core/test_retry.py",),
    "_core/secrets.py": ("_core/test_secrets.py",),
    "_http/callers.py": ("_http/test_callers.py",),
    "_http/clients.py": ("_http/test_clients.py",),
    "_http/framing.py": ("_http/test_framing.py",),
    "_http/libraries.py": ("_http/test_libraries.py",),
    "_http/logs.py": _NETWORK,
    "_http/no_proxy.py": ("_http/test_no_proxy.py",),
    "_http/proxies.py": ("_http/test_proxies.py",),
    "_http/queues.py": ("_http/test_queues.py",),
    "_http/resolver.py": ("_http/test_resolver.py",),
    "_http/slots.py": ("_http/test_slots.py",),
    "_http/sockets.py": ("_http/test_sockets.py",),
    "_http/tracebacks.py": ("_http/test_tracebacks.py",),
    "_http/translate.py": ("_http/test_translate.py",),
    "_async/client.py": _NETWORK,
    "_async/concurrency.py": _NETWORK,
    "_async/connection.py": _NETWORK,
    "_async/iterators.py": _NETWORK,
    "_async/network.py": _NETWORK,
    "_async/pool.py": _NETWORK,
    "_async/session.py": _NETWORK,
    "_async/socket_reader.py": _NETWORK,
    "_async/stream.py": _NETWORK,
    "_async/transport.py": _NETWORK,
    "_async/upgrade.py": _NETWORK,
}

SURVIVED, KILLED, NOT_MADE, BROKEN = range(4)
MARKS = {SURVIVED: "?", KILLED: ".", NOT_MADE: "-"}

# A sample tests at least this many mutants, for up to twice its time.
SMALLEST_SAMPLE = 20


@dataclass
class Result:
    mutants: list[Mutant]
    accepted: set[str]
    not_made: int = 0
    killed: list[Mutant] = field(default_factory=list)
    survivors: list[Mutant] = field(default_factory=list)

    @property
    def tested(self) -> int:
        return len(self.killed) + len(self.survivors)

    @property
    def unexplained(self) -> list[Mutant]:
        """The survivors that are not accepted, in the order of their lines."""
        survivors = sorted(self.survivors, key=lambda mutant: mutant.lines.start)
        return [mutant for mutant in survivors if mutant.diff not in self.accepted]

    @property
    def unique(self) -> set[str]:
        """The changes that one line alone has. The same change of another one may be killed."""
        counts = Counter(mutant.diff for mutant in self.mutants)
        return {diff for diff, count in counts.items() if count == 1}

    @property
    def outdated(self) -> set[str]:
        """The accepted mutants that are not mutants, since the code has changed."""
        return self.accepted - {mutant.diff for mutant in self.mutants}


@dataclass
class Baseline:
    """The results of the tests without a mutant."""

    durations: dict[str, float] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    tests: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    """For each file and line, the tests that execute it."""


class Tracer:
    """Records the lines that are executed in some files.

    coverage does not record what a coroutine executes after an exception has resumed it, as a
    timeout does: up to Python 3.11, there is no event for it. A trace function in Python is called
    for these lines.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self._files = set(files)
        self.lines: set[tuple[str, int]] = set()

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._trace_lines if frame.f_code.co_filename in self._files else None

    def _trace_lines(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._trace_lines


@dataclass(frozen=True)
class Trial:
    """A mutant, and the tests that may kill it, each with a time limit."""

    mutant: Mutant
    tests: Sequence[pytest.Item]
    limits: Sequence[float]
    number: int
    is_accepted: bool
    _shared: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, mmap.PAGESIZE))

    @property
    def last(self) -> int:
        """The index of the last test that has started. Processes share it."""
        return int.from_bytes(self._shared[:4], "little")

    def set_last(self, index: int) -> None:
        self._shared[:4] = index.to_bytes(4, "little")


class Mutation:
    """A plugin that tests mutants instead of the modules themselves."""

    def __init__(
        self, modules: Sequence[str], arguments: argparse.Namespace, seed: int, folder: Path
    ) -> None:
        self._modules = modules
        self._sample: float | None = arguments.sample
        self._jobs: int = arguments.jobs
        self._tests_listed: bool = arguments.listed
        self._random = random.Random(seed)
        self._folder = folder
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
        self._find_functions()
        baseline = self._measure(session.items)
        for name in sorted(baseline.failed):
            print(f"{name} fails without a mutant, and is left out")
        # Frozen objects are shared with the forks, because the garbage collector does not touch
        # them.
        gc.collect()
        gc.freeze()
        for module in self._modules:
            result = self._test_module(module, session.items, baseline)
            self.results.append(result)
            report(module, result)
        return True

    def _test_module(self, module: str, items: list[pytest.Item], baseline: Baseline) -> Result:
        path = PACKAGE / module
        result = Result(find_mutants(path), read_accepted().get(module, set()))
        assert self._passes_mypy(path, path.read_text("utf-8"), 0)
        folders = [TESTS / name for name in MODULES[module]]
        items = [
            item
            for item in items
            if any(item.path.is_relative_to(at) for at in folders)
            and item.nodeid not in baseline.failed
        ]
        own = f"test_{path.name}"
        items.sort(key=lambda item: (item.path.name != own, baseline.durations[item.nodeid]))
        mutants = list(result.mutants)
        if not self._tests_listed:
            left_out = result.accepted & result.unique
            if self._sample is None:
                result.survivors += [mutant for mutant in mutants if mutant.diff in left_out]
            mutants = [mutant for mutant in mutants if mutant.diff not in left_out]
        self._random.shuffle(mutants)
        # A test that has killed a mutant of a function runs first for the next one.
        kills: Counter[tuple[int, str]] = Counter()
        started = time.monotonic()
        running: dict[int, Trial] = {}
        for number, mutant in enumerate(mutants, 1):
            if self._is_over(time.monotonic() - started, number - 1):
                break
            lines = ((str(path), line) for line in mutant.lines)
            names = set().union(*(baseline.tests.get(line, ()) for line in lines))
            tests = [item for item in items if item.nodeid in names]
            killed = {test: kills[mutant.function_line, test.nodeid] for test in tests}
            tests.sort(key=killed.__getitem__, reverse=True)
            limits = [2 + 10 * baseline.durations[test.nodeid] for test in tests]
            trial = Trial(mutant, tests, limits, number, mutant.diff in result.accepted)
            running[_start(functools.partial(self._judge, trial))] = trial
            if len(running) == self._jobs:
                self._collect(running, result, kills)
        while running:
            self._collect(running, result, kills)
        print()
        return result

    def _is_over(self, seconds: float, tested: int) -> bool:
        if self._sample is None:
            return False
        return seconds > self._sample * (1 if tested >= SMALLEST_SAMPLE else 2)

    def _collect(
        self, running: dict[int, Trial], result: Result, kills: Counter[tuple[int, str]]
    ) -> None:
        """Wait for the end of one of the trials."""
        child, code = os.wait()
        trial = running.pop(child)
        mutant = trial.mutant
        status = os.waitstatus_to_exitcode(code)
        if status not in MARKS:
            raise RuntimeError(f"testing this mutant failed:\n{mutant.diff}")
        if status == NOT_MADE:
            result.not_made += 1
        elif status == KILLED:
            result.killed.append(mutant)
            if trial.last < len(trial.tests):
                kills[mutant.function_line, trial.tests[trial.last].nodeid] += 1
        else:
            result.survivors.append(mutant)
        print(MARKS[status], end="", flush=True)

    def _judge(self, trial: Trial) -> int:
        """In a process of its own."""
        try:
            status = self._confirm(trial)
            if status != SURVIVED:
                return status
            # What follows is not the success of a test.
            trial.set_last(len(trial.tests))
            if not self._passes_mypy(trial.mutant.path, trial.mutant.source, trial.number):
                return KILLED
            return SURVIVED if trial.is_accepted else self._confirm(trial)
        except Exception:
            traceback.print_exc()
            return BROKEN

    def _confirm(self, trial: Trial) -> int:
        """Run the tests. One that fails runs again by itself; if it passes, all run again."""
        failed: set[int] = set()
        while True:
            status = self._fork(trial, range(len(trial.tests)))
            if status != KILLED:
                return status
            index = trial.last
            if index in failed:
                return KILLED
            failed.add(index)
            if self._fork(trial, range(index, min(index + 1, len(trial.tests)))) == KILLED:
                return KILLED

    def _fork(self, trial: Trial, indices: range) -> int:
        return _run_in_session(functools.partial(self._test_mutant, trial, indices))

    def _test_mutant(self, trial: Trial, indices: range) -> int:
        """In a process of its own, too, which may end in the middle of a test."""
        mutant = trial.mutant
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
        for index in indices:
            trial.set_last(index)
            signal.setitimer(signal.ITIMER_REAL, trial.limits[index])
            test = trial.tests[index]
            following = trial.tests[index + 1] if index + 1 in indices else None
            test.ihook.pytest_runtest_protocol(item=test, nextitem=following)
            if self._failed:
                return KILLED
        return SURVIVED

    def _passes_mypy(self, path: Path, source: str, number: int) -> bool:
        changed = self._folder / f"{number}-{path.name}"
        # mypy treats a file of the same size as unchanged.
        changed.write_text(source + f"#{'.' * 1000 * number}\n", "utf-8")
        mypy = [sys.executable, "-m", "mypy", "--cache-dir", ".mypy_cache/mutants"]
        command = [*mypy, "--shadow-file", str(path), str(changed), str(path)]
        with (self._folder / "mypy.lock").open("w") as lock:
            # The mutants that are tested at the same time share the cache.
            fcntl.flock(lock, fcntl.LOCK_EX)
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
        """Run the tests without a mutant. Those that fail run again, up to three times."""
        report = self._folder / "baseline"
        baseline = Baseline()

        def measure() -> int:
            tracer = Tracer(str(PACKAGE / module) for module in self._modules)
            threading.settrace(tracer.trace)
            measured = Baseline()
            for test, following in zip(items, [*items[1:], None], strict=True):
                self._clear_caches()
                # A test may have replaced it.
                sys.settrace(tracer.trace)
                start = time.monotonic()
                test.ihook.pytest_runtest_protocol(item=test, nextitem=following)
                measured.durations[test.nodeid] = time.monotonic() - start
                # Other threads may still add lines.
                lines, tracer.lines = tracer.lines, set()
                for line in list(lines):
                    measured.tests.setdefault(line, set()).add(test.nodeid)
            measured.failed.update(self._failed)
            report.write_bytes(pickle.dumps(measured))
            return SURVIVED

        for _ in range(3):
            if _run_in_session(measure) != SURVIVED:
                raise RuntimeError("the tests cannot be run")
            measured = pickle.loads(report.read_bytes())
            baseline.durations |= measured.durations
            baseline.failed = measured.failed
            for line, names in measured.tests.items():
                baseline.tests.setdefault(line, set()).update(names)
            items = [item for item in items if item.nodeid in measured.failed]
            if not items:
                break
        return baseline


def _start(run: Callable[[], int]) -> int:
    """Return the process ID of a fork, which exits with the result of a function."""
    child = os.fork()
    if child == 0:
        status = BROKEN
        try:
            status = run()
        finally:
            os._exit(status)
    return child


def _run_in_session(run: Callable[[], int]) -> int:
    """Run tests in a fork, and end the processes that they leave. KILLED if they cannot be run."""

    def run_alone() -> int:
        os.setsid()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        return run()

    child = _start(run_alone)
    try:
        _, code = os.waitpid(child, 0)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(code)
    return status if status in MARKS else KILLED


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
    for mutant in result.killed:
        if mutant.diff in result.accepted and mutant.diff in result.unique:
            print(f"\n# In {ACCEPTED.name}, but killed, in {module}:\n{mutant.diff}")
    killed, tested = len(result.killed), result.tested
    print(
        f"\n{module}: {killed} of {tested} mutants killed, {result.not_made} not made", flush=True
    )


def is_fine(results: Sequence[Result], is_sample: bool) -> bool:
    tested = sum(result.tested for result in results)
    killed = sum(len(result.killed) for result in results)
    unexplained = sum(len(result.unexplained) for result in results)
    print(f"{killed} of {tested} mutants killed, {killed / max(tested, 1):.1%}")
    if is_sample:
        return not unexplained
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
    parser.add_argument(
        "--listed",
        action="store_true",
        help=f"also test the mutants of {ACCEPTED.name}, and name those that are killed",
    )
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (1)")
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
        plugin = Mutation(modules, arguments, seed, Path(folder))
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
