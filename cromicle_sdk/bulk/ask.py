"""A callable for systems that process batches of rows, such as Ray Data and Spark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from cromicle_sdk import AsyncClient, Client, ConfigurationError, CromicleError, Messages, Reply

from .options import DEFAULT_LIMIT, DEFAULT_PATIENCE, BulkOptions, dump_client
from .process import Setup, run_shard
from .prompts import Outcome, Prompt, check_prompts

__all__ = ["Ask"]


class Ask:
    """A callable that sends the prompts of a batch and returns the batch with the replies.

    ```python
    dataset.map_batches(Ask(client), batch_format="pandas")             # Ray Data
    frame.mapInPandas(Ask(client), "prompt string, reply string, error string")     # Spark
    ```

    A batch is a pandas `DataFrame` or a mapping of columns, such as Ray Data's dict of arrays. The
    result is a new batch with two additional columns: `reply`, the text, and `error`, the type and
    message of the error. In each row, one of them is None. For an iterator of batches, which Spark
    passes, the result is an iterator of such batches. For any other iterable of prompts, it is a
    list of `Reply | CromicleError`.

    `column`, `reply` and `error` are the names of the columns. `client`, `limit` and `patience` are
    as in `bulk`. Each process has one client for all batches, until it exits.

    It can be pickled. The pickle contains the options of the client, including the token.

    Raises `ConfigurationError`, which names the option. A call raises it for a `str`, which is a
    single prompt and not a batch, and raises `CromicleError` if the column is missing.
    """

    def __init__(
        self,
        client: Client | AsyncClient | None = None,
        *,
        limit: int = DEFAULT_LIMIT,
        patience: float = DEFAULT_PATIENCE,
        column: str = "prompt",
        reply: str = "reply",
        error: str = "error",
    ) -> None:
        names: dict[str, object] = {"column": column, "reply": reply, "error": error}
        for option, name in names.items():
            if not isinstance(name, str) or list(names.values()).count(name) > 1:
                raise ConfigurationError(
                    "expected a str that differs from the names of the other columns", option=option
                )
        self._column, self._reply, self._error = column, reply, error
        self._setup = Setup(dump_client(client), BulkOptions(limit, patience=patience))

    def __call__(self, batch: Any) -> Any:
        """Return the batch with the replies, in the order of its rows. Raises `CromicleError`."""
        if isinstance(batch, Iterator):
            return map(self, cast("Any", batch))
        if hasattr(batch, "assign"):
            return batch.assign(**self._answer_column(batch))
        if isinstance(batch, Mapping):
            return {**cast("Mapping[str, Any]", batch), **self._answer_column(batch)}
        check_prompts(batch)
        return self._answer(batch)

    def _answer_column(self, batch: Any) -> dict[str, list[str | None]]:
        try:
            prompts = batch[self._column]
        except KeyError:
            raise CromicleError(
                f"The batch has no column {self._column!r}", hint="pass its name as column="
            ) from None
        outcomes = self._answer(prompts)
        return {
            self._reply: [each.text if isinstance(each, Reply) else None for each in outcomes],
            self._error: [
                f"{type(each).__name__}: {each}" if isinstance(each, CromicleError) else None
                for each in outcomes
            ],
        }

    def _answer(self, prompts: Iterable[Prompt | Messages]) -> list[Outcome]:
        shard = [(index, Prompt.of(prompt)) for index, prompt in enumerate(prompts)]
        outcomes = dict(run_shard(self._setup, shard)) if shard else {}
        return [outcomes[index] for index in range(len(shard))]

    def __repr__(self) -> str:
        return f"<Ask for the column {self._column!r}>"
