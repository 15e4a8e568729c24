"""Look through the opcodes of a pickle for what takes memory or crashes while it is loaded.

What it names is another matter: an unpickler with a list of admitted names refuses that.
"""

from __future__ import annotations

import pickletools
from typing import Final

MAX_OPCODES = 4_000_000
"""Of CIFAR's files the largest has some 300,000."""
MAX_MEMO = 2**20
"""Python's table of remembered objects is as long as the largest number in it."""
_MARK: Final = "mark"
_TUPLE: Final = "tuple"
_OTHER: Final = "other"
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
# Sets hash what is in them; data of CIFAR has none.
_REFUSED = frozenset({"EMPTY_SET", "ADDITEMS", "FROZENSET"})


class OversizedPickleError(ValueError):
    """A pickle that could take far more than its size."""


def require_small(content: bytes) -> None:
    """Refuse a pickle that could take far more memory or time than its size.

    A tuple as a key is refused: its hash descends into tuples in tuples without a bound, in
    depth, which ends the process, and in number.

    Args:
        content: The pickle.

    Raises:
        OversizedPickleError: If it is refused.
        Exception: Any other, if it is damaged.
    """
    stack: list[str] = []
    memo: dict[int, str] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        if number >= MAX_OPCODES or name in _REFUSED:
            raise OversizedPickleError("more than a batch of images")
        if name in _PUTS or name == "MEMOIZE":
            place = len(memo) if name == "MEMOIZE" else int(str(argument))
            if place > MAX_MEMO:
                raise OversizedPickleError(f"it remembers an object under number {place}")
            memo[place] = stack[-1]
        elif name in _GETS:
            stack.append(memo[int(str(argument))])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP":
            stack.pop()
        else:
            _apply(opcode, stack)


def _apply(opcode: pickletools.OpcodeInfo, stack: list[str]) -> None:
    """Do to the stack what an opcode does, as far as kinds of objects go."""
    before, taken = list(opcode.stack_before), []
    if pickletools.stackslice in before:
        mark = len(stack) - 1 - stack[::-1].index(_MARK)
        taken = stack[mark + 1 :]
        del stack[mark:]
        before = before[: before.index(pickletools.markobject)]
    if opcode.name in ("SETITEM", "SETITEMS", "DICT"):
        keys = stack[-2:-1] if opcode.name == "SETITEM" else taken[::2]
        if _TUPLE in keys:
            raise OversizedPickleError("a key that is no text")
    if len(before) > len(stack):
        raise OversizedPickleError("it takes more than there is")
    rest = len(stack) - len(before)
    kept = stack[rest : rest + 1]
    del stack[rest:]
    kind = _TUPLE if opcode.name in _TUPLES else _MARK if opcode.name == "MARK" else _OTHER
    if opcode.name == "BUILD":
        kind = kept[0]
    stack += [kind] * len(opcode.stack_after)
