"""Language models with known replies, as files for llama.cpp.

The last character of the prompt selects a script, which the model replies with, one piece per
token. A piece determines the next one, so it may occur only once in all scripts. A piece may be any
bytes, including a part of a character.

The model is a Llama with one block whose attention and feed-forward layers are zero, so the output
depends only on the embedding of the last token. Embeddings are one-hot, and the column of a token
in the output matrix has the weights of the tokens that may follow it.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping, Sequence

__all__ = ["Script", "build_model", "cut", "say"]

# The weights of the pieces that may follow each piece, which may include END.
Script = Mapping[bytes, Mapping[bytes, float]]

END = b""

# Ends with the last character of the last message, and marks reasoning for llama.cpp.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ messages[-1].content[-1:] }}{% endif %}"
)

CONTEXT_LENGTH = 1 << 20
# The width of the attention and feed-forward layers, which are zero.
WIDTH = 32

# The numbers of types in the file format.
INT32, UINT32, FLOAT32, BOOL, STRING, ARRAY = 5, 4, 6, 7, 8, 9
F32_TENSOR, F16_TENSOR = 0, 1
NORMAL_TOKEN, CONTROL_TOKEN = 1, 3
ALIGNMENT = 32

Value = bool | int | float | str | Sequence[int] | Sequence[str]
Tensor = tuple[str, tuple[int, ...], int, bytes]


def say(selector: str, *pieces: bytes, endless: bool = False) -> Script:
    """Build the script of a prompt that ends with `selector`. If `endless`, it repeats."""
    steps = [selector.encode(), *pieces, pieces[0] if endless else END]
    script = {piece: {following: 1.0} for piece, following in itertools.pairwise(steps)}
    if len(script) <= len(pieces):
        raise ValueError(f"a piece occurs twice in the script {selector!r}")
    return script


def cut(text: str, size: int) -> list[bytes]:
    """Split a text into pieces of `size` bytes, which may split characters."""
    data = text.encode()
    return [data[start : start + size] for start in range(0, len(data), size)]


def build_model(*scripts: Script, merges: int = 0) -> bytes:
    """Build a file in the format GGUF, version 3.

    `merges` is the number of tokenizer rules, for characters that no prompt has. They make the
    model slow to load: half a million rules take one or two seconds.
    """
    script = _join(scripts)
    pieces = [bytes([byte]) for byte in range(256)]
    followers = {piece for weights in script.values() for piece in weights}
    pieces += sorted((followers | script.keys()) - {END} - set(pieces))
    tokens = [*pieces, END]
    return _build_file(_describe(tokens, merges), _build_tensors(tokens, script))


def _join(scripts: Sequence[Script]) -> Script:
    joined: dict[bytes, Mapping[bytes, float]] = {}
    for script in scripts:
        if not joined.keys().isdisjoint(script):
            raise ValueError(f"pieces occur in two scripts: {joined.keys() & script.keys()}")
        joined.update(script)
    return joined


def _describe(tokens: list[bytes], merges: int) -> dict[str, Value]:
    """Build the metadata. With the byte vocabulary of GPT-2, each byte of a prompt is a token."""
    letters = _name_bytes()
    return {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": CONTEXT_LENGTH,
        "llama.embedding_length": len(tokens),
        "llama.feed_forward_length": WIDTH,
        "llama.attention.head_count": 1,
        "llama.attention.key_length": WIDTH,
        "llama.attention.value_length": WIDTH,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.rope.dimension_count": WIDTH,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [
            "".join(letters[byte] for byte in token) or "<|end|>" for token in tokens
        ],
        "tokenizer.ggml.token_type": [
            CONTROL_TOKEN if token == END else NORMAL_TOKEN for token in tokens
        ],
        # At least one is required.
        "tokenizer.ggml.merges": [f"\u4e00{number} \u4e00" for number in range(merges + 1)],
        "tokenizer.ggml.eos_token_id": tokens.index(END),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _name_bytes() -> list[str]:
    """Return the character that represents each byte in the vocabulary of GPT-2."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _build_tensors(tokens: list[bytes], script: Script) -> list[Tensor]:
    size = len(tokens)
    numbers = {token: number for number, token in enumerate(tokens)}
    embeddings = {(number, number): 1.0 for number in range(size)}
    # The reply ends after a token that is in no script.
    output = {
        (numbers[following], number): weight
        for token, number in numbers.items()
        for following, weight in script.get(token, {END: 1.0}).items()
    }
    ones = struct.pack("<f", 1.0) * size
    zeros = bytes(2 * size * WIDTH)
    into, out_of = (size, WIDTH), (WIDTH, size)
    return [
        ("token_embd.weight", (size, size), F16_TENSOR, _build_matrix(size, embeddings)),
        ("blk.0.attn_norm.weight", (size,), F32_TENSOR, ones),
        ("blk.0.attn_q.weight", into, F16_TENSOR, zeros),
        ("blk.0.attn_k.weight", into, F16_TENSOR, zeros),
        ("blk.0.attn_v.weight", into, F16_TENSOR, zeros),
        ("blk.0.attn_output.weight", out_of, F16_TENSOR, zeros),
        ("blk.0.ffn_norm.weight", (size,), F32_TENSOR, ones),
        ("blk.0.ffn_gate.weight", into, F16_TENSOR, zeros),
        ("blk.0.ffn_up.weight", into, F16_TENSOR, zeros),
        ("blk.0.ffn_down.weight", out_of, F16_TENSOR, zeros),
        ("output_norm.weight", (size,), F32_TENSOR, ones),
        ("output.weight", (size, size), F16_TENSOR, _build_matrix(size, output)),
    ]


def _build_matrix(size: int, values: Mapping[tuple[int, int], float]) -> bytes:
    """Build a square matrix with these values at (row, column) and zeros elsewhere."""
    matrix = bytearray(2 * size * size)
    for (row, column), value in values.items():
        struct.pack_into("<e", matrix, 2 * (row * size + column), value)
    return bytes(matrix)


def _build_file(metadata: Mapping[str, Value], tensors: list[Tensor]) -> bytes:
    header = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        header += [_pack_text(key), _pack_value(value)]
    contents: list[bytes] = []
    offset = 0
    for name, shape, kind, data in tensors:
        place = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        header += [_pack_text(name), place]
        contents.append(_pad(data))
        offset += len(contents[-1])
    return _pad(b"".join(header)) + b"".join(contents)


def _pack_value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _pack_text(value)
    kind = STRING if isinstance(value[0], str) else INT32
    items = b"".join(map(_pack_item, value))
    return struct.pack("<IIQ", ARRAY, kind, len(value)) + items


def _pack_item(item: int | str) -> bytes:
    return _pack_text(item) if isinstance(item, str) else struct.pack("<i", item)


def _pack_text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
