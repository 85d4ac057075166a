"""Estimates the size and the time of a compiled program from its text (XLA's HLO)."""

import re

# Instructions for which nothing is executed.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_CONTROL = {"while", "conditional", "call"}  # their computations are counted instead


def count_kernels(program: str) -> int:
    """Counts the instructions of a compiled program that are executed, each once.

    An instruction in the body of a loop counts once, because it is compiled once. On a CPU each
    takes about as long to compile as any other; on a GPU each is a launch.

    Args:
      program: Text of the compiled program.
    """
    computations, _ = _computations(program)
    inside = set(re.findall(r"calls=%?([\w.-]+)", program))  # inside fusions
    for line in program.splitlines():
        if " call(" not in line:  # the functions of reductions and sorts
            inside.update(re.findall(r"to_apply=%?([\w.-]+)", line))
    count = 0
    for name in computations.keys() - inside:
        for line in computations[name][1:]:
            found = re.match(r"\s+(?:ROOT )?%?[\w.-]+ = (?:\(.*?\)|\S+) ([\w-]+)\(", line)
            count += bool(found and found[1] not in _FREE | _CONTROL)
    return count


def count_cycles(program: str) -> int:
    """Sums the compiler's estimates of cycles over a program, with repetitions of loops.

    The number of iterations of a loop is the constant in its condition, or 1 if there is none. All
    branches of a conditional are counted.

    Args:
      program: Text of the compiled program.
    """
    computations, entry = _computations(program)

    def iterations(condition: str) -> int:
        constants = re.findall(r"constant\((\d+)\)", "\n".join(computations[condition]))
        return int(constants[0]) if len(constants) == 1 else 1

    def count(name: str) -> int:
        total = 0
        for line in computations[name]:
            cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
            total += int(cycles[1]) if cycles else 0
            loop = re.search(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)", line)
            if loop:
                total += iterations(loop[1]) * count(loop[2])
            for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
                total += sum(count(branch.strip(" %")) for branch in branches.split(","))
            for branch in re.findall(r"(?:true|false)_computation=%?([\w.-]+)", line):
                total += count(branch)
            called = re.search(r" call\(.*to_apply=%?([\w.-]+)", line)
            total += count(called[1]) if called else 0
        return total

    return count(entry)


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation by its name, and the name of the first one to run."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in program.splitlines():
        begins = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if begins:
            lines = computations[begins[2]] = []
            entry = begins[2] if begins[1] else entry
        lines.append(line)
    return computations, entry
