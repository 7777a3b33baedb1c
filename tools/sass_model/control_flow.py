"""Basic blocks, dominators and natural loops of a kernel, and the part of a loop that a role's warps run.

Blocks are numbered in address order. Calls are not followed: a called subroutine's blocks are unreachable here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.sass_model.disassembly import Instruction

_ENDS_BLOCK = {"BRA", "EXIT", "RET", "BRX", "JMP", "KILL"}


@dataclass
class Loop:
    id: str  # "L0", "L1", ... by address of the header, outer first
    header: int  # block
    blocks: frozenset[int]  # inner loops' too
    parent: Loop | None = None
    children: list[Loop] = field(default_factory=list)

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclass(frozen=True)
class Branch:
    run: frozenset[int]  # blocks that the branch's warps run
    own: frozenset[int]  # those of them that no other warps run


@dataclass
class ControlFlow:
    instructions: list[Instruction]
    blocks: list[tuple[int, int]]  # first instruction, one past the last
    successors: list[list[int]]
    reachable: set[int]
    dominators: list[set[int]]  # empty for an unreachable block
    loops: list[Loop]  # outer before inner

    def innermost(self, block: int) -> Loop | None:
        around = [loop for loop in self.loops if block in loop.blocks]
        return min(around, key=lambda loop: len(loop.blocks), default=None)

    def address(self, block: int) -> int:
        return self.instructions[self.blocks[block][0]].address

    def latches(self, loop: Loop) -> list[int]:
        """The blocks that end a round."""
        return [block for block in loop.blocks if loop.header in self.successors[block]]

    def branch(self, inside: Loop, scope: Loop | None, elsewhere: list[int]) -> Branch:
        """What warps run of `scope` (None: of the kernel) when they are the ones that enter `inside`.

        It begins at its gate: the outermost block that every path to `inside` passes, but not all to `elsewhere`.
        """
        blocks = frozenset(self.reachable) if scope is None else scope.blocks
        gates = [
            block
            for block in blocks & self.dominators[inside.header]
            if not any(block in self.dominators[other] for other in elsewhere)
        ]
        if not gates or 0 in gates:
            raise ValueError(f"all warps enter {inside.id}: it makes no role of its own")
        gate = min(gates, key=lambda block: len(self.dominators[block]))
        start = None if scope is None else scope.header
        after = _closure(gate, lambda b: [s for s in self.successors[b] if s in blocks and s != start])
        before = _closure(gate, lambda b: [p for p in blocks if b in self.successors[p]] if b != start else [])
        own = frozenset(block for block in blocks if gate in self.dominators[block])
        return Branch(frozenset(after | before), own)


def _closure(start: int, neighbours: Callable[[int], list[int]]) -> set[int]:
    seen, todo = {start}, [start]
    while todo:
        for block in neighbours(todo.pop()):
            if block not in seen:
                seen.add(block)
                todo.append(block)
    return seen


def analyse(instructions: list[Instruction]) -> ControlFlow:
    blocks = _basic_blocks(instructions)
    successors = _successors(instructions, blocks)
    reachable = _closure(0, lambda block: successors[block])
    dominators = _dominators(successors, reachable)
    loops = _natural_loops(instructions, blocks, successors, reachable, dominators)
    return ControlFlow(instructions, blocks, successors, reachable, dominators, loops)


def _basic_blocks(instructions: list[Instruction]) -> list[tuple[int, int]]:
    index = {instruction.address: n for n, instruction in enumerate(instructions)}
    leaders = {0}
    for n, instruction in enumerate(instructions):
        if instruction.base in _ENDS_BLOCK:
            if n + 1 < len(instructions):
                leaders.add(n + 1)
            if instruction.target in index:
                leaders.add(index[instruction.target])
    starts = sorted(leaders)
    return list(zip(starts, [*starts[1:], len(instructions)], strict=True))


def _successors(instructions: list[Instruction], blocks: list[tuple[int, int]]) -> list[list[int]]:
    starting_at = {instructions[first].address: n for n, (first, _) in enumerate(blocks)}
    successors = []
    for n, (_, end) in enumerate(blocks):
        last = instructions[end - 1]
        to_slow_path = ".DIV" in last.opcode  # where a divergent warp goes: not followed
        conditional = last.predicate is not None or re.match(r"!?U?P\d", last.operands) or to_slow_path
        following = []
        if last.base == "BRA" and not to_slow_path and last.target in starting_at:
            following.append(starting_at[last.target])
        if (last.base not in _ENDS_BLOCK or conditional) and n + 1 < len(blocks):
            following.append(n + 1)
        successors.append(following)
    return successors


def _predecessors(successors: list[list[int]], reachable: set[int]) -> list[list[int]]:
    predecessors: list[list[int]] = [[] for _ in successors]
    for block in reachable:
        for following in successors[block]:
            predecessors[following].append(block)
    return predecessors


def _dominators(successors: list[list[int]], reachable: set[int]) -> list[set[int]]:
    predecessors = _predecessors(successors, reachable)
    dominators = [set(reachable) if block in reachable else set() for block in range(len(successors))]
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in sorted(reachable - {0}):
            new = set.intersection(*(dominators[p] for p in predecessors[block])) | {block}
            if new != dominators[block]:
                dominators[block], changed = new, True
    return dominators


def _natural_loops(
    instructions: list[Instruction],
    blocks: list[tuple[int, int]],
    successors: list[list[int]],
    reachable: set[int],
    dominators: list[set[int]],
) -> list[Loop]:
    predecessors = _predecessors(successors, reachable)
    bodies: dict[int, set[int]] = {}
    for latch in reachable:
        for header in successors[latch]:
            first, end = blocks[latch]
            endless = header == latch and end - first == 1 and instructions[first].predicate is None  # after EXIT
            if header not in dominators[latch] or endless:
                continue
            body = bodies.setdefault(header, {header})
            todo = [latch]
            while todo:
                block = todo.pop()
                if block not in body:
                    body.add(block)
                    todo += predecessors[block]
    headers = sorted(bodies, key=lambda header: (blocks[header][0], -len(bodies[header])))
    loops = [Loop(f"L{n}", header, frozenset(bodies[header])) for n, header in enumerate(headers)]
    for loop in loops:
        around = [other for other in loops if loop.blocks < other.blocks]
        loop.parent = min(around, key=lambda other: len(other.blocks), default=None)
        if loop.parent is not None:
            loop.parent.children.append(loop)
    return loops
